"""Dropout whose random mask is cheap enough to be recomputed where it is used.

JAX's own generator costs more than the layers it acts on when a CPU trains small
models, and a loop in the compiled program for every call. Here each call takes one key
from JAX and spreads it over the entries with an integer hash of their positions, which
the compiler fuses into the layer.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, UInt


def position_hash(key: jax.Array, shape: tuple[int, ...]) -> UInt[Array, "..."]:
  """Uniform 32-bit integers, a function of the key and each entry's position.

  The position is mixed with one half of the key, finalised by two rounds of
  multiply-xorshift (Wellons' `lowbias32`, bias below 0.2 %), mixed with the other half
  and finalised again.
  """
  words = jax.random.key_data(key)
  position = jnp.zeros(shape, jnp.uint32)
  stride = 1
  for axis in reversed(range(len(shape))):
    step = lax.broadcasted_iota(jnp.uint32, shape, axis)
    position = position + step * jnp.uint32(stride % 2**32)
    stride *= shape[axis]
  return _finalise(_finalise(position ^ words[0]) ^ words[-1])


def _finalise(bits: UInt[Array, "..."]) -> UInt[Array, "..."]:
  bits = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D)
  bits = (bits ^ (bits >> 15)) * jnp.uint32(0x846CA68B)
  return bits ^ (bits >> 16)


def drop(
  key: jax.Array, values: Float[Array, "..."], rate: float
) -> Float[Array, "..."]:
  """Zeroes entries with probability `rate` and scales the rest to keep the mean."""
  threshold = min(round(rate * 2**32), 2**32 - 1)
  keep = position_hash(key, values.shape) >= jnp.uint32(threshold)
  scale = jnp.asarray(1.0 / (1.0 - rate), values.dtype)
  return jnp.where(keep, values * scale, jnp.zeros_like(values))


class Dropout(nn.Module):
  """`drop` with the rng stream `dropout`; the identity when deterministic.

  Attributes:
    rate: probability of an entry to be zeroed, in [0, 1).
    deterministic: True = evaluation. An attribute, because lifted transforms lose
      keyword arguments.
  """

  rate: float
  deterministic: bool = True

  @nn.compact
  def __call__(self, values: Float[Array, "..."]) -> Float[Array, "..."]:
    if self.deterministic or self.rate == 0.0:
      return values
    return drop(self.make_rng("dropout"), values, self.rate)
