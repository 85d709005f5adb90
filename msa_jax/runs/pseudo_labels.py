"""Labels that a corpus lacks, from a model that learned them elsewhere."""

import dataclasses
import os

import numpy as np

from msa_jax.config.experiment import Experiment
from msa_jax.data.transforms import preprocess
from msa_jax.errors import UserError
from msa_jax.step import compose
from msa_jax.training import feed as feed_lib
from msa_jax.training.checkpoint import load_best
from msa_jax.training.compiled_stages import CompiledStages
from msa_jax.training.run_directory import RunDirectory
from msa_jax.typing import Corpus, Split, Task


def fill(corpus: Corpus, workdir: str | os.PathLike) -> Corpus:
  """Gives training samples without a label the one that a trained run predicts.

  Tasks of the run that the corpus does not know are added to it. Labels that are there
  stay; validation and test get none.

  Args:
    corpus: not preprocessed; has the modalities of the run, of the same widths.
    workdir: the run; several seeds predict together (mean of numbers or of
      probabilities).

  Raises:
    UserError: no such run, one with an encoder inside, other features, or a task of
      another meaning.
  """
  run = RunDirectory(workdir)
  config = run.experiment()
  if config.text.is_tuned:
    raise UserError(
      f"config.data.pseudo_label_run={run.path}: the run reads token ids, for"
      f" an encoder of its"
      " own (config.text.finetune); give one that reads features."
    )
  train = corpus.splits["train"]
  widths = {n: s.features.shape[-1] for n, s in train.modalities.items()}
  wanted = dict(config.corpus_spec.widths)
  if {name: widths.get(name) for name in wanted} != wanted:
    raise UserError(
      f"config.data.pseudo_label_run={run.path}: the run reads features of"
      f" widths {wanted},"
      f" {corpus.name!r} has {widths}."
    )
  labels, tasks = dict(train.labels), dict(corpus.tasks)
  for name, values in _predictions(run, config, train).items():
    task = config.corpus_spec.tasks[name]
    if tasks.setdefault(name, task) != task:
      raise UserError(
        f"config.data.pseudo_label_run={run.path}: {name!r} means another thing"
        f" there than in"
        f" {corpus.name!r} ({task} and {tasks[name]})."
      )
    labels[name] = _filled(labels.get(name), _decided(values, task))
  splits = {**corpus.splits, "train": dataclasses.replace(train, labels=labels)}
  notes = {**corpus.notes, "pseudo_labels_from": run.path.name}
  return dataclasses.replace(corpus, splits=splits, tasks=tasks, notes=notes)


def _predictions(
  run: RunDirectory, config: Experiment, split: Split
) -> dict[str, np.ndarray]:
  """Task -> [seeds n ...] of every sample."""
  known = {name: split.modalities[name] for name in config.corpus_spec.widths}
  view = Corpus("", {"train": dataclasses.replace(split, modalities=known)}, {})
  preprocessor = preprocess.load(run.path / "preprocessing.npz")
  view = preprocess.apply(preprocessor, view)
  budget = config.data.device_budget_mib * 2**20
  lengths = dict(config.corpus_spec.lengths)
  feed = feed_lib.make_feed(view.splits["train"], {}, lengths, budget)
  predictor = feed_lib.Predictor(compose.build(config), config.train.eval_batch_size)
  shapes = CompiledStages(config, on_one_device=True).final_shapes()
  outputs = [
    predictor(*load_best(run.best(seed), *shapes), feed).outputs
    for seed in config.replicas.seeds
  ]
  names = [name for name in outputs[0] if name in config.corpus_spec.tasks]
  return {name: np.stack([each[name] for each in outputs]) for name in names}


def _decided(values: np.ndarray, task: Task) -> np.ndarray:
  """Labels from the predictions of several seeds."""
  values = values.astype(np.float64)
  if task.kind == "regression":
    return values.mean(axis=0).astype(np.float32)
  weights = np.exp(values - values.max(axis=-1, keepdims=True))
  shares = (weights / weights.sum(axis=-1, keepdims=True)).mean(axis=0)
  return shares.argmax(axis=-1).astype(np.int32)


def _filled(own: np.ndarray | None, guessed: np.ndarray) -> np.ndarray:
  if own is None:
    return guessed
  known = np.isfinite(own) if own.dtype.kind == "f" else own >= 0
  return np.where(known, own, guessed).astype(guessed.dtype)
