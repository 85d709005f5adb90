"""Transcripts with times: words, subtitles, and times for words that have none."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from msa_jax.errors import UserError
from msa_jax.safe_io import files
from msa_jax.text.words import word_spans

SIDECARS = (".vtt", ".srt", ".txt")
_MOST_BYTES = 2**22  # of a transcript
_STAMP = r"(?:(\d{1,3}):)?(\d{1,2}):(\d{1,2})[.,](\d{1,3})"
_CUE = re.compile(rf"^\s*{_STAMP}\s*-->\s*{_STAMP}")
_TAG = re.compile(r"<[^>]*>|\{\\[^}]*\}")


class Word(NamedTuple):
  """A word of a transcript; begin and end in seconds, -1 = not known."""

  text: str
  begin: float = -1.0
  end: float = -1.0


def untimed(text: str) -> list[Word]:
  """Words of a plain text."""
  return [Word(text[start:end]) for start, end in word_spans(text)]


def spread(text: str, begin: float, end: float) -> list[Word]:
  """Words of a text that was said between two times, in proportion to their letters."""
  words = [word.text for word in untimed(text)]
  total = sum(map(len, words))
  made, done = [], 0
  for word in words:
    first = begin + (end - begin) * done / total
    done += len(word)
    made.append(Word(word, first, begin + (end - begin) * done / total))
  return made


def is_timed(words: Sequence[Word]) -> bool:
  """Whether all words have times; True of no words."""
  return all(word.begin >= 0 for word in words)


def text_of(words: Iterable[Word]) -> str:
  """The transcript, its words separated by single spaces."""
  return " ".join(word.text for word in words)


def beside(clip: Path) -> Path | None:
  """The transcript beside a clip, of the same name: `.vtt`, `.srt` or `.txt`."""
  places = (clip.with_suffix(suffix) for suffix in SIDECARS)
  return next((place for place in places if place.is_file()), None)


def read(path: Path) -> list[Word]:
  """Words of a transcript file; those of subtitles have times.

  Raises:
    UserError: not UTF-8, too large, or subtitles without a cue.
  """
  path = files.regular(path)
  if path.stat().st_size > _MOST_BYTES:
    raise UserError(f"{path.name}: larger than {_MOST_BYTES} bytes: no transcript")
  try:
    text = path.read_text(encoding="utf-8-sig")
  except UnicodeDecodeError:
    raise UserError(f"{path.name}: the transcript is not in UTF-8") from None
  return untimed(text) if path.suffix == ".txt" else subtitles(text, path.name)


def subtitles(text: str, where: str) -> list[Word]:
  """Words of SubRip or WebVTT; within a cue in proportion to their letters.

  Raises:
    UserError: a cue that ends before it begins, or none at all.
  """
  words, cue, lines = [], None, []
  for line in [*text.splitlines(), ""]:
    if found := _CUE.match(line):
      cue, lines = _times(found, where), []
    elif cue is not None and line.strip():
      lines.append(_TAG.sub("", line))
    elif cue is not None:
      words += spread(" ".join(lines), *cue)
      cue = None
  if not words and "-->" not in text:
    raise UserError(f"{where}: no cue such as 00:00:01,000 --> 00:00:02,500")
  return words


def _times(found: re.Match, where: str) -> tuple[float, float]:
  groups = [int(group or 0) for group in found.groups()]
  # Digits after the point are a fraction, however many there are.
  places = [len(found[4]), len(found[8])]
  begin, end = (
    3600 * h + 60 * m + s + fraction / 10**digits
    for (h, m, s, fraction), digits in zip(
      (groups[:4], groups[4:]), places, strict=True
    )
  )
  if end < begin:
    raise UserError(
      f"{where}: a cue ends at {end:g} s, before it begins at {begin:g} s"
    )
  return begin, end
