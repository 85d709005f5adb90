"""The state of a search: what was asked for, what has been tried, and who goes on."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from msa_jax.config.experiment import Experiment, to_json
from msa_jax.errors import UserError
from msa_jax.studies.changes import current
from msa_jax.studies.proposals import Outcome
from msa_jax.studies.spaces import Dimension
from msa_jax.training.run_directory import RunDirectory

STATE = "tune.json"
TRIALS, HALVING = 20, 3


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


def trial_name(number: int) -> str:
  """Name of a trial, and of its folder."""
  return f"trial-{number:03}"


@dataclasses.dataclass
class State:
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
  ) -> "State":
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
    """Writes the file."""
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
