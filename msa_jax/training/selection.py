"""Which validation figure selects the epoch: one metric, or several of many tasks."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from msa_jax import metrics as metrics_lib
from msa_jax.errors import UserError
from msa_jax.models.outputs import OutputSpec
from msa_jax.models.system import Stage
from msa_jax.typing import Task, task_name

# The headline metric of each protocol.
_HEADLINE = {"mosi": "mae", "sims": "mae", "classes": "wa", "emotions": "f1"}


@dataclasses.dataclass(frozen=True)
class Criterion:
  """A weighted mean of figures, each turned so that greater is better.

  Attributes:
    terms: (weight, prediction, metric); a prediction is a task, or `<task>@<head>`.
  """

  terms: tuple[tuple[float, str, str], ...]

  def __str__(self) -> str:
    """`sentiment/mae`, or `mean of -sentiment/mae, +emotion/wa` with the signs used."""
    if len(self.terms) == 1:
      return "/".join(self.terms[0][1:])
    parts = []
    for weight, task, metric in self.terms:
      sign = "-" if metrics_lib.better(metric) == "min" else "+"
      factor = "" if weight == 1.0 else f"{weight:g}*"
      parts.append(f"{sign}{factor}{task}/{metric}")
    return f"mean of {', '.join(parts)}"

  def value(self, scores: Mapping[str, Mapping[str, float]]) -> float:
    """The figure to maximise: sum of weight * (+-metric) over the sum of weights.

    Metrics where smaller is better count negatively; minus infinity if one of them is
    undefined, so that such an epoch is never the best.

    Args:
      scores: task -> metric -> value, of the validation split.
    """
    weights = [weight for weight, _, _ in self.terms]
    values = [metrics_lib.selection_value(scores[t], m) for _, t, m in self.terms]
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)

  def figures(self, scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """What to show of an epoch: `valid <metric>`, named by task where there are
    several terms."""
    if len(self.terms) == 1:
      _, task, metric = self.terms[0]
      return {f"valid {metric}": scores[task][metric]}
    return {f"valid {t}/{metric}": scores[t][metric] for _, t, metric in self.terms}


def tracks(
  stage: Stage,
  tasks: Mapping[str, Task],
  outputs: Sequence[OutputSpec],
  labels: Mapping[str, Any] | None = None,
) -> dict[str, Criterion]:
  """Track name -> criterion of a stage; see `criterion` for arguments and errors."""
  return {
    name: criterion(monitor, tasks, outputs, labels)
    for name, monitor in stage.tracks.items()
  }


def criterion(
  monitor: str,
  tasks: Mapping[str, Task],
  outputs: Sequence[OutputSpec],
  labels: Mapping[str, Any] | None = None,
) -> Criterion:
  """Which validation figures select.

  `auto` is the mean of the headline metrics of all predicted tasks (MAE, WA or F1);
  else one term or several with commas, each `<metric>`, `<task>/<metric>` or
  `<task>@<head>/<metric>`, with `<weight>*` in front if wanted. The sign is the
  metric's own: `sentiment/mae,emotion/f1` maximises (F1 - MAE) / 2.

  Args:
    monitor: what to read (`config.train.monitor`).
    tasks: of the corpus.
    outputs: the tasks that the system predicts.
    labels: validation labels by task (`scoring.label_arrays`): `auto` leaves out tasks
      that validation has no label of; None = all count.

  Raises:
    UserError: an unknown task or metric, or one that validation cannot measure.
  """
  entries = [entry.strip() for entry in monitor.split(",")]
  names = [output.name for output in outputs]
  if entries == ["auto"]:
    kept = [name for name in names if _measurable(name, labels)]
    if not kept:
      raise UserError(f"the validation split has no labels of {', '.join(names)}.")
    return Criterion(tuple(_term(f"{name}/auto", tasks, name) for name in kept))
  terms = tuple(_term(entry, tasks, names[0]) for entry in entries)
  for _, prediction, _ in terms:
    task = task_name(prediction)
    if task not in names or not _measurable(task, labels):
      raise UserError(
        f"config.train.monitor={monitor!r}: {task!r} must be predicted (the model"
        f" predicts {names}) and the validation split must have labels of it."
      )
  return Criterion(terms)


def _measurable(task: str, labels: Mapping[str, Any] | None) -> bool:
  return labels is None or (task in labels and bool(labels[task].mask.any()))


def _term(
  entry: str, tasks: Mapping[str, Task], default: str
) -> tuple[float, str, str]:
  factor, star, rest = entry.rpartition("*")
  weight = _weight(factor) if star else 1.0
  prediction, _, name = rest.strip().rpartition("/")
  prediction = prediction or default
  task = task_name(prediction)
  if task not in tasks:
    raise UserError(
      f"config.train.monitor={entry!r}: the corpus has no task {task!r} (it has"
      f" {sorted(tasks)})."
    )
  family = _family(tasks[task])
  known = [
    key
    for key, metric in metrics_lib.METRICS.items()
    if family in metric.protocol.split(", ")
  ]
  if name == "auto":
    name = _HEADLINE[family]
  if name not in known:
    raise UserError(f"config.train.monitor={entry!r} must be one of {known}, or auto.")
  return weight, prediction, name


def _weight(text: str) -> float:
  try:
    weight = float(text)
  except ValueError:
    weight = 0.0
  if not 0.0 < weight < math.inf:
    raise UserError(
      f"config.train.monitor: the weight {text.strip()!r} must be a positive number"
      " (the sign is the metric's own)."
    )
  return weight


def _family(task: Task) -> str:
  """Name under which `METRICS` lists a task's metrics."""
  return {"classes": "classes", "binary": "emotions"}.get(task.kind, task.protocol)
