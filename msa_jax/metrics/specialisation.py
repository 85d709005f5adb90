"""How experts share the samples: weights by kind of sample, and what they say of it."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float

from msa_jax.losses.distributions import entropy

Rows = Bool[np.ndarray, " n"]


def kinds_of(values: np.ndarray, known: Rows, classes=()) -> dict[str, Rows]:
  """Samples by polarity of a real label, by class, or by question answered with yes.

  Args:
    values: labels [n], or answers [n c].
    known: which samples have one.
    classes: names of classes; () = the label is real.
  """
  if not classes:
    signs = {"negative": values < 0, "neutral": values == 0, "positive": values > 0}
    found = {name: known & rows for name, rows in signs.items()}
  elif values.ndim > 1:
    found = {name: known & (values[:, i] == 1) for i, name in enumerate(classes)}
  else:
    found = {name: known & (values == i) for i, name in enumerate(classes)}
  return {name: rows for name, rows in found.items() if rows.any()}


def weights_by_kind(
  combine: Float[np.ndarray, "n e"], kinds: Mapping[str, Rows]
) -> dict[str, list[float]]:
  """Kind -> mean weight of every expert, over samples that are routed at all."""
  routed = np.any(combine > 0, axis=1)
  return {
    name: combine[rows & routed].mean(axis=0).astype(float).tolist()
    for name, rows in kinds.items()
    if (rows & routed).any()
  }


def label_information(
  combine: Float[np.ndarray, "n e"], kinds: Mapping[str, Rows]
) -> float:
  """I(kind; expert) in nats: how much an expert drawn by a sample's weights says of the
  sample's kind. 0 = experts see all kinds alike; at most the entropy of the kinds.

  Args:
    combine: weights of each sample, renormalised here.
    kinds: that exclude each other; samples of none do not count. NaN without any.
  """
  total = combine.sum(axis=1, keepdims=True)
  weights = combine / np.where(total > 0, total, 1.0)
  groups = [weights[rows & (total[:, 0] > 0)] for rows in kinds.values()]
  groups = [group for group in groups if len(group)]
  if not groups:
    return float("nan")
  sizes = np.asarray([len(group) for group in groups], float)
  means = np.stack([group.mean(axis=0) for group in groups]).astype(float)
  shares = sizes / sizes.sum()
  within = float(shares @ entropy(means, 1.0, np))
  return float(entropy(shares @ means, 1.0, np)) - within
