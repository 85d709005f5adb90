"""B-fusion's loss: the distance of the modalities' gradients from balance.

Source: AWF, Journal of Software 2024, 35(10):4781-4793, Eq. 6-9 and algorithm 1,
after GradNorm (Chen et al., ICML 2018).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# Gradients below this count as none: keeps ratios of nothing finite.
SILENCE = 1e-12


class BalanceTargets(NamedTuple):
  """Where the gradient sizes should go.

  Attributes:
    target: [m] mean size times ratio; zero for modalities not seen.
    ratio: [m] r_i, largest size over this one, at most `r_max`; zero if not seen.
    mean: [] mean size of the modalities seen.
  """

  target: jax.Array
  ratio: jax.Array
  mean: jax.Array


def magnitude(values: Float[Array, "..."]) -> Float[Array, "..."]:
  """|x| with derivative 0 at 0; that of `jnp.abs` is 1 there, which would push the
  weights of modalities that are balanced, or silent."""
  return values * jnp.sign(values)


def mean_magnitude(gradient: Float[Array, "..."]) -> Float[Array, ""]:
  """g_i of Eq. 7: mean absolute entry, so that layers of any width compare."""
  return jnp.mean(magnitude(gradient))


def balance_targets(
  sizes: Float[Array, " m"], seen: Bool[Array, " m"], r_max: float
) -> BalanceTargets:
  """Targets of the gradient sizes (Eq. 8-9).

  Args:
    sizes: g_i.
    seen: False = no sample has the modality; it takes no part.
    r_max: bound of the ratio, for modalities whose gradient is (nearly) silent.
  """
  sizes = jnp.where(seen, sizes, 0.0)
  count = jnp.maximum(jnp.sum(seen), 1).astype(sizes.dtype)
  mean = jnp.sum(sizes) / count
  ratio = jnp.minimum(jnp.max(sizes) / jnp.maximum(sizes, SILENCE), r_max)
  ratio = jnp.where(seen, ratio, 0.0)
  return BalanceTargets(mean * ratio, ratio, mean)


def balance_loss(
  sizes: Float[Array, " m"], target: Float[Array, " m"], seen: Bool[Array, " m"]
) -> Float[Array, ""]:
  """L_omega = sum_i |g_i - target_i| over the modalities seen (Eq. 6)."""
  return jnp.sum(jnp.where(seen, magnitude(sizes - target), 0.0))
