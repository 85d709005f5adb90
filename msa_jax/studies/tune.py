"""A search: options' values that do best on validation, by TPE and successive halving.

  msa-jax tune --config=hgem:mosi --data=mosi.pkl --workdir=studies/tune \\
    --config.replicas.seeds=0,1,2 --trials=30 --space=optim.learning_rate=1e-4..1e-2:log

The seeds are the replicas by which a trial is measured, and what halving saves: every
trial trains the first one, only the best third of those so far go on to three seeds,
and so on. So a setting that is chosen has been trained with all of them, and none that
was lucky once. The first trial has the config's own values.

The folder holds the search: `tune.json`, its state, and a run directory for each trial.
The same command goes on where it was stopped, in the middle of a trial too; with more
`--trials` it goes on from what it has learned. Only validation is read: the csv, the
page and the choice know no figure of the test split.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from msa_jax.config import validate
from msa_jax.config.experiment import Experiment
from msa_jax.errors import UserError
from msa_jax.report.terminal import figure
from msa_jax.step import compose
from msa_jax.studies import proposals, runner, spaces, sweep
from msa_jax.studies.changes import changed, current
from msa_jax.studies.chosen import Choice, command_of, write_config
from msa_jax.studies.search import (
  Search,
  State,
  Tried,
  goes_on,
  own_values,
  rungs,
  trial_name,
)
from msa_jax.studies.spaces import Dimension
from msa_jax.training.run_directory import RunDirectory
from msa_jax.training.selection import Criterion
from msa_jax.typing import Spec

CHOSEN = "chosen.py"
_SEED = 0  # of what is drawn


def study(
  config: Experiment, workdir: str | pathlib.Path, search: Search
) -> dict[str, Any]:
  """Searches, or goes on searching.

  Args:
    config: unresolved.
    workdir: folder of the search; gets `trial-000/`, ..., `tune.json` (its state),
      `study.csv` (of validation), `study.json` (what is returned) and `chosen.py`.
    search: what to try.

  Returns:
    See `_report`.

  Raises:
    UserError: no Optuna, bad input, no validation split, another search in the folder,
      or no trial that could be trained.
    stopping.Interrupted: everything is saved; the same call goes on.
  """
  proposals.library()
  for name, value in (("trials", search.trials), ("halving", search.halving)):
    if value < 1:
      raise UserError(f"--{name}={value} must be at least 1.")
  dimensions = spaces.space(config, search.spaces)
  sweep.check_selection(config, "tune")
  base = changed(config, spaces.fixed(dimensions))
  validate.validate(base)
  criterion, spec = sweep.ranked_by(base, "tune")
  directory = RunDirectory(workdir)
  with directory.locked():
    state = State.open(directory, config, dimensions, search.halving)
    session = _Session(base, dimensions, search, criterion, spec, state)
    session.run()
    report = _report(session, config)
    directory.write_json("study.json", report)
    choice = _choice(report, session, config)
    write_config(directory.path / CHOSEN, choice)
  return report


@dataclasses.dataclass
class _Session:
  """A search under way."""

  base: Experiment
  dimensions: Mapping[str, Dimension]
  search: Search
  criterion: Criterion
  spec: Spec
  state: State
  summaries: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

  @property
  def seeds(self) -> tuple[int, ...]:
    return self.base.replicas.seeds

  def config(self, trial: Tried, count: int) -> Experiment:
    """The config of a trial that trains some seeds."""
    return changed(self.base, {**trial.values, "replicas.seeds": self.seeds[:count]})

  def run(self) -> None:
    """Tries until there are as many trials as were asked for."""
    tried = self.state.trials
    while True:
      under_way = bool(tried) and tried[-1].state == "running"
      is_full = len(tried) >= self.search.trials
      if not under_way and (is_full or not self._add()):
        break
      self._try(len(tried) - 1)
    self._train([])

  def _add(self) -> bool:
    """Enters the next trial into the state; False where nothing new is left."""
    tried = self.state.trials
    outcomes = [trial.outcome for trial in tried]
    values = own_values(self.base, self.dimensions)
    if tried:
      values = proposals.propose(self.dimensions, outcomes, _SEED)
    if values is None:
      logging.warning("tune: every setting of the space has been tried.")
      return False
    tried.append(Tried(values))
    self.state.save()
    return True

  def _try(self, number: int) -> None:
    """Trains a trial until it is whole or there is no use in it."""
    trial = self.state.trials[number]
    try:
      self._check(trial)
    except UserError as error:
      if not number:  # the config as it was given
        raise
      trial.state, trial.why = "refused", " ".join(str(error).split())
      self.state.save()
      return
    for count in rungs(len(self.seeds), self.search.halving):
      if count <= len(trial.figures):
        continue
      summary = self._train([(trial_name(number), self.config(trial, count))])
      trial.figures = sweep.values_of(summary, self.criterion)
      if "diverged" in summary or not all(map(math.isfinite, trial.figures)):
        trial.state = "diverged"
        trial.why = summary.get("diverged", f"{self.criterion} is undefined")
        trial.figures = []
        break
      if count == len(self.seeds):
        trial.state = "whole"
      elif not self._goes_on(number, count):
        trial.state = "stopped"
        break
      self.state.save()
    self.state.save()

  def _check(self, trial: Tried) -> None:
    config = self.config(trial, len(self.seeds))
    validate.validate(config)
    if not sweep.reshapes(self.dimensions):
      compose.build(config.replace(spec=self.spec))

  def _goes_on(self, number: int, count: int) -> bool:
    trials = self.state.trials
    others = [
      float(np.mean(trial.figures[:count]))
      for place, trial in enumerate(trials)
      if place != number and len(trial.figures) >= count
    ]
    mean = float(np.mean(trials[number].figures[:count]))
    return goes_on(mean, others, self.search.halving)

  def _train(self, last: Sequence[tuple[str, Experiment]]) -> Mapping[str, Any]:
    """Trains a trial, or only reads those that are there; the summary of the last."""
    trials = self.state.trials
    made = [
      runner.Trial(trial_name(number), self.config(trial, max(1, len(trial.figures))))
      for number, trial in enumerate(trials)
      if trial.state in ("whole", "stopped")
    ]
    made += [runner.Trial(name, config) for name, config in last]
    if not made:
      return {}
    self.summaries = runner.run_trials(
      "tune", made, self.state.directory.path, splits=("valid",), may_diverge=True
    )
    return self.summaries[made[-1].name]


def _report(session: _Session, config: Experiment) -> dict[str, Any]:
  """Contents of study.json.

  Returns:
    `selected_by` (the criterion), `command`, `budget`, `space`, `own` (the name of the
    trial with the config's own values, or ""), `best` (a name), `gain` of the best over
    it, `importances`, and `ranking`, best first: `name`, `changes`, `state`, `valid`
    (mean over seeds), `std`, `seeds` (the figure of each) and `diverged` (why there is
    none, or "").

  Raises:
    UserError: no trial could be trained.
  """
  trials, sign = session.state.trials, sweep.shown_sign(session.criterion)
  rows = [_row(number, trial, sign) for number, trial in enumerate(trials)]
  order = {"whole": 2, "stopped": 1}

  def rank(row: Mapping[str, Any]):
    value = -math.inf if row["valid"] is None else sign * row["valid"]
    return (order.get(row["state"], 0), len(row["seeds"]), value)

  rows.sort(key=rank, reverse=True)
  if rows[0]["state"] != "whole":
    why = next((row["diverged"] for row in rows if row["diverged"]), "none was whole")
    raise UserError(f"tune: no trial has a validation figure: {why}")
  fixed = spaces.fixed(session.dimensions)
  is_own = trials[0].state == "whole" and all(
    current(config, path) == value for path, value in fixed.items()
  )
  outcomes = [trial.outcome for trial in trials]
  report = {
    "study": "tune",
    "selected_by": f"valid {session.criterion}",
    "command": command_of(session.search, config, len(trials)),
    "budget": _budget(session),
    "space": {path: each.text for path, each in session.dimensions.items()},
    "fixed": fixed,
    "own": trial_name(0) if is_own else "",
    "best": rows[0]["name"],
    "importances": proposals.importances(session.dimensions, outcomes),
    "ranking": rows,
  }
  report["gain"] = _gain(report, sign)
  return report


def _row(number: int, trial: Tried, sign: float) -> dict[str, Any]:
  figures = [sign * value for value in trial.figures]
  changes = dict(sorted(trial.values.items()))
  row = sweep.row_of(trial_name(number), changes, figures, trial.why)
  return {**row, "state": trial.state}


def _budget(session: _Session) -> dict[str, Any]:
  trials = session.state.trials
  states = [trial.state for trial in trials]
  seconds = sum(
    each / together
    for summary in session.summaries.values()
    if "train_seconds" in summary
    for each, together in zip(
      summary["train_seconds"], summary["trained_together"], strict=True
    )
  )
  return {
    "trials": len(trials),
    **{state: states.count(state) for state in dict.fromkeys(states)},
    "seeds": list(session.seeds),
    "trainings": sum(len(trial.figures) for trial in trials),
    "train_seconds": round(seconds, 1),
  }


def _gain(report: Mapping[str, Any], sign: float) -> dict[str, Any] | None:
  """How much better the best is than the config's own values, seed by seed."""
  rows = {row["name"]: row for row in report["ranking"]}
  if not report["own"] or report["own"] == report["best"]:
    return None
  pairs = zip(rows[report["best"]]["seeds"], rows[report["own"]]["seeds"], strict=True)
  better = [sign * (best - own) for best, own in pairs]
  row = sweep.row_of("", {}, better)
  return {"mean": row["valid"], "std": row["std"], "seeds": better}


def _choice(report: Mapping[str, Any], session: _Session, config: Experiment) -> Choice:
  best = report["ranking"][0]
  values = {
    **spaces.fixed(session.dimensions),
    **session.state.trials[int(best["name"].rpartition("-")[2])].values,
  }
  return Choice(session.search.name, changed(config, values), lines_of(report))


def lines_of(report: Mapping[str, Any]) -> list[str]:
  """What a search was, in words: command, budget, space, what came of it."""
  budget, best = report["budget"], report["ranking"][0]
  parts = [
    f"{budget[state]} {said}"
    for state, said in (
      ("whole", f"with all {len(budget['seeds'])} seeds"),
      ("stopped", "stopped after fewer"),
      ("diverged", "diverged"),
      ("refused", "refused"),
    )
    if budget.get(state)
  ]
  shown = {row["name"]: figure({**row, "mean": row["valid"]}) for row in _whole(report)}
  own = report["own"]
  lines = [
    f"command: {report['command']}",
    f"budget: {budget['trials']} trials ({', '.join(parts)}), {budget['trainings']}"
    f" trainings, {budget['train_seconds'] / 60:.1f} minutes of training",
    "space: " + "; ".join(f"{path}={text}" for path, text in report["space"].items()),
    f"{report['selected_by']}: {shown[best['name']]} over seeds"
    f" {', '.join(map(str, budget['seeds']))}, the best of {budget['trials']} on the"
    " very samples that chose it",
  ]
  if own:
    lines.append(f"the config's own values: {shown[own]}")
  if gain := report["gain"]:
    lines.append(f"better than these by {figure(gain)}, seed by seed")
  return lines


def _whole(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
  return [row for row in report["ranking"] if row["state"] == "whole"]


def as_text(report: Mapping[str, Any], workdir: pathlib.Path) -> str:
  """The best trials, the search in words and where its files are."""
  rows = _whole(report)
  lines = [f"trials by {report['selected_by']}:"]
  for place, row in enumerate(rows[:10], 1):
    values = ", ".join(f"{path}={value}" for path, value in row["changes"].items())
    lines.append(f"  {place}. {row['name']}: {figure({**row, 'mean': row['valid']})}")
    lines.append(f"     {values}")
  lines += lines_of(report)[1:]
  if report["importances"]:
    shares = [f"{path} {share:.2f}" for path, share in report["importances"].items()]
    lines.append("importance: " + ", ".join(shares))
  return "\n".join([*lines, f"chosen config: --config={workdir / CHOSEN}"])
