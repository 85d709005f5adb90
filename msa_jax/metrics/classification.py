"""Metrics of classes: one of several, or several yes/no questions.

NumPy, float64, on the host, computed once over all predictions. Every function takes
the predictions first. An empty set gives NaN; nothing here warns.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Num

from msa_jax.errors import UserError

Labels = Int[np.ndarray, " n"]


def decide(scores: Num[np.ndarray, "*n c"]) -> Int[np.ndarray, "*n"]:
  """Class of the largest score; equal scores go to the lower index."""
  return np.argmax(scores, axis=-1).astype(np.int64)


def accuracy(predicted: Labels, truth: Labels) -> float:
  """Share of rows whose class is right; NaN without rows."""
  return float(np.mean(predicted == truth)) if len(truth) else float("nan")


def balanced_accuracy(predicted: Labels, truth: Labels) -> float:
  """Mean recall over the classes that occur in `truth` (macro recall, "UA")."""
  recalls = [np.mean(predicted[truth == c] == c) for c in np.unique(truth)]
  return float(np.mean(recalls)) if recalls else float("nan")


def weighted_f1(predicted: Labels, truth: Labels) -> float:
  """F1 of each class, weighted by how often it occurs in `truth`.

  A class with no true positive has F1 = 0 (scikit-learn's `average="weighted"`).
  """
  classes, support = np.unique(truth, return_counts=True)
  if not len(classes):
    return float("nan")
  scores = np.array([f1(predicted, truth, int(c)) for c in classes])
  return float(np.sum(scores * support) / np.sum(support))


def macro_f1(predicted: Labels, truth: Labels) -> float:
  """Mean F1 over the classes that occur in `truth` or among the predictions.

  scikit-learn's `average="macro"` with its default labels.
  """
  classes = np.union1d(predicted, truth)
  if not len(truth):
    return float("nan")
  return float(np.mean([f1(predicted, truth, int(c)) for c in classes]))


def f1(predicted: Labels, truth: Labels, positive: int) -> float:
  """F1 of one class, 2 TP / (2 TP + FP + FN); 0 where that is 0 / 0."""
  hits = np.sum((predicted == positive) & (truth == positive))
  named = np.sum(predicted == positive) + np.sum(truth == positive)
  return float(2.0 * hits / named) if named else 0.0


def weighted_accuracy(predicted: Labels, truth: Labels) -> float:
  """0.5 (TPR + TNR) of a yes/no question (1 = yes); NaN unless both occur."""
  yes, no = truth == 1, truth == 0
  if not (np.any(yes) and np.any(no)):
    return float("nan")
  return float(0.5 * (np.mean(predicted[yes] == 1) + np.mean(predicted[no] == 0)))


def weighted_accuracy_mult(predicted: Labels, truth: Labels) -> float:
  """(TP * N / P + TN) / (2 N), as MulT's evaluation of MOSEI emotions writes it.

  Algebraically `weighted_accuracy`; kept under its own name because papers quote it
  as another metric. NaN unless both answers occur.
  """
  positives, negatives = int(np.sum(truth == 1)), int(np.sum(truth == 0))
  if not (positives and negatives):
    return float("nan")
  true_positives = float(np.sum((truth == 1) & (predicted == 1)))
  true_negatives = float(np.sum((truth == 0) & (predicted == 0)))
  scaled = true_positives * (negatives / positives)
  return (scaled + true_negatives) / (2.0 * negatives)


def class_metrics(
  scores: Num[np.ndarray, "n ..."], truth: Labels, classes: Sequence[str] = ()
) -> dict[str, float]:
  """One of several classes, from logits or probabilities.

  Args:
    scores: [n c], larger = more likely.
    truth: class indices.
    classes: names; adds `f1_<name>` for each.

  Returns:
    `wa` (accuracy), `ua` (mean recall; GCNet and MoMKE report these two),
    `f1_weighted`, `f1_macro`.

  Raises:
    UserError: scores that are not [n c].
  """
  if scores.ndim != 2:
    raise UserError(
      f"predictions of shape {scores.shape} for a task of classes: must be [n c]"
    )
  predicted = decide(scores)
  result = {
    "wa": accuracy(predicted, truth),
    "ua": balanced_accuracy(predicted, truth),
    "f1_weighted": weighted_f1(predicted, truth),
    "f1_macro": macro_f1(predicted, truth),
  }
  for index, name in enumerate(classes):
    result[f"f1_{name}"] = f1(predicted, truth, index) if len(truth) else float("nan")
  return result


def question_metrics(
  scores: Num[np.ndarray, "n ..."],
  truth: Int[np.ndarray, "n ..."],
  questions: Sequence[str],
) -> dict[str, float]:
  """Several yes/no questions, each on its own and as means over questions.

  Args:
    scores: [n c 2] logits (no, yes), or [n c] logits of yes.
    truth: [n c], 1 = yes, 0 = no.
    questions: c names.

  Returns:
    Per question and, without suffix, their mean over questions: `acc_<name>` and
    `f1_<name>` (accuracy and weighted F1: MulT's IEMOCAP), `wacc_<name>` and
    `wacc_mult_<name>` (weighted accuracy of MOSEI emotions, both ways of writing
    it). Means leave out questions whose value is NaN.

  Raises:
    UserError: shapes or names that do not fit.
  """
  if truth.ndim != 2 or scores.shape[:2] != truth.shape:
    raise UserError(
      f"predictions of shape {scores.shape} for yes/no labels of shape {truth.shape}: "
      "must be [n c] or [n c 2] for labels [n c]"
    )
  if len(questions) != truth.shape[1]:
    raise UserError(f"{len(questions)} names for {truth.shape[1]} yes/no questions")
  answers = decide(scores) if scores.ndim == 3 else (scores > 0).astype(np.int64)
  measures = {
    "acc": accuracy,
    "f1": weighted_f1,
    "wacc": weighted_accuracy,
    "wacc_mult": weighted_accuracy_mult,
  }
  result = {}
  for key, measure in measures.items():
    values = np.array(
      [measure(answers[:, i], truth[:, i]) for i in range(truth.shape[1])]
    )
    known = values[~np.isnan(values)]
    result[key] = float(np.mean(known)) if len(known) else float("nan")
    result |= {
      f"{key}_{name}": float(value)
      for name, value in zip(questions, values, strict=True)
    }
  return result
