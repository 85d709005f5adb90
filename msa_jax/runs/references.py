"""References of a run: fitted on its own splits and features, and compared with it."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Int

from msa_jax import metrics as metrics_lib
from msa_jax.config.experiment import Experiment
from msa_jax.errors import UserError
from msa_jax.linear import pooling, references
from msa_jax.linear.pooling import Pooled
from msa_jax.linear.references import Labelled, Reference
from msa_jax.metrics.bootstrap import paired
from msa_jax.models.outputs import output_specs
from msa_jax.models.with_anchor import ANCHOR
from msa_jax.names import held_out_split
from msa_jax.runs.prediction_files import mean_prediction
from msa_jax.text import features as text_features
from msa_jax.training import scoring
from msa_jax.training.scoring import LabelArrays
from msa_jax.typing import Corpus, Sequences, Split, Task, task_name

FILE = "references.npz"
# How surely two systems differ, for a word about it.
LEVEL = 0.05
TEXT = "text"

Fitted = Mapping[str, Mapping[str, Reference]]


def fit(config: Experiment, corpus: Corpus) -> dict[str, dict[str, Reference]]:
  """Fits the references of a run's tasks; see `linear.references`.

  Args:
    config: resolved.
    corpus: preprocessed, as the system is trained on it.

  Returns:
    Task -> name -> reference; empty if `config.train.references` is off, or where the
    encoder that the text began with is gone.
  """
  if not config.train.references:
    return {}
  try:
    tasks, train = _training(config, corpus)
    valid, held_out = corpus.splits.get("valid"), None
    if valid is not None and scoring.label_arrays(valid, tasks):
      held_out = _labelled(config, valid, tasks)
    return references.fit(tasks, train, held_out, config.corpus_spec.priors)
  except UserError as error:
    logging.warning("no references beside this run: %s", error)
    return {}


def fit_text(config: Experiment, corpus: Corpus) -> dict[str, Reference]:
  """Task -> linear model of its pooled text, fitted on training alone: the penalty by
  cross-validation there, so that validation has chosen nothing of it.

  Args:
    config: resolved.
    corpus: preprocessed.

  Returns:
    Tasks that have one; none where the encoder that the text began with is gone.
  """
  try:
    tasks, (pooled, labels) = _training(config, corpus)
  except UserError as error:
    logging.warning("no linear model for a text-only head to start as: %s", error)
    return {}
  means, seen = ({TEXT: each[TEXT]} for each in (pooled.means, pooled.seen))
  rows = Labelled(Pooled(means, seen, None), labels)
  found = references.fit(tasks, rows, None, config.corpus_spec.priors)
  name = f"linear_{TEXT}"
  return {task: named[name] for task, named in found.items() if name in named}


def _training(config: Experiment, corpus: Corpus) -> tuple[dict[str, Task], Labelled]:
  """The tasks that a run predicts, and its training rows."""
  train, index = corpus.splits["train"], None
  if len(train) > references.MOST_ROWS:
    random = np.random.default_rng(0)
    index = np.sort(random.choice(len(train), references.MOST_ROWS, replace=False))
  priors = config.corpus_spec.priors
  predicted = {one.name for one in output_specs(config.model, config.corpus_spec)}
  known = predicted & set(priors)
  tasks = {name: task for name, task in corpus.tasks.items() if name in known}
  return tasks, _labelled(config, train, tasks, index)


def _labelled(
  config: Experiment,
  split: Split,
  tasks: Mapping[str, Task],
  index: Int[np.ndarray, " b"] | None = None,
) -> Labelled:
  chosen = split
  if index is not None:
    labels = {name: values[index] for name, values in split.labels.items()}
    extras = {name: values[index] for name, values in split.extras.items()}
    chosen = Split(split.ids[index], {}, labels, extras=extras)
  found = scoring.label_arrays(chosen, tasks)
  targets = {name: (each.values, each.mask) for name, each in found.items()}
  return Labelled(pool(config, split, index), targets)


def pool(
  config: Experiment, split: Split, index: Int[np.ndarray, " b"] | None = None
) -> Pooled:
  """Pooled rows of a split. Where an encoder is trained, text is what the pretrained
  encoder says of it."""
  if config.text.is_tuned:
    text = split.modalities["text"]
    rows = np.arange(len(split)) if index is None else index
    taken = Sequences(
      np.zeros((len(rows), 1, 0), np.float32),
      text.lengths[rows],
      None if text.lost is None else text.lost[rows],
      {"tokens": text.ids["tokens"][rows]},
      {name: beside[rows] for name, beside in text.context.items()},
    )
    means = text_features.frozen_means(taken, config.text)
    whole = np.zeros((len(split), 1, means.shape[1]), np.float32)
    whole[rows, 0] = means
    seen = np.zeros(len(split), np.int32)
    visible = np.arange(text.ids["tokens"].shape[1])[None] < text.lengths[:, None]
    visible = visible if text.lost is None else visible & ~text.lost
    seen[visible.any(axis=1)] = 1
    split = dataclasses.replace(
      split, modalities={**split.modalities, "text": Sequences(whole, seen)}
    )
  return pooling.pool(split, index)


def rows(
  fitted: Fitted,
  tasks: Mapping[str, Task],
  pooled: Pooled,
  labels: Mapping[str, LabelArrays],
) -> dict[str, dict[str, dict[str, Any]]]:
  """Task -> reference -> metric -> value on the rows of a split."""
  return {
    task: {
      name: metrics_lib.evaluate(
        tasks[task],
        references.predict(one, pooled),
        labels[task].values,
        labels[task].mask,
      )
      for name, one in named.items()
    }
    for task, named in fitted.items()
    if task in labels
  }


def report(
  fitted: Fitted,
  config: Experiment,
  corpus: Corpus,
  outputs: Mapping[str, Sequence[Mapping[str, np.ndarray]]],
) -> dict[str, Any]:
  """What summary.json says of the references.

  Args:
    fitted: of the run.
    config: resolved.
    corpus: preprocessed.
    outputs: split -> predictions of each seed.

  Returns:
    `references`: split -> task -> reference -> metrics and `penalty`; `compared`: test
    (validation where there is none) -> task -> what with -> `metric`, `difference`
    (this run minus the other), `interval` (95 %), `p` and `better`: `yes`, `no` or
    `cannot say`.
  """
  found: dict[str, Any] = {"references": {}, "compared": {}}
  for split, per_seed in outputs.items():
    data = corpus.splits[split]
    labels = scoring.label_arrays(data, corpus.tasks)
    pooled = pool(config, data) if fitted else None
    if pooled is not None:
      table = rows(fitted, corpus.tasks, pooled, labels)
      for task, named in table.items():
        for name, figures in named.items():
          figures["penalty"] = fitted[task][name].penalty
      found["references"][split] = table
    if split != held_out_split(outputs):
      continue
    compared = {}
    for task in sorted({task_name(name) for name in per_seed[0]} & set(labels)):
      others = _others(fitted.get(task, {}), pooled, corpus.tasks[task])
      if f"{task}@{ANCHOR}" in per_seed[0]:
        values = [each[f"{task}@{ANCHOR}"] for each in per_seed]
        others["text_head"] = mean_prediction(corpus.tasks[task], values)
      if task in per_seed[0]:
        own = mean_prediction(corpus.tasks[task], [each[task] for each in per_seed])
        compared[task] = {
          name: compare(corpus.tasks[task], own, other, labels[task])
          for name, other in others.items()
        }
    found["compared"][split] = {task: each for task, each in compared.items() if each}
  return found


def _others(named, pooled, task: Task) -> dict[str, np.ndarray]:
  """Reference -> its prediction, as `mean_prediction` has it."""
  return {
    name: mean_prediction(task, [references.predict(one, pooled)])
    for name, one in named.items()
    if name != "constant"
  }


def compare(
  task: Task, own: np.ndarray, other: np.ndarray, labels: LabelArrays
) -> dict[str, Any]:
  """Paired bootstrap over the labelled rows: by mean absolute error, or accuracy.

  Args:
    task: of the predictions.
    own, other: [n], or probabilities of classes or of a yes [n c].
    labels: of the rows.
  """
  metric, name, sign = _METRICS[task.kind]
  rows = labels.mask
  result = paired(metric, own[rows], other[rows], labels.values[rows])
  better = "cannot say"
  if result.p_value < LEVEL:
    better = "yes" if sign * result.difference.estimate > 0 else "no"
  return {
    "metric": name,
    "difference": result.difference.estimate,
    "interval": [result.difference.low, result.difference.high],
    "p": result.p_value,
    "better": better,
  }


def _error(values: np.ndarray, labels: np.ndarray) -> float:
  return float(np.mean(np.abs(values - labels)))


def _accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
  return float(np.mean(probabilities.argmax(axis=1) == labels))


def _answers(probabilities: np.ndarray, labels: np.ndarray) -> float:
  return float(np.mean((probabilities > 0.5) == (labels == 1)))


# Kind of a task -> metric, its name, and whether more of it is better.
_METRICS = {
  "regression": (_error, "mae", -1),
  "classes": (_accuracy, "wa", 1),
  "binary": (_answers, "acc", 1),
}


def correction(
  tasks: Mapping[str, Task], per_seed: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, dict[str, float]]:
  """How much an anchored system corrects what text alone says, mean over seeds.

  Returns:
    Task -> `mean_change` (absolute, of a label, or of probabilities summed over the
    classes and halved) and `decisions_changed`, the share of samples whose sign, class
    or answers change.
  """
  found = {}
  for name in per_seed[0]:
    task, _, head = name.partition("@")
    if head != ANCHOR:
      continue
    kind, changes, decisions = tasks[task], [], []
    for each in per_seed:
      own, alone = (mean_prediction(kind, [each[key]]) for key in (task, name))
      change = np.abs(own - alone)
      if kind.kind == "regression":
        decisions.append(np.mean((own > 0) != (alone > 0)))
      elif kind.kind == "classes":
        change = change.sum(axis=-1) / 2
        decisions.append(np.mean(own.argmax(-1) != alone.argmax(-1)))
      else:
        decisions.append(np.mean((own > 0.5) != (alone > 0.5)))
      changes.append(np.mean(change))
    found[task] = {
      "mean_change": float(np.mean(changes)),
      "decisions_changed": float(np.mean(decisions)),
    }
  return found


def save(folder: pathlib.Path, fitted: Fitted) -> None:
  """Keeps fitted references in a run directory, for grids of missing modalities."""
  if fitted:
    references.save(folder / FILE, fitted)


def load(folder: pathlib.Path) -> dict[str, dict[str, Reference]]:
  """What `save` kept; empty where there is nothing."""
  return references.load(folder / FILE)
