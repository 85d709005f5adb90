"""Systems trained once and evaluated under every missing-modality pattern.

Sources: H-GEM (Computer Systems & Applications 2026, 35(3)), figures 4 and 5; MoMKE
(ACM MM 2024), its seven conditions.
"""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msa_jax import models
from msa_jax.config.experiment import Experiment
from msa_jax.studies import catalogue, missing, runner
from msa_jax.studies.changes import changed

GRIDS = "conditions,random"


def trials(
  configs: Sequence[Experiment], files: Sequence[str] = ()
) -> list[runner.Trial]:
  """Every system on every file, and its `robustness` runs (H-GEM, figure 5)."""
  made = []
  for trial in catalogue.leaderboard(configs, files):
    made.append(trial._replace(group=trial.name))
    for name, changes in models.get(trial.config.system).robustness.items():
      own = f"{trial.name}_{name}"
      made.append(runner.Trial(own, changed(trial.config, changes), group=own))
  return made


def study(
  configs: Sequence[Experiment],
  files: Sequence[str],
  workdir: str | pathlib.Path,
  wanted: str = GRIDS,
) -> dict[str, dict[str, Any]]:
  """Trains every system and evaluates it under all patterns of some grids.

  Args:
    configs: unresolved, one per system.
    files: data files; none = each config's own.
    workdir: folder of the study; gets `<trial>/` (each with the grids' own files under
      `missing/`) and `study.csv`, whose lines have the grid in `axis` and the
      condition or rate in `x`.
    wanted: what `data.missing.grids` reads.

  Returns:
    Trial -> contents of its summary.json.

  Raises:
    UserError: bad input, or a pattern that does not fit the data.
  """

  def measure(folder: pathlib.Path, summary: Mapping[str, Any]) -> list[runner.Line]:
    del summary
    return list(lines(missing.grid(folder, wanted)))

  made = trials(configs, files)
  return runner.run_trials("missing", made, workdir, measure, key=wanted)


def lines(report: Mapping[str, Any]) -> Iterator[runner.Line]:
  """Lines of study.csv for the grids of one run.

  Args:
    report: from `missing.grid`.
  """
  for entry, rows in report["grids"].items():
    of_rates = len({row["rate"] for row in rows}) > 1
    for row in rows:
      about = {"axis": f"missing: {entry}", "split": report["split"]}
      about["x"] = row["rate"] if of_rates else row["pattern"]
      for task, figures in row["figures"].items():
        yield from runner.lines_of(figures, report["seeds"], task=task, **about)
