"""Activations of which the frameworks' versions are inexact or slow."""

import math

from jax import lax
from jaxtyping import Array, Float


def exact_gelu(values: Float[Array, "..."]) -> Float[Array, "..."]:
  """x Phi(x), the Gaussian error linear unit without tanh approximation.

  Through erf, as PyTorch does; `jax.nn.gelu` takes erfc, whose two branches and
  exponential cost a CPU several times as much. Source: Hendrycks & Gimpel 2016.
  """
  return 0.5 * values * (1.0 + lax.erf(values * math.sqrt(0.5)))
