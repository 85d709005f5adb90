"""Distances between the representations of a sample's modalities."""

import itertools

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from msa_jax.errors import UserError

_EPSILON = 1e-8  # keeps the root's gradient finite where two vectors coincide


def distance(
  first: Float[Array, "*n d"], second: Float[Array, "*n d"], kind: str = "l2"
) -> Float[Array, "*n"]:
  """Distance along the last axis.

  Args:
    first, second: vectors of d features.
    kind: `l2` sqrt(sum of squares + 1e-8), `rms` sqrt(mean of squares + 1e-8), `mse`
      mean of squares.

  Raises:
    UserError: unknown kind.
  """
  square = (first.astype(jnp.float32) - second.astype(jnp.float32)) ** 2
  if kind == "l2":
    return jnp.sqrt(jnp.sum(square, axis=-1) + _EPSILON)
  if kind == "rms":
    return jnp.sqrt(jnp.mean(square, axis=-1) + _EPSILON)
  if kind == "mse":
    return jnp.mean(square, axis=-1)
  raise UserError(f"distance {kind!r}: choose one of l2, rms, mse")


def pairwise_distance(
  vectors: Float[Array, "b m *t d"], present: Bool[Array, "b m *t"], kind: str = "l2"
) -> Float[Array, " b"]:
  """Mean distance over the pairs of modalities that a sample has both of.

  Args:
    vectors: one vector per modality, or one per modality and step.
    present: False = not there; such a vector has no influence, NaN included.
    kind: see `distance`. With steps the distances of all steps that both modalities
      have are averaged first, then the pairs that share any step.

  Returns:
    One value per sample; zero for a sample without a pair.

  Source: DERL (2024), Eq. 24.
  """
  vectors = jnp.where(present[..., None], vectors, 0.0)
  total = jnp.zeros(vectors.shape[0])
  count = jnp.zeros(vectors.shape[0])
  for one, other in itertools.combinations(range(vectors.shape[1]), 2):
    both = present[:, one] & present[:, other]  # [b *t]
    apart = jnp.where(both, distance(vectors[:, one], vectors[:, other], kind), 0.0)
    if both.ndim == 2:
      apart = jnp.sum(apart, axis=1) / jnp.maximum(jnp.sum(both, axis=1), 1)
      both = jnp.any(both, axis=1)
    total = total + apart
    count = count + both
  return total / jnp.maximum(count, 1.0)
