"""Which modalities a sample loses: rules as pure functions of uniform numbers.

Each takes numbers in [0, 1) and what there is to lose, and says what is kept. Where
the numbers come from is the caller's: a split's saved masks draw them by sample
(`data.missing`), a training step by its key (`step.recipe`). Rates may be traced.

Shapes: `available [... m]` with any leading axes, samples or utterances of dialogues;
`uniforms [... m 2]`, two independent numbers per entry. What is kept is always a
subset of what is available.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from msa_jax.layers.subsets import random_subset

Available = Bool[Array | np.ndarray, "*n m"]
Uniforms = Float[Array | np.ndarray, "*n m 2"]
Rate = float | Float[Array, ""]

# Shares of batches that lose two and one of three modalities, at rates 0, 0.1, ...,
# 0.7: (2 a + b) / 3 is the rate, except the last, which is 2/3 (IMDer, DiCMoR).
LOSE_TWO = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)
LOSE_ONE = (0.0, 0.1, 0.2, 0.3, 0.2, 0.1, 0.0, 0.0)


def _greatest(uniforms, candidates) -> Bool[Array, "*n m"]:
  """One-hot of the greatest number among the candidates; all False without any."""
  score = jnp.where(candidates, uniforms, -1.0)
  slots = jnp.arange(score.shape[-1]).reshape(*[1] * (score.ndim - 1), -1)
  return (slots == jnp.argmax(score, axis=-1, keepdims=True)) & candidates


def never_empty(
  keep: Bool[Array, "*n m"], available: Available, uniforms: Uniforms
) -> Bool[Array, "*n m"]:
  """Gives rows that would lose everything one of their modalities back, at random."""
  empty = ~jnp.any(keep, axis=-1, keepdims=True)
  return jnp.where(empty, _greatest(uniforms[..., 1], available), keep)


def independent(
  uniforms: Uniforms, available: Available, rate: Rate
) -> Bool[Array, "*n m"]:
  """Each modality is lost with probability `rate`, never the last one of a row."""
  keep = jnp.asarray(available) & (uniforms[..., 0] >= rate)
  return never_empty(keep, available, uniforms)


def at_rate(
  uniforms: Uniforms, available: Available, rate: Rate
) -> Bool[Array, "*n m"]:
  """Exactly a share `rate` of all entries is lost, never the last one of a row.

  One modality of each row, drawn uniformly, is safe; of the others as many are lost,
  drawn uniformly over all rows, as the rate asks for. With three modalities and rates
  of 2/3 and more one is left in every row (GCNet's random missing, in the manner of
  CPM-Net; the count is exact here, within 0.005 there).
  """
  available = jnp.asarray(available)
  safe = _greatest(uniforms[..., 1], available)
  n_keep = jnp.round((1.0 - rate) * jnp.sum(available)).astype(jnp.int32)
  # Safe entries first, then the others by their number, then what is not there.
  order = jnp.where(safe, -1.0, jnp.where(available, uniforms[..., 0], 2.0)).ravel()
  rank = jnp.argsort(jnp.argsort(order)).reshape(available.shape)
  return (safe | (rank < n_keep)) & available


def any_condition(uniforms: Uniforms, available: Available) -> Bool[Array, "*n m"]:
  """Each row is left with one of all non-empty sets of what it has, drawn uniformly."""
  return random_subset(uniforms[..., 0, 0], available)


def without_one(
  uniforms: Uniforms, available: Available, slot: int, rate: Rate
) -> Bool[Array, "*n m"]:
  """A share `rate` of the rows that have modality `slot` lose it.

  Exact, unless too few of them have another modality to be left with.
  """
  available = jnp.asarray(available)
  owned = available[..., slot]
  others = jnp.sum(available, axis=-1) > 1
  order = jnp.where(owned & others, uniforms[..., slot, 0], 2.0)
  rank = jnp.argsort(jnp.argsort(order.ravel())).reshape(order.shape)
  n_lost = jnp.round(rate * jnp.sum(owned)).astype(jnp.int32)
  lost = (rank < n_lost) & owned & others
  this = (jnp.arange(available.shape[-1]) == slot).reshape(*[1] * lost.ndim, -1)
  return available & ~(lost[..., None] & this)


def by_batch(
  uniforms: Uniforms,
  available: Available,
  choice: Float[Array | np.ndarray, "*n m"],
  position: Int[Array | np.ndarray, "*n"],
  n_batches: int,
  rate: float,
  rounding: float | Float[Array, "..."] = 0.5,
) -> Bool[Array, "*n m"]:
  """The per-batch tables: the first batches lose two modalities, the next ones one.

  Source: IMDer and DiCMoR (`LOSE_TWO`, `LOSE_ONE`). Their counts are shares of the
  number of batches rounded to tens, which misses the rate for few batches; here of
  the number itself. A row that has none of what its batch keeps, keeps one it has.

  Args:
    uniforms, available: as everywhere; decide only for rows left with nothing.
    choice: which modalities a batch loses, those of the smallest numbers; the same
      for all rows of a batch.
    position: number of each row's batch.
    n_batches: of the epoch.
    rate: 0, 0.1, ..., 0.7.
    rounding: in [0, 1), what is added to a number of batches before it is cut to a
      whole one: a half rounds; drawn anew for every epoch, epochs of a few batches hit
      the rate on average.
  """
  step = round(10 * rate)
  # The least excess keeps a share of 0.3 of ten batches from being 2.9999998.
  two, both = LOSE_TWO[step], LOSE_TWO[step] + LOSE_ONE[step]
  n_two = jnp.floor(two * n_batches + rounding + 1e-4)
  n_one = jnp.floor(both * n_batches + rounding + 1e-4) - n_two
  n_lost = jnp.where(position < n_two, 2, jnp.where(position < n_two + n_one, 1, 0))
  rank = jnp.argsort(jnp.argsort(jnp.asarray(choice), axis=-1), axis=-1)
  keep = (rank >= n_lost[..., None]) & available
  return never_empty(keep, available, uniforms)
