"""Cluster codes of frames, by k-means."""

import dataclasses
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int, Num

from msa_jax.data.readers.fields import blocks
from msa_jax.data.sequences import visible_steps
from msa_jax.data.transforms.align import ANCHOR
from msa_jax.data.transforms.transform import State, Transform
from msa_jax.typing import Corpus, Sequences, Split

_LLOYD_ROWS, _LLOYD_ROUNDS = 20_000, 20


@dataclasses.dataclass(frozen=True)
class FrameClusters(Transform):
  """Gives frames of all modalities but text the number of the nearest centre (`codes`).

  The state has `centroids/<modality>` [k d]; the code k means padding or lost.

  Attributes:
    count: number of clusters k; at least 1.
  """

  name: ClassVar[str] = "frame_clusters"
  count: int

  def fit(self, corpus: Corpus) -> State:
    return {
      f"centroids/{name}": centroids(sequences, self.count)
      for name, sequences in corpus.splits["train"].modalities.items()
      if name != ANCHOR and visible_steps(sequences).any()
    }

  def apply(self, corpus: Corpus, state: State) -> Corpus:
    splits = {name: _split(split, state) for name, split in corpus.splits.items()}
    return dataclasses.replace(corpus, splits=splits)


def _split(split: Split, state: State) -> Split:
  modalities = dict(split.modalities)
  for entry, centres in state.items():
    name = entry.partition("/")[2]
    sequences = modalities[name]
    ids = {**sequences.ids, "codes": _codes(sequences, centres)}
    modalities[name] = dataclasses.replace(sequences, ids=ids)
  return dataclasses.replace(split, modalities=modalities)


def centroids(sequences: Sequences, k: int) -> Float[np.ndarray, "k d"]:
  """Lloyd's k-means on a fixed subsample of visible frames, from k-means++ seeds.

  With fewer than k distinct frames some centroids coincide.
  """
  rows, steps = np.nonzero(visible_steps(sequences))
  random = np.random.default_rng(0)
  chosen = random.permutation(len(rows))[:_LLOYD_ROWS]
  frames = np.zeros((len(chosen), sequences.features.shape[-1]))
  for part in blocks(len(chosen)):
    where = chosen[part]
    read, place = np.unique(rows[where], return_inverse=True)
    frames[part] = sequences.features[read][place, steps[where]]
  centres = _spread_seeds(frames, k, random)
  for _ in range(_LLOYD_ROUNDS):
    nearest = _nearest(frames, centres)
    sums = np.zeros_like(centres)
    np.add.at(sums, nearest, frames)
    counts = np.bincount(nearest, minlength=k)[:, None]
    # An empty cluster keeps its centre.
    centres = np.where(counts > 0, sums / np.maximum(counts, 1), centres)
  return centres


def _spread_seeds(
  frames: Float[np.ndarray, "n d"], k: int, random: np.random.Generator
) -> Float[np.ndarray, "k d"]:
  """k-means++ (Arthur and Vassilvitskii 2007): far frames are likelier seeds."""
  chosen = [int(random.integers(len(frames)))]
  distance = ((frames - frames[chosen[0]]) ** 2).sum(axis=1)
  while len(chosen) < k:
    edges = np.cumsum(distance)
    row = np.searchsorted(edges, random.random() * edges[-1], side="right")
    chosen.append(min(int(row), len(frames) - 1))
    distance = np.minimum(distance, ((frames - frames[chosen[-1]]) ** 2).sum(axis=1))
  return frames[chosen]


def _nearest(
  frames: Num[np.ndarray, "n d"], centroids: Float[np.ndarray, "k d"]
) -> Int[np.ndarray, " n"]:
  cross = frames.astype(np.float64) @ centroids.T
  return np.argmin((centroids**2).sum(axis=1)[None, :] - 2.0 * cross, axis=1)


def _codes(
  sequences: Sequences, centroids: Float[np.ndarray, "k d"]
) -> Int[np.ndarray, "n t"]:
  visible = visible_steps(sequences)
  codes = np.full(visible.shape, len(centroids), np.int32)
  for rows in blocks(len(codes)):
    seen = visible[rows]
    codes[rows][seen] = _nearest(sequences.features[rows][seen], centroids)
  return codes
