"""Whole runs in one call each: train, evaluate, predict."""

import copy
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from msa_jax.config import files, regimes
from msa_jax.config.experiment import Experiment, experiment, with_options
from msa_jax.config.files import get_config
from msa_jax.runs import run
from msa_jax.training.run_directory import Listener
from msa_jax.typing import Corpus

__all__ = ["evaluate", "get_config", "predict", "train"]


def train(
  config: "str | ml_collections.ConfigDict | Experiment",
  corpus: Corpus | None = None,
  workdir: str | os.PathLike | None = None,
  options: Mapping[str, Any] | None = None,
  listener: Listener | None = None,
) -> dict[str, Any]:
  """Trains a system and writes a run directory; the same call resumes a run.

  >>> msa_jax.train("hgem", corpus, "runs/a", options={"optim.epochs": 2})

  Args:
    config: `hgem`, `hgem:mosi`, the name of a registered system, the path of a config
      file, or what `get_config` returns. A name without a data set's variant gets the
      variant `own` where there are data (`corpus`, or option `data.path`).
    corpus: in memory; None = the file that `config.data.path` names, else the synthetic
      corpus.
    workdir: folder of the run; None = a new one under `runs/`.
    options: dotted key -> value, as flags `--config.<key>` give them.
    listener: is told the record of every epoch, as metrics.jsonl has it: `seed`,
      `epoch`, `train` and `valid` figures. A run that is resumed may tell of an epoch
      again.

  Returns:
    The contents of summary.json, and `workdir`.

  Raises:
    UserError: bad input, another run in the folder, a diverging loss.
  """
  options = options or {}
  if isinstance(config, str):
    own = corpus is not None or options.get("data.path")
    made = files.get_config(files.for_own_data(config) if own else config)
  else:
    made = config
  chosen = with_options(experiment(_told(made, options)), options)
  folder = run.default_workdir(chosen, corpus) if workdir is None else workdir
  folder = pathlib.Path(folder)
  return {**run.train(chosen, folder, corpus, listener), "workdir": str(folder)}


def _told(config: Any, options: Mapping[str, Any]) -> Any:
  """The config with those of `config.text` and `config.train` that others follow."""
  own = {key: options[key] for key in regimes.DECIDE if key in options}
  if not own or not isinstance(config, ml_collections.ConfigDict):
    return config
  config = copy.deepcopy(config)
  for key, value in own.items():
    section, name = key.split(".")
    # Another type is refused below, by the words of all options.
    config[section][name] = str(value)
  return config


def evaluate(
  workdir: str | os.PathLike, data: str | os.PathLike | Corpus | None = None
) -> dict[str, Any]:
  """Scores a trained run again.

  Args:
    workdir: folder of the run.
    data: labelled file or corpus; None = the file that the run was trained on. A run
      trained on a corpus in memory needs it again.

  Returns:
    split -> task -> metric -> {"mean", "std", "values"}, also in evaluation.json.

  Raises:
    UserError: no such run or file, or no labels.
  """
  return run.evaluate(pathlib.Path(workdir), **_source(data))


def predict(
  workdir: str | os.PathLike,
  data: str | os.PathLike | Corpus,
  output: str | os.PathLike | None = None,
) -> dict[str, Any]:
  """Predicts every sample of a file or corpus, labelled or not.

  Args:
    workdir: folder of the run.
    data: any supported file, or a corpus.
    output: csv to write as well.

  Returns:
    Columns of equal length, as a data frame takes them: id, split, prediction (mean
    over seeds), one column per seed, class names and probabilities, gate weights.

  Raises:
    UserError: no such run or file, or `output` cannot be written.
  """
  return run.predicted_columns(pathlib.Path(workdir), **_source(data), output=output)


def _source(data: str | os.PathLike | Corpus | None) -> dict[str, Any]:
  if isinstance(data, Corpus):
    return {"corpus": data}
  return {"path": "" if data is None else os.fspath(data)}
