"""Which clips there are, what they are called, and what is known of them."""

import dataclasses
import hashlib
import os
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from msa_jax import arrays
from msa_jax.clips import words as words_lib
from msa_jax.clips.decode import SUFFIXES
from msa_jax.clips.words import Word
from msa_jax.data.readers import array_record, fields, transcripts
from msa_jax.errors import UserError, plain
from msa_jax.safe_io import files
from msa_jax.typing import Corpus, Split

_PATHS = ("path", "file", "filename", "clip_path", "video_path")
_SPLITS = ("train", "valid", "test")


@dataclasses.dataclass(frozen=True)
class Item:
  """A clip to be read.

  Attributes:
    id: unique in the corpus.
    path: of the file.
    text: its transcript in the list; None = it has none there.
    reason: why it cannot be read, known before; "" = nothing is.
  """

  id: str
  path: Path
  text: str | None = None
  reason: str = ""

  def words(self) -> list[Word] | None:
    """Words of its transcript, from the list or the file beside it; None = neither.

    Raises:
      UserError: a transcript that cannot be read.
    """
    if self.text is not None and self.text.strip():
      return words_lib.untimed(self.text)
    found = words_lib.beside(self.path)
    return None if found is None else words_lib.read(found)

  def mark(self) -> str:
    """Changes when the clip, or what is said of it, does."""
    parts = [self.id, self.text or ""]
    for path in (self.path, words_lib.beside(self.path)):
      if path is not None:
        about = path.stat()
        parts += [path.name, str(about.st_size), str(about.st_mtime_ns)]
    return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()


class Listing(NamedTuple):
  """Clips in order, and a corpus of them that has no features yet."""

  items: Sequence[Item]
  corpus: Corpus


def is_clips(path: str | os.PathLike) -> bool:
  """Whether a path is a clip, a folder of clips, or a csv file that names clips."""
  place = Path(path).expanduser()
  if place.is_dir():
    return not array_record.is_stored(place)
  if place.suffix.lower() in (".csv", ".tsv"):
    return any(name in transcripts.columns_of(place) for name in _PATHS)
  return place.suffix.lower() in SUFFIXES


def of_input(path: str | os.PathLike) -> Listing:
  """The clips of what is given to predict; see `is_clips`.

  Raises:
    UserError: no clips there, or a list that cannot be read.
  """
  place = Path(path).expanduser().absolute()
  if place.is_dir():
    return of_folder(place)
  if place.suffix.lower() in (".csv", ".tsv"):
    return of_list(place.parent, files.regular(place), split={})
  return _unlabelled([Item(_name(files.regular(place).name), place)], place.stem)


def of_folder(folder: Path) -> Listing:
  """All clips in a folder and below it, in the order of their names.

  Raises:
    UserError: there are none.
  """
  found = _clips_below(folder)
  items = [Item(_id(path.relative_to(folder)), path) for path in found]
  return _unlabelled(items, folder.name or "clips")


def _clips_below(folder: Path) -> list[Path]:
  if not folder.is_dir():
    raise UserError(f"no such folder: {folder}")
  found = sorted(
    (path for path in folder.rglob("*") if _is_clip(path)),
    key=lambda path: path.relative_to(folder).parts,
  )
  if not found:
    raise UserError(f"{folder} has no clips; their names end in {', '.join(SUFFIXES)}")
  return found


def _is_clip(path: Path) -> bool:
  hidden = path.name.startswith(".")
  return path.suffix.lower() in SUFFIXES and not hidden and path.is_file()


def _name(text: str) -> str:
  # The same letter is one character on one system and two on another; names that are
  # no text have a stand-in for what cannot be written.
  text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
  return unicodedata.normalize("NFC", text)


def _id(relative: Path) -> str:
  """`video$_$clip` of a clip in a folder of its own, as MOSI's are."""
  *folders, name = relative.parts
  return "$_$".join(
    [_name("/".join(folders)), _name(name)] if folders else [_name(name)]
  )


def _unlabelled(items: Sequence[Item], name: str) -> Listing:
  ids = np.array([item.id for item in items])
  arrays.check_unique({"the folder": ids})
  videos = fields.videos(ids)
  return Listing(
    items, Corpus(name, {"predict": Split(ids, {}, {}, groups=videos)}, {})
  )


def of_list(
  folder: Path, labels: Path, split: Mapping[str, float] | None = None
) -> Listing:
  """The clips that a csv or tsv file names, with its labels.

  Columns are those of `data.readers.transcripts`, of which none is needed, and the
  clip's file: `path` (or `file`, `filename`, `clip_path`, `video_path`), relative to
  the folder and in it; or `video_id` and `clip_id`, or `id`, for
  `video_id/clip_id.mp4` and `id.mp4` (of any kind).

  Args:
    folder: of the clips.
    labels: the file.
    split: name -> share of the videos, for lists with labels and without a column of
      splits; None = `train` 0.7, `valid` 0.15, `test` 0.15; {} = all are `predict`,
      whatever the list says.

  Raises:
    UserError: the list cannot be read, or an id is there twice.
  """
  table = transcripts.read_table(labels)
  column = next((name for name in _PATHS if name in table.columns), None)
  names = table.names()
  if names is None and column is None:
    raise UserError(
      f"{labels}: needs a column of file names ({', '.join(_PATHS)}), or video_id and"
      " clip_id, or id"
    )
  text = table.text_column
  items = []
  for row, values in enumerate(table.rows):
    named = values[column] if column else ""
    path, reason = _place(folder, named, "" if names is None else names[row])
    name = _name(named.strip()) if names is None else names[row]
    items.append(Item(name, path, values[text] if text else None, reason))
  ids = [item.id for item in items]
  arrays.check_unique({"the list": np.array(ids)})
  splits = table.splits()
  if split is not None and not split:
    splits = ["predict"] * len(items)
  elif splits is None and table.has_labels:
    groups = table.groups() or _videos(ids)
    splits = _drawn(groups, split or dict(zip(_SPLITS, (0.7, 0.15, 0.15), strict=True)))
  texts = [item.text or "" for item in items]
  return Listing(items, table.corpus(ids, texts, splits))


def _videos(ids: list[str]) -> list[str]:
  found = fields.videos(np.array(ids))
  return ids if found is None else found.tolist()


def _place(folder: Path, named: str, name: str) -> tuple[Path, str]:
  """Where a clip of a list is, and why it cannot be read."""
  root = folder.resolve()
  if named.strip():
    path = root / named.strip()
  else:
    stem = Path(*name.split("$_$"))
    ends = (*SUFFIXES, *(suffix.upper() for suffix in SUFFIXES))
    places = [root / stem.parent / f"{stem.name}{suffix}" for suffix in ("", *ends)]
    path = next((place for place in places if place.is_file()), places[1])
  try:
    inside = path.resolve().is_relative_to(root)
    there = inside and path.is_file()
  except (OSError, ValueError, RuntimeError) as error:
    return path, f"no path ({plain(error)})"
  if not inside:
    return path, f"{named or name!r} leaves the folder {root}"
  return path, "" if there else f"no such file: {path}"


def _drawn(groups: Sequence[str], shares: Mapping[str, float]) -> list[str]:
  """Splits of whole videos, drawn by their names: the same whatever their order."""
  order = sorted(set(groups), key=lambda group: hashlib.sha256(group.encode()).digest())
  total, place = sum(shares.values()), {}
  for split, share in list(shares.items())[1:]:
    count = max(1, round(share / total * len(order))) if share else 0
    place |= dict.fromkeys(order[:count], split)
    order = order[count:]
  first = next(iter(shares))
  return [place.get(group, first) for group in groups]
