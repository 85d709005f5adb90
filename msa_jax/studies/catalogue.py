"""Studies as data: which trials each one has.

Source: H-GEM (Computer Systems & Applications 2026, 35(3)), tables 2 and 4.
"""

import pathlib
from collections.abc import Sequence

from msa_jax import models
from msa_jax.config.experiment import Experiment
from msa_jax.studies.changes import changed
from msa_jax.studies.runner import Trial

SHARES = (0.1, 0.2, 0.5, 1.0)

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
    for name, config in _on_each_file(configs, files)
    for share in SHARES
  ]


def router_compare(configs: Configs, files: Sequence[str] = ()) -> list[Trial]:
  """A system's ways to combine experts, and other systems with gates (H-GEM Tables 2
  and 3)."""
  trials = []
  for name, config in _on_each_file(configs, files):
    variants = models.get(config.system).router_variants
    trials += [
      Trial(f"{name}_{kind}", changed(config, changes))
      for kind, changes in variants.items()
    ] or [Trial(name, config)]
  return trials


def leaderboard(configs: Configs, files: Sequence[str] = ()) -> list[Trial]:
  """Every system on every data file; seeds are `config.replicas.seeds` of each.

  Args:
    configs: one per system.
    files: data files; none = each config's own.
  """
  return [Trial(name, config) for name, config in _on_each_file(configs, files)]


def _on_each_file(
  configs: Configs, files: Sequence[str]
) -> list[tuple[str, Experiment]]:
  """Names and configs of the trials of `leaderboard`."""
  found = []
  for config in configs:
    for file in files or ("",):
      path = file or config.data.path
      stem = pathlib.Path(path).stem if path else "synthetic"
      own = changed(config, {"data.path": path})
      found.append((f"{config.system}_{stem}", own))
  return found


STUDIES = {
  "low_resource": low_resource,
  "router_compare": router_compare,
  "leaderboard": leaderboard,
}
