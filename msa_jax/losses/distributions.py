"""Entropy and evenness of distributions: one formula for losses and for metrics.

Losses take them in JAX (float32, differentiable), metrics in NumPy (float64, on the
host). `xp` is the module to compute with, `jax.numpy` or `numpy`.
"""

import math
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Array, Float

from msa_jax.errors import UserError

if TYPE_CHECKING:
  Values = Any  # A type checker cannot tell which of them `xp` makes.
else:
  Values = Array | np.ndarray | np.generic

UNITS = ("nats", "bits")


def entropy_unit(base: str, normalised: bool, size: int) -> float:
  """The unit of an entropy, in nats.

  Args:
    base: `nats` or `bits`.
    normalised: the greatest possible entropy, log of `size`, is the unit instead (1
      where that is zero).
    size: entries of the distribution.

  Raises:
    UserError: unknown base.
  """
  if base not in UNITS:
    raise UserError(f"entropy base {base!r}: choose 'nats' or 'bits'")
  if normalised:
    return math.log(size) if size > 1 else 1.0
  return math.log(2.0) if base == "bits" else 1.0


def entropy(
  probs: Float[Values, "*n e"], unit: float, xp: ModuleType
) -> Float[Values, "*n"]:
  """-sum_e p_e log p_e over the last axis; 0 log 0 = 0, also in the gradient.

  Args:
    probs: distributions.
    unit: from `entropy_unit`.
    xp: `jax.numpy` or `numpy`.
  """
  log = xp.log(xp.where(probs > 0, probs, 1.0))
  return -xp.sum(probs * log, axis=-1) / unit


def squared_variation(
  amounts: Float[Values, " e"], xp: ModuleType
) -> Float[Values, ""]:
  """Squared coefficient of variation, (standard deviation / mean)^2.

  Population variance; 0 = even, e - 1 = all in one place. Zero if all are zero.

  Args:
    amounts: not negative.
    xp: `jax.numpy` or `numpy`.
  """
  mean = xp.mean(amounts)
  return xp.mean((amounts - mean) ** 2) / xp.where(mean > 0, mean**2, 1.0)
