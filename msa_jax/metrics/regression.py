"""Metrics of a sentiment score, each protocol under its own name.

NumPy, float64, on the host, computed once over all predictions. Every function takes
the predictions first. Without rows (an empty split, no non-zero label) the value is
NaN; nothing here warns.

Thresholds are compared in the type the scores arrive in: the float32 label 0.1 lies
in the bin that ends at 0.1, as it does in the evaluation code that set the protocol,
and would not if it were widened to float64 first.
"""

import numpy as np
from jaxtyping import Float, Int

from msa_jax.metrics.classification import accuracy, weighted_f1

Scores = Float[np.ndarray, " n"]
Classes = Int[np.ndarray, " n"]


def mae(prediction: Scores, label: Scores) -> float:
  """Mean absolute error, in the label's unit."""
  if not len(label):
    return float("nan")
  return float(np.mean(np.abs(prediction.astype(float) - label.astype(float))))


def corr(prediction: Scores, label: Scores) -> float:
  """Pearson correlation in [-1, 1].

  0.0 if either side is constant (one row included): such a predictor tells nothing
  about the label, and a NaN there would spoil means over seeds. NaN without rows.
  """
  if not len(label):
    return float("nan")
  prediction, label = prediction.astype(float), label.astype(float)
  if np.ptp(prediction) == 0 or np.ptp(label) == 0:
    return 0.0
  # Dividing by the largest deviation keeps squares from under- or overflowing.
  deviations = [values - np.mean(values) for values in (prediction, label)]
  left, right = (values / np.max(np.abs(values)) for values in deviations)
  norm = np.sqrt(np.sum(left**2) * np.sum(right**2))
  return float(np.clip(np.sum(left * right) / norm, -1.0, 1.0))


def round_to_class(scores: Scores, limit: int) -> Classes:
  """Clips to [-limit, limit] and rounds half to even: 0.5 -> 0, 1.5 -> 2, 2.5 -> 2."""
  return np.round(np.clip(scores, -limit, limit)).astype(np.int64)


def bin_right_closed(scores: Scores, edges: tuple[float, ...]) -> Classes:
  """Index of the bin (edge[i - 1], edge[i]] each score lies in."""
  return np.digitize(scores, np.asarray(edges, scores.dtype), right=True)


def mosi_metrics(prediction: Scores, label: Scores) -> dict[str, float]:
  """MOSI and MOSEI: labels in [-3, 3].

  Returns:
    `mae`, `corr`: on unclipped scores.
    `acc2_has0`, `f1_has0`: all rows, zero counts as positive (y >= 0, p >= 0).
    `acc2_non0`, `f1_non0`: rows with y != 0 (y > 0, p > 0).
    `acc2_cenet`, `f1_cenet`: rows with y != 0, but y >= 0, p >= 0 (MAG-BERT, CENet).
    `f1_mult`: as `f1_non0`, but supports are those of the predictions (arguments
    swapped, as in MulT and MISA).
    `mae_non0`, `corr_non0`: rows with y != 0 (GCNet and MoMKE; not comparable).
    `acc5`, `acc7`: classes after clipping to 2 or 3 and rounding half to even.
    F1 is weighted by the supports of the truth.
  """
  result = {"mae": mae(prediction, label), "corr": corr(prediction, label)}
  non0 = label != 0
  some_prediction, some_label = prediction[non0], label[non0]
  result["mae_non0"] = mae(some_prediction, some_label)
  result["corr_non0"] = corr(some_prediction, some_label)
  binary = {
    "has0": (prediction >= 0, label >= 0),
    "non0": (some_prediction > 0, some_label > 0),
    "cenet": (some_prediction >= 0, some_label >= 0),
  }
  for name, pair in binary.items():
    predicted, truth = (side.astype(np.int64) for side in pair)
    result[f"acc2_{name}"] = accuracy(predicted, truth)
    result[f"f1_{name}"] = weighted_f1(predicted, truth)
    if name == "non0":
      result["f1_mult"] = weighted_f1(truth, predicted)
  for classes, limit in ((5, 2), (7, 3)):
    sides = round_to_class(prediction, limit), round_to_class(label, limit)
    result[f"acc{classes}"] = accuracy(*sides)
  return result


def sims_metrics(prediction: Scores, label: Scores) -> dict[str, float]:
  """CH-SIMS and CH-SIMS v2: labels in [-1, 1].

  Both sides are clipped to [-1, 1] before everything, MAE and correlation included.

  Returns:
    `mae`, `corr`: on clipped scores, unlike those of `mosi_metrics`.
    `acc2_sims`, `f1_sims`: zero counts as negative (y > 0, p > 0).
    `acc3_sims`: bins that end at -.1, .1; `acc5_sims`: at -.7, -.1, .1, .7. Bins
    include their upper end. F1 is weighted by the supports of the truth.
  """
  prediction, label = np.clip(prediction, -1, 1), np.clip(label, -1, 1)
  result = {"mae": mae(prediction, label), "corr": corr(prediction, label)}
  edges = {2: (0.0,), 3: (-0.1, 0.1), 5: (-0.7, -0.1, 0.1, 0.7)}
  for classes, inner in edges.items():
    sides = bin_right_closed(prediction, inner), bin_right_closed(label, inner)
    result[f"acc{classes}_sims"] = accuracy(*sides)
    if classes == 2:
      result["f1_sims"] = weighted_f1(*sides)
  return result
