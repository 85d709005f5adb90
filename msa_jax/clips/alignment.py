"""Times of given English words, by forced alignment with PocketSphinx."""

import re
import threading
from typing import Any

import numpy as np

from msa_jax.clips import extractor, words
from msa_jax.clips.decode import AUDIO_RATE
from msa_jax.clips.extractor import About
from msa_jax.clips.recipe import Aligner
from msa_jax.clips.words import Word
from msa_jax.errors import UserError

_FRAMES = 100.0  # a second
_OTHERS = re.compile(r"[^a-z']")
_VARIANT = re.compile(r"\(\d+\)$")  # "the(2)": another pronunciation


class Sphinx(Aligner):
  """The acoustic model and dictionary (US English) that PocketSphinx brings.

  Words that the dictionary lacks lie between those around them."""

  def __init__(self):
    """Loads the model.

    Raises:
      UserError: not installed.
    """
    try:
      import pocketsphinx  # pyright: ignore[reportMissingImports]
    except ImportError:
      raise UserError("times=sphinx: not installed; pip install pocketsphinx") from None
    self._decoder: Any = pocketsphinx.Decoder(lm=None, loglevel="FATAL")
    self._lock = threading.Lock()
    self.about = About(
      name="sphinx",
      version="1",
      licence="BSD-2-Clause",
      width=0,
      rate=0.0,
      packages=extractor.versions("pocketsphinx"),
    )

  def align(self, words: list[Word], audio: Any) -> list[Word]:
    """The words with times.

    Raises:
      UserError: the words cannot be what is said.
    """
    plain = [_OTHERS.sub("", word.text.lower()) for word in words]
    with self._lock:
      known = [bool(each) and self._decoder.lookup_word(each) for each in plain]
      spoken = [each for each, there in zip(plain, known, strict=True) if there]
      spans = self._spans(spoken, audio) if spoken else []
    return _filled(words, known, spans, len(audio) / AUDIO_RATE)

  def _spans(self, spoken: list[str], audio: Any) -> list[tuple[float, float]]:
    sound = (np.clip(audio, -1.0, 1.0) * 32767).astype("<i2").tobytes()
    decoder = self._decoder
    try:
      decoder.set_align_text(" ".join(spoken))
      decoder.start_utt()
      decoder.process_raw(sound, full_utt=True)
      decoder.end_utt()
      found = [each for each in decoder.seg() or () if each.word[0] not in "<["]
    except RuntimeError:
      found = []
    if [_VARIANT.sub("", each.word) for each in found] != spoken:
      raise UserError("the transcript cannot be aligned: it is not what is said")
    return [
      (each.start_frame / _FRAMES, (each.end_frame + 1) / _FRAMES) for each in found
    ]


def _filled(
  given: list[Word], known: list, spans: list[tuple[float, float]], seconds: float
) -> list[Word]:
  """All words with times: those without one share the gap between their neighbours."""
  made: list[Word] = []
  place, waiting = 0, []
  last = 0.0
  for word, there in zip(given, known, strict=True):
    if not there:
      waiting.append(word.text)
      continue
    begin, end = spans[place]
    place += 1
    made += words.spread(" ".join(waiting), last, max(begin, last)) if waiting else []
    made.append(Word(word.text, begin, end))
    waiting, last = [], end
  made += words.spread(" ".join(waiting), last, max(seconds, last)) if waiting else []
  return made
