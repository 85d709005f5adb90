"""Corpora larger than memory: ArrayRecord shards, read a few samples at a time.

A folder that `store` made holds what `tensorflow-datasets` prepared (one record per
sample with its features cut to their real length, labels, text; `tfds.data_source`
reads it without this library, TensorFlow is not needed) and `columns.npz`, everything
but the features, which is small and stays in memory. The features of the corpus that
`load` gives are lazy: batches read the records they need.
"""

import collections
import contextlib
import dataclasses
import functools
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from msa_jax.data.lazy import LazyFeatures
from msa_jax.data.readers import npz
from msa_jax.data.readers.cleaning import check_unique_ids
from msa_jax.data.transforms.joint import no_labels
from msa_jax.errors import UserError
from msa_jax.typing import Corpus, Sequences, Split, Task

_NAME, _VERSION, _COLUMNS = "utterances", "1.0.0", "columns.npz"
_OURS = "tensorflow_datasets.core.features."
_KEPT = 4  # blocks of records kept per split: the modalities of a batch share one


def is_stored(path: str | os.PathLike) -> bool:
  """Whether the path is a folder that `store` made."""
  return columns_file(path).is_file()


def columns_file(path: str | os.PathLike) -> Path:
  """The file of a stored corpus that holds everything but the features."""
  return Path(path).expanduser().absolute() / _COLUMNS


def store(corpus: Corpus, folder: str | os.PathLike) -> None:
  """Writes a corpus as ArrayRecord shards; `load` gives it back.

  Raises:
    UserError: as `store_parts`, or an id occurs twice.
  """
  check_unique_ids(corpus)
  store_parts(
    {name: [lambda split=split: split] for name, split in corpus.splits.items()},
    corpus.tasks,
    folder,
    name=corpus.name,
    notes=corpus.notes,
  )


def store_parts(
  parts: Mapping[str, Sequence[Callable[[], Split]]],
  tasks: Mapping[str, Task],
  folder: str | os.PathLike,
  *,
  name: str,
  notes: Mapping[str, Any],
) -> None:
  """Writes a corpus that comes in parts; one at a time is in memory.

  Args:
    parts: split name -> functions that give the parts of the split in order, each a
      shard. All have the same modalities and widths, those of one split the same
      labels too.
    tasks: task name -> its meaning.
    folder: a new or empty folder.
    name: of the corpus.
    notes: of the corpus.

  Raises:
    UserError: the folder holds something, or the parts differ.
  """
  folder = Path(folder).expanduser().absolute()
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise UserError(f"{folder} is not empty; choose a new folder")
  columns: dict[str, list[Split]] = {split: [] for split in parts}
  first = next(iter(parts.values()))[0]()
  form, fields = _form(first), _fields(first, tasks)

  def examples(split: str, make: Callable[[], Split]) -> Iterator[tuple]:
    part = make()
    others = columns[split][:1]
    if _form(part) != form or any(_columns(one) != _columns(part) for one in others):
      raise UserError(f"{name}, {split}: the parts of a stored corpus must be alike")
    start = sum(map(len, columns[split]))
    columns[split].append(_without_features(part))
    labels = {
      task: part.labels.get(task, no_labels(meaning, len(part)))
      for task, meaning in tasks.items()
    }
    for row in range(len(part)):
      yield start + row, _example(part, labels, row)

  del first
  shards = {
    split: [functools.partial(examples, split, make) for make in makers]
    for split, makers in parts.items()
  }
  _prepare(folder, fields, shards)
  splits = {split: _joined(found) for split, found in columns.items()}
  # Written last: without it a folder is not taken for a corpus.
  npz.save(Corpus(name, splits, tasks, notes), folder / _COLUMNS)


def load(folder: str | os.PathLike) -> Corpus:
  """Opens a corpus that `store` wrote; its features are lazy.

  Raises:
    UserError: not such a folder, or damaged.
  """
  tfds = _tfds()
  folder = Path(folder).expanduser().absolute()
  if not is_stored(folder):
    raise UserError(f"{folder}: no {_COLUMNS}, so no corpus that was stored whole")
  corpus, _ = npz.load(columns_file(folder))
  place = folder / _NAME / _VERSION
  try:
    _check_kinds(json.loads((place / "features.json").read_text()))
    builder = tfds.builder_from_directory(str(place))
    sizes = {name: info.num_examples for name, info in builder.info.splits.items()}
    widths = {
      name: feature.shape[-1]
      for name, feature in builder.info.features.items()
      if feature.shape[1:]
    }
  except Exception as error:  # tfds raises many kinds, none of its own.
    raise UserError(f"{place}: cannot be opened ({_first_line(error)})") from None
  splits = {}
  for name, split in corpus.splits.items():
    if sizes.get(name) != len(split):
      raise UserError(
        f"{folder}: {sizes.get(name, 0)} records of split {name!r} where {_COLUMNS} has"
        f" {len(split)}; store the corpus anew"
      )
    records = _Records(place, name)
    modalities = {
      key: _sequences(records, key, one, widths[key], builder.info.features[key])
      for key, one in split.modalities.items()
    }
    splits[name] = dataclasses.replace(split, modalities=modalities)
    records.check(split.ids)
  return dataclasses.replace(corpus, splits=splits)


def _check_kinds(features: Any) -> None:
  """Refuses feature types of others: their modules would be imported."""
  if isinstance(features, dict):
    kind = features.get("pythonClassName", _OURS)
    if not str(kind).startswith(_OURS):
      raise UserError(f"refused to load {kind}")
    for value in features.values():
      _check_kinds(value)


class _Records:
  """Records of one split by row; opened again in every process that reads them."""

  def __init__(self, place: Path, split: str):
    self._place, self._split = place, split
    self._start()

  def _start(self) -> None:
    self._lock = threading.Lock()
    self._source = None
    self._kept: collections.OrderedDict[bytes, list] = collections.OrderedDict()

  def __getstate__(self) -> tuple[Path, str]:
    return self._place, self._split

  def __setstate__(self, state: tuple[Path, str]) -> None:
    self._place, self._split = state
    self._start()

  def __call__(self, rows: Int[np.ndarray, " rows"]) -> list[dict[str, Any]]:
    """The records of some rows; those of the last few calls are kept."""
    key = np.asarray(rows, np.int64).tobytes()
    with self._lock:
      if self._source is None:
        builder = _tfds().builder_from_directory(str(self._place))
        self._source = builder.as_data_source(split=self._split)
      if key in self._kept:
        return self._kept[key]
    try:
      found = list(self._source.__getitems__([int(row) for row in rows]))
    except Exception as error:  # Whatever the reader of a damaged shard raises.
      raise UserError(
        f"{self._place}: records of split {self._split!r} cannot be read"
        f" ({_first_line(error)})"
      ) from None
    with self._lock:
      self._kept[key] = found
      while len(self._kept) > _KEPT:
        self._kept.popitem(last=False)
    return found

  def check(self, ids: np.ndarray) -> None:
    """Raises UserError unless the first and the last record are those of `ids`."""
    ends = np.array([0, len(ids) - 1])[: len(ids)]
    for row, record in zip(ends, self(ends), strict=True):
      if record["id"].decode() != ids[row]:
        raise UserError(
          f"{self._place}: record {row} of split {self._split!r} is"
          f" {record['id'].decode()!r} where {_COLUMNS} has {ids[row]!r}"
        )


def _sequences(records, modality, columns, width, feature) -> Sequences:
  """Lazy features beside the columns' lengths."""
  n, t, _ = columns.features.shape
  dtype = np.dtype(feature.np_dtype)

  def read(rows):
    values = np.zeros((len(rows), t, width), dtype)
    if len(rows):
      for value, record in zip(values, records(rows), strict=True):
        value[: len(record[modality])] = record[modality]
    return values

  return dataclasses.replace(columns, features=LazyFeatures((n, t, width), dtype, read))


def _prepare(folder, features, shards) -> None:
  """Lets `tensorflow-datasets` write the records, in the order they come."""
  tfds = _tfds()

  # The base is `Any`: its `__init_subclass__` is not seen.
  class Utterances(  # pyright: ignore[reportGeneralTypeIssues]
    tfds.core.ShardBasedBuilder,
    skip_registration=True,  # pyright: ignore[reportCallIssue]
  ):
    """Utterances of several modalities, one shard after the other."""

    VERSION = tfds.core.Version(_VERSION)
    name = _NAME

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(features),
        disable_shuffling=True,
      )

    def _shard_iterators_per_split(self, manager):
      del manager
      return shards

  folder.mkdir(parents=True, exist_ok=True)
  builder = Utterances(data_dir=str(folder), file_format="array_record")
  tfds.disable_progress_bar()
  with contextlib.redirect_stdout(None):
    builder.download_and_prepare()
  shutil.rmtree(folder / "downloads", ignore_errors=True)


def _fields(first: Split, tasks: Mapping[str, Task]) -> dict[str, Any]:
  """What a record holds, for `tensorflow-datasets`."""
  tfds = _tfds()
  as_bytes = tfds.features.Encoding.BYTES
  found: dict[str, Any] = {"id": tfds.features.Text()}
  if first.raw_text is not None:
    found["raw_text"] = tfds.features.Text()
  if first.groups is not None:
    found["group"] = tfds.features.Text()
  for name, one in first.modalities.items():
    found[name] = tfds.features.Tensor(
      shape=(None, one.features.shape[-1]),
      dtype=one.features.dtype.type,
      encoding=as_bytes,
    )
  for name, task in tasks.items():
    kind = np.float32 if task.kind == "regression" else np.int32
    shape = (len(task.classes),) if task.kind == "binary" else ()
    found[f"label_{name}"] = tfds.features.Tensor(shape=shape, dtype=kind)
  return found


def _example(part: Split, labels: Mapping[str, np.ndarray], row: int) -> dict[str, Any]:
  found: dict[str, Any] = {"id": str(part.ids[row])}
  if part.raw_text is not None:
    found["raw_text"] = str(part.raw_text[row])
  if part.groups is not None:
    found["group"] = str(part.groups[row])
  for name, one in part.modalities.items():
    found[name] = np.asarray(one.features[row][: one.lengths[row]])
  for name, values in labels.items():
    found[f"label_{name}"] = values[row]
  return found


def _without_features(part: Split) -> Split:
  """The split with features of width zero."""
  modalities = {
    name: dataclasses.replace(
      one, features=np.zeros((*one.features.shape[:2], 0), np.float32)
    )
    for name, one in part.modalities.items()
  }
  return dataclasses.replace(part, modalities=modalities)


def _form(part: Split) -> tuple:
  """What records are alike in, those of all splits."""
  return (
    {n: (m.features.shape[2], m.features.dtype) for n, m in part.modalities.items()},
    (part.raw_text is None, part.groups is None),
  )


def _columns(part: Split) -> tuple:
  """What the parts of one split are alike in besides; test may have no labels."""
  return (
    {n: (set(m.ids), m.lost is None) for n, m in part.modalities.items()},
    {name: values.dtype for name, values in part.labels.items()},
    set(part.extras),
  )


def _joined(parts: list[Split]) -> Split:
  """Parts of a split after one another; without features, so of little size."""
  first = parts[0]
  steps = {
    name: max(part.modalities[name].features.shape[1] for part in parts)
    for name in first.modalities
  }

  # What `get` finds is in every part or in none; then None comes of it.
  def join(get: Callable[[Split], Any]) -> Any:
    found = [get(part) for part in parts]
    return None if found[0] is None else np.concatenate(found)

  def per_step(name: str, get: Callable[[Sequences], Any]) -> Any:
    def padded(part: Split):
      values = get(part.modalities[name])
      if values is None:
        return None
      missing = [(0, 0)] * values.ndim
      missing[1] = (0, steps[name] - values.shape[1])
      return np.pad(values, missing)

    return join(padded)

  return Split(
    ids=join(lambda part: part.ids),
    modalities={
      name: Sequences(
        features=per_step(name, lambda one: one.features),
        lengths=join(lambda part, name=name: part.modalities[name].lengths),
        lost=per_step(name, lambda one: one.lost),
        ids={
          key: per_step(name, lambda one, key=key: one.ids[key])
          for key in first.modalities[name].ids
        },
      )
      for name in first.modalities
    },
    labels={key: join(lambda part, key=key: part.labels[key]) for key in first.labels},
    raw_text=join(lambda part: part.raw_text),
    groups=join(lambda part: part.groups),
    extras={key: join(lambda part, key=key: part.extras[key]) for key in first.extras},
  )


def _tfds() -> Any:
  try:
    import tensorflow_datasets as tfds
  except ImportError:
    raise UserError(
      "stored corpora need tensorflow-datasets: pip install 'msa_jax[stored]'"
    ) from None
  return tfds


def _first_line(error: Exception) -> str:
  return (str(error).splitlines() or [type(error).__name__])[0][:120]
