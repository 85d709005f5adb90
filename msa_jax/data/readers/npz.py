"""The library's own file: a plain `.npz` that needs no pickle, for data of your own.

A file that `numpy.savez` can write in one line is enough:

  numpy.savez("mine.npz", **{
    "train/text": text,                 # [n t d] numbers, or [n d]
    "train/text_lengths": lengths,      # [n], optional: else trailing zeros decide
    "train/audio": audio,               # any modality name, text/audio/vision usual
    "train/labels/sentiment": labels,   # [n] float (NaN = none)
    "train/ids": ids,                   # [n] strings, optional: else numbered
    "train/raw_text": sentences,        # [n] strings, optional
    "test/text": ...,                   # splits: train, valid, test, or predict
  })

Optional besides: `<split>/<modality>_lost` [n t] bool (real steps without content),
`<split>/<modality>_ids/<name>` [n t] int, `<split>/groups` [n] strings (video or
dialogue), `<split>/extras/<name>` [n ...], `name` (a string), and `tasks`, a JSON
string {task: {kind, low, high, classes, protocol}}. Without `tasks`, float labels
are regression (range as in `mmsa.sentiment_tasks`), int labels [n] one class and
int labels [n c] yes/no questions (-1 = none). Keys without a split, such as `text`,
make one split `predict`.

Files with `id`, `dialog` and `session` are read by `conversations` instead.
Files written by `save` hold the key `format` and come back exactly as they were.
Files without it are cleaned like every other format.
"""

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from msa_jax import arrays as arrays_lib
from msa_jax.corpus import tasks_of
from msa_jax.data.readers import fields, gcnet
from msa_jax.data.readers.cleaning import (
  check_labels,
  check_lengths,
  check_structure,
  check_unique_ids,
)
from msa_jax.errors import UserError, of_system
from msa_jax.safe_io import archives
from msa_jax.safe_io.pickles import characters_exist
from msa_jax.typing import Corpus, Sequences, Split, Task

FORMAT = "msa_jax corpus 1"
_STRINGS = ("ids", "raw_text", "groups")
# The metrics of a kind of task that does not say.
_PROTOCOLS = {"regression": "mosi", "classes": "classes", "binary": "emotions"}
_KINDS = tuple(_PROTOCOLS)
_HINT = "`python -m pydoc msa_jax.data.npz` lists the keys"
_NAME = re.compile(r"(?!labels$|extras$)[^/]*[^/_](?<!_ids)(?<!_lost)(?<!_lengths)")


def save(corpus: Corpus, path: str | os.PathLike) -> None:
  """Writes a corpus as `.npz`, without pickles; `load` gives it back exactly.

  Raises:
    UserError: the path cannot be written, a split or modality has a name that the
      file's keys would confuse (`labels`, `ids`, `x_lengths`, `a/b`, ...), or the
      corpus is one that `load` would refuse: an id twice, splits that differ in
      modalities, labels without a task, cells that are not finite, ...
  """
  for name in (
    *corpus.splits,
    *(m for s in corpus.splits.values() for m in s.modalities),
  ):
    if not _NAME.fullmatch(name) or name in _STRINGS:
      raise UserError(f"{name!r} cannot name a split or modality in a file; {_HINT}")
  check_labels(corpus)
  _check_exact(corpus, "set or mask them first")
  check_unique_ids(corpus)
  arrays: dict[str, Any] = {
    "format": np.array(FORMAT),
    "name": np.array(corpus.name),
    "tasks": np.array(
      json.dumps({key: dataclasses.asdict(task) for key, task in corpus.tasks.items()})
    ),
    "notes": np.array(json.dumps(corpus.notes)),
  }
  for name, split in corpus.splits.items():
    for key, value in _split_arrays(split).items():
      arrays[f"{name}/{key}"] = value
  path = Path(path).expanduser()
  # Beside and renamed: what cannot be written whole leaves what was there.
  partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
  try:
    with partial.open("wb") as stream:  # An open file keeps NumPy from adding ".npz".
      np.savez(stream, **arrays)
    partial.replace(path)
  except OSError as error:
    raise of_system(error, f"cannot write {path.absolute()}") from None
  finally:
    with contextlib.suppress(OSError):
      partial.unlink(missing_ok=True)


def _split_arrays(split: Split) -> dict[str, np.ndarray]:
  arrays: dict[str, Any] = {"ids": split.ids}
  arrays |= {"raw_text": split.raw_text, "groups": split.groups}
  for modality, sequences in split.modalities.items():
    arrays[modality] = sequences.features
    arrays[f"{modality}_lengths"] = sequences.lengths
    arrays[f"{modality}_lost"] = sequences.lost
    for key, value in sequences.ids.items():
      arrays[f"{modality}_ids/{key}"] = value
  arrays |= {f"labels/{task}": value for task, value in split.labels.items()}
  arrays |= {f"extras/{key}": value for key, value in split.extras.items()}
  return {
    key: np.array(value.tolist(), dtype=np.str_).reshape(value.shape)
    if value.dtype.hasobject
    else value
    for key, value in arrays.items()
    if value is not None
  }


def load(path: Path) -> tuple[Corpus, bool]:
  """Reads a `.npz` corpus.

  Returns:
    The corpus, and whether it is exact: written by `save`, checked, and not to be
    cleaned again. Otherwise it still needs `cleaning.clean`.

  Raises:
    UserError: damaged, holds pickled objects, or its keys are others than those of
      this module's docstring.
  """
  arrays = archives.read_npz(path)
  for key, array in arrays.items():
    if not characters_exist(array):
      raise UserError(f"{path}: {key!a} has characters that do not exist")
  try:
    if gcnet.is_flat(arrays):
      return gcnet.from_arrays(arrays, path.stem), False
    return _corpus(arrays, path.stem)
  except UserError as error:
    raise UserError(f"{path}: {error}") from None


def _corpus(arrays: dict[str, np.ndarray], stem: str) -> tuple[Corpus, bool]:
  exact = "format" in arrays
  if exact and (found := str(arrays.pop("format"))) != FORMAT:
    raise UserError(f"format is {found[:40]!r}; this version reads {FORMAT!r}")
  name = str(arrays.pop("name", stem))
  tasks = _json(arrays.pop("tasks", None), "tasks")
  notes = _json(arrays.pop("notes", None), "notes") or {}
  parts: dict[str, dict[str, np.ndarray]] = {}
  for key in list(arrays):
    split, slash, rest = key.partition("/")
    if not slash or split in ("labels", "extras") or split.endswith("_ids"):
      split, rest = "predict", key
    parts.setdefault(split, {})[rest] = arrays.pop(key)
  splits = {key: _split(value, key, exact) for key, value in parts.items()}
  known = inferred_tasks(splits) if tasks is None else _tasks(tasks)
  corpus = Corpus(name, splits, known, notes if exact else {**notes, "format": "npz"})
  check_labels(corpus)
  if exact:
    _check_exact(corpus, "remove the key 'format' to have the file cleaned")
  return corpus, exact


def _split(arrays: dict[str, np.ndarray], name: str, exact: bool) -> Split:
  labels, extras, inner = {}, {}, {}
  for key in [key for key in arrays if "/" in key]:
    kind, _, rest = key.partition("/")
    if kind == "labels":
      labels[rest] = arrays.pop(key)
    elif kind == "extras":
      extras[rest] = arrays.pop(key)
    elif kind.endswith("_ids") and kind[:-4] in arrays:
      inner.setdefault(kind[:-4], {})[rest] = arrays.pop(key)
    else:
      raise UserError(f"unknown key {name}/{key}; {_HINT}")
  texts = {key: arrays.pop(key, None) for key in _STRINGS}
  modalities = _modalities(arrays, name, inner, exact)
  n = max([len(one.features) for one in modalities.values()], default=0)
  if texts["ids"] is None:
    texts["ids"] = fields.numbered(n, name)
  for key, value in texts.items():
    if value is not None and (value.ndim != 1 or value.dtype.kind not in "USiu"):
      raise UserError(f"{name}/{key} should be [samples] strings")
    if value is not None and value.dtype.kind != "U":
      texts[key] = fields.strings(value, len(value), f"{name}/{key}")
  if texts["groups"] is None and not exact:
    texts["groups"] = fields.videos(texts["ids"])
  return Split(
    ids=texts["ids"],
    modalities=modalities,
    labels=labels if exact else _labels(labels),
    raw_text=texts["raw_text"],
    groups=texts["groups"],
    extras=extras,
  )


def _modalities(
  arrays: dict[str, np.ndarray],
  name: str,
  inner: Mapping[str, dict[str, np.ndarray]],
  exact: bool,
) -> dict[str, Sequences]:
  suffixes = ("_lengths", "_lost")
  stems = [key for key in arrays if not key.endswith(suffixes)]
  for key in arrays:
    if key.endswith(suffixes) and key.rpartition("_")[0] not in stems:
      raise UserError(f"{name}/{key} has no features {name}/{key.rpartition('_')[0]}")
  modalities = {}
  for modality in stems:
    where = f"{name}/{modality}"
    array = arrays.pop(modality)
    if array.ndim and not len(array):
      raise UserError(f"split {name} is empty; remove it or fill it")
    if array.dtype.kind not in "fiub":
      raise UserError(f"unknown key {where} ({array.dtype}); {_HINT}")
    if not exact:
      array, _ = fields.features(array, where)
    length = arrays.get(f"{modality}_lengths")
    if length is None and exact:
      raise UserError(f"{where} has no lengths, which this library's own files have")
    if length is None:
      length = fields.occupied(array)[1]
    elif not exact:
      length = fields.lengths(length, len(array), where)
    lost = arrays.get(f"{modality}_lost")
    per_step = {f"{modality}_lost": lost, **inner.get(modality, {})}
    for key, value in per_step.items():
      if value is not None and value.shape != array.shape[:2]:
        raise UserError(f"{where}: {key} has shape {list(value.shape)}, not [n, t]")
    lost = lost if lost is None or exact else lost.astype(bool)
    modalities[modality] = Sequences(array, length, lost, inner.get(modality, {}))
  return modalities


def inferred_tasks(splits: Mapping[str, Split]) -> dict[str, Task]:
  """What labels mean when the file does not say (rules in the module's docstring)."""
  return tasks_of(splits)


def _labels(found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  return {
    name: arrays_lib.labels(value, f"labels/{name}") for name, value in found.items()
  }


def _json(value: np.ndarray | None, key: str) -> dict | None:
  if value is None:
    return None
  try:
    found = json.loads(str(value))
  except ValueError:
    found = None
  if not isinstance(found, dict):
    raise UserError(f"key {key!r} is not a JSON object; {_HINT}")
  return found


def _tasks(found: Mapping[str, Any]) -> dict[str, Task]:
  tasks = {}
  known = {field.name for field in dataclasses.fields(Task)}
  for name, options in found.items():
    if not isinstance(options, dict) or not options.keys() <= known:
      raise UserError(f"task {name!r} has other keys than {', '.join(sorted(known))}")
    kind = options.get("kind")
    if kind not in _KINDS:
      raise UserError(
        f"task {name!r} is of kind {kind!r}; the kinds are {', '.join(_KINDS)}"
      )
    try:
      tasks[name] = Task(
        kind=kind,
        low=float(options.get("low", 0.0)),
        high=float(options.get("high", 0.0)),
        classes=tuple(map(str, options.get("classes", ()))),
        protocol=str(options.get("protocol", _PROTOCOLS[kind])),
      )
    except (TypeError, ValueError):
      raise UserError(
        f"task {name!r}: low and high are numbers, classes a list"
      ) from None
  return tasks


def _check_exact(corpus: Corpus, cure: str) -> None:
  """A marked file is not cleaned again, so what cleaning ensures must hold.

  Args:
    corpus: to be written, or read.
    cure: what the message on cells that are not finite advises.
  """
  check_structure(corpus)
  for name, split in corpus.splits.items():
    for modality, sequences in split.modalities.items():
      where = f"{name}/{modality}"
      if sequences.features.ndim != 3 or sequences.features.dtype.kind != "f":
        raise UserError(f"{where} is not [samples, steps, width] of floats")
      check_lengths(sequences, where, split.ids)
      for rows in fields.blocks(len(split)):
        if not np.isfinite(sequences.features[rows]).all():
          raise UserError(
            f"{where} holds NaN or infinite cells, which this library's own files"
            f" never do; {cure}"
          )
