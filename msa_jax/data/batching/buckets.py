"""Length buckets: batches of like lengths, so that cost follows real lengths.

A bucket is a static length per modality. Samples go into the shortest bucket that
holds all of their steps, and batches are cut to their bucket's lengths, which leaves
out nothing but padding: a model that is correct under masks gives the same results.

Every epoch has as many batches as without buckets, with every sample once: batches are
filled from the longest bucket on, the last one of a bucket with samples of the next
shorter, so that the batch with filler rows is of the shortest. Which steps of an
epoch are of which bucket is drawn once for a corpus, so that several seeds trained at
once have batches of one shape at every step, whatever epoch each of them is in.
"""

import itertools
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from msa_jax.typing import Batch, Sequences, Split, modality_order

# Lengths are multiples of this many steps, as wide registers and TPU tiles like them.
_MULTIPLE = 8
# Places where buckets may end: shares of the samples, ordered by length.
_GRID = 16
_ENCODED = 4096  # An encoder's layers cost far more than any features' first layer.
_CONTEXT = "{} context"  # what stands for a modality's context among the lengths


class Buckets(NamedTuple):
  """The buckets of one split, shortest first.

  Attributes:
    lengths: bucket -> modality -> steps; `<modality> context` -> those of its context,
      where there is one.
    level: [n] int32, bucket of each sample.
  """

  lengths: tuple[Mapping[str, int], ...]
  level: np.ndarray

  def of_batches(self, order: Int[np.ndarray, "steps *b"]) -> Int[np.ndarray, " steps"]:
    """The shortest bucket that holds each batch; -1 in `order` = filler row."""
    level = np.where(order >= 0, self.level[order], 0)
    return level.reshape(len(order), -1).max(axis=1)


def choose(split: Split, lengths: Mapping[str, int], count: int) -> Buckets | None:
  """Chooses at most `count` buckets for a split, at least cost for its samples.

  Cost is steps times feature width (or an encoder's cost, of a text of token ids), over
  all modalities and padding. Modalities of
  equal static length keep equal lengths, since aligned ones must.

  Args:
    split: the samples.
    lengths: static steps per modality, those of the longest bucket.
    count: number of buckets, 16 at most; 0 or 1 = none.

  Returns:
    None where one bucket would hold everything, or where a batch's time axis is that
    of a dialogue, whose labels have it too.
  """
  if count < 2 or (split.available is not None and split.available.ndim == 3):
    return None
  order = modality_order(split.modalities)
  real = _real_lengths(split, lengths)  # [n m]
  full = np.asarray([lengths[name] for name in order])
  weights = np.asarray([_weight(split.modalities[name]) for name in order])
  for name in order:
    for context in list(split.modalities[name].context.values())[:1]:
      order = (*order, _CONTEXT.format(name))
      real = np.column_stack([real, (context >= 0).sum(axis=1)])
      full = np.append(full, context.shape[1])
      weights = np.append(weights, _ENCODED)
  # [q m]: lengths below which a growing share of the samples lies, per modality.
  shares = np.arange(1, _GRID + 1) / _GRID
  ends = np.quantile(real, shares, axis=0, method="higher")
  # A modality that is absent everywhere keeps a step: a sequence has at least one.
  ends = np.clip(-(-ends // _MULTIPLE) * _MULTIPLE, 1, full)
  ends[-1] = full
  fits = (real[:, None, :] <= ends[None]).all(axis=-1)  # [n q]
  place = fits.argmax(axis=1)  # first place that holds the sample
  below = np.cumsum(np.bincount(place, minlength=_GRID))  # samples held, by place
  cost = ends @ weights
  best, chosen = np.inf, ()
  for picked in itertools.combinations(range(_GRID - 1), min(count, _GRID) - 1):
    picked = [*picked, _GRID - 1]
    held = np.diff([0, *below[picked]])
    if (total := float(held @ cost[picked])) < best:
      best, chosen = total, tuple(picked)
  kept = {tuple(ends[p].tolist()): p for p in chosen}  # equal ones are one bucket
  picked = sorted(kept.values())
  if len(picked) < 2:
    return None
  level = np.searchsorted(picked, place).astype(np.int32)
  steps = tuple(
    {name: int(ends[p, column]) for column, name in enumerate(order)} for p in picked
  )
  return Buckets(steps, level)


def _weight(sequences: Sequences) -> int:
  """What a step costs: its width; ids alone are read by an encoder inside the model."""
  return sequences.features.shape[-1] or _ENCODED


def _real_lengths(split: Split, lengths: Mapping[str, int]) -> Int[np.ndarray, "n m"]:
  order = modality_order(split.modalities)
  real = {n: np.minimum(split.modalities[n].lengths, lengths[n]) for n in order}
  longest = {
    steps: np.maximum.reduce([real[n] for n in order if lengths[n] == steps])
    for steps in set(lengths[n] for n in order)
  }
  return np.stack([longest[lengths[n]] for n in order], axis=-1)


def epoch_order(
  buckets: Buckets, seed: int, epoch: int, batch_size: int, shuffle: bool = True
) -> Int[np.ndarray, "steps b"]:
  """Rows of every batch of an epoch: each sample once, -1 in filler rows.

  Args:
    buckets: of the split.
    seed, epoch: decide which samples meet.
    batch_size: rows per batch.
    shuffle: False = shortest bucket first, samples in the split's order.
  """
  size = len(buckets.level)
  rows = np.arange(size)
  if shuffle:
    rows = np.random.default_rng((zlib.crc32(b"buckets"), seed, epoch)).permutation(
      rows
    )
  rows = rows[np.argsort(buckets.level[rows], kind="stable")]
  steps = -(-size // batch_size)
  filler = np.full(steps * batch_size - size, -1)
  real = batch_size - len(filler)  # in the first, shortest batch
  order = np.concatenate([rows[:real], filler, rows[real:]])
  order = order.reshape(steps, batch_size).astype(np.int32)
  if shuffle:
    order = np.random.default_rng(zlib.crc32(b"schedule")).permutation(order)
  return order


def cut(batch: Batch, lengths: Mapping[str, int] | None) -> Batch:
  """A batch without the steps beyond `lengths` (None = unchanged).

  Axes may stand before the batch's own.
  """
  if lengths is None:
    return batch
  modalities = {}
  for name, each in batch.modalities.items():
    steps = lengths[name]
    beside = lengths.get(_CONTEXT.format(name))
    modalities[name] = each.replace(
      features=each.features[..., :steps, :],
      mask=each.mask[..., :steps],
      lost=each.lost[..., :steps],
      ids={key: ids[..., :steps] for key, ids in each.ids.items()},
      context={key: ids[..., :beside] for key, ids in each.context.items()},
    )
  return batch.replace(modalities=modalities)
