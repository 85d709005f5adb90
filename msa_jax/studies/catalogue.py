"""Studies as data: which trials each one has.

Sources: H-GEM (Computer Systems & Applications 2026, 35(3)), tables 2 and 4; DERL
(2024, 33(4)), figure 5.
"""

import pathlib
from collections.abc import Sequence

from msa_jax.config.experiment import Experiment
from msa_jax.studies.ablation import changed
from msa_jax.studies.runner import Trial

SHARES = (0.1, 0.2, 0.5, 1.0)
LAYERS = range(1, 7)
ROUTERS = ("average", "fixed", "single", "multi")

Configs = Sequence[Experiment]


def low_resource(configs: Configs, files: Sequence[str] = ()) -> list[Trial]:
  """Every system on shares of its training split (H-GEM Table 4)."""
  return [
    Trial(
      f"{name}_{round(100 * share)}",
      changed(config, {"data.train_fraction": share}),
      group=name,
      axis="share of the training split",
      x=share,
    )
    for name, config in leaderboard(configs, files, named=True)
    for share in SHARES
  ]


def layers(configs: Configs, files: Sequence[str] = ()) -> list[Trial]:
  """Every system with 1 to 6 encoder layers (DERL Figure 5).

  Raises:
    UserError: a system without `config.model.num_layers`.
  """
  return [
    Trial(
      f"{name}_{count}",
      changed(config, {"model.num_layers": count}),
      group=name,
      axis="encoder layers",
      x=float(count),
    )
    for name, config in leaderboard(configs, files, named=True)
    for count in LAYERS
  ]


def router_compare(configs: Configs, files: Sequence[str] = ()) -> list[Trial]:
  """H-GEM's ways to combine experts, and other systems with gates (Tables 2 and 3)."""
  trials = []
  for name, config in leaderboard(configs, files, named=True):
    if config.system == "hgem":
      trials += [
        Trial(f"{name}_{kind}", changed(config, {"model.fusion": kind}))
        for kind in ROUTERS
      ]
    else:
      trials.append(Trial(name, config))
  return trials


def leaderboard(configs: Configs, files: Sequence[str] = (), named: bool = False):
  """Every system on every data file; seeds are `config.replicas.seeds` of each.

  Args:
    configs: one per system.
    files: data files; none = each config's own.
    named: return (name, config) in place of trials.
  """
  found = []
  for config in configs:
    for file in files or ("",):
      path = file or config.data.path
      stem = pathlib.Path(path).stem if path else "synthetic"
      own = changed(config, {"data.path": path})
      found.append((f"{config.system}_{stem}", own))
  return found if named else [Trial(name, config) for name, config in found]


STUDIES = {
  "low_resource": low_resource,
  "layers": layers,
  "router_compare": router_compare,
  "leaderboard": leaderboard,
}
