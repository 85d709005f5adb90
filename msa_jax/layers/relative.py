"""Relative positions in attention: buckets of distances, and scores by them.

Two kinds: one bias per head and bucket, the same in every layer (T5, MPNet), and
vectors of distances that queries and keys are compared with (DeBERTa).
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


class Relative(NamedTuple):
  """What attention scores depend on besides queries and keys; None = nothing.

  >>> Relative(bias=jnp.zeros((2, 5, 5))).vectors is None
  True

  Attributes:
    bias: [h t s], added to the scores of every layer.
    vectors: [2t-1 d], of the distances query minus key from t-1 down to 1-t, for
      `disentangled`.
  """

  bias: Float[Array, "h t s"] | None = None
  vectors: Float[Array, "r d"] | None = None


NOTHING = Relative()


def symmetric_buckets(
  steps: int, buckets: int = 32, farthest: int = 128
) -> Int[np.ndarray, "t s"]:
  """Bucket of every pair of query and key: half of them for keys that come later.

  Distances below a quarter of `buckets` have a bucket each, those up to `farthest`
  logarithmically wider ones, and all beyond the last.

  Source: Raffel et al. 2020, as in MPNet (Song et al. 2020).
  """
  half, exact = buckets // 2, buckets // 4
  distance = np.arange(steps)[None, :] - np.arange(steps)[:, None]  # key - query
  near = np.abs(distance)
  ratio = np.log(np.maximum(near, 1).astype(np.float32) / np.float32(exact))
  wide = ratio / np.float32(math.log(farthest / exact)) * np.float32(half - exact)
  far = np.minimum(exact + np.trunc(wide).astype(np.int64), half - 1)
  return np.where(distance > 0, half, 0) + np.where(near < exact, near, far)


def log_buckets(
  distance: Int[np.ndarray, " r"], buckets: int, farthest: int
) -> Int[np.ndarray, " r"]:
  """Signed bucket of each distance: itself up to half of `buckets`, logarithmically
  wider ones beyond, `buckets` - 1 at `farthest` - 1.

  Source: He et al., DeBERTaV3 (2021), as released.
  """
  middle = buckets // 2
  near = np.abs(distance)
  beyond = np.where(near < middle, middle - 1, near).astype(np.float32)
  scale = np.log(np.float32((farthest - 1) / middle))
  wide = np.log(beyond / np.float32(middle)) / scale * np.float32(middle - 1)
  far = np.ceil(wide).astype(np.int64) + middle
  return np.where(near <= middle, distance, np.sign(distance) * far)


def distances(steps: int) -> Int[np.ndarray, " r"]:
  """Query minus key, from the last key seen by the first query's mirror on: the order
  of `Relative.vectors`."""
  return np.arange(steps - 1, -steps, -1)


def by_pair(scores: Float[Array, "... t r"]) -> Float[Array, "... t t"]:
  """Scores of every row with 2t-1 distances -> with t columns, column s at the distance
  of row minus s. Without a gather: rows are skewed by reshaping."""
  steps = scores.shape[-2]
  if steps == 1:
    return scores
  lead = scores.shape[:-2]
  flat = scores.reshape(*lead, -1)[..., steps - 1 :][..., : steps * (2 * steps - 2)]
  return flat.reshape(*lead, steps, 2 * steps - 2)[..., :steps]


def disentangled(
  queries: Float[Array, "b h t k"],
  keys: Float[Array, "b h t k"],
  query_vectors: Float[Array, "h r k"],
  key_vectors: Float[Array, "h r k"],
) -> Float[Array, "b h t t"]:
  """Content to position and position to content: a query with the vector of the
  distance to each key, and a key with that of the distance from each query.

  Args:
    queries, keys: scaled as for their product.
    query_vectors, key_vectors: of the distances in the order of `Relative.vectors`.

  Source: He et al., DeBERTa (2021), Eq. 4.
  """
  to_position = by_pair(jnp.einsum("bhtk,hrk->bhtr", queries, key_vectors))
  # Of a key, columns are queries: distances run the other way.
  from_position = by_pair(jnp.einsum("bhsk,hrk->bhsr", keys, query_vectors[:, ::-1]))
  return to_position + jnp.swapaxes(from_position, -1, -2)
