"""Dropout and noise cheap enough to be recomputed where they are used.

JAX's own generator costs more than the layers it acts on when a CPU trains small
models, and several loops in the compiled program for every call. Here the key of a
step is spread over layers and entries by an integer hash, a few operations that the
compiler fuses into the layer.
"""

import math
import zlib
from typing import Any, cast

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, UInt

from msa_jax.errors import UserError
from msa_jax.layers.kernels.position_hash import lowbias32, position_hash

Rate = float | Float[Array, ""]


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
  key, path = _stream(module, name)
  site = zlib.crc32(repr(path).encode())
  return lowbias32(jax.random.key_data(key) ^ jnp.uint32(site))


def _stream(module: nn.Module, name: str) -> tuple[jax.Array, tuple[str, ...]]:
  """A stream's key, and the module's path below the root or the last lifted module.

  Flax keeps both in its scope (`flax.core.scope.LazyRng`) and folds them together
  before anything public returns them. This is the only place that looks inside.

  Raises:
    UserError: a Flax release that keeps them in another way.
  """
  try:
    stream = cast(Any, module.scope).rngs[name]
    return stream.rng, stream.suffix
  except AttributeError as error:
    raise UserError(
      f"flax {flax.__version__}: its random streams lack `rng` and `suffix`, which"
      " dropout reads; install a release of flax 0.12"
    ) from error


class Dropout(nn.Module):
  """`drop` with the rng stream `dropout`; the identity when deterministic.

  >>> layer = Dropout(0.5, deterministic=False)
  >>> dropped = layer.apply({}, jnp.ones(100), rngs={"dropout": jax.random.key(0)})
  >>> sorted(set(dropped.tolist()))
  [0.0, 2.0]

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
