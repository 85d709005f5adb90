"""Features at mean 0 and deviation 1."""

import dataclasses
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from msa_jax.data.lazy import map_rows
from msa_jax.data.readers.fields import blocks
from msa_jax.data.sequences import visible_steps
from msa_jax.data.transforms.transform import State, Transform
from msa_jax.errors import UserError
from msa_jax.typing import MODALITIES, Corpus, Sequences, Split, modality_order


@dataclasses.dataclass(frozen=True)
class Standardize(Transform):
  """Values become (x - mean) * scale, by the training split's visible steps.

  The state has `mean/<modality>` and `scale/<modality>` [d]. Constant columns have
  scale 0.

  Attributes:
    modalities: those to standardise; others stay unchanged.
  """

  name: ClassVar[str] = "standardize"
  modalities: tuple[str, ...]

  def fit(self, corpus: Corpus) -> State:
    """Means and scales of the training split.

    Raises:
      UserError: a name that is no modality, which would change nothing.
    """
    modalities = corpus.splits["train"].modalities
    unknown = set(self.modalities) - set(modalities) - set(MODALITIES)
    if unknown:
      raise UserError(
        f"config.data.standardize={self.modalities}: the corpus has no"
        f" {', '.join(sorted(unknown))} (it has {', '.join(sorted(modalities))})."
      )
    state = {}
    for name in modality_order(modalities):
      if name in self.modalities:
        state[f"mean/{name}"], state[f"scale/{name}"] = _moments(modalities[name])
    return state

  def apply(self, corpus: Corpus, state: State) -> Corpus:
    splits = {name: _split(split, state) for name, split in corpus.splits.items()}
    return dataclasses.replace(corpus, splits=splits)


def _split(split: Split, state: State) -> Split:
  modalities = {
    name: _standardized(sequences, state[f"mean/{name}"], state[f"scale/{name}"])
    if f"mean/{name}" in state
    else sequences
    for name, sequences in split.modalities.items()
  }
  return dataclasses.replace(split, modalities=modalities)


def _moments(
  sequences: Sequences,
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"]]:
  visible = visible_steps(sequences)
  count = max(int(visible.sum()), 1)
  # Two passes in float64: raw acoustic features reach 1e5 with small spreads.
  rows = list(blocks(len(visible)))
  zero = np.zeros(sequences.features.shape[-1])
  kept = (sequences.features[r][visible[r]].astype(np.float64) for r in rows)
  mean = sum((values.sum(axis=0) for values in kept), zero) / count
  kept = (sequences.features[r][visible[r]].astype(np.float64) for r in rows)
  variance = sum((((values - mean) ** 2).sum(axis=0) for values in kept), zero) / count
  deviation = np.sqrt(variance)
  varies = deviation > 1e-6 * np.maximum(np.abs(mean), 1e-6)
  scale = np.where(varies, 1.0 / np.where(varies, deviation, 1.0), 0.0)
  return mean, scale


def _standardized(
  sequences: Sequences, mean: Float[np.ndarray, " d"], scale: Float[np.ndarray, " d"]
) -> Sequences:
  visible = visible_steps(sequences)

  def standard(rows, values):
    return np.where(visible[rows][..., None], (values - mean) * scale, 0.0)

  steps = sequences.features.shape[1]
  features = map_rows(sequences.features, steps, np.float32, standard)
  return dataclasses.replace(sequences, features=features)
