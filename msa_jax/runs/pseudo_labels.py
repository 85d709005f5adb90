"""Labels that a corpus lacks, from a model that learned them elsewhere."""

import dataclasses
import os

import numpy as np

from msa_jax.data.labels import known
from msa_jax.data.transforms.dialogues import utterances
from msa_jax.data.transforms.transform import OTHER
from msa_jax.errors import UserError
from msa_jax.runs.feeds import make_feeds
from msa_jax.runs.open import OpenRun, open_run
from msa_jax.training.run_directory import RunDirectory
from msa_jax.typing import Corpus, Task


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
      f"config.data.pseudo_label_run={run.path}: the run reads token ids, for an"
      " encoder of its own (config.text.finetune); give one that reads features."
    )
  train = corpus.splits["train"]
  widths = {n: s.features.shape[-1] for n, s in train.modalities.items()}
  wanted = dict(config.corpus_spec.widths)
  if {name: widths.get(name) for name in wanted} != wanted:
    raise UserError(
      f"config.data.pseudo_label_run={run.path}: the run reads features of widths"
      f" {wanted}, {corpus.name!r} has {widths}."
    )
  labels, tasks = dict(train.labels), dict(corpus.tasks)
  for name, values in _predictions(open_run(workdir), corpus).items():
    task = config.corpus_spec.tasks[name]
    if tasks.setdefault(name, task) != task:
      raise UserError(
        f"config.data.pseudo_label_run={run.path}: {name!r} means another thing there"
        f" than in {corpus.name!r} ({task} and {tasks[name]})."
      )
    labels[name] = _filled(labels.get(name), _decided(values, task))
  splits = {**corpus.splits, "train": dataclasses.replace(train, labels=labels)}
  notes = {**corpus.notes, "pseudo_labels_from": run.path.name}
  return dataclasses.replace(corpus, splits=splits, tasks=tasks, notes=notes)


def _predictions(opened: OpenRun, corpus: Corpus) -> dict[str, np.ndarray]:
  """Task -> [seeds n ...] of every training sample, in their order."""
  bare = dataclasses.replace(corpus.splits["train"], labels={})
  view = opened.pipeline.apply(Corpus(corpus.name, {"train": bare}, {}), OTHER)
  spec = opened.config.corpus_spec
  budget = opened.config.data.device_budget_mib
  feed = make_feeds(view, spec, budget_mib=budget)["train"]
  outputs = [each.outputs for each in opened.predictions(feed)]
  # A run of dialogues has put the samples into another order.
  place = {name: row for row, name in enumerate(utterances(view.splits["train"]).ids)}
  rows = np.array([place[name] for name in bare.ids])
  return {
    name: np.stack([each[name][rows] for each in outputs])
    for name in outputs[0]
    if name in spec.tasks
  }


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
  return np.where(known(own), own, guessed).astype(guessed.dtype)
