"""Cross-validation: one run for each fold, and what they say together.

A folder of folds has one run per fold, `fold_<number>/`, each whole in itself, and for
all of them config.json, summary.json and predictions/test.csv, in which every sample is
predicted by the run that did not train on it. The same call goes on where it stopped.
"""

import csv
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from msa_jax.config import validate
from msa_jax.config.experiment import Experiment
from msa_jax.data.transforms import folds
from msa_jax.devices import processes
from msa_jax.names import FOLDS, fold_folder
from msa_jax.runs import prediction_files, prepare
from msa_jax.training.run_directory import RunDirectory
from msa_jax.typing import Corpus

_MEANS = ("mean", "std", "values")  # what a figure has

TrainOne = Callable[[Experiment, pathlib.Path, Corpus | None], dict[str, Any]]


def train(
  train_one: TrainOne,
  config: Experiment,
  workdir: str | pathlib.Path,
  corpus: Corpus | None = None,
) -> dict[str, Any]:
  """Trains a run for every fold of a corpus, or resumes them.

  Args:
    train_one: trains one run into a folder.
    config: not resolved, with `config.data.fold` = `all`.
    workdir: folder of all.
    corpus: in memory, in place of the file that `config.data.path` names.

  Returns:
    The contents of summary.json: of every split, task and metric `mean` over folds and
    seeds, `std` over folds (of each fold's mean over seeds), `std_over_seeds` (of each
    seed's mean over folds), `values` (that mean, by seed) and `by_fold` (mean over
    seeds).

  Raises:
    UserError: as a run, or a corpus without sessions and no number of folds.
  """
  with processes.all_or_none():
    validate.validate(config)
    whole = prepare.read_own(config) if corpus is None else corpus
    numbers = folds.numbers(whole, config.data.num_folds)
    name = whole.name
    del whole
  root = RunDirectory(workdir)
  with processes.all_or_none():
    root.create(config, {"name": name, FOLDS: numbers})
  summaries = [
    train_one(
      config.replace("data", fold=str(number)), root.path / fold_folder(number), corpus
    )
    for number in numbers
  ]
  summary = _together(summaries, numbers)
  root.write_json("summary.json", summary)
  if processes.is_primary():
    _write_predictions(root.path, numbers)
  return summary


def combine(trees: Sequence[Any]) -> Any:
  """One tree of figures of several, one per fold; see `train` for what a figure has.

  What some folds lack is left out; what is no figure is that of the first.
  """
  first = trees[0]
  if not isinstance(first, Mapping):
    return first
  if set(_MEANS) <= set(first):
    return _figure(trees)
  keys = [key for key in first if all(key in tree for tree in trees)]
  return {key: combine([tree[key] for tree in trees]) for key in keys}


def averaged(trees: Sequence[Any]) -> Any:
  """The mean of trees of numbers, such as figures of references, over folds; what some
  folds lack is left out."""
  first = trees[0]
  if isinstance(first, Mapping):
    keys = [key for key in first if all(key in tree for tree in trees)]
    return {key: averaged([tree[key] for tree in trees]) for key in keys}
  return np.mean(np.asarray(trees, float), axis=0).tolist()


def _figure(figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  # [fold seed ...]; None where a figure is not defined.
  values = np.asarray([figure["values"] for figure in figures], float)
  by_fold, by_seed = values.mean(axis=1), values.mean(axis=0)
  several = len(by_seed) > 1
  return {
    "mean": values.mean(axis=(0, 1)).tolist(),
    "std": by_fold.std(axis=0, ddof=1).tolist() if len(figures) > 1 else None,
    "std_over_seeds": by_seed.std(axis=0, ddof=1).tolist() if several else None,
    "values": by_seed.tolist(),
    "by_fold": by_fold.tolist(),
  }


def _together(summaries: Sequence[Mapping[str, Any]], numbers: Sequence[int]):
  first = summaries[0]
  return {
    "model": first["model"],
    "seeds": first["seeds"],
    FOLDS: list(numbers),
    "parameters": first["parameters"],
    "parameter_hash": [h for each in summaries for h in each["parameter_hash"]],
    "selected_by": first["selected_by"],
    "selected_epoch": [each["selected_epoch"] for each in summaries],
    "epochs": [each["epochs"] for each in summaries],
    "splits": combine([each["splits"] for each in summaries]),
    "routing": combine([each["routing"] for each in summaries]),
    "without_content": {
      split: sum(each["without_content"].get(split, 0) for each in summaries)
      for split in first["without_content"]
    },
    "bayes": None,
    "references": averaged([each["references"] for each in summaries]),
  }


def _write_predictions(root: pathlib.Path, numbers: Sequence[int]) -> None:
  """Writes predictions/test.csv of all folds, with a column `fold`."""
  columns: dict[str, list[Any]] = {"fold": []}
  for number in numbers:
    path = root / fold_folder(number) / "predictions" / "test.csv"
    with path.open(newline="") as file:
      header, *rows = csv.reader(file)
    columns["fold"] += [number] * len(rows)
    for name, column in zip(header, zip(*rows, strict=True), strict=True):
      columns.setdefault(name, []).extend(column)
  prediction_files.write_csv(root / "predictions" / "test.csv", columns)
