"""Reads any supported file, recognised by its content and not by its name."""

import dataclasses
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msa_jax.data.readers import (
  array_record,
  gcnet,
  kinds,
  mmsa,
  mult,
  npz,
  transcripts,
)
from msa_jax.data.readers.cleaning import check_unique_ids, clean
from msa_jax.errors import UserError
from msa_jax.safe_io import files, hashing
from msa_jax.safe_io.pickles import load_pickle
from msa_jax.typing import Corpus

FORMATS = ("auto", "mmsa", "mult", "gcnet", "npz", "csv", "stored")


def read(
  path: str | os.PathLike,
  format: str = "auto",
  features: Mapping[str, str | os.PathLike] | None = None,
  bare_text: bool = False,
) -> Corpus:
  """Reads, checks and cleans a corpus.

  Args:
    path: MMSA pickle, MulT pickle, GCNet's label pickle, `.npz`, a csv file (see
      `transcripts`), or a folder that `array_record` made; `~` is the home folder.
    format: one of `FORMATS`; `auto` looks at the content.
    features: MMSA: modality -> pickle that replaces its features. GCNet: modality ->
      folder of one `.npy` per utterance.
    bare_text: whether transcripts without any features will do.

  Returns:
    The corpus; `notes` tells the file (name, bytes, SHA-256), the format and what
    was cleaned (see `cleaning.clean`).

  Raises:
    UserError: no such file, not a supported or not a safe file, contents that
      contradict each other, ids that occur twice.
  """
  corpus = read_lenient(path, format, features, bare_text)
  try:
    check_unique_ids(corpus)
  except UserError as error:
    raise UserError(f"{Path(path).expanduser().absolute()}: {error}") from None
  return corpus


def read_lenient(
  path: str | os.PathLike,
  format: str = "auto",
  features: Mapping[str, str | os.PathLike] | None = None,
  bare_text: bool = False,
) -> Corpus:
  """Like `read`, but leaves repeated ids to the caller (who wants to list them)."""
  if format not in FORMATS:
    raise UserError(f"format {format!r}; the formats are {', '.join(FORMATS)}")
  with files.reading(path, "data file"):
    return _read(path, format, features, bare_text)


def _read(
  path: str | os.PathLike,
  format: str,
  features: Mapping[str, str | os.PathLike] | None,
  bare_text: bool,
) -> Corpus:
  if format == "stored" or (format == "auto" and array_record.is_stored(path)):
    if features:
      raise UserError("separate feature files go with MMSA pickles only, not folders")
    corpus = array_record.load(path)
    return _with_file(corpus, array_record.columns_file(path), Path(path).name)
  path = files.regular(path)
  archive = zipfile.is_zipfile(path) or _starts_like_zip(path)
  if format == "auto":
    # By its name too: a csv file without a transcript is told what it lacks.
    named = path.suffix.lower() in (".csv", ".tsv")
    format = "csv" if named or transcripts.is_transcript(path) else "pickle"
    format = "npz" if archive else format
  if features and format in ("npz", "csv"):
    raise UserError(
      f"separate feature files go with MMSA pickles only, not with .{format}"
    )
  if format == "npz":
    corpus, exact = npz.load(path)
  elif format == "csv":
    corpus = transcripts.load(path)
    exact = not any(split.modalities for split in corpus.splits.values())
    if exact and not bare_text:
      raise UserError(
        f"{path}: transcripts without features; make them (`python -m msa_jax.data"
        " features`, or config.text.input='encoder' in a run), or add columns that name"
        " a .npy file per utterance, see msa_jax/data/readers/transcripts.py."
      )
  else:
    kinds.refuse_others(path)
    corpus, exact = _from_pickle(load_pickle(path), path, format, features), False
  corpus = corpus if exact else clean(corpus)
  return _with_file(corpus, path, path.name)


def _with_file(corpus: Corpus, path: Path, name: str) -> Corpus:
  notes = dict(corpus.notes)
  if "file" in notes:
    notes["converted_from"] = notes["file"]
  notes["file"] = {
    "name": name,
    "bytes": path.stat().st_size,
    "sha256": hashing.sha256(path),
  }
  return dataclasses.replace(corpus, notes=notes)


def _starts_like_zip(path: Path) -> bool:
  # A truncated archive has lost the directory at its end, but not its first bytes.
  with path.open("rb") as stream:
    return stream.read(4) == b"PK\x03\x04"


def _from_pickle(
  data: Any, path: Path, format: str, features: Mapping[str, str | os.PathLike] | None
) -> Corpus:
  if format == "pickle":
    dialogues = gcnet.is_label_file(data)
    format = "gcnet" if dialogues else "mult" if _is_mult(data) else "mmsa"
  if features and format == "mult":
    raise UserError("separate feature files go with MMSA pickles only, not with MulT's")
  if format == "gcnet":
    return gcnet.from_pickle(data, path.stem, features or {})
  if format == "mult":
    return mult.from_pickle(data, path.stem)
  return mmsa.from_pickle(data, path.stem, features)


def _is_mult(data: Any) -> bool:
  """MulT's splits hold `labels`; MMSA's hold `regression_labels` or none."""
  if not isinstance(data, Mapping):
    return False
  splits = [value for value in data.values() if isinstance(value, Mapping)] or [data]
  return any("labels" in split for split in splits) and not any(
    "regression_labels" in split or "text_bert" in split for split in splits
  )
