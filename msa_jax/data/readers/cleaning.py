"""Makes what a reader found fit to train on, and counts what had to be done.

One place for every format, so that a file converted and a file read directly give
the same numbers. Everything works in place and in blocks of rows: a corpus is never
in memory twice.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from msa_jax import arrays, memory
from msa_jax.data.readers import fields
from msa_jax.errors import UserError
from msa_jax.typing import Corpus, Sequences, Split, modality_order

# Fewer equal samples than this may be equal by chance (a file to predict on).
_CONSTANT_SAMPLES = 8


def clean(corpus: Corpus) -> Corpus:
  """Checks a corpus as read and makes it keep the promises of `Sequences`.

  Cells that are NaN or infinite become zero; a real step of which no cell is finite
  becomes a lost step; steps after a sample's length become zero; a sample whose real
  steps are all zero lacks the modality (length 0), as does the whole corpus when
  every step of every sample is the same vector; left padding is moved to the end;
  padding beyond the longest sample of all splits is cut.

  Args:
    corpus: features float16 or float32, changed in place; lengths as in the file.

  Returns:
    The corpus with `notes` extended: for each thing found, modality -> split ->
    count (only what is not zero), `unavailable_modalities`, `padding_cut`.

  Raises:
    UserError: an empty split, splits of different modalities or widths, arrays of
      different numbers of samples, a length below zero or above the steps there are.
  """
  check_structure(corpus)
  notes: dict[str, Any] = {name: {} for name in (*arrays.COUNTS, "left_padded_samples")}
  splits: dict[str, dict[str, Sequences]] = {}
  for name, split in corpus.splits.items():
    splits[name] = {}
    for modality, sequences in split.modalities.items():
      cleaned, counts = clean_sequences(sequences, f"{name}, {modality}", split.ids)
      splits[name][modality] = cleaned
      for what, count in counts.items():
        if count:
          notes[what].setdefault(modality, {})[name] = count
  _remove_constants(splits, notes)
  _cut_padding(splits, notes)
  return dataclasses.replace(
    corpus,
    splits={
      name: dataclasses.replace(split, modalities=splits[name])
      for name, split in corpus.splits.items()
    },
    notes={**corpus.notes, **notes},
  )


def check_structure(corpus: Corpus) -> None:
  """Raises UserError unless splits agree in modalities, widths and numbers of rows."""
  if not corpus.splits:
    raise UserError("the file has no splits; the usual are train, valid and test")
  first_name, first = next(iter(corpus.splits.items()))
  if not first.modalities:
    raise UserError(f"split {first_name} has no modality; one at least is needed")
  for name, split in corpus.splits.items():
    if not len(split):
      raise UserError(f"split {name} is empty; remove it or fill it")
    if set(split.modalities) != set(first.modalities):
      raise UserError(
        f"split {name} has {', '.join(modality_order(split.modalities))} but split"
        f" {first_name} has {', '.join(modality_order(first.modalities))}"
      )
    for modality, sequences in split.modalities.items():
      width, expected = (
        one.features.shape[2] for one in (sequences, first.modalities[modality])
      )
      if width != expected:
        raise UserError(
          f"{modality} is {width} wide in split {name} but {expected} in {first_name}"
        )
    _check_rows(name, split)


def _check_rows(name: str, split: Split) -> None:
  rows = {modality: one.features for modality, one in split.modalities.items()}
  rows |= {f"labels of {task}": value for task, value in split.labels.items()}
  rows |= {"raw_text": split.raw_text, "groups": split.groups, **split.extras}
  for field, value in rows.items():
    if value is not None and len(value) != len(split):
      raise UserError(
        f"split {name} has {len(split)} samples but {len(value)} rows of {field}"
      )


def check_labels(corpus: Corpus) -> None:
  """Raises UserError unless labels are what the corpus's tasks say."""
  for name, split in corpus.splits.items():
    for task, value in split.labels.items():
      where = f"{name}/labels/{task}"
      if task not in corpus.tasks:
        raise UserError(f"{where} has no entry in tasks ({', '.join(corpus.tasks)})")
      meaning = corpus.tasks[task]
      if (value.dtype.kind == "f") != (meaning.kind == "regression"):
        raise UserError(f"{where} is {value.dtype} but the task is {meaning.kind}")
      if value.ndim != 1 + (meaning.kind == "binary"):
        raise UserError(f"{where} has shape {list(value.shape)}, task {meaning.kind}")
      if meaning.kind == "binary" and value.shape[1] != len(meaning.classes):
        raise UserError(
          f"{where} has {value.shape[1]} columns for {len(meaning.classes)} classes"
        )
      top = 2 if meaning.kind == "binary" else len(meaning.classes)
      if meaning.kind != "regression":
        arrays.check_classes(value, where, top, split.ids)


def check_lengths(sequences: Sequences, where: str, ids: np.ndarray) -> None:
  """Raises UserError naming the first row whose length is not in [0, steps]."""
  arrays.check_lengths(sequences.lengths, sequences.features.shape[1], where, ids)


def clean_sequences(
  sequences: Sequences, where: str, ids: np.ndarray
) -> tuple[Sequences, Mapping[str, int]]:
  """Cleans one modality of one split (see `clean`), in place; returns it and counts."""
  check_lengths(sequences, where, ids)
  array, lengths = sequences.features, sequences.lengths.astype(np.int32)
  n, t, _ = array.shape
  counts = {"left_padded_samples": 0}
  if sequences.lost is None and not sequences.ids:
    counts["left_padded_samples"] = _move_left_padded(array, lengths)
  lost = np.zeros((n, t), bool)
  if sequences.lost is not None:
    lost |= sequences.lost
  counts |= arrays.clean(array, lengths, lost, bool(sequences.ids))
  cleaned = Sequences(array, lengths, lost if lost.any() else None, sequences.ids)
  return cleaned, counts


def _move_left_padded(array: np.ndarray, lengths: np.ndarray) -> int:
  """Right-aligned samples become left-aligned; returns how many there were."""
  n, t, _ = array.shape
  if (lengths == t).all():
    return 0
  first, last = fields.occupied(array)
  # All that is there lies within the last `length` steps, and part of it would be
  # cut off if the length were counted from the front.
  padded = (lengths > 0) & (last > lengths) & (first >= t - lengths)
  start = np.where(padded, t - lengths, 0).astype(np.int32)
  fields.move_to_front(array, start, np.full(n, t, np.int32))
  return int(padded.sum())


def _remove_constants(
  splits: dict[str, dict[str, Sequences]], notes: dict[str, Any]
) -> None:
  """Makes modalities unavailable that say the same whatever the sample."""
  notes["unavailable_modalities"] = []
  for modality in modality_order(next(iter(splits.values()))):
    parts = {name: split[modality] for name, split in splits.items()}
    if any(part.lengths.any() for part in parts.values()):
      if not _is_constant(list(parts.values())):
        continue
      notes.setdefault("constant_modalities", []).append(modality)
      for name, part in parts.items():
        part.features[:] = 0
        gone = Sequences(part.features, np.zeros_like(part.lengths), None, part.ids)
        splits[name][modality] = gone
        notes["absent_samples"].setdefault(modality, {})[name] = len(part.lengths)
        notes["lost_steps"].pop(modality, None)
    notes["unavailable_modalities"].append(modality)


def _is_constant(parts: list[Sequences]) -> bool:
  if sum(int((part.lengths > 0).sum()) for part in parts) < _CONSTANT_SAMPLES:
    return False
  if any(part.ids for part in parts):
    return False  # Integer inputs may still tell samples apart.
  reference = None
  for part in parts:
    for features, length in zip(part.features, part.lengths, strict=True):
      if length and reference is None:
        reference = features[0].copy()
      if length and (features[:length] != reference).any():
        return False
  return True


def _cut_padding(
  splits: dict[str, dict[str, Sequences]], notes: dict[str, Any]
) -> None:
  notes["padding_cut"] = {}
  for modality in modality_order(next(iter(splits.values()))):
    parts = {name: split[modality] for name, split in splits.items()}
    _check_steps(modality, parts)
    longest = max(1, *(int(part.lengths.max()) for part in parts.values()))
    before = max(part.features.shape[1] for part in parts.values())
    if longest < before:
      notes["padding_cut"][modality] = {"from": before, "to": longest}
    for name, part in parts.items():
      if part.features.shape[1] != longest:
        splits[name][modality] = _resized(part, longest)


def _check_steps(modality: str, parts: Mapping[str, Sequences]) -> None:
  """Every split becomes as long as the longest sample of all."""
  most = max(parts, key=lambda name: int(parts[name].lengths.max(initial=0)))
  row = int(parts[most].lengths.argmax())
  steps = int(parts[most].lengths[row])
  for name, part in parts.items():
    n, _, width = part.features.shape
    memory.check(
      f"{modality} of split {name}",
      n * steps * width * part.features.dtype.itemsize,
      part.features.nbytes,
      f"row {row} of split {most} has {steps} steps",
    )


def _resized(sequences: Sequences, steps: int) -> Sequences:
  missing = max(0, steps - sequences.features.shape[1])

  def resize(array: np.ndarray) -> np.ndarray:
    if missing:
      return np.pad(array, ((0, 0), (0, missing)) + ((0, 0),) * (array.ndim - 2))
    # A view keeps the padding in memory, a copy needs room for both for a while.
    small = 2 * steps <= array.shape[1]
    return array[:, :steps].copy() if small else array[:, :steps]

  return Sequences(
    resize(sequences.features),
    sequences.lengths,
    None if sequences.lost is None else resize(sequences.lost),
    {name: resize(value) for name, value in sequences.ids.items()},
  )


def check_unique_ids(corpus: Corpus) -> None:
  """Raises UserError naming an id that occurs twice, in one split or in two."""
  arrays.check_unique({name: split.ids for name, split in corpus.splits.items()})
