"""Samples as rows of a matrix: the mean of each modality's visible steps, standardised.

Of dialogues, rows are utterances, beside which the mean over their dialogue may stand.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from msa_jax import arrays
from msa_jax.data.batching.batches import availability
from msa_jax.data.transforms import dialogues
from msa_jax.typing import Split, modality_order


class Pooled(NamedTuple):
  """The rows of a split.

  Attributes:
    means: modality -> [n d], zero where it is not seen.
    seen: modality -> [n], whether a row has a visible step of it.
    dialogue: [n] number of a row's dialogue; None = rows are samples.
  """

  means: Mapping[str, np.ndarray]
  seen: Mapping[str, np.ndarray]
  dialogue: np.ndarray | None


def pool(split: Split, index: Int[np.ndarray, " b"] | None = None) -> Pooled:
  """Pools the samples of a split, a few at a time, so that features may be on disk.

  Args:
    split: of utterances, or of dialogues (of which the rows are the utterances).
    index: samples to take; None = all.
  """
  index = np.arange(len(split)) if index is None else index
  real, available = dialogues.real(split), availability(split)
  means, seen = {}, {}
  for column, name in enumerate(modality_order(split.modalities)):
    sequences = split.modalities[name]
    found, there = [], []
    for rows in arrays.blocks(len(index)):
      chosen = index[rows]
      features = np.asarray(sequences.features[chosen], np.float64)  # [b t d]
      steps = np.arange(features.shape[1])[None]
      visible = steps < sequences.lengths[chosen, None]
      if sequences.lost is not None:
        visible = visible & ~sequences.lost[chosen]
      has = available[chosen][..., column]
      if real is None:
        visible = visible & has[:, None]
        total = np.where(visible[..., None], features, 0.0).sum(axis=1)
        found.append(total / np.maximum(visible.sum(axis=1), 1)[:, None])
        there.append(visible.any(axis=1))
      else:
        keep, visible = real[chosen], visible & has
        found.append(np.where(visible[..., None], features, 0.0)[keep])
        there.append(visible[keep])
    width = sequences.features.shape[-1]
    means[name] = np.concatenate([np.zeros((0, width)), *found])
    seen[name] = np.concatenate([np.zeros(0, bool), *there])
  owner = None if real is None else np.nonzero(real[index])[0]
  return Pooled(means, seen, owner)


class Design(NamedTuple):
  """How pooled rows become a matrix, fitted on those of training.

  Attributes:
    names: modalities.
    context: whether the mean over a row's dialogue stands beside it.
    means, scales: modality -> [d], of the training rows that have it.
    indicators: modalities that some training rows lack: a column says so.
  """

  names: tuple[str, ...]
  context: bool
  means: Mapping[str, np.ndarray]
  scales: Mapping[str, np.ndarray]
  indicators: tuple[str, ...]


def design(pooled: Pooled, names: Sequence[str], context: bool = False) -> Design:
  """Fits a design on training rows.

  Args:
    pooled: of training.
    names: modalities to use; those that no row has are left out.
    context: see `Design`; rows must be of dialogues.
  """
  kept = tuple(name for name in names if pooled.seen[name].any())
  own = {name: pooled.means[name][pooled.seen[name]] for name in kept}
  scales = {name: rows.std(axis=0) for name, rows in own.items()}
  return Design(
    kept,
    context,
    {name: rows.mean(axis=0) for name, rows in own.items()},
    {name: np.where(scale > 1e-8, scale, np.inf) for name, scale in scales.items()},
    tuple(name for name in kept if not pooled.seen[name].all()),
  )


def matrix(made: Design, pooled: Pooled) -> Float[np.ndarray, "n k"]:
  """The rows as a design has them; a modality that a row lacks is zero, its mean.

  Columns without variance are zero.
  """
  blocks = []
  for name in made.names:
    values = (pooled.means[name] - made.means[name]) / made.scales[name]
    blocks.append(np.where(pooled.seen[name][:, None], values, 0.0))
  rows = len(next(iter(pooled.seen.values())))
  blocks += [pooled.seen[name][:, None].astype(float) for name in made.indicators]
  own = np.concatenate([np.zeros((rows, 0)), *blocks], axis=1)
  if not made.context or pooled.dialogue is None:
    return own
  seen = np.any([pooled.seen[name] for name in made.names], axis=0)
  return np.concatenate([own, dialogue_means(own, seen, pooled.dialogue)], axis=1)


def dialogue_means(
  own: Float[np.ndarray, "n k"],
  seen: Bool[np.ndarray, " n"],
  dialogue: Int[np.ndarray, " n"],
) -> Float[np.ndarray, "n k"]:
  """Mean over the rows of each row's dialogue that have anything; else zero."""
  count = int(dialogue.max(initial=-1)) + 1
  total, number = np.zeros((count, own.shape[1])), np.zeros(count)
  np.add.at(total, dialogue[seen], own[seen])
  np.add.at(number, dialogue[seen], 1.0)
  return (total / np.maximum(number, 1.0)[:, None])[dialogue]
