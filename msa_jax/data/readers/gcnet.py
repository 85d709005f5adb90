"""Corpora of dialogues: one row per utterance, with dialogue, speaker and session.

Two layouts: a flat `.npz` (`id`, `dialog`, `session`, `speaker`, `text_raw`, features
[n d], `label<k>`), and that of GCNet and MoMKE: a pickle of utterances by video, and a
folder of `<utterance>.npy` for each modality.
"""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np

from msa_jax import arrays as arrays_lib
from msa_jax.data.readers import fields
from msa_jax.data.readers.mmsa import sentiment_tasks
from msa_jax.data.transforms.folds import SESSION, WHOLE
from msa_jax.errors import UserError
from msa_jax.safe_io import archives
from msa_jax.typing import MODALITIES, Corpus, Sequences, Split, Task

_KEYS = {"id", "dialog", SESSION}
_LABEL = re.compile(r"label(\d+)")
_IEMOCAP = re.compile(r"Ses(\d\d)")
_PARTS = ("train", "valid", "test")
# What GCNet's class numbers of IEMOCAP mean.
_CLASSES = ("happy", "sad", "neutral", "angry", "excited", "frustrated")
_THREADS = 16


def is_flat(arrays: Mapping[str, np.ndarray]) -> bool:
  """Whether the arrays of a `.npz` are in the flat layout."""
  return arrays.keys() >= _KEYS


def from_arrays(arrays: Mapping[str, np.ndarray], name: str) -> Corpus:
  """Makes a corpus of the flat layout; it has one split, to be cut by session.

  Labels: `label<k>` [n] int become a task of classes, `emotion` for the fewest and
  `emotion<k>` for more, named by the `emotion` strings of their utterances. Other
  numbers by utterance become extras.

  Raises:
    UserError: no features, or arrays of different numbers of rows.
  """
  n = len(arrays["id"])
  known = {*_KEYS, "speaker", "text_raw", *MODALITIES}
  strings = {
    key: fields.strings(arrays[key], n, key)
    for key in ("id", "dialog", "speaker", "text_raw")
    if key in arrays
  }
  modalities = {}
  for modality in MODALITIES:
    if modality in arrays:
      array, _ = fields.features(arrays[modality], modality)
      modalities[modality] = Sequences(array, fields.occupied(array)[1])
  if not modalities:
    raise UserError(f"no features: none of {', '.join(MODALITIES)}")
  labels, tasks = _class_labels(arrays, n)
  extras = {
    key: value
    for key, value in arrays.items()
    if key not in known and key not in labels and value.shape[:1] == (n,)
  }
  extras = {key: value for key, value in extras.items() if not _LABEL.fullmatch(key)}
  extras[SESSION] = fields.lengths(arrays[SESSION], n, SESSION)
  if "speaker" in strings:
    extras["speaker"] = strings["speaker"]
  whole = Split(
    ids=strings["id"],
    modalities=modalities,
    labels=labels,
    raw_text=strings.get("text_raw"),
    groups=strings["dialog"],
    extras=extras,
  )
  return Corpus(name, {WHOLE: whole}, tasks, {"format": "conversations"})


def _class_labels(
  arrays: Mapping[str, np.ndarray], n: int
) -> tuple[dict[str, np.ndarray], dict[str, Task]]:
  labels, tasks = {}, {}
  numbers = sorted(int(m[1]) for m in map(_LABEL.fullmatch, arrays) if m)
  for number in numbers:
    values = arrays[f"label{number}"]
    if values.shape != (n,) or values.dtype.kind not in "iu":
      raise UserError(
        f"label{number} should be [{n}] class numbers below {number}, or -1"
      )
    arrays_lib.check_classes(values, f"label{number}", number, arrays["id"])
    task = "emotion" if number == numbers[0] else f"emotion{number}"
    labels[task] = values.astype(np.int32)
    classes = _class_names(labels[task], arrays.get("emotion"), number)
    tasks[task] = Task("classes", classes=classes, protocol="classes")
  return labels, tasks


def _class_names(
  values: np.ndarray, words: np.ndarray | None, count: int
) -> tuple[str, ...]:
  if words is None or words.shape != values.shape:
    return tuple(map(str, range(count)))
  names = []
  for label in range(count):
    found, times = np.unique(words[values == label], return_counts=True)
    # A few utterances of another word are strays, not a part of the class.
    found = found[times >= 0.2 * times.sum()].tolist()
    names.append("+".join(map(str, found)) or str(label))
  return tuple(names)


def is_label_file(data: Any) -> bool:
  """Whether a pickle looks like GCNet's table of labels."""
  return isinstance(data, list | tuple) and bool(data) and isinstance(data[0], dict)


def from_pickle(
  data: Any, name: str, folders: Mapping[str, str | os.PathLike]
) -> Corpus:
  """Makes a corpus of GCNet's and MoMKE's layout.

  Args:
    data: what `load_pickle` gave: (ids, labels, speakers, sentences, training videos,
      [validation videos,] test videos); the first four map a video to a list.
    name: the corpus's name.
    folders: modality -> folder with `<utterance>.npy`, [d] or [t d].

  Returns:
    A corpus split as the file says, or, for videos named `Ses01...`, one split to be
    cut by session.

  Raises:
    UserError: another layout, no folders, or features that cannot be read.
  """
  if not isinstance(data, list | tuple) or len(data) not in (6, 7):
    raise UserError(
      f"{name}: GCNet's label file holds 6 or 7 parts (ids, labels, speakers,"
      " sentences, sets of videos)"
    )
  if not folders:
    raise UserError(
      f"{name}: features lie in folders of their own; name them by"
      " config.data.features.text=FOLDER (audio, vision), or --feature text=FOLDER"
    )
  tables = [_table(part, name) for part in data[:4]]
  sets = [set(map(fields.text, part)) for part in data[4:] if _is_names(part)]
  if len(sets) != len(data) - 4:
    raise UserError(f"{name}: the sets of videos are not sets of names")
  names = _PARTS if len(sets) == 3 else (_PARTS[0], _PARTS[2])
  videos = list(tables[0])
  sessions = [_IEMOCAP.match(video) for video in videos]
  if all(sessions):
    parts = {WHOLE: videos}
  else:
    parts = {
      part: [video for video in videos if video in members]
      for part, members in zip(names, sets, strict=True)
    }
  splits = {
    part: _split(tables, members, folders, f"{name}, {part}")
    for part, members in parts.items()
    if members
  }
  splits, tasks = _named(splits)
  return Corpus(name, splits, tasks, {"format": "gcnet"})


def _is_names(part: Any) -> bool:
  return isinstance(part, list | tuple | set | np.ndarray)


def _table(part: Any, name: str) -> dict[str, list]:
  if not isinstance(part, dict) or not part:
    raise UserError(f"{name}: the first four parts map every video to its utterances")
  return {fields.text(video): _row(values) for video, values in part.items()}


def _row(values: Any) -> list:
  return list(values) if isinstance(values, list | tuple | np.ndarray) else [values]


def _split(
  tables: Sequence[Mapping[str, list]],
  videos: Sequence[str],
  folders: Mapping[str, str | os.PathLike],
  where: str,
) -> Split:
  ids, labels, speakers, sentences = (
    [entry for video in videos for entry in table.get(video, [])] for table in tables
  )
  n = len(ids)
  if any(len(column) != n for column in (labels, speakers, sentences)):
    raise UserError(f"{where}: ids, labels, speakers and sentences differ in number")
  ids = fields.strings(ids, n, where)
  groups = [video for video in videos for _ in tables[0][video]]
  extras = {"speaker": fields.strings(speakers, n, where)}
  sessions = [match for video in groups if (match := _IEMOCAP.match(video))]
  if len(sessions) == len(groups):
    extras[SESSION] = np.array([int(match[1]) for match in sessions], np.int32)
  return Split(
    ids=ids,
    modalities={
      modality: _features(ids, Path(folders[modality]).expanduser(), where)
      for modality in MODALITIES
      if modality in folders
    },
    labels=_labels(labels, ids, where),
    raw_text=fields.strings(sentences, n, where),
    groups=arrays_lib.strings(groups, f"{where}, videos"),
    extras=extras,
  )


def _labels(labels: list, ids: np.ndarray, where: str) -> dict[str, np.ndarray]:
  n = len(ids)
  values = np.asarray(labels)
  if values.dtype.kind in "iu" and values.shape == (n,):
    arrays_lib.check_classes(values, f"{where}, labels", ids=ids)
    return {"emotion": values.astype(np.int32)}
  return {"sentiment": fields.regression(labels, n, where)}


def _named(
  splits: dict[str, Split],
) -> tuple[dict[str, Split], dict[str, Task]]:
  """The splits with their task under its name, `emotion6` for six classes."""
  emotions = [s.labels["emotion"] for s in splits.values() if "emotion" in s.labels]
  if not emotions:
    return splits, sentiment_tasks(splits)
  if len(emotions) < len(splits):
    raise UserError("some splits have emotions as labels, others sentiment")
  count = 1 + max(int(values.max(initial=0)) for values in emotions)
  named = count in (4, 6)
  classes = _CLASSES[:count] if named else tuple(map(str, range(count)))
  task = "emotion6" if count == 6 else "emotion"
  splits = {
    name: dataclasses.replace(split, labels={task: split.labels["emotion"]})
    for name, split in splits.items()
  }
  return splits, {task: Task("classes", classes=classes, protocol="classes")}


def _features(ids: np.ndarray, folder: Path, where: str) -> Sequences:
  """Features of every utterance, read by several threads; [t d] or [d] each."""
  if not folder.is_dir():
    raise UserError(f"{where}: no such folder: {folder.absolute()}")
  with ThreadPoolExecutor(_THREADS) as pool:
    rows = list(pool.map(lambda name: _one(folder, name), ids.tolist()))
  width = max((row.shape[1] for row in rows), default=0)
  # GCNet's extractors write an empty array where they found no face.
  rows = [row if row.size else row.reshape(0, width) for row in rows]
  array, lengths = fields.features(rows, f"{where}, {folder.name}")
  return Sequences(array, cast(np.ndarray, lengths))  # rows with steps have them


def _one(folder: Path, name: str) -> np.ndarray:
  if Path(name).name != name:
    raise UserError(f"utterance {name!r} cannot name a file in {folder}")
  path = folder / f"{name}.npy"
  array = archives.read_npy(path)
  if array.dtype.kind not in "fiu":
    raise UserError(f"{path}: holds {array.dtype}, not numbers")
  if not array.size:
    return np.zeros((0, 0), np.float32)
  array = array.squeeze() if array.ndim > 2 else array
  if array.ndim > 2:
    raise UserError(f"{path}: has shape {list(array.shape)}; [d] or [t, d] is wanted")
  return np.atleast_2d(array)
