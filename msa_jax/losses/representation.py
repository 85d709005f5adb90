"""Losses that shape representations: what codes share, hide and keep.

Functions of a whole batch. A row whose mask is False has no influence, NaN included; a
batch without rows that count gives zero, with zero gradient.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from msa_jax.layers.masking import masked_mean

_SMALL = 1e-6  # added to norms that divide
_EPSILON = 1e-12  # keeps the root's gradient finite where two distributions coincide

Rows = Bool[Array, " b"]


def difference(
  first: Float[Array, "b d"], second: Float[Array, "b k"], mask: Rows
) -> Float[Array, ""]:
  """Mean squared entry of X^T Y: how much two codes of the same samples repeat.

  X and Y are the codes, centred over the batch, each row divided by its norm + 1e-6,
  which has no gradient. The sum over the batch grows with it.

  Source: MISA (Hazarika et al., ACM MM 2020), Eq. 7, and its code.
  """
  return jnp.mean((_unit(first, mask).T @ _unit(second, mask)) ** 2)


def _unit(codes: Float[Array, "b d"], mask: Rows) -> Float[Array, "b d"]:
  rows = mask[:, None]
  codes = jnp.where(rows, codes, 0.0)
  centred = jnp.where(rows, codes - masked_mean(codes, rows, 0)[None], 0.0)
  norms = jnp.linalg.norm(lax.stop_gradient(centred), axis=1, keepdims=True)
  return centred / (norms + _SMALL)


def central_moments(
  first: Float[Array, "b d"],
  second: Float[Array, "n d"],
  first_mask: Rows,
  second_mask: Bool[Array, " n"],
  orders: int = 5,
) -> Float[Array, ""]:
  """Central moment discrepancy of two samples: distance of their means, and of their
  central moments of order 2 to `orders`, added up.

  1e-12 is added below each root. Zero if one of the samples is empty.

  Source: CMD (Zellinger et al., ICLR 2017), Eq. 13, without the scale of the interval,
  as in MISA.
  """
  one, other = first_mask[:, None], second_mask[:, None]
  first, second = jnp.where(one, first, 0.0), jnp.where(other, second, 0.0)
  mean, other_mean = masked_mean(first, one, 0), masked_mean(second, other, 0)
  total = _distance(mean, other_mean)
  first, second = first - mean[None], second - other_mean[None]
  for order in range(2, orders + 1):
    total += _distance(
      masked_mean(first**order, one, 0), masked_mean(second**order, other, 0)
    )
  return jnp.where(jnp.any(first_mask) & jnp.any(second_mask), total, 0.0)


def _distance(one: Float[Array, " d"], other: Float[Array, " d"]) -> Float[Array, ""]:
  return jnp.sqrt(jnp.sum((one - other) ** 2) + _EPSILON)


def reconstruction(
  made: Float[Array, "b d"], original: Float[Array, "b d"], mask: Rows
) -> Float[Array, ""]:
  """Mean squared error over the rows that count and all features."""
  square = jnp.where(mask[:, None], made - original, 0.0) ** 2
  return masked_mean(jnp.mean(square, axis=1), mask, 0)


def mean_discrepancy(
  codes: Float[Array, "b d"], noise: Float[Array, "b d"], mask: Rows
) -> Float[Array, ""]:
  """Maximum mean discrepancy between codes and samples of their prior.

  mean k(n, n) + mean k(z, z) - 2 mean k(n, z) over all pairs, equal ones too, with
  k(x, y) = exp(-mean_d (x - y)^2 / d).

  Source: MFM (Tsai et al., ICLR 2019), and its code.
  """
  pairs = mask[:, None] & mask[None]
  codes = jnp.where(mask[:, None], codes, 0.0)

  def mean_kernel(one, other):
    apart = jnp.mean((one[:, None] - other[None]) ** 2, axis=-1) / one.shape[1]
    return masked_mean(jnp.exp(-apart), pairs, (0, 1))

  return (
    mean_kernel(noise, noise)
    + mean_kernel(codes, codes)
    - 2.0 * mean_kernel(noise, codes)
  )


@jax.custom_vjp
def reversed_gradient(values: Array, weight: Array) -> Array:
  """The values; their gradient is multiplied by minus the weight.

  Source: Ganin & Lempitsky, ICML 2015.
  """
  del weight
  return values


def _forward(values, weight):
  return values, weight


def _backward(weight, gradient):
  return -weight * gradient, jnp.zeros_like(weight)


reversed_gradient.defvjp(_forward, _backward)
