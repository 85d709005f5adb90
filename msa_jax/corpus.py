"""What a corpus is, on the host: splits of sequences, labels and what they mean."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from msa_jax import arrays as arrays_lib
from msa_jax.errors import UserError

# The field's three modalities in the papers' order. Everything with a modality
# axis (`Batch.available`, gate probabilities) follows it.
MODALITIES = ("text", "audio", "vision")


def modality_order(names: Iterable[str]) -> tuple[str, ...]:
  """Returns `names` in canonical order: text, audio, vision, then the rest.

  Mappings come back from `jax.jit` with sorted keys, so code that needs an order
  must ask for this one and never rely on that of a mapping.
  """
  names = set(names)
  known = [name for name in MODALITIES if name in names]
  return (*known, *sorted(names - set(MODALITIES)))


TaskKind = Literal["regression", "classes", "binary"]


@dataclasses.dataclass(frozen=True)
class Task:
  """What a label means; comes from the corpus, never from a data set's name.

  Attributes:
    kind: `regression` (one real number), `classes` (one of several, label is an
      index), `binary` (several independent yes/no questions, label [b c]).
    low, high: range of a regression label.
    classes: names of the classes or questions; empty for regression.
    protocol: family of metrics: `mosi`, `sims`, `classes`, `emotions`.
  """

  kind: TaskKind
  low: float = 0.0
  high: float = 0.0
  classes: tuple[str, ...] = ()
  protocol: str = "mosi"

  @classmethod
  def from_labels(cls, values: Sequence[np.ndarray]) -> "Task":
    """What labels mean where nobody says.

    Args:
      values: of each split: float [n] is a regression, its range as `label_range` has
        it; int [n] one of the classes "0", "1", ...; int [n c] yes/no questions.

    Raises:
      UserError: class numbers beyond `arrays.MOST_CLASSES`.
    """
    first = values[0]
    if first.dtype.kind == "f":
      low, high, protocol = arrays_lib.label_range(np.concatenate(values))
      return cls("regression", low=low, high=high, protocol=protocol)
    for value in values:
      arrays_lib.check_classes(value, "labels", 2 if value.ndim == 2 else None)
    if first.ndim == 1:
      count = 1 + max(int(value.max(initial=0)) for value in values)
      names = tuple(str(index) for index in range(count))
      return cls("classes", classes=names, protocol="classes")
    names = tuple(str(index) for index in range(first.shape[1]))
    return cls("binary", classes=names, protocol="emotions")


@dataclasses.dataclass(frozen=True)
class Sequences:
  """One modality of a whole split, on the host.

  Attributes:
    features: [n t d] float16 or float32, real steps first, zeros after them; lazy
      where the corpus is read from disk a few samples at a time.
    lengths: [n] int32, number of real steps (0 = modality absent for the sample).
    lost: [n t] bool or None, real steps without content (None = none).
    ids: name -> [n t] int32.
    context: name -> [n s] int32, what is read beside the steps, such as tokens of the
      utterances before and after; -1 = nothing. s is the same for all names.
  """

  features: Any  # np.ndarray or data.lazy.LazyFeatures
  lengths: np.ndarray
  lost: np.ndarray | None = None
  ids: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  context: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Split:
  """One named split of a corpus, on the host.

  Attributes:
    ids: [n] str, unique within the corpus, e.g. `video$_$clip`.
    modalities: name -> `Sequences`; every split of a corpus has the same names.
    labels: task name -> [n] float32, [n] int32 or [n c] int32. NaN (float) or -1
      (int) = this sample has no such label. Empty for data to predict on.
    raw_text: [n] str or None.
    groups: [n] str, video or dialogue of each sample, or None.
    extras: name -> [n ...] arrays that travel along unread by models (speaker,
      session, tokenised text, the synthetic corpus's latent variables).
    available: [n m] or, for utterances of dialogues, [n t m] bool, columns in
      `modality_order`; False = the modality is missing for this sample or utterance,
      whatever its lengths say. None = lengths alone decide.
  """

  ids: np.ndarray
  modalities: Mapping[str, Sequences]
  labels: Mapping[str, np.ndarray]
  raw_text: np.ndarray | None = None
  groups: np.ndarray | None = None
  extras: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  available: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.ids)

  def rows_by_group(self) -> dict[str, np.ndarray]:
    """Rows of every video or dialogue, in the order in which they were spoken: that of
    their clips' numbers where all have one, else that of the file.

    Raises:
      UserError: the split has no groups.
    """
    if self.groups is None:
      raise UserError("a split has neither groups nor ids such as 'video$_$clip'.")
    members: dict[str, list[int]] = {}
    for row, group in enumerate(self.groups.tolist()):
      members.setdefault(group, []).append(row)
    return {group: _by_clip(rows, self.ids) for group, rows in members.items()}


_CLIP = re.compile(r"(?:\$_\$|\[|_)(\d+)\]?$")


def _by_clip(rows: list[int], ids: np.ndarray) -> np.ndarray:
  numbers = [_CLIP.search(str(ids[row])) for row in rows]
  clips = [int(match[1]) for match in numbers if match]
  if len(set(clips)) < len(rows):
    return np.asarray(rows)
  return np.asarray(rows)[np.argsort(clips)]


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Named splits with one meaning.

  Attributes:
    name: short name for titles and reports (nothing branches on it).
    splits: split name (`train`, `valid`, `test`; `predict` for unlabelled files)
      -> `Split`.
    tasks: task name -> `Task`. `sentiment` and `emotion` are the usual names.
    notes: what the reader found and did (non-finite cells per modality, absent
      modalities, ...), JSON-serialisable; ends up in the run's data.json.
  """

  name: str
  splits: Mapping[str, Split]
  tasks: Mapping[str, Task]
  notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @classmethod
  def from_arrays(
    cls,
    train: Mapping[str, Any] | None = None,
    valid: Mapping[str, Any] | None = None,
    test: Mapping[str, Any] | None = None,
    predict: Mapping[str, Any] | None = None,
    *,
    labels: Mapping[str, Any] | None = None,
    lengths: Mapping[str, Any] | None = None,
    ids: Any = None,
    groups: Any = None,
    raw_text: Any = None,
    tasks: Mapping[str, Task] | None = None,
    name: str = "memory",
  ) -> "Corpus":
    """A corpus of arrays in memory.

    >>> Corpus.from_arrays(
    ...   train={"text": x, "audio": a},
    ...   test={"text": x2, "audio": a2},
    ...   labels={"sentiment": {"train": y, "test": y2}},
    ... )

    Whatever follows the splits is a mapping split -> array, or, of a corpus of one
    split, the array itself.

    Args:
      train, valid, test, predict: modality -> features, as of `Batch.from_arrays`:
        [n t d], [n d], or a list of n arrays [t d]. They are copied.
      labels: task -> float [n] (NaN = none), int [n] or int [n c] (-1 = none).
      lengths: modality -> [n] real steps; absent = up to the last step that is not
        all zero.
      ids: [n] strings, unique in the corpus; None = numbered.
      groups: [n] strings, video or dialogue of each sample.
      raw_text: [n] strings, for text encoders.
      tasks: what the labels mean; None = `Task.from_labels`.
      name: for titles and reports.

    Raises:
      UserError: shapes that do not fit together, or a name that is not there.
    """
    parts = {"train": train, "valid": valid, "test": test, "predict": predict}
    parts = {key: value for key, value in parts.items() if value is not None}
    rows = {"ids": ids, "groups": groups, "raw_text": raw_text}
    columns = {
      "lengths": _each_by_split("lengths", lengths, parts),
      "labels": _each_by_split("labels", labels, parts),
      **{what: _by_split(what, value, parts) for what, value in rows.items()},
    }
    if not parts:
      raise UserError("a corpus needs one split at least, e.g. train={'text': x}")
    splits = {key: _split_of(key, value, columns) for key, value in parts.items()}
    arrays_lib.check_unique({key: split.ids for key, split in splits.items()})
    if tasks is None:
      tasks = tasks_of(splits)
    return cls(name, splits, dict(tasks))


def tasks_of(splits: Mapping[str, Split]) -> dict[str, Task]:
  """What labels mean where nobody says; see `Task.from_labels`.

  Raises:
    UserError: a number that is no class, with its sample, or labels that are numbers in
      one split and classes in another.
  """
  found: dict[str, list[np.ndarray]] = {}
  for key, split in splits.items():
    for task, values in split.labels.items():
      where = f"{key}, labels of {task}"
      others = found.setdefault(task, [])
      others.append(values)
      if (others[0].dtype.kind == "f") != (values.dtype.kind == "f"):
        raise UserError(
          f"{where} are {values.dtype}, those of other splits {others[0].dtype}: cast"
          " all to float (a regression) or all to int (classes)"
        )
      if values.dtype.kind != "f":
        most = 2 if values.ndim == 2 else None
        arrays_lib.check_classes(values, where, most, split.ids)
  return {task: Task.from_labels(values) for task, values in found.items()}


def _each_by_split(
  what: str, given: Mapping[str, Any] | None, parts: Mapping[str, Any]
) -> dict[str, Any]:
  """`_by_split` of every entry of a mapping."""
  return {
    name: _by_split(f"{what} of {name}", value, parts)
    for name, value in (given or {}).items()
  }


def _by_split(what: str, given: Any, splits: Iterable[str]) -> dict[str, Any]:
  """What a keyword of `Corpus.from_arrays` gives to each split."""
  splits = list(splits)
  if given is None:
    return {}
  if not isinstance(given, Mapping):
    if len(splits) != 1:
      raise UserError(
        f"{what}: the splits are {', '.join(splits)}; give a mapping, {{split: array}}"
      )
    return {splits[0]: given}
  arrays_lib.check_names(f"{what}, split", given, splits)
  return dict(given)


def _split_of(
  key: str, arrays: Mapping[str, Any], columns: Mapping[str, Mapping[str, Any]]
) -> Split:
  """One split; `columns`: keyword of `Corpus.from_arrays` -> what it gave."""
  texts = columns["raw_text"].get(key)
  if not arrays and texts is None:
    raise UserError(f"split {key} has no modality; one at least is needed")
  modalities = {}
  for name in modality_order(arrays):
    length = columns["lengths"].get(name, {}).get(key)
    made = arrays_lib.steps(arrays[name], length, f"{key}, {name}")
    lost = made.lost if made.lost.any() else None
    modalities[name] = Sequences(made.features, made.lengths, lost)
  arrays_lib.check_names(f"lengths in split {key} of", columns["lengths"], arrays)
  first = [len(each.lengths) for each in modalities.values()]
  first = first or [0 if texts is None else len(texts)]
  found = columns["ids"].get(key)
  ids = arrays_lib.numbered(first[0], key) if found is None else np.asarray(found, str)
  groups = columns["groups"].get(key)
  split = Split(
    ids=ids,
    modalities=modalities,
    labels={
      task: arrays_lib.labels(by_split[key], f"{key}, labels of {task}")
      for task, by_split in columns["labels"].items()
      if key in by_split
    },
    raw_text=None if texts is None else np.asarray(texts, str),
    groups=None if groups is None else np.asarray(groups, str),
  )
  rows = {name: each.lengths for name, each in modalities.items()}
  rows |= {f"labels of {task}": value for task, value in split.labels.items()}
  rows |= {"ids": ids, "groups": split.groups, "raw_text": split.raw_text}
  for what, value in rows.items():
    if value is not None:
      arrays_lib.check_rows(f"{key}: {what}", len(value), first[0])
  return split
