"""Reads what is there of a run directory, and says what is not."""

import csv
import dataclasses
import json
import operator
import pathlib
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from msa_jax.errors import UserError
from msa_jax.names import FOLDS, fold_folder, held_out_split
from msa_jax.safe_io import cells


@dataclasses.dataclass(frozen=True)
class Run:
  """A run directory, as much of it as could be read.

  Attributes:
    path: the folder.
    config, data, summary: the JSON files; empty where absent.
    epochs: the lines of metrics.jsonl.
    predictions: split -> column -> strings.
    routing: split -> `<gate>/combine` etc. -> [seed n e], `<gate>/experts` (names,
      where the router gives them) and `ids`.
    grids: name -> contents of a missing-modality grid.
    experts: what its experts are worth (`studies.experts`); empty where that was not
      measured.
    gaps: one line per part that is absent or damaged.
  """

  path: pathlib.Path
  config: Mapping[str, Any]
  data: Mapping[str, Any]
  summary: Mapping[str, Any]
  epochs: Sequence[Mapping[str, Any]]
  predictions: Mapping[str, Mapping[str, Sequence[str]]]
  routing: Mapping[str, Mapping[str, np.ndarray]]
  grids: Mapping[str, Mapping[str, Any]]
  experts: Mapping[str, Any]
  gaps: Sequence[str]

  @property
  def name(self) -> str:
    """Folder name, which tells runs of one report apart."""
    return self.path.name

  @property
  def model(self) -> str:
    """Name of the system, as far as it is known."""
    return str(self.summary.get("model") or at(self.config, "model").get("name", "?"))

  @property
  def split(self) -> str:
    """The split that figures speak of: test, or validation where there is no test."""
    return held_out_split(self.predictions)

  @property
  def unit(self) -> str:
    """What a sample is, and hence how much around an utterance a prediction sees."""
    data = at(self.config, "data")
    # Runs of version 0.1 call it `unit`.
    unit = data.get("sample_unit", data.get("unit", "utterance"))
    return "utterance in its dialogue" if unit == "dialogue" else "utterance alone"

  def tasks(self) -> Mapping[str, Any]:
    """Task name -> kind, range, classes."""
    tasks = at(self.config, "spec", "tasks")
    return {name: options for name in tasks if (options := at(tasks, name))}


def at(tree: Any, *keys: str) -> Mapping[str, Any]:
  """The mapping under these keys; empty where there is none."""
  for key in keys:
    tree = tree.get(key) if isinstance(tree, Mapping) else None
  return tree if isinstance(tree, Mapping) else {}


def read(folder: str | pathlib.Path) -> Run:
  """Reads a run directory; parts that are absent or damaged become `gaps`.

  Args:
    folder: of a run.

  Raises:
    UserError: no such folder, or nothing of a run in it.
  """
  path = pathlib.Path(folder).expanduser()
  if not path.is_dir():
    raise UserError(f"{folder} is not a folder; give run directories to report on.")
  gaps: list[str] = []
  summary = _json(path / "summary.json", gaps)
  summary = _whole_summary(summary, gaps) if summary else {}
  config = _json(path / "config.json", gaps)
  if folds := summary.get(FOLDS):
    # What the corpus is, and what else there is of a run, each fold's run knows.
    first = _json(path / fold_folder(folds[0]) / "config.json", gaps)
    config, splits = {**config, "spec": at(first, "spec")}, ("test",)
  else:
    splits = ("valid", "test")
    _checkpoints(path, summary, gaps)
  run = Run(
    path=path.resolve(),
    config=config,
    data=_json(path / "data.json", gaps),
    summary=summary,
    epochs=[] if folds else _lines(path / "metrics.jsonl", gaps),
    predictions={s: c for s in splits if (c := _csv(path, s, gaps))},
    routing={s: a for s in ("valid", "test") if (a := _npz(path, s, gaps))},
    grids={
      file.stem: grid
      for file in sorted((path / "missing").glob("*.json"))
      if (grid := _json(file, gaps))
    },
    experts=_json(path / "experts.json", gaps) if _has_experts(path) else {},
    gaps=gaps,
  )
  if not (run.config or run.summary or run.epochs):
    raise UserError(
      f"{folder} holds no run: none of config.json, summary.json, metrics.jsonl."
    )
  return run


def _has_experts(path: pathlib.Path) -> bool:
  # Not a gap: it is measured on request.
  return (path / "experts.json").exists()


def _json(path: pathlib.Path, gaps: list[str]) -> dict[str, Any]:
  try:
    value = json.loads(path.read_text())
  except FileNotFoundError:
    gaps.append(f"{path.name} is absent")
    return {}
  except (OSError, ValueError) as error:
    gaps.append(f"{path.name} is damaged ({type(error).__name__})")
    return {}
  if not isinstance(value, dict):
    gaps.append(f"{path.name} is damaged (not a mapping)")
    return {}
  return value


def _lines(path: pathlib.Path, gaps: list[str]) -> list[dict[str, Any]]:
  records: list[dict[str, Any]] = []
  if not path.exists():
    gaps.append(f"{path.name} is absent")
    return records
  for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
    try:
      record = json.loads(line)
      seed, epoch = operator.index(record["seed"]), operator.index(record["epoch"])
      for part in ("train", "valid", "routing"):
        if not isinstance(record.get(part), dict | None):
          raise TypeError(part)
      records.append({**record, "seed": seed, "epoch": epoch})
    except (ValueError, KeyError, TypeError):
      gaps.append(f"{path.name} is damaged at line {number}")
  return records


def _csv(folder, split: str, gaps: list[str]) -> dict[str, list[str]]:
  path = folder / "predictions" / f"{split}.csv"
  try:
    with path.open(newline="") as file:
      rows = [list(map(cells.unescape, row)) for row in csv.reader(file)]
  except FileNotFoundError:
    gaps.append(f"predictions/{path.name} is absent")
    return {}
  except (OSError, ValueError, csv.Error) as error:
    gaps.append(f"predictions/{path.name} is damaged ({type(error).__name__})")
    return {}
  header, rows = (rows[0], rows[1:]) if rows else ([], [])
  whole = [row for row in rows if len(row) == len(header)]
  if len(whole) < len(rows):
    gaps.append(f"predictions/{path.name} has {len(rows) - len(whole)} torn lines")
  return {name: [row[i] for row in whole] for i, name in enumerate(header)}


def _npz(folder, split: str, gaps: list[str]) -> dict[str, np.ndarray]:
  path = folder / "routing" / f"{split}.npz"
  try:
    # Opened here: NumPy leaves a damaged file open.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
      return {name: arrays[name] for name in arrays.files}
  except FileNotFoundError:
    return {}  # not a gap: models without gates have no such file
  except (OSError, ValueError, EOFError, KeyError, zlib.error, zipfile.BadZipFile) as e:
    gaps.append(f"routing/{path.name} is damaged ({type(e).__name__})")
    return {}


def _whole_summary(summary: dict[str, Any], gaps: list[str]) -> dict[str, Any]:
  """The summary with only those of its figures that are figures."""
  kept: dict[str, Any] = {}
  torn = not isinstance(summary.get("splits", {}), dict)
  splits = {} if torn else summary.get("splits", {})
  for split, tasks in splits.items():
    for task, figures in (tasks if isinstance(tasks, dict) else {}).items():
      figures = figures if isinstance(figures, dict) else {}
      whole = {name: entry for name, entry in figures.items() if _is_figure(entry)}
      torn |= len(whole) < len(figures) or not whole
      kept.setdefault(split, {})[task] = whole
    torn |= not isinstance(tasks, dict)
  seeds = summary.get("seeds", [])
  torn |= not isinstance(seeds, list)
  folds = summary.get(FOLDS)
  torn |= not isinstance(folds, list | None)
  if torn:
    gaps.append("summary.json is damaged (figures that are no figures)")
  bayes = summary.get("bayes")
  return {
    **summary,
    "splits": kept,
    "seeds": seeds if isinstance(seeds, list) else [],
    FOLDS: folds if isinstance(folds, list) else [],
    "bayes": bayes if isinstance(bayes, dict) else None,
  }


def _is_figure(entry: Any) -> bool:
  """Whether an entry has a mean, a deviation and values that are numbers or null.

  Lists over classes or experts, which tables do not show, pass too.
  """
  if not isinstance(entry, dict) or not {"mean", "std", "values"} <= set(entry):
    return False
  return all(isinstance(entry[k], int | float | list | None) for k in ("mean", "std"))


def _checkpoints(folder: pathlib.Path, summary, gaps: list[str]) -> None:
  for seed in summary.get("seeds", ()):
    if not (folder / "checkpoints" / f"seed_{seed}" / "best").is_dir():
      gaps.append(f"checkpoints/seed_{seed}/best is absent")


def numbers(column: Sequence[str]) -> np.ndarray:
  """A csv column as floats; empty cells are NaN.

  Raises:
    ValueError: a cell that is not a number.
  """
  return np.asarray([float(cell) if cell else np.nan for cell in column])


def expert_names(run: Run, gate: str, count: int) -> list[str]:
  """Names of a gate's experts as its router gave them, else numbers.

  Args:
    run: the run; the arrays of any of its splits have the names.
    gate: name of the gate.
    count: number of its experts.
  """
  for arrays in run.routing.values():
    names = arrays.get(f"{gate}/experts")
    if names is not None and names.shape == (count,):
      return [str(name) for name in names]
  return [f"expert {index}" for index in range(count)]
