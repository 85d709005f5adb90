"""Dropout and noise cheap enough to be recomputed where they are used.

JAX's own generator costs more than the layers it acts on when a CPU trains small
models, and several loops in the compiled program for every call. Here the key of a
step is spread over layers and entries by an integer hash, a few operations that the
compiler fuses into the layer.
"""

import functools
import math
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, UInt

Rate = float | Float[Array, ""]


@functools.partial(jax.jit, static_argnums=1)  # A step traces it once per shape.
def position_hash(
  words: UInt[Array, " w"], shape: tuple[int, ...]
) -> UInt[Array, "..."]:
  """Uniform 32-bit integers, a function of the key and each entry's position.

  The position is mixed with the key's first word, finalised by two rounds of
  multiply-xorshift (Wellons' `lowbias32`), mixed with the last word and finalised
  again.

  Args:
    words: the key's data (`jax.random.key_data`).
    shape: shape of the result.
  """
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


def happens(
  words: UInt[Array, " w"], shape: tuple[int, ...], rate: Rate
) -> Bool[Array, "..."]:
  """Independent events of probability `rate`, to 2^-32; to 2^-24 if it is traced."""
  if isinstance(rate, jax.Array):
    threshold = (rate * 2.0**32).astype(jnp.uint32)
  else:
    threshold = jnp.uint32(min(round(rate * 2**32), 2**32 - 1))
  return position_hash(words, shape) < threshold


def normal(words: UInt[Array, " w"], shape: tuple[int, ...]) -> Float[Array, "..."]:
  """Standard normal numbers (float32, 2^23 levels)."""
  levels = (position_hash(words, shape) >> 9).astype(jnp.float32)
  # Cell centres lie in (-1, 1) symmetrically, so that the result is finite.
  return math.sqrt(2.0) * lax.erf_inv((levels + 0.5) * 2.0**-22 - 1.0)


def drop(
  words: UInt[Array, " w"], values: Float[Array, "..."], rate: Rate
) -> Float[Array, "..."]:
  """Zeroes entries with probability `rate` and scales the rest to keep the mean."""
  scale = jnp.asarray(1.0 / (1.0 - rate), values.dtype)
  zeros = jnp.zeros_like(values)
  return jnp.where(happens(words, values.shape, rate), zeros, values * scale)


def stream_words(module: nn.Module, name: str) -> UInt[Array, " w"]:
  """Key data of a module's rng stream, different for every module.

  `make_rng` folds the module's path into the key with JAX's generator; this mixes in
  a checksum of the same path instead, which costs two operations. Call it once per
  module: a second call gives the same words.
  """
  if not module.has_rng(name):
    return jax.random.key_data(module.make_rng(name))  # Flax's own error
  lazy = module.scope.rngs[name]
  site = zlib.crc32(repr(lazy.suffix).encode())
  words = jax.random.key_data(lazy.rng)
  return _finalise(words ^ jnp.uint32(site))


class Dropout(nn.Module):
  """`drop` with the rng stream `dropout`; the identity when deterministic.

  Attributes:
    rate: probability of an entry to be zeroed, in [0, 1); may be traced (sweeps).
    deterministic: True = evaluation. An attribute, because lifted transforms lose
      keyword arguments.
  """

  rate: Rate
  deterministic: bool = True

  @nn.compact
  def __call__(self, values: Float[Array, "..."]) -> Float[Array, "..."]:
    if self.deterministic or (isinstance(self.rate, float) and self.rate == 0.0):
      return values
    return drop(stream_words(self, "dropout"), values, self.rate)
