"""Figures of predictions: task metrics by protocol, routing entropies."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from msa_jax import metrics as metrics_lib
from msa_jax.data.labels import known
from msa_jax.data.transforms import dialogues
from msa_jax.training.feed import Predictions
from msa_jax.typing import Split, Task, task_name


class LabelArrays(NamedTuple):
  """Labels of one task on the host: values [n ...] and who has one, [n]."""

  values: np.ndarray
  mask: np.ndarray


def label_arrays(split: Split, tasks: Mapping[str, Task]) -> dict[str, LabelArrays]:
  """Reads a split's labels, of dialogues those of their utterances; samples without a
  label are masked."""
  split = dialogues.utterances(split)
  found = {}
  for name in tasks:
    if name in split.labels:
      values = np.asarray(split.labels[name])
      flat = values.reshape(len(values), -1)
      found[name] = LabelArrays(values, np.all(known(flat), axis=1))
  return found


def score(
  tasks: Mapping[str, Task],
  outputs: Mapping[str, np.ndarray],
  labels: Mapping[str, LabelArrays],
) -> dict[str, dict[str, float]]:
  """Prediction name -> metric name -> value, computed once over all predictions.

  A prediction `<task>@<head>` is scored against its task's labels.
  """
  return {
    name: metrics_lib.evaluate(
      tasks[task_name(name)],
      prediction,
      labels[task_name(name)].values,
      labels[task_name(name)].mask,
    )
    for name, prediction in outputs.items()
    if task_name(name) in labels
  }


def without_content(
  predictions: Predictions, labels: Mapping[str, LabelArrays], split: str = ""
) -> int:
  """How many labelled samples or utterances had nothing to be predicted from.

  They were given the training prior. Padding of dialogues has no label and does not
  count; without any labels every row counts.

  Args:
    predictions: of a split.
    labels: of that split; may be empty.
    split: its name, for a line in the log if there are any; "" = no line.
  """
  missing = ~predictions.content
  if labels:
    missing = missing & np.any([target.mask for target in labels.values()], axis=0)
  count = int(missing.sum())
  if count and split:
    logging.warning(
      "%d of %s have no content at all: predicted by the training prior", count, split
    )
  return count


def shown_entropy(summary: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
  """The progress bar's figure: mean over gates of the normalised router entropy."""
  values = [gate["router_entropy_dense_normalised"] for gate in summary.values()]
  values = [value for value in values if np.isfinite(value)]  # gates in use
  return {"gate entropy": float(np.mean(values))} if values else {}
