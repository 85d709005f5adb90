"""The runner that all studies share: trials -> runs in folders -> one tidy csv.

A study is data: a list of trials, each a config with a name. Running the same study
again goes on where it stopped: finished trials are read, the one that was interrupted
is resumed by its own checkpoints.
"""

import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from absl import logging

from msa_jax.config.experiment import Experiment, to_json
from msa_jax.errors import UserError
from msa_jax.names import held_out_split
from msa_jax.runs import prediction_files, run
from msa_jax.training import loop
from msa_jax.training.run_directory import RunDirectory

_DONE = "trial.json"
_MEASURED = "measured.json"
Line = dict[str, Any]


class Trial(NamedTuple):
  """One run of a study.

  Attributes:
    name: of its folder, unique in the study.
    config: unresolved.
    group: the line it belongs to in a figure; "" = none.
    axis: what `x` is; "" = the trial has no place on an axis.
    x: its place there.
  """

  name: str
  config: Experiment
  group: str = ""
  axis: str = ""
  x: float = 0.0


# What a study measures of a trained trial: its folder and summary -> lines of the csv,
# at least `task`, `metric`, `seed` and `value`; other columns default to the trial's.
Measure = Callable[[pathlib.Path, Mapping[str, Any]], Iterable[Line]]


def run_trials(
  study: str,
  trials: Sequence[Trial],
  workdir: str | pathlib.Path,
  measure: Measure | None = None,
  key: str = "",
  splits: Sequence[str] = (),
  may_diverge: bool = False,
) -> dict[str, dict[str, Any]]:
  """Trains every trial in `workdir/<name>` and writes `workdir/study.csv`.

  The csv has a line for each trial, split, task, metric and seed; it is written after
  every trial, so that what is finished can be looked at.

  Args:
    study: its name, for the csv.
    trials: in the order to train them.
    workdir: folder of the study.
    measure: gives further lines of each trained trial. They are kept in its
      `measured.json` and not measured again.
    key: what `measure` does; kept lines of another key are measured again.
    splits: whose figures the csv has; () = all.
    may_diverge: a trial whose loss becomes infinite or NaN is left out of the csv, and
      the study goes on.

  Returns:
    Trial -> contents of its summary.json, or `{"diverged": message}`.

  Raises:
    UserError: two trials of one name, bad input, or a folder with another run.
    loop.Diverged: unless `may_diverge`.
    stopping.Interrupted: everything is saved; the same call goes on.
  """
  names = [trial.name for trial in trials]
  if len(set(names)) < len(names):
    twice = next(name for name in names if names.count(name) > 1)
    raise UserError(f"this study has two trials {twice!r}: give each system once.")
  workdir = pathlib.Path(workdir).expanduser()
  summaries: dict[str, dict[str, Any]] = {}
  lines: list[dict[str, Any]] = []
  for number, trial in enumerate(trials, 1):
    about = f"{study}: trial {number} of {len(trials)}, {trial.name}"
    summaries[trial.name] = _train(trial, workdir / trial.name, about, may_diverge)
    if "diverged" in summaries[trial.name]:
      continue
    lines += tidy(study, trial, summaries[trial.name], splits)
    if measure is not None:
      found = _measured(measure, key, workdir / trial.name, summaries[trial.name])
      lines += [
        {**_fixed(study, trial, summaries[trial.name]), **each} for each in found
      ]
    columns = {key: [line[key] for line in lines] for key in lines[0]}
    prediction_files.write_csv(workdir / "study.csv", columns)
  return summaries


def _train(
  trial: Trial, folder: pathlib.Path, about: str, may_diverge: bool
) -> dict[str, Any]:
  """Trains a trial, or reads it if it has been."""
  text = to_json(trial.config)
  digest = hashlib.sha256(text.encode()).hexdigest()
  directory = RunDirectory(folder)
  done = {"config_sha256": digest}
  try:
    kept = json.loads((folder / _DONE).read_text())
    if may_diverge and kept == {**done, "diverged": kept.get("diverged")}:
      return {"diverged": kept["diverged"]}
    if kept == done:
      return directory.read_json("summary.json")
  except (OSError, ValueError, AttributeError):
    pass  # not finished, or damaged: the run itself knows how to go on
  logging.warning("%s", about)
  try:
    run.train(trial.config, folder)
  except loop.Diverged as error:
    if not may_diverge:
      raise
    directory.write_json(_DONE, {**done, "diverged": str(error)})
    return {"diverged": str(error)}
  directory.write_json(_DONE, done)
  # From the file, so that a trial gives the same lines now and when it is read again.
  return directory.read_json("summary.json")


def _measured(measure: Measure, key, folder: pathlib.Path, summary) -> list[Line]:
  """What a study measures of a trial, or what was measured before of the same trial."""
  # Seeds may be added to a trained trial; its parameters are others then.
  done = {"key": key, "parameter_hash": summary["parameter_hash"]}
  try:
    kept = json.loads((folder / _MEASURED).read_text())
    if {name: kept[name] for name in done} == done:
      return kept["lines"]
  except (OSError, ValueError, KeyError, TypeError):
    pass  # not there, or damaged: measured again
  lines = [
    {"split": held_out_split(summary["splits"]), **line}
    for line in measure(folder, summary)
  ]
  RunDirectory(folder).write_json(_MEASURED, {**done, "lines": lines})
  return json.loads((folder / _MEASURED).read_text())["lines"]


def lines_of(figures: Mapping[str, Any], seeds: Sequence[int], **about: Any):
  """Lines of metric -> {"values": one per seed}, each with the columns `about`."""
  for metric, entry in figures.items():
    for seed, value in zip(seeds, entry["values"], strict=True):
      yield {**about, "metric": metric, "seed": seed, "value": value}


def _fixed(study: str, trial: Trial, summary: Mapping[str, Any]) -> Line:
  """Columns that all lines of a trial share."""
  return {
    "study": study,
    "trial": trial.name,
    "group": trial.group,
    "axis": trial.axis,
    "x": trial.x if trial.axis else "",
    "model": summary["model"],
    "parameters": summary["parameters"],
    "split": "",
    "task": "",
    "metric": "",
    "seed": "",
    "value": "",
  }


def tidy(
  study: str, trial: Trial, summary: Mapping[str, Any], splits: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
  """Lines of the csv for one trial: task metrics, and entropies of gates.

  Args:
    study: its name.
    trial: the trial.
    summary: contents of its summary.json.
    splits: whose figures; () = all.
  """
  fixed = _fixed(study, trial, summary)
  for split in splits or summary["splits"]:
    routing = {
      f"gate {gate}": {
        name: figure for name, figure in figures.items() if "entropy" in name
      }
      for gate, figures in summary["routing"].get(split, {}).items()
    }
    for task, figures in {**summary["splits"][split], **routing}.items():
      about = {**fixed, "split": split, "task": task}
      yield from lines_of(figures, summary["seeds"], **about)
