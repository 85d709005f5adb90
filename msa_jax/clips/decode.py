"""A clip's sound and pictures, by PyAV, which bundles ffmpeg."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from msa_jax.clips import words as words_lib
from msa_jax.clips.words import Word
from msa_jax.errors import UserError, plain
from msa_jax.safe_io import files

AUDIO_RATE = 16000  # samples per second of all that is heard
SUFFIXES = (
  *(".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".flv"),
  *(".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".aiff", ".aif", ".wma"),
)
# Containers that are what they hold. Playlists, which name other files and addresses,
# are none of them.
_FORMATS = (
  "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,asf,"
  "wav,w64,flac,mp3,ogg,aac,aiff,au,caf"
)
_LARGEST = 640  # pixels of the longer side that pictures are made smaller to
_GAP = 0.01  # seconds that the sound may begin late without silence in front of it


class Frame(NamedTuple):
  """A picture: time in seconds from the clip's start, and pixels [h w 3]."""

  time: float
  pixels: UInt8[np.ndarray, "h w 3"]


@dataclasses.dataclass(frozen=True)
class Clip:
  """One clip; what is decoded is kept as long as the clip is.

  Attributes:
    path: of the file.
    words: of its transcript.
    max_seconds: a longer one is refused.
  """

  path: Path
  words: Sequence[Word] = ()
  max_seconds: float = 1800.0

  @property
  def text(self) -> str:
    """The transcript."""
    return words_lib.text_of(self.words)

  @functools.cached_property
  def audio(self) -> Float[np.ndarray, " s"] | None:
    """Mono sound in [-1, 1] at `AUDIO_RATE`; None = no audio track.

    Raises:
      UserError: damaged, or longer than `max_seconds`.
    """
    with opened(self.path) as container:
      if not container.streams.audio:
        return None
      return _sound(container, self.max_seconds)

  @functools.cached_property
  def duration(self) -> float:
    """Seconds, by the sound or else by what the container says."""
    if self.audio is not None:
      return len(self.audio) / AUDIO_RATE
    with opened(self.path) as container:
      return (container.duration or 0) / 1e6

  @property
  def has_pictures(self) -> bool:
    """Whether there is a video track that is no cover picture."""
    with opened(self.path) as container:
      return _moving(container) is not None

  def frames(self, rate: float) -> Iterator[Frame]:
    """Pictures at about a rate per second, each the first one that is due.

    Args:
      rate: of a clip with fewer pictures, all of them.

    Raises:
      UserError: damaged, or longer than `max_seconds`.
    """
    with opened(self.path) as container:
      stream = _moving(container)
      if stream is None:
        return
      stream.thread_type = "AUTO"
      start, due = (container.start_time or 0) / 1e6, 0.0
      for frame in _decoded(container, stream):
        if frame.time is None:
          continue
        time = max(0.0, float(frame.time) - start)
        _check_length(time, self.max_seconds)
        if time + 1e-3 >= due:
          yield Frame(time, _pixels(frame))
          due = max(due + 1.0 / rate, time + 0.5 / rate)


def load_av() -> Any:
  """PyAV.

  Raises:
    UserError: not installed.
  """
  try:
    import av
    import av.error
    import av.logging
  except ImportError:
    raise UserError(
      "clips are decoded by PyAV: pip install 'msa_jax[clips]' (or av alone)"
    ) from None
  av.logging.set_level(av.logging.PANIC)  # what is wrong is said once, by us
  return av


def _refuse(url: str, *_: Any) -> Any:
  raise PermissionError(f"a clip names another file: {url[:60]!r}")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
  """A container; whatever goes wrong with the clip is one line.

  A file that names others (a playlist, a reference movie) is not followed.

  Raises:
    UserError: no such file, or one that cannot be read as a clip.
  """
  av = load_av()
  path = files.regular(path)
  if not path.stat().st_size:
    raise UserError("the file is empty")
  options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
  try:
    with (
      path.open("rb") as stream,
      av.open(
        stream, options=options, metadata_errors="replace", io_open=_refuse
      ) as container,
    ):
      yield container
  except av.error.FFmpegError as error:
    raise UserError(f"not a readable clip ({plain(error)})") from None


def _moving(container: Any) -> Any | None:
  """The video stream, unless it is the picture on a cover."""
  av = load_av()
  cover = av.stream.Disposition.attached_pic
  return next(
    (each for each in container.streams.video if not each.disposition & cover), None
  )


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
  # Some demuxers let their reader notice only here that there is nothing.
  found = False
  for frame in container.decode(stream):
    found = True
    yield frame
  if not found:
    raise UserError(f"its {stream.type} track holds nothing that can be decoded")


def _check_length(seconds: float, most: float) -> None:
  if seconds > most:
    raise UserError(f"longer than {most:g} s (--max-seconds)")


def _sound(container: Any, most: float) -> Float[np.ndarray, " s"]:
  av = load_av()
  stream = container.streams.audio[0]
  # Its own mix of channels adds them up; a mean cannot leave [-1, 1].
  resampler = av.AudioResampler(format="fltp", rate=AUDIO_RATE)
  pieces, samples = [], 0

  def heard(frame: Any) -> None:
    nonlocal samples
    for made in resampler.resample(frame):
      piece = made.to_ndarray().mean(axis=0)
      pieces.append(piece)
      samples += len(piece)
    _check_length(samples / AUDIO_RATE, most)

  for frame in _decoded(container, stream):
    if not pieces and frame.time is not None:
      late = float(frame.time) - (container.start_time or 0) / 1e6
      _check_length(late, most)
      if late > _GAP:
        pieces.append(np.zeros(int(late * AUDIO_RATE), np.float32))
    frame.pts = None  # gaps and jumps of a stream's clock are no reason to fail
    heard(frame)
  heard(None)
  return np.concatenate(pieces).astype(np.float32, copy=False)


def _pixels(frame: Any) -> UInt8[np.ndarray, "h w 3"]:
  scale = min(1.0, _LARGEST / max(frame.width, frame.height))
  width, height = (max(1, round(size * scale)) for size in (frame.width, frame.height))
  pixels = frame.to_ndarray(width=width, height=height, format="rgb24")
  turns = round(getattr(frame, "rotation", 0) / 90) % 4  # phones note how they lay
  return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels
