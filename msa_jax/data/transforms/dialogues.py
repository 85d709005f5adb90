"""Dialogues: utterances of one video or conversation as the steps of one sample.

`group` makes them of any corpus whose samples have groups; `utterances` undoes it where
single utterances count: scores, predictions, routing.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int

from msa_jax import memory
from msa_jax.data.batching.batches import availability
from msa_jax.data.readers import fields
from msa_jax.data.sequences import visible_steps
from msa_jax.data.transforms.transform import State, Transform
from msa_jax.errors import UserError
from msa_jax.typing import Corpus, Sequences, Split, modality_order

# Name of the `extras` entry [n t] that holds the utterances' ids ("" = padding): what
# makes a split one of dialogues.
UTTERANCE = "utterance"
UNITS = ("utterance", "dialogue")  # what a sample may be, `config.data.sample_unit`
_TEXT = "utterance_text"
_MULTIPLE = 8  # steps are padded to a multiple of it


@dataclasses.dataclass(frozen=True)
class Group(Transform):
  """Makes samples dialogues; see `group`."""

  name: ClassVar[str] = "group"

  def apply(self, corpus: Corpus, state: State) -> Corpus:
    return group(corpus)


def group(corpus: Corpus) -> Corpus:
  """Groups every split's samples into dialogues.

  Each modality of an utterance becomes the mean of its visible steps. Utterances keep
  the order of the file, or of their clips' numbers where all have one. A modality that
  an utterance has no visible step of is missing there (`available`, `lost`).

  Returns:
    A corpus of which every sample is a dialogue: features [n t d], labels [n t] (or
    [n t c]), t = utterances, the same for all splits and a multiple of 8.

  Raises:
    UserError: samples without groups.
  """
  rows = {name: _rows(name, split) for name, split in corpus.splits.items()}
  longest = max(len(members) for _, each in rows.values() for members in each)
  steps = -(-longest // _MULTIPLE) * _MULTIPLE
  _check_size(corpus, rows, steps)
  splits = {
    name: _grouped(split, *rows[name], steps) for name, split in corpus.splits.items()
  }
  notes = dict(corpus.notes)
  notes["dialogues"] = {name: len(split) for name, split in splits.items()}
  return dataclasses.replace(corpus, splits=splits, notes=notes)


def _check_size(corpus: Corpus, rows: Mapping[str, tuple], steps: int) -> None:
  """Every dialogue becomes as long as the longest of all."""
  sizes = {
    f"{place}, {dialogue}": len(members)
    for place, (names, each) in rows.items()
    for dialogue, members in zip(names, each, strict=True)
  }
  longest = max(sizes, key=lambda name: sizes[name])
  for name, split in corpus.splits.items():
    width = sum(one.features.shape[-1] for one in split.modalities.values())
    memory.check(
      f"dialogues of split {name}",
      4 * width * steps * len(rows[name][0]),
      4 * width * len(split),
      f"dialogue {longest[:80]!r} has {sizes[longest]} utterances",
    )


def is_grouped(split: Split) -> bool:
  """Whether the split's samples are dialogues."""
  return UTTERANCE in split.extras


def real(split: Split) -> Bool[np.ndarray, "n t"] | None:
  """True = an utterance, False = padding; None where samples are no dialogues."""
  return split.extras[UTTERANCE] != "" if is_grouped(split) else None


def utterances(split: Split) -> Split:
  """The utterances of a split of dialogues as its samples, without features.

  Other splits come back as they are.
  """
  keep = real(split)
  if keep is None:
    return split
  lengths = keep.sum(axis=1)
  extras = {
    name: values[keep]
    for name, values in split.extras.items()
    if name not in (UTTERANCE, _TEXT)
  }
  text = split.extras.get(_TEXT)
  return Split(
    ids=split.extras[UTTERANCE][keep],
    modalities={},
    labels={name: values[keep] for name, values in split.labels.items()},
    raw_text=None if text is None else text[keep],
    groups=np.repeat(split.ids, lengths),
    extras=extras,
  )


def _rows(name: str, split: Split) -> tuple[list[str], list[np.ndarray]]:
  """Names of the dialogues, and the rows of each in order."""
  if split.groups is None:
    raise UserError(
      "config.data.sample_unit='dialogue' needs to know the samples' videos or"
      " dialogues:"
      f" split {name!r} has neither groups nor ids such as 'video$_$clip'. Choose"
      " 'utterance'."
    )
  members = split.rows_by_group()
  return list(members), list(members.values())


def _grouped(
  split: Split, names: list[str], rows: list[np.ndarray], steps: int
) -> Split:
  place = np.full((len(rows), steps), -1)  # [n t] row of the split, -1 = padding
  for dialogue, members in enumerate(rows):
    place[dialogue, : len(members)] = members
  keep = place >= 0
  order = modality_order(split.modalities)
  present = availability(split)
  seen = {
    name: present[:, column] & visible_steps(split.modalities[name]).any(axis=1)
    for column, name in enumerate(order)
  }
  modalities = {}
  for name in order:
    there = keep & seen[name][place]
    means = np.where(there[..., None], pooled(split.modalities[name])[place], 0.0)
    modalities[name] = Sequences(
      features=means.astype(np.float32),
      lengths=np.where(there.any(axis=1), keep.sum(axis=1), 0).astype(np.int32),
      lost=keep & ~there if (keep & ~there).any() else None,
    )
  extras = {name: _spread(values, place) for name, values in split.extras.items()}
  extras[UTTERANCE] = _spread(split.ids, place)
  if split.raw_text is not None:
    extras[_TEXT] = _spread(split.raw_text, place)
  return Split(
    ids=np.array(names, dtype=np.str_),
    modalities=modalities,
    labels={
      name: _spread(values, place, np.nan if values.dtype.kind == "f" else -1)
      for name, values in split.labels.items()
    },
    groups=np.array(names, dtype=np.str_),
    extras=extras,
    available=np.stack([keep & seen[name][place] for name in order], axis=-1),
  )


def _spread(values: np.ndarray, place: Int[np.ndarray, "n t"], empty: Any = None):
  """[n ...] by sample -> [n t ...] by dialogue, `empty` (or zero, "") at padding."""
  spread = np.array(values[place])
  spread[place < 0] = np.zeros((), values.dtype) if empty is None else empty
  return spread


def pooled(sequences: Sequences) -> Float[np.ndarray, "n d"]:
  """Mean of every sample's visible steps; zeros where there is none."""
  visible = visible_steps(sequences)
  means = np.zeros((len(visible), sequences.features.shape[-1]), np.float32)
  for rows in fields.blocks(len(visible)):
    seen = visible[rows][..., None]
    total = np.where(seen, sequences.features[rows], 0).sum(axis=1, dtype=np.float64)
    means[rows] = total / np.maximum(seen.sum(axis=1), 1)
  return means
