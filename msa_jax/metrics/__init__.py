"""Exact evaluation protocols on predictions (NumPy, host side).

`evaluate` picks the protocol from the `Task`; `METRICS` says of every name which
direction is better.
"""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Num

from msa_jax.errors import UserError
from msa_jax.metrics.classification import class_metrics, question_metrics
from msa_jax.metrics.regression import mosi_metrics, sims_metrics
from msa_jax.typing import Task


class Metric(NamedTuple):
  """Direction, meaning and protocol of one metric name."""

  better: Literal["min", "max"]
  description: str
  protocol: str


_REGRESSION = {"mosi": mosi_metrics, "sims": sims_metrics}

METRICS: Mapping[str, Metric] = {
  "mae": Metric("min", "mean absolute error (sims: clipped)", "mosi, sims"),
  "corr": Metric("max", "Pearson correlation (sims: clipped)", "mosi, sims"),
  "mae_non0": Metric("min", "mean absolute error where y != 0", "mosi"),
  "corr_non0": Metric("max", "Pearson correlation where y != 0", "mosi"),
  "acc2_has0": Metric("max", "accuracy of y >= 0 against p >= 0", "mosi"),
  "f1_has0": Metric("max", "weighted F1 of y >= 0 against p >= 0", "mosi"),
  "acc2_non0": Metric("max", "accuracy of y > 0 against p > 0, y != 0", "mosi"),
  "f1_non0": Metric("max", "weighted F1 of y > 0 against p > 0, y != 0", "mosi"),
  "acc2_cenet": Metric("max", "accuracy of y >= 0 against p >= 0, y != 0", "mosi"),
  "f1_cenet": Metric("max", "weighted F1 of y >= 0 against p >= 0, y != 0", "mosi"),
  "f1_mult": Metric("max", "f1_non0 weighted by predicted supports", "mosi"),
  "acc5": Metric("max", "accuracy after clipping to [-2, 2] and rounding", "mosi"),
  "acc7": Metric("max", "accuracy after clipping to [-3, 3] and rounding", "mosi"),
  "acc2_sims": Metric("max", "accuracy of y > 0 against p > 0", "sims"),
  "f1_sims": Metric("max", "weighted F1 of y > 0 against p > 0", "sims"),
  "acc3_sims": Metric("max", "accuracy in 3 bins, edges -.1, .1", "sims"),
  "acc5_sims": Metric("max", "accuracy in 5 bins, edges -.7, -.1, .1, .7", "sims"),
  "wa": Metric("max", "accuracy", "classes"),
  "ua": Metric("max", "mean recall over classes", "classes"),
  "f1_weighted": Metric("max", "weighted F1", "classes"),
  "f1_macro": Metric("max", "mean F1 over classes", "classes"),
  "acc": Metric("max", "accuracy, mean over questions", "emotions"),
  "f1": Metric("max", "weighted F1, mean over questions", "emotions"),
  "wacc": Metric("max", "(TPR + TNR) / 2, mean over questions", "emotions"),
  "wacc_mult": Metric("max", "(TP N / P + TN) / 2N, mean over questions", "emotions"),
}


def evaluate(
  task: Task,
  predictions: Num[np.ndarray, "..."],
  labels: Num[np.ndarray, "..."],
  mask: Bool[np.ndarray, "..."] | None = None,
) -> dict[str, float]:
  """All metrics of a task, once over all its predictions.

  Args:
    task: decides the protocol by its kind and, for regression, its `protocol`.
    predictions: [n] scores (regression), [n c] logits (classes), [n c 2] or [n c]
      logits (binary); with [n t] in place of [n] for utterances of dialogues.
    labels: [n] scores or class indices, or [n c] answers 0/1; with [n t] likewise.
    mask: [n] or [n t], True = has a label and counts; None = all.

  Returns:
    name -> value as in `METRICS`; binary tasks also have `<name>_<question>`, and
    classes `f1_<class>`. NaN where a metric has no rows, and everywhere if a
    prediction that counts is not finite.

  Raises:
    UserError: unknown protocol, or shapes that do not fit.
  """
  if mask is None:
    rank = labels.ndim - 1 if task.kind == "binary" else labels.ndim
    mask = np.ones(labels.shape[:rank], bool)
  if predictions.shape[: mask.ndim] != mask.shape or labels.shape[: mask.ndim] != (
    mask.shape
  ):
    raise UserError(
      f"predictions of shape {predictions.shape} and labels of shape {labels.shape} "
      f"for {mask.shape} examples: leading axes must agree"
    )
  predictions, labels = _floating(predictions[mask]), labels[mask]
  finite = np.isfinite(predictions)
  result = _choose(task, np.where(finite, predictions, 0), labels)
  return result if np.all(finite) else dict.fromkeys(result, math.nan)


def selection_value(metrics: Mapping[str, float], name: str) -> float:
  """The metric as a value to maximise: negated where smaller is better.

  NaN becomes minus infinity, so that an undefined epoch is never the best.

  Args:
    metrics: what `evaluate` returned.
    name: a key of `METRICS`, also with the suffix of a class or question.

  Raises:
    UserError: unknown name, or one these metrics do not hold.
  """
  if name not in metrics:
    raise UserError(
      f"selection metric {name!r}: choose one of {', '.join(sorted(metrics))}"
    )
  value = float(metrics[name])
  if math.isnan(value):
    return -math.inf
  return -value if better(name) == "min" else value


def better(name: str) -> Literal["min", "max"]:
  """Direction of a metric; suffixes of classes and questions are understood.

  Raises:
    UserError: unknown name.
  """
  if name in METRICS:
    return METRICS[name].better
  if name.startswith(("acc_", "f1_", "wacc_")):
    return "max"
  raise UserError(f"metric {name!r}: choose one of {', '.join(METRICS)}")


def _choose(task: Task, predictions, labels) -> dict[str, float]:
  """The metrics of flat, finite predictions by the task's kind and protocol."""
  if task.kind == "classes":
    return class_metrics(predictions, labels.astype(np.int64), task.classes)
  if task.kind == "binary":
    return question_metrics(predictions, labels.astype(np.int64), task.classes)
  if task.protocol not in _REGRESSION:
    raise UserError(
      f"protocol {task.protocol!r} for a regression: choose one of "
      f"{', '.join(_REGRESSION)}"
    )
  if predictions.ndim != 1:
    raise UserError(f"predictions of shape {predictions.shape}: regression needs [n]")
  return _REGRESSION[task.protocol](predictions, _floating(labels))


def _floating(values: np.ndarray) -> np.ndarray:
  """Leaves float32 and float64 as they are, makes everything else float64."""
  return values if values.dtype in (np.float32, np.float64) else values.astype(float)
