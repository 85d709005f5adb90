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
import hashlib
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from msa_jax.config import validate
from msa_jax.config.experiment import Experiment, to_json
from msa_jax.errors import UserError
from msa_jax.report.terminal import figure
from msa_jax.step import compose
from msa_jax.studies import proposals, runner, spaces, sweep
from msa_jax.studies.changes import changed, current
from msa_jax.studies.chosen import Choice, command_of, write_config
from msa_jax.studies.proposals import Outcome
from msa_jax.studies.spaces import Dimension
from msa_jax.training.run_directory import RunDirectory
from msa_jax.training.selection import Criterion
from msa_jax.typing import Spec

STATE = "tune.json"
CHOSEN = "chosen.py"
TRIALS, HALVING = 20, 3
_SEED = 0  # of what is drawn


class Search(NamedTuple):
  """What a search is asked for.

  Attributes:
    name: of the config, as `--config` has it, which the chosen config builds on.
    spaces: entries of `--space`.
    trials: how many there shall be in all.
    halving: of how many trials one goes on to more seeds, and how many times as many
      these are; 1 = all seeds at once.
  """

  name: str
  spaces: Sequence[str] = ()
  trials: int = TRIALS
  halving: int = HALVING


@dataclasses.dataclass
class Tried:
  """A trial, as the state keeps it.

  Attributes:
    values: option -> value, of those that are searched.
    state: `running`, `whole` (every seed), `stopped` (by halving), `diverged`,
      `refused` (by the system or by the rules of a config).
    figures: of each seed that was trained, greater is better.
    why: of a trial that diverged or was refused.
  """

  values: dict[str, Any]
  state: str = "running"
  figures: list[float] = dataclasses.field(default_factory=list)
  why: str = ""

  @property
  def outcome(self) -> Outcome:
    """As the next proposal learns from it."""
    known = self.state in ("whole", "stopped")
    figures = tuple(self.figures) if known else ()
    return Outcome(self.values, figures, self.state == "whole")


def rungs(seeds: int, halving: int) -> list[int]:
  """How many seeds a trial has trained where it is compared: 1, 3, 9, ..., all."""
  found = [seeds]
  count = 1
  while halving > 1 and count < seeds:
    found.insert(-1, count)
    count *= halving
  return found


def goes_on(value: float, others: Sequence[float], halving: int) -> bool:
  """Whether a trial is among the best of those that got as far (asynchronous successive
  halving, Li et al. 2020).

  Args:
    value: of the trial, greater is better.
    others: of the trials before it with as many seeds.
    halving: one of so many goes on, but always at least one.
  """
  places = max(1, (len(others) + 1) // halving)
  return sum(other > value for other in others) < places


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
    state = _State.open(directory, config, dimensions, search.halving)
    session = _Session(base, dimensions, search, criterion, spec, state)
    session.run()
    report = _report(session, config)
    directory.write_json("study.json", report)
    choice = _choice(report, session, config)
    write_config(directory.path / CHOSEN, choice)
  return report


@dataclasses.dataclass
class _State:
  """The state of a search, and its file.

  Attributes:
    directory: of the search.
    about: what must be the same where it goes on.
    trials: in order.
  """

  directory: RunDirectory
  about: dict[str, Any]
  trials: list[Tried]

  @classmethod
  def open(
    cls,
    directory: RunDirectory,
    config: Experiment,
    dimensions: Mapping[str, Dimension],
    halving: int,
  ) -> "_State":
    """The state in a folder, or a new one.

    Raises:
      UserError: it is that of another search, or damaged.
    """
    plain = to_json(config.replace("data", path=""))
    about = {
      "config_sha256": hashlib.sha256(plain.encode()).hexdigest(),
      "space": {path: each.text for path, each in dimensions.items()},
      "halving": halving,
    }
    path = directory.path / STATE
    if not path.exists():
      return cls(directory, about, [])
    saved = directory.read_json(STATE)
    if not isinstance(saved, Mapping) or not isinstance(saved.get("trials"), list):
      raise UserError(f"{path} is damaged: choose another --workdir.")
    differing = [key for key, value in about.items() if saved.get(key) != value]
    if differing:
      what = {"config_sha256": "config", "space": "space", "halving": "halving"}
      raise UserError(
        f"--workdir={directory.path} holds a search with another"
        f" {' and '.join(what[key] for key in differing)}: choose another folder."
      )
    try:
      trials = [_read(entry) for entry in saved["trials"]]
      _check_values(trials, dimensions, own_values(config, dimensions))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
      raise UserError(f"{path} is damaged ({error}): choose another --workdir.") from (
        error
      )
    return cls(directory, about, trials)

  def save(self) -> None:
    trials = [dataclasses.asdict(trial) for trial in self.trials]
    self.directory.write_json(STATE, {**self.about, "trials": trials})


def _read(entry: Mapping[str, Any]) -> Tried:
  """A trial from the state's file, where tuples are lists."""
  trial = Tried(**entry)
  trial.values = {
    path: tuple(value) if isinstance(value, list) else value
    for path, value in trial.values.items()
  }
  if not all(isinstance(each, float) for each in trial.figures):
    raise ValueError(f"figures {trial.figures}")
  return trial


def own_values(
  config: Experiment, dimensions: Mapping[str, Dimension]
) -> dict[str, Any]:
  """The config's own values of what is searched, which the first trial has."""
  return {
    path: current(config, path)
    for path, dimension in dimensions.items()
    if not dimension.is_fixed
  }


def _check_values(
  trials: Sequence[Tried], dimensions: Mapping[str, Dimension], own: Mapping[str, Any]
) -> None:
  """Refuses values outside the space; those of the first trial are the config's own."""
  if trials and trials[0].values != own:
    raise ValueError(f"{trials[0].values} are not the config's own values")
  for trial in trials[1:]:
    for path, value in trial.values.items():
      if not dimensions[path].holds(value):
        raise ValueError(f"{path}={value}")


@dataclasses.dataclass
class _Session:
  """A search under way."""

  base: Experiment
  dimensions: Mapping[str, Dimension]
  search: Search
  criterion: Criterion
  spec: Spec
  state: _State

  def __post_init__(self):
    self.summaries: Mapping[str, Mapping[str, Any]] = {}

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


def trial_name(number: int) -> str:
  """Name of a trial, and of its folder."""
  return f"trial-{number:03}"


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
  return {
    "name": trial_name(number),
    "changes": dict(sorted(trial.values.items())),
    "state": trial.state,
    "valid": float(np.mean(figures)) if figures else None,
    "std": float(np.std(figures, ddof=1)) if len(figures) > 1 else None,
    "seeds": figures,
    "diverged": trial.why,
  }


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
  several = len(better) > 1
  return {
    "mean": float(np.mean(better)),
    "std": float(np.std(better, ddof=1)) if several else None,
    "seeds": better,
  }


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
