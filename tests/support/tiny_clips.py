"""Clips that a test makes: tones, pictures, and extractors of its own."""

import pathlib
import wave

import av
import numpy as np

from msa_jax.clips import recipe, words
from msa_jax.clips.extractor import About, Features, empty, package_folder

__all__ = ["About", "Features", "package_folder", "words"]

RATE = 16000


def tone(hertz: float, seconds: float, rate: int = RATE, level: float = 0.3):
  """A voice-like sound: five harmonics, each half as strong as the one before."""
  time = np.arange(int(seconds * rate)) / rate
  parts = [0.5**k * np.sin(2 * np.pi * hertz * (k + 1) * time) for k in range(5)]
  return (level * np.sum(parts, axis=0)).astype(np.float32)


def wav(path: pathlib.Path, audio, rate: int = RATE, channels: int = 1) -> pathlib.Path:
  """Writes 16-bit sound, the same on every channel."""
  path.parent.mkdir(parents=True, exist_ok=True)
  samples = np.repeat(np.round(audio * 32767).astype("<i2")[:, None], channels, axis=1)
  with wave.open(str(path), "wb") as file:
    file.setnchannels(channels)
    file.setsampwidth(2)
    file.setframerate(rate)
    file.writeframes(samples.tobytes())
  return path


def film(path: pathlib.Path, pictures, rate: int = 10, audio=None) -> pathlib.Path:
  """Writes pictures [h w 3], with sound at `RATE` if there is some."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with av.open(str(path), "w") as container:
    video = container.add_stream("mpeg4", rate=rate)
    video.height, video.width = pictures[0].shape[:2]
    video.pix_fmt = "yuv420p"
    sound = None if audio is None else container.add_stream("pcm_s16le", rate=RATE)
    if sound is not None:
      sound.layout = "mono"
    for picture in pictures:
      container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
    container.mux(video.encode(None))
    if sound is not None:
      samples = np.round(audio * 32767).astype("<i2")[None]
      frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
      frame.sample_rate, frame.pts = RATE, 0
      container.mux([*sound.encode(frame), *sound.encode(None)])
  return path


def gray(level: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
  """A picture of one shade."""
  return np.full((*size, 3), level, np.uint8)


class Loudness:
  """Peak of every half second; counts the clips that it reads."""

  def __init__(self, version: str = "1"):
    self.about = About("loudness", version, "none", 1, 2.0, settings={"half": 0.5})
    self.read: list[str] = []

  def extract(self, clip) -> Features:
    """Features of the sound."""
    self.read.append(clip.path.name)
    if clip.audio is None:
      return empty(1, "no audio track")
    starts = np.arange(0, len(clip.audio), RATE // 2)
    peaks = np.maximum.reduceat(np.abs(clip.audio), starts)
    times = np.stack([starts, starts + RATE // 2], axis=1) / RATE
    return Features(peaks[:, None].astype(np.float32), times.astype(np.float32))


class Brightness:
  """Mean of each of ten pictures a second; dark ones are lost."""

  about = About("brightness", "1", "none", 1, 10.0)

  def extract(self, clip) -> Features:
    """Features of the pictures."""
    frames = list(clip.frames(10.0))
    if not frames:
      return empty(1, "no video track")
    values = np.array([[frame.pixels.mean()] for frame in frames], np.float32)
    times = np.array([(frame.time, frame.time + 0.1) for frame in frames], np.float32)
    return Features(values, times, values[:, 0] < 10)


class Letters:
  """One step for each word: how many letters it has."""

  about = About("letters", "1", "none", 1, 0.0, weights={"letters.bin": "0" * 64})

  def extract(self, clip) -> Features:
    """Features of the words."""
    values = [[len(word.text)] for word in clip.words]
    times = [(word.begin, word.end) for word in clip.words]
    return Features(
      np.array(values, np.float32).reshape(-1, 1),
      np.array(times, np.float32).reshape(-1, 2),
      words=np.arange(len(values), dtype=np.int32),
      note="" if values else "no transcript",
    )


def registered(monkeypatch) -> Loudness:
  """Registers the three extractors for one test; returns the first, which counts."""
  loudness = Loudness()
  made = {"audio": loudness, "vision": Brightness(), "text": Letters()}
  for part, tool in made.items():
    known = dict(recipe.FACTORIES[part])
    monkeypatch.setitem(recipe.FACTORIES, part, known)
    recipe.register(part, "tiny", lambda argument, tool=tool: tool)
  return loudness


TINY = {"text": "tiny", "audio": "tiny", "vision": "tiny"}
