"""The corpus of many clips' parts, padded on disk: memory holds one at a time."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from msa_jax import memory
from msa_jax.clips import aligned, parts
from msa_jax.clips import words as words_lib
from msa_jax.clips.extraction import Outcome
from msa_jax.clips.parts import Part
from msa_jax.clips.recipe import Toolbox
from msa_jax.errors import UserError
from msa_jax.names import TEXT_WORDS
from msa_jax.typing import Corpus, Sequences, Split

WORDS = "words"  # --align
_NO_TIME = -1.0


def assemble(
  skeleton: Corpus,
  outcomes: Sequence[Outcome],
  tools: Toolbox,
  folder: Path,
  align: str = "none",
) -> Corpus:
  """The corpus of all clips that did not fail.

  Args:
    skeleton: of all clips, without features; see `listing.Listing`.
    outcomes: of the same clips.
    tools: that made the parts.
    folder: for padded arrays, which stay there as long as the corpus is used.
    align: `none`, or `words`: a step per word; see `aligned.by_words`.

  Returns:
    The corpus; `extras` has `<modality>_times` [n t 2] in seconds, -1 where there is
    none, and `text_words` [n t], the word of each step of text; `notes["clips"]` says
    how it was made.

  Raises:
    UserError: no clip is left, or clips so unequal that padding would fill the memory.
  """
  done = {each.item.id: each.part for each in outcomes if not each.reason}
  if not done:
    first = outcomes[0]
    raise UserError(
      f"none of {len(outcomes)} clips could be read; {first.item.id}: {first.reason}"
    )
  splits, noted = {}, {}
  for key, split in skeleton.splits.items():
    kept = [name in done for name in split.ids.tolist()]
    if any(kept):
      left = _rows(split, np.flatnonzero(kept))
      paths = [done[name] for name in left.ids.tolist()]
      splits[key] = _split(left, paths, tools, folder / key, align, noted)
  notes: dict[str, Any] = {
    **skeleton.notes,
    "format": "clips",
    "clips": {
      **tools.about(),
      "align": align,
      "failed": {each.item.id: each.reason for each in outcomes if each.reason},
      "noted": noted,
    },
  }
  if "text" in tools.extractors:
    ((file, digest),) = tools.extractors["text"].about.weights.items() or [("", "")]
    notes["text"] = {"encoder": {"file": file, "sha256": digest}}
  return Corpus(skeleton.name, splits, skeleton.tasks, notes)


def _rows(split: Split, rows: np.ndarray) -> Split:
  return dataclasses.replace(
    split,
    ids=split.ids[rows],
    labels={name: values[rows] for name, values in split.labels.items()},
    groups=None if split.groups is None else split.groups[rows],
    extras={name: values[rows] for name, values in split.extras.items()},
  )


def _split(split, paths, tools: Toolbox, folder: Path, align: str, noted) -> Split:
  def part(row: int) -> Part:
    made = parts.load(paths[row])
    return aligned.by_words(made) if align == WORDS else made

  texts: list[str] = []
  steps = {name: np.zeros(len(paths), np.int32) for name in tools.extractors}
  wide = dict.fromkeys(steps, False)
  for row, name in enumerate(split.ids.tolist()):
    made = part(row)
    texts.append(words_lib.text_of(made.words))
    for modality, counts in steps.items():
      values = made.features[modality].values
      counts[row] = len(values)
      wide[modality] |= bool(len(values)) and values.dtype != np.float16
    if made.notes:
      noted[name] = made.notes
  padded = {
    name: _Padded(folder / f"{name}.npy", counts, tools.extractors[name].about.width, w)
    for (name, counts), w in zip(steps.items(), wide.values(), strict=True)
  }
  for row in range(len(paths)):
    made = part(row)
    for modality, arrays in padded.items():
      arrays.put(row, made.features[modality])
  times: dict[str, Any] = {f"{n}_times": each.times for n, each in padded.items()}
  if "text" in padded:
    times[TEXT_WORDS] = padded["text"].words
  return dataclasses.replace(
    split,
    modalities={name: arrays.sequences() for name, arrays in padded.items()},
    raw_text=np.array(texts, np.str_) if any(texts) else None,
    extras={**split.extras, **times},
  )


class _Padded:
  """One modality of a split, filled row by row; the features are in a file."""

  def __init__(self, path: Path, lengths: np.ndarray, width: int, wide: bool):
    n, t = len(lengths), max(1, int(lengths.max(initial=0)))
    kind = np.dtype(np.float32 if wide else np.float16)
    content = int(lengths.sum()) * width * kind.itemsize
    size = n * t * width * kind.itemsize
    memory.check(path.stem, size, content, f"one clip has {t} steps")
    path.parent.mkdir(parents=True, exist_ok=True)
    self._features = np.lib.format.open_memmap(path, "w+", kind, (n, t, width))
    self._lengths = lengths
    self._lost = np.zeros((n, t), bool)
    self.times = np.full((n, t, 2), _NO_TIME, np.float32)
    self.words = np.full((n, t), -1, np.int32)

  def put(self, row: int, found) -> None:
    steps = slice(0, len(found.values))
    self._features[row, steps] = found.values
    self.times[row, steps] = found.times
    if found.words is not None:
      self.words[row, steps] = found.words
    if found.lost is not None:
      self._lost[row, steps] = found.lost

  def sequences(self) -> Sequences:
    self._features.flush()
    return Sequences(
      self._features, self._lengths, self._lost if self._lost.any() else None
    )
