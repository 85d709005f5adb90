"""Lengths of sequences: the longest text, and the other modalities at its steps."""

import dataclasses
from typing import ClassVar

import numpy as np
from jaxtyping import Int, Num

from msa_jax.data.lazy import map_rows
from msa_jax.data.sequences import visible_steps
from msa_jax.data.transforms.transform import State, Transform
from msa_jax.errors import UserError
from msa_jax.typing import Corpus, Sequences, Split

ALIGNMENTS = ("none", "pool")
ANCHOR = "text"  # the modality whose steps the others are aligned to


@dataclasses.dataclass(frozen=True)
class MaxSteps(Transform):
  """Cuts long texts, and notes how many were cut.

  Attributes:
    max_steps: longest text kept; at least 1.
  """

  name: ClassVar[str] = "max_steps"
  max_steps: int

  def apply(self, corpus: Corpus, state: State) -> Corpus:
    splits, truncated = {}, {}
    for name, split in corpus.splits.items():
      if ANCHOR not in split.modalities:
        return corpus
      text = split.modalities[ANCHOR]
      truncated[name] = int((text.lengths > self.max_steps).sum())
      cut = {**split.modalities, ANCHOR: _cut(text, self.max_steps)}
      splits[name] = dataclasses.replace(split, modalities=cut)
    notes = dict(corpus.notes)
    if any(truncated.values()):
      notes["truncated_texts"] = {"max_steps": self.max_steps, **truncated}
    return dataclasses.replace(corpus, splits=splits, notes=notes)


@dataclasses.dataclass(frozen=True)
class Align(Transform):
  """Brings the other modalities to the text's steps.

  Samples without text keep their own number of steps, up to that of the longest text
  in training: they must not make the sequences longer than those with text.

  Attributes:
    how: `pool`: see the function.
    max_steps: longest text kept (`MaxSteps`); 0 = all of it.
  """

  name: ClassVar[str] = "align"
  how: str
  max_steps: int = 0

  def __post_init__(self):
    if self.how not in ALIGNMENTS:
      raise UserError(f"config.data.align={self.how!r} must be one of {ALIGNMENTS}.")

  def fit(self, corpus: Corpus) -> State:
    text = corpus.splits["train"].modalities.get(ANCHOR)
    steps = self.max_steps
    if text is not None and visible_steps(text).any():
      steps = text.features.shape[1]
    return {"anchor_steps": np.asarray(steps)}

  def apply(self, corpus: Corpus, state: State) -> Corpus:
    if self.how == "none":
      return corpus
    longest = int(state["anchor_steps"])
    splits = {name: _aligned(split, longest) for name, split in corpus.splits.items()}
    return dataclasses.replace(corpus, splits=splits)


def _aligned(split: Split, longest: int) -> Split:
  anchor = np.zeros(len(split), np.int32)
  if ANCHOR in split.modalities:
    anchor = split.modalities[ANCHOR].lengths
  modalities = {
    name: sequences if name == ANCHOR else pool(sequences, anchor, longest)
    for name, sequences in split.modalities.items()
  }
  return dataclasses.replace(split, modalities=modalities)


def _cut(sequences: Sequences, longest: int) -> Sequences:
  return dataclasses.replace(
    sequences,
    features=sequences.features[:, :longest],
    lengths=np.minimum(sequences.lengths, longest).astype(np.int32),
    lost=None if sequences.lost is None else sequences.lost[:, :longest],
    ids={name: ids[:, :longest] for name, ids in sequences.ids.items()},
  )


def pool(
  sequences: Sequences, anchor: Int[np.ndarray, " n"], longest: int = 0
) -> Sequences:
  """Masked adaptive mean pooling to as many steps as the anchor has (H-GEM, row 12).

  Segment s of a sample with L frames and T anchor steps averages the frames
  floor(s L / T) .. floor((s + 1) L / T) - 1, at least one: with fewer frames than
  steps they repeat. Lost frames do not count; a segment of lost frames only is lost.
  Ids are those of a segment's first frame.

  Args:
    sequences: the modality to pool.
    anchor: steps to pool to; 0 = no anchor, keep at most `longest` segments.
    longest: greatest number of segments; 0 = no bound.
  """
  frames = sequences.lengths.astype(np.int64)
  bound = longest or max(int(frames.max(initial=0)), 1)
  steps = np.where(anchor > 0, anchor, np.minimum(frames, bound))
  steps = np.where(frames > 0, steps, 0)  # [n]
  width = max(int(steps.max(initial=0)), 1)
  segment = np.arange(width)[None, :]
  share = np.maximum(steps, 1)[:, None]
  start = segment * frames[:, None] // share  # [n t]
  end = np.maximum(start + 1, (segment + 1) * frames[:, None] // share)
  end = np.minimum(end, sequences.features.shape[1])
  start = np.minimum(start, end)
  real = segment < steps[:, None]
  visible = visible_steps(sequences)
  counts = _segment_sums(visible[..., None].astype(np.int32), start, end)  # [n s 1]

  def mean(rows, values):
    values = np.where(visible[rows][..., None], values, 0.0).astype(np.float64)
    sums = _segment_sums(values, start[rows], end[rows])
    seen = real[rows][..., None] & (counts[rows] > 0)
    return np.where(seen, sums / np.maximum(counts[rows], 1), 0.0)

  features = map_rows(sequences.features, width, np.float32, mean)
  lost = real & (counts[..., 0] == 0)
  first = np.minimum(start, sequences.features.shape[1] - 1)
  return Sequences(
    features,
    steps.astype(np.int32),
    lost if lost.any() else None,
    ids={
      name: np.where(real, np.take_along_axis(ids, first, axis=1), 0).astype(np.int32)
      for name, ids in sequences.ids.items()
    },
  )


def _segment_sums(
  values: Num[np.ndarray, "n t d"],
  start: Int[np.ndarray, "n s"],
  end: Int[np.ndarray, "n s"],
) -> Num[np.ndarray, "n s d"]:
  total = np.cumsum(values, axis=1)
  total = np.concatenate([np.zeros_like(total[:, :1]), total], axis=1)
  pick = np.arange(len(values))[:, None]
  return total[pick, end] - total[pick, start]
