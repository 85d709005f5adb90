"""MulT's pickles: `{mosi,mosei_senti,iemocap}_data[_noalign].pkl`.

Layout (github.com/yaohungt/Multimodal-Transformer, src/dataset.py): {split: {text
[n t 300] GloVe, audio, vision, labels, id}} without lengths or masks. Labels are
[n 1 1] (sentiment in [-3, 3]) or, for IEMOCAP, [n 4 2]: four yes/no questions,
one-hot, in the order of src/eval_metrics.py: neutral, happy, sad, angry. MOSEI files
made with the CMU Multimodal SDK's `All Labels` have [n 1 7] (or [n 7]): sentiment, then
the intensities in [0, 3] of six emotions, of which those above zero are present.
"""

import dataclasses
from typing import Any

import numpy as np

from msa_jax import arrays as arrays_lib
from msa_jax.data.readers import fields
from msa_jax.data.readers.mmsa import samples, sentiment_tasks
from msa_jax.errors import UserError
from msa_jax.typing import MODALITIES, Corpus, Sequences, Split, Task

EMOTIONS = ("neutral", "happy", "sad", "angry")
MOSEI_EMOTIONS = ("happy", "sad", "angry", "surprise", "disgust", "fear")


def from_pickle(data: Any, name: str) -> Corpus:
  """Turns an unpickled MulT file into a corpus that still needs `cleaning.clean`.

  Zeros before and after the real steps are padding: steps are moved to the front.
  When all modalities have equally many steps the file is word-aligned, and the words
  are those where any modality has something, so that they stay aligned.

  Args:
    data: what `load_pickle` gave; its splits are emptied while they are converted.
    name: the corpus's name, for titles.

  Raises:
    UserError: the layout or the shape of the labels is another.
  """
  found = fields.named_splits(data, name)
  splits: dict[str, Split] = {}
  moved = {}
  for key, value in found.items():
    splits[key], moved[key] = _split(value, key)
  tasks = _tasks(splits, name)
  splits, repeated = _unique(splits)
  notes = {
    "format": "mult",
    "samples_moved_to_front": moved,
    "repeated_ids_numbered": repeated,
  }
  return Corpus(name=name, splits=splits, tasks=tasks, notes=notes)


def _tasks(splits: dict[str, Split], name: str) -> dict[str, Task]:
  found = {tuple(sorted(split.labels)) for split in splits.values() if split.labels}
  if len(found) > 1:
    raise UserError(f"{name}: some splits have sentiment labels, others emotions")
  tasks = {}
  if any("sentiment" in names for names in found):
    only = {
      key: Split(split.ids, {}, {"sentiment": split.labels["sentiment"]})
      for key, split in splits.items()
      if split.labels
    }
    tasks |= sentiment_tasks(only)
  if any("emotion" in names for names in found):
    classes = MOSEI_EMOTIONS if tasks else EMOTIONS
    tasks["emotion"] = Task("binary", classes=classes, protocol="emotions")
  return tasks


def _split(data: dict, name: str) -> tuple[Split, dict[str, int]]:
  n = samples(data, name)
  arrays = {}
  for modality in MODALITIES:
    if data.get(modality) is None:
      continue
    arrays[modality], _ = fields.features(data.pop(modality), f"{name}, {modality}")
  if any(len(array) != n for array in arrays.values()):
    counts = ", ".join(f"{key} {len(array)}" for key, array in arrays.items())
    raise UserError(f"{name}: modalities differ in samples: {counts}")
  spans = _spans(arrays)
  moved = {}
  for modality, (first, last) in spans.items():
    fields.move_to_front(arrays[modality], first, last)
    moved[modality] = int((first > 0).sum())
  modalities = {
    modality: Sequences(arrays[modality], (last - first).astype(np.int32))
    for modality, (first, last) in spans.items()
  }
  # After the features: an array without cells may say that it has any number of rows.
  ids, groups = _ids(data.get("id"), n, name)
  labels = _labels(data.get("labels"), n, name)
  return Split(ids, modalities, labels, groups=groups), moved


def _spans(
  arrays: dict[str, np.ndarray],
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """First and one past the last real step of every sample."""
  spans = {modality: fields.occupied(array) for modality, array in arrays.items()}
  if len({array.shape[1] for array in arrays.values()}) > 1 or len(arrays) == 1:
    return spans
  steps = next(iter(arrays.values())).shape[1]
  # An absent modality (first = last = 0) must not extend the sentence.
  first = np.stack([np.where(last > 0, first, steps) for first, last in spans.values()])
  last = np.stack([last for _, last in spans.values()]).max(0)
  joint = np.minimum(first.min(0), last).astype(np.int32), last
  return dict.fromkeys(arrays, joint)


def _labels(value: Any, n: int, name: str) -> dict[str, np.ndarray]:
  if value is None:
    return {}
  array = np.asarray(value)
  if array.size == n:
    return {"sentiment": fields.regression(array, n, f"{name}, labels")}
  if array.shape == (n, len(EMOTIONS), 2) and array.dtype.kind in "fiub":
    known = np.nan_to_num(array.astype(np.float32)).sum(-1) == 1
    return {"emotion": np.where(known, array.argmax(-1), -1).astype(np.int32)}
  columns = 1 + len(MOSEI_EMOTIONS)
  if array.size == n * columns and array.dtype.kind in "fiub":
    table = array.astype(np.float32).reshape(n, columns)
    known = np.isfinite(table[:, 1:])
    present = np.where(known, table[:, 1:] > 0, -1).astype(np.int32)
    return {
      "sentiment": fields.regression(table[:, 0], n, f"{name}, labels"),
      "emotion": present,
    }
  raise UserError(
    f"{name}: labels have shape {list(array.shape)}; the shapes are [{n}, 1, 1]"
    f" (sentiment), [{n}, {len(EMOTIONS)}, 2] (emotions) and [{n}, 1, {columns}]"
    " (MOSEI's sentiment and emotions)"
  )


def _ids(value: Any, n: int, name: str) -> tuple[np.ndarray, np.ndarray | None]:
  """Ids and videos. Rows are (video or segment, start, end), strings or bytes."""
  if value is None:
    return fields.numbered(n, name), None
  ids = fields.strings(value, n, f"{name}, id")
  groups = fields.videos(ids)
  if groups is not None:
    # `video[3]$_$0.1$_$2.7`: the first column may number the clip.
    inner = fields.videos(groups)
    groups = groups if inner is None else inner
  return ids, groups


def _unique(splits: dict[str, Split]) -> tuple[dict[str, Split], int]:
  """Numbers repeated ids, as these files' ids are times; returns how many."""
  seen: dict[str, int] = {}
  unique = {}
  for name, split in splits.items():
    names = []
    for sample in split.ids.tolist():
      seen[sample] = seen.get(sample, 0) + 1
      names.append(sample if seen[sample] == 1 else f"{sample}#{seen[sample]}")
    ids = arrays_lib.strings(names, f"{name}, id")
    unique[name] = dataclasses.replace(split, ids=ids)
  return unique, sum(count - 1 for count in seen.values())
