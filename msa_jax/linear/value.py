"""What a modality is worth by itself: how much of the labels a linear model of it
explains of videos that it was not fitted on.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Num

from msa_jax import arrays
from msa_jax.linear import ridge
from msa_jax.typing import Sequences

FOLDS = 5
# With fewer rows nothing is said.
FEWEST = 50


class Value(NamedTuple):
  """What was measured.

  Attributes:
    explained: share of the labels' squared deviation from their mean; below 0 = worse
      than the mean.
    z: mean gain of a sample over its standard error; of pure noise about normal, or
      below, since a model of noise loses.
    rows: samples that have the modality and a label.
  """

  explained: float
  z: float
  rows: int


def moments(
  sequences: Sequences, visible: Bool[np.ndarray, "n t"]
) -> Float[np.ndarray, "n k"]:
  """Mean and standard deviation over the visible steps of each sample, side by side;
  zero where there is none. Of one step for every sample the means alone."""
  found = []
  for rows in arrays.blocks(len(visible)):
    there = visible[rows][..., None]
    features = np.where(there, np.asarray(sequences.features[rows], np.float64), 0.0)
    count = np.maximum(there.sum(axis=1), 1)
    mean = features.sum(axis=1) / count
    squares = np.where(there, (features - mean[:, None]) ** 2, 0.0).sum(axis=1)
    found.append(np.concatenate([mean, np.sqrt(squares / count)], axis=1))
  whole = np.concatenate([np.zeros((0, 2 * sequences.features.shape[-1])), *found])
  return whole[:, : whole.shape[1] // 2] if visible.shape[1] == 1 else whole


def of(
  x: Float[np.ndarray, "n k"], y: Num[np.ndarray, "n c"], groups: Num[np.ndarray, " n"]
) -> Value:
  """Cross-validated value of features.

  Args:
    x: of samples.
    y: labels, or answers 0/1 to c questions.
    groups: number of each sample's video; those of one video stay together.
  """
  order = np.random.default_rng(0).permutation(int(groups.max(initial=0)) + 1)
  fold = order[groups] % FOLDS
  gain, spread = np.zeros(len(x)), np.zeros(len(x))
  for number in range(FOLDS):
    aside = fold == number
    if aside.all() or not aside.any():
      continue
    center, scale = x[~aside].mean(axis=0), x[~aside].std(axis=0)
    scale = np.where(scale > 1e-8, scale, np.inf)
    seen, new = (x[~aside] - center) / scale, (x[aside] - center) / scale
    for column in y.T.astype(float):
      model = ridge.fit(seen, column[~aside])
      off = (column[aside] - column[~aside].mean()) ** 2
      gain[aside] += off - (column[aside] - ridge.predict(model, new)) ** 2
      spread[aside] += off
  error = gain.std() / np.sqrt(max(1, len(x)))
  z = gain.mean() / error if error > 0 else 0.0
  total = spread.sum()
  return Value(float(gain.sum() / total) if total > 0 else 0.0, float(z), len(x))
