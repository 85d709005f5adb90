"""The run directory: self-describing, and what every later command reads.

config.json  environment.json  data.json  preprocessing.npz
metrics.jsonl  summary.json
checkpoints/seed_<s>/{last,best}  predictions/{valid,test}.csv  routing/<split>.npz
checkpoints/group_<n>/last, of seeds that are trained at once
"""

import json
import math
import os
import pathlib
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import jax
from absl import logging

from msa_jax import models
from msa_jax.config.experiment import Experiment, differences, from_json, to_json
from msa_jax.devices import processes
from msa_jax.errors import UserError, of_system
from msa_jax.names import FOLDS, fold_folder
from msa_jax.safe_io import durable, locking
from msa_jax.training import provenance

# Of an epoch's record: `seed`, `epoch`, `seconds`, `train`, `valid`, ..., plain values.
Listener = Callable[[dict[str, Any]], None]
_PACKAGES = ("msa_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class RunDirectory:
  """Paths and small files of one run; of several processes, the first one writes.

  Attributes:
    path: the folder; created by `create`.
    listener: is told every record of metrics.jsonl, in the process that writes it.
  """

  def __init__(self, path: str | os.PathLike, listener: Listener | None = None):
    self.path = pathlib.Path(path).expanduser()
    self.listener = listener

  @contextmanager
  def locked(self) -> Iterator[None]:
    """Makes the folder if need be and keeps other trainings out of it.

    Raises:
      UserError: another process trains there, or it is not a directory.
    """
    self._check_folder()
    if not processes.is_primary():
      yield
      return
    self.path.mkdir(parents=True, exist_ok=True)
    with locking.locked(self.path):
      yield

  def _check_folder(self) -> None:
    if self.path.exists() and not self.path.is_dir():
      raise UserError(f"--workdir={self.path} is a file; it must be a folder.")

  def create(
    self, config: Experiment, data: dict[str, Any], finished: bool = False
  ) -> bool:
    """Starts the directory, or checks that it holds the same run.

    Args:
      config: resolved.
      data: contents of data.json.
      finished: the run needs no more training: what it says of itself stays, but
        where its data are.

    Returns:
      True if the directory held this run already (training resumes).

    Raises:
      UserError: it holds another run, or is not a directory.
    """
    self._check_folder()
    exists = self.config_path.exists()
    if exists:
      # More seeds may be added to a run, and what changes no number may be another.
      ignore = (
        "train.checkpoint_every_seconds",
        "train.steps_per_call",
        "train.eval_batch_size",
        "data.device_budget_mib",
        "text.cache",
        "replicas.seeds",
        "replicas.mode",
        "replicas.most_at_once",
        "data.path",
        "data.recipe",
        "init.from_run",  # its hash is compared, wherever it lies
        # What they decide is in the other keys, or beside the training.
        "train.preset",
        "train.references",
        *(f"sharding.{axis}" for axis in ("data", "replica", "expert")),
      )
      lines = differences(config, self.experiment(), ignore)
      if lines:
        raise UserError(
          f"--workdir={self.path} holds a run with other settings"
          f" ({'; '.join(lines[:5])}). Choose another folder."
        )
    if finished and not differences(config, self.experiment(), ()):
      return exists
    self.path.mkdir(parents=True, exist_ok=True)
    text = to_json(config, models.provider(config.system))
    self.write_text("config.json", text + "\n")
    if finished:
      return exists
    self.write_json("data.json", data)
    self.write_json("environment.json", environment(config.system))
    return exists

  def check_source(self, system: str) -> None:
    """Checks that the code which trained a finished run is what would train it now.

    A run of before the code was noted is not checked.

    Args:
      system: name of the run's system.

    Raises:
      UserError: the package is another version, or the system's source has changed.
    """
    try:
      then = _decisive(self.read_json("environment.json"))
    except (UserError, KeyError, TypeError):
      return
    now = _decisive(environment(system))
    changed = [
      f"{key} {then[key]}, now {now[key]}" for key in now if then[key] != now[key]
    ]
    if changed:
      raise UserError(
        f"--workdir={self.path} has finished under other code ({'; '.join(changed)});"
        " evaluate it as it is, or train into another folder."
      )

  @property
  def config_path(self) -> pathlib.Path:
    return self.path / "config.json"

  @property
  def metrics_path(self) -> pathlib.Path:
    return self.path / "metrics.jsonl"

  def experiment(self) -> Experiment:
    """Reads the resolved options.

    Raises:
      UserError: the folder holds no run.
    """
    if not self.config_path.exists():
      raise UserError(
        f"--workdir={self.path} holds no run: there is no {self.config_path}."
      )
    return from_json(self.config_path.read_text())

  def last(self, seed: int) -> pathlib.Path:
    return self.path / "checkpoints" / f"seed_{seed}" / "last"

  def best(self, seed: int) -> pathlib.Path:
    return self.path / "checkpoints" / f"seed_{seed}" / "best"

  def trained(self, seed: int) -> str:
    """Name of the file that says how a finished seed was trained."""
    return f"checkpoints/seed_{seed}/trained.json"

  def write_text(self, name: str, text: str) -> None:
    """Replaces a file atomically: a reader never sees half of it."""
    if processes.is_primary():
      with durable.replacing(self.path / name) as partial:
        partial.write_text(text)

  def write_json(self, name: str, value: Any) -> None:
    self.write_text(name, json.dumps(_plain(value), indent=2, sort_keys=True) + "\n")

  def read_json(self, name: str) -> Any:
    """Reads one of the run's JSON files.

    Raises:
      UserError: absent or damaged.
    """
    try:
      return json.loads((self.path / name).read_text())
    except (OSError, ValueError) as error:
      raise UserError(f"{self.path / name} cannot be read: {error}.") from error

  def metrics(self) -> list[dict[str, Any]]:
    """Records of metrics.jsonl.

    A damaged line is left out, with a warning; the last one, without one where its end
    is missing: it was being written when the process was killed.
    """
    path = self.metrics_path
    # What is no UTF-8 is no JSON either, and harms its own line only.
    text = path.read_bytes().decode(errors="replace") if path.exists() else ""
    *lines, last = text.split("\n")
    records = []
    for number, line in enumerate([*lines, last] if last else lines, 1):
      record = _record(line)
      if record is not None:
        records.append(record)
      elif number <= len(lines):
        logging.warning("line %d of %s is damaged and left out", number, path)
    return records

  def append_metrics(self, record: dict[str, Any]) -> None:
    if not processes.is_primary():
      return
    plain = _plain(record)
    with self.metrics_path.open("a") as file:
      file.write(json.dumps(plain) + "\n")
    if self.listener is not None:
      self.listener(plain)

  def sync_metrics(self) -> None:
    """Puts metrics.jsonl on the disk: no checkpoint may know of epochs it lacks."""
    if processes.is_primary() and self.metrics_path.exists():
      durable.sync(self.metrics_path)

  def rewind_metrics(self, seed: int, epoch: int) -> None:
    """Forgets epochs of `seed` after `epoch`: they are about to be trained again."""
    records = self.metrics()
    kept = [r for r in records if r["seed"] != seed or r["epoch"] <= epoch]
    lines = "".join(json.dumps(record) + "\n" for record in kept)
    self.write_text("metrics.jsonl", lines)


def fold_folders(workdir: str | os.PathLike) -> dict[str, pathlib.Path]:
  """Name -> folder of every fold's run; empty where `workdir` is not one of folds.

  Raises:
    UserError: a run has not finished.
  """
  root = RunDirectory(workdir)
  if not (root.config_path.exists() and root.experiment().data.is_cross_validated):
    return {}
  names = [fold_folder(number) for number in root.read_json("data.json")[FOLDS]]
  found = {name: root.path / name for name in names}
  lacking = [n for n, path in found.items() if not (path / "summary.json").exists()]
  if lacking:
    raise UserError(
      f"--workdir={root.path}: {', '.join(lacking)} has not finished; the command that"
      " trains goes on."
    )
  return found


@contextmanager
def only_warn(what: str) -> Iterator[None]:
  """A part of the program that writes what was shown already: where the folder cannot
  be written, the line is a warning."""
  try:
    yield
  except UserError as error:
    logging.warning("%s: %s", what, error)
  except OSError as error:
    logging.warning("%s: %s", what, of_system(error))


def _record(line: str) -> dict[str, Any] | None:
  """What a line of metrics.jsonl says of an epoch; None = it is damaged."""
  try:
    record = json.loads(line)
    whole = isinstance(record["seed"], int) and isinstance(record["epoch"], int)
  except (ValueError, KeyError, TypeError, RecursionError):
    return None
  return record if whole else None


def _plain(value: Any) -> Any:
  """Strict JSON: numpy values become plain ones, NaN and infinities null."""
  if isinstance(value, Mapping):
    return {str(key): _plain(entry) for key, entry in value.items()}
  if hasattr(value, "tolist"):
    value = value.tolist()
  if isinstance(value, list | tuple):
    return [_plain(entry) for entry in value]
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  return value if value is None or isinstance(value, str | int) else str(value)


def environment(system: str) -> dict[str, Any]:
  """Versions, devices and command line of this process; source of a system."""
  return {
    "source": provenance.source(system),
    "command": list(sys.argv),
    "python": platform.python_version(),
    "platform": platform.platform(),
    "processes": jax.process_count(),
    "packages": {name: metadata.version(name) for name in _PACKAGES},
    "devices": [f"{device.platform}:{device.device_kind}" for device in jax.devices()],
  }


def _decisive(found: Mapping[str, Any]) -> dict[str, str]:
  """What of an environment a finished run, repeated under another, would not be."""
  return {
    "msa_jax": found["packages"]["msa_jax"],
    "system_sha256": found["source"]["system_sha256"],
  }
