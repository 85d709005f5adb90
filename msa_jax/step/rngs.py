"""Random keys by seed, stream name and step: nothing to store in a checkpoint, so a
resumed run draws exactly what an uninterrupted one would have drawn."""

import zlib
from collections.abc import Iterable

import jax
from jaxtyping import Array, Int, Key


def stream(
  seed: Int[Array, ""] | int, name: str, step: Int[Array, ""] | int
) -> Key[Array, ""]:
  """Returns the key of one stream at one step.

  Args:
    seed: the run's seed; may be traced (replicas are vmapped over it).
    name: the stream, e.g. `dropout`.
    step: optimizer step or epoch; may be traced.
  """
  key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
  return jax.random.fold_in(key, step)


def streams(
  seed: Int[Array, ""] | int, names: Iterable[str], step: Int[Array, ""] | int
) -> dict[str, Key[Array, ""]]:
  """Returns one key per stream name, as `Module.apply(rngs=...)` takes them."""
  return {name: stream(seed, name, step) for name in names}
