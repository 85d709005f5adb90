"""Csv and tsv corpora: a line per utterance with its transcript and labels.

Columns, by their usual names (any case): the transcript (`text`, `transcript`,
`sentence`); labels (`label`, `sentiment`: numbers are a regression label, names are
classes; `emotion`: classes, also by number); what an utterance is called (`id`, or
`video_id` and `clip_id`, or `dialogue` and `utterance`); `speaker`; its split (`mode`,
`split`); and paths of feature files (`text_path`, `audio_path`, `vision_path`: one
`.npy` [t d] each, in the folder of the csv file or below).
"""

import csv
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from msa_jax import arrays as arrays_lib
from msa_jax.data.readers import fields
from msa_jax.data.readers.mmsa import sentiment_tasks
from msa_jax.errors import UserError
from msa_jax.safe_io import archives
from msa_jax.typing import MODALITIES, Corpus, Sequences, Split, Task

_TEXT = ("text", "transcript", "sentence")
_SPLIT = ("mode", "split")
_GROUP = ("video_id", "dialogue", "dialogue_id", "video")
_MEMBER = ("clip_id", "utterance", "utterance_id", "clip")
_LABELS = {"label": "sentiment", "sentiment": "sentiment", "emotion": "emotion"}
_SPLIT_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")  # Files of a run have it in theirs.
Row = Mapping[str, str]


def is_transcript(path: Path) -> bool:
  """Whether the first line of a file names a column of transcripts."""
  try:
    with path.open("rb") as stream:
      header = stream.readline(4096).decode("utf-8-sig").strip().lower()
  except (OSError, UnicodeDecodeError):
    return False
  return any(name in _columns(header) for name in _TEXT)


def _separator(header: str) -> str:
  return "\t" if "\t" in header else ","


def _columns(header: str) -> list[str]:
  try:
    (cells,) = csv.reader([header], delimiter=_separator(header))
  except (ValueError, csv.Error):  # An empty line, or a file of another kind.
    return []
  return [cell.strip().lower() for cell in cells]


def columns_of(path: Path) -> list[str]:
  """Names of the columns of a file, in lower case; none where it is no such file."""
  try:
    with path.open("rb") as stream:
      return _columns(stream.readline(4096).decode("utf-8-sig").strip())
  except (OSError, UnicodeDecodeError):
    return []


def load(path: Path) -> Corpus:
  """Reads a csv or tsv file.

  Args:
    path: UTF-8, separated by tabs if the header has one, else by commas.

  Returns:
    A corpus whose utterances have the modalities of the feature files, if any; text
    features are made from `raw_text` by `text.features`.

  Raises:
    UserError: no UTF-8, no transcripts, a line of another length, a column twice, an
      odd name of a split, labels that are partly numbers, or feature files that are
      absent, unsafe or elsewhere.
  """
  table = read_table(path)
  text = table.text_column
  if text is None or not table.rows:
    raise UserError(
      f"{path}: needs a column {', '.join(_TEXT[:-1])} or {_TEXT[-1]}, and a line below"
      " the header"
    )
  names = table.names() or [f"row-{number}" for number in range(len(table.rows))]
  corpus = table.corpus(names, [row[text] for row in table.rows])
  splits = {
    name: dataclasses.replace(
      split, modalities=_features(path, table.columns, [table.rows[i] for i in chosen])
    )
    for (name, split), chosen in zip(
      corpus.splits.items(), table.members().values(), strict=True
    )
  }
  return dataclasses.replace(corpus, splits=splits)


@dataclasses.dataclass(frozen=True)
class Table:
  """A csv or tsv file as read: a line per utterance.

  Attributes:
    path: of the file, for messages.
    columns: in lower case.
    rows: column -> cell, of each line.
  """

  path: Path
  columns: list[str]
  rows: list[Row]

  @property
  def text_column(self) -> str | None:
    """The column of transcripts."""
    return next((name for name in _TEXT if name in self.columns), None)

  @property
  def has_labels(self) -> bool:
    """Whether there is a column of labels."""
    return any(name in self.columns for name in _LABELS)

  def names(self) -> list[str] | None:
    """What each utterance is called, or None."""
    return _named(self.columns, self.rows)

  def groups(self) -> list[str] | None:
    """Video or dialogue of each utterance, or None."""
    group = next((name for name in _GROUP if name in self.columns), None)
    return None if group is None else [row[group] for row in self.rows]

  def splits(self) -> list[str] | None:
    """Split of each utterance, or None.

    Raises:
      UserError: an odd name.
    """
    column = next((name for name in _SPLIT if name in self.columns), None)
    if column is None:
      return None
    return [_split(self.path, row[column]) for row in self.rows]

  def members(self, splits: Sequence[str] | None = None) -> dict[str, list[int]]:
    """Rows of each split; of splits given, or of the file's own."""
    found = splits or self.splits()
    if found is None:
      found = ["train" if self.has_labels else "predict"] * len(self.rows)
    return {
      split: [i for i, name in enumerate(found) if name == split]
      for split in dict.fromkeys(found)
    }

  def corpus(
    self,
    names: Sequence[str],
    texts: Sequence[str],
    splits: Sequence[str] | None = None,
  ) -> Corpus:
    """The corpus of the rows, without features.

    Args:
      names: id of each row.
      texts: transcript of each row.
      splits: of each row; None = the file's own.

    Raises:
      UserError: as `load`.
    """
    members = self.members(splits)
    groups, names = self.groups(), list(names)
    if len(set(names)) < len(names):
      # Splits that number their dialogues anew, each from zero.
      split_of = {i: split for split, rows in members.items() for i in rows}
      prefixes = [split_of[i] for i in range(len(names))]
      names = _prefixed(prefixes, names)
      groups = groups and _prefixed(prefixes, groups)
    labelled = [name for name in _LABELS if name in self.columns]
    if "label" in labelled and "sentiment" in labelled:
      labelled.remove("label")  # Two columns for one task: the named one.
    labels, tasks = _labels(self.path, self.rows, labelled)
    made = {}
    for split, chosen in members.items():
      ids = arrays_lib.strings([names[i] for i in chosen], f"{split}, id")
      speakers = [self.rows[i].get("speaker", "") for i in chosen]
      speakers = arrays_lib.strings(speakers, f"{split}, speaker")
      videos = fields.videos(ids)
      if groups:
        videos = arrays_lib.strings([groups[i] for i in chosen], f"{split}, video")
      made[split] = Split(
        ids=ids,
        modalities={},
        labels={name: values[chosen] for name, values in labels.items()},
        raw_text=arrays_lib.strings([texts[i] for i in chosen], f"{split}, text"),
        groups=videos,
        extras={"speaker": speakers} if "speaker" in self.columns else {},
      )
    regression = {k: values for k, values in labels.items() if values.dtype.kind == "f"}
    if regression:
      whole = Split(np.arange(len(names)), {}, regression)
      tasks |= sentiment_tasks({"all": whole})
    return Corpus(self.path.stem, made, tasks, {"format": "csv"})


def _prefixed(splits: list[str], names: list[str]) -> list[str]:
  return [f"{split}_{name}" for split, name in zip(splits, names, strict=True)]


def _split(path: Path, cell: str) -> str:
  name = cell.strip().lower()
  if not _SPLIT_NAME.fullmatch(name):
    raise UserError(
      f"{path}: {cell[:60]!r} is no name of a split; usual are train, valid and test"
    )
  return fields.SPLIT_NAMES.get(name, name)


def read_table(path: Path) -> Table:
  """Reads a csv or tsv file as it is.

  Raises:
    UserError: no UTF-8, a line of another length, or a column twice.
  """
  try:
    with path.open(encoding="utf-8-sig", newline="") as stream:
      header = stream.readline()
      columns = _columns(header)
      if twice := next((name for name in columns if columns.count(name) > 1), None):
        raise UserError(f"{path}: the header has {twice!r} twice")
      rows = []
      for cells in csv.reader(stream, delimiter=_separator(header)):
        if not cells:
          continue  # an empty line, as many editors leave one at the end
        if len(cells) != len(columns):
          raise UserError(
            f"{path}: row {len(rows) + 2} has {len(cells)} cells, the header"
            f" {len(columns)}"
          )
        rows.append(dict(zip(columns, cells, strict=True)))
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    reason = " ".join(str(error).split())[:80]
    raise UserError(f"{path}: not a readable csv file in UTF-8 ({reason})") from None
  return Table(path, columns, rows)


def _named(columns: list[str], rows: list[Row]) -> list[str] | None:
  if "id" in columns:
    return [row["id"] for row in rows]
  group = next((name for name in _GROUP if name in columns), None)
  member = next((name for name in _MEMBER if name in columns), None)
  if group and member:
    return [f"{row[group]}$_${row[member]}" for row in rows]
  return None


def _number(cell: str) -> float | None:
  try:
    return float(cell) if cell.strip() else float("nan")
  except ValueError:
    return None


def _labels(
  path: Path, rows: list[Row], columns: list[str]
) -> tuple[dict[str, np.ndarray], dict[str, Task]]:
  labels, tasks = {}, {}
  for column in columns:
    task = _LABELS[column]
    numbers = [_number(row[column]) for row in rows]
    named = any(number is None for number in numbers)
    if task != "emotion" and not named:
      labels[task] = fields.regression(numbers, len(rows), f"{path}, {column}")
      continue
    # Of numbers, -1 is none as everywhere; names may be any.
    words = [
      row[column].strip() if n == n and (named or n != -1) else ""
      for row, n in zip(rows, numbers, strict=True)
    ]
    below = [n is not None and n < -1 for n in numbers]
    if not named and any(below):
      raise UserError(
        f"{path}: row {below.index(True) + 2} of {column} is"
        f" {numbers[below.index(True)]:g}: numbers of classes are not negative, -1 is"
        " none; a sentiment belongs in a column 'sentiment'"
      )
    mixed = [n is not None and bool(w) for n, w in zip(numbers, words, strict=True)]
    if named and any(mixed):
      raise UserError(
        f"{path}: row {mixed.index(True) + 2} of {column} is a number, others are names"
      )
    classes = sorted(set(words) - {""}, key=str if named else float)
    place = {name: number for number, name in enumerate(classes)}
    labels[task] = np.array([place.get(word, -1) for word in words], np.int32)
    tasks[task] = Task("classes", classes=tuple(classes), protocol="classes")
  return labels, tasks


def _features(path: Path, columns: list[str], rows: list[Row]) -> dict[str, Sequences]:
  found = {}
  for modality in MODALITIES:
    column = f"{modality}_path"
    if column in columns:
      arrays = [_array(path, row[column]) for row in rows]
      features, lengths = fields.features(arrays, f"{path}, {modality}")
      # Arrays with steps have lengths.
      found[modality] = Sequences(features, cast(np.ndarray, lengths))
  return found


def _array(path: Path, name: str) -> np.ndarray:
  # A csv file from outside could name any file of the machine.
  folder = path.parent.resolve()
  place = (folder / name.strip()).resolve()
  if not name.strip() or not place.is_relative_to(folder) or place.suffix != ".npy":
    raise UserError(f"{path}: {name[:60]!r} must be an .npy file below {folder}")
  array = archives.read_npy(place)
  if array.ndim == 1:
    array = array[None]
  if array.ndim != 2 or 0 in array.shape:
    raise UserError(f"{place}: shape {array.shape} must be [steps, width]")
  return array
