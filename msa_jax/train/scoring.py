"""Figures of predictions: task metrics by protocol, routing entropies, selection."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from absl import logging

from msa_jax import metrics as metrics_lib
from msa_jax.data import dialogues
from msa_jax.models.base import Stage, predicted
from msa_jax.train.feed import Predictions
from msa_jax.train.recipe import task_of
from msa_jax.typing import Split, Task, UserError, task_name

# The headline metric of each protocol, which selects the epoch.
_HEADLINE = {"mosi": "mae", "sims": "mae", "classes": "wa", "emotions": "f1"}


class Targets(NamedTuple):
  """Labels of one task on the host: values [n ...] and who has one, [n]."""

  values: np.ndarray
  mask: np.ndarray


def targets(split: Split, tasks: Mapping[str, Task]) -> dict[str, Targets]:
  """Reads a split's labels, of dialogues those of their utterances; samples without a
  label are masked."""
  split = dialogues.utterances(split)
  found = {}
  for name in tasks:
    if name in split.labels:
      values = np.asarray(split.labels[name])
      flat = values.reshape(len(values), -1)
      present = np.isfinite(flat) if values.dtype.kind == "f" else flat >= 0
      found[name] = Targets(values, present.all(axis=1))
  return found


def score(
  config: ml_collections.ConfigDict,
  outputs: Mapping[str, np.ndarray],
  labels: Mapping[str, Targets],
) -> dict[str, dict[str, float]]:
  """Prediction name -> metric name -> value, computed once over all predictions.

  A prediction `<task>@<head>` is scored against its task's labels; `<task>@*` has the
  means over a task's heads, where there are several.
  """
  scores = {
    name: metrics_lib.evaluate(
      task_of(config.spec.tasks[task_name(name)]),
      prediction,
      labels[task_name(name)].values,
      labels[task_name(name)].mask,
    )
    for name, prediction in outputs.items()
    if task_name(name) in labels
  }
  for task in sorted({task_name(name) for name in scores}):
    heads = [each for name, each in scores.items() if name.startswith(f"{task}@")]
    if len(heads) > 1:
      scores[f"{task}@*"] = {
        key: float(np.mean([head[key] for head in heads])) for key in heads[0]
      }
  return scores


def without_content(
  predictions: Predictions, labels: Mapping[str, Targets], split: str = ""
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


def selection(
  config: ml_collections.ConfigDict, select: str | None = None
) -> tuple[str, str]:
  """Which validation figure selects the epoch: (prediction, metric).

  Args:
    config: resolved config.
    select: `auto` (the headline of the first predicted task), `<metric>`,
      `<task>/<metric>` or `<task>@<head>/<metric>` (head `*` = the mean over heads);
      None = `config.train.select`.

  Raises:
    UserError: unknown task or metric.
  """
  tasks = config.spec.tasks
  select = config.train.select if select is None else select
  prediction, _, name = select.rpartition("/")
  prediction = prediction or predicted(config).name
  task = task_name(prediction)
  if task not in tasks:
    raise UserError(
      f"config.train.select={select!r}: the corpus has no task {task!r} (it has"
      f" {sorted(tasks)})."
    )
  family = _family(task_of(tasks[task]))
  known = [
    key
    for key, metric in metrics_lib.METRICS.items()
    if family in metric.protocol.split(", ")
  ]
  if name == "auto":
    name = _HEADLINE[family]
  if name not in known:
    raise UserError(f"config.train.select={select!r} must be one of {known}, or auto.")
  return prediction, name


def tracks(config: ml_collections.ConfigDict, stage: Stage) -> dict[str, tuple]:
  """Track name -> (prediction, metric) of a stage.

  Raises:
    UserError: unknown task or metric.
  """
  return {name: selection(config, select) for name, select in stage.tracks.items()}


def _family(task: Task) -> str:
  """Name under which `METRICS` lists a task's metrics."""
  return {"classes": "classes", "binary": "emotions"}.get(task.kind, task.protocol)


def shown_entropy(summary: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
  """The progress bar's figure: mean over gates of the normalised router entropy."""
  values = [gate["router_entropy_dense_normalised"] for gate in summary.values()]
  values = [value for value in values if np.isfinite(value)]  # gates in use
  return {"gate entropy": float(np.mean(values))} if values else {}
