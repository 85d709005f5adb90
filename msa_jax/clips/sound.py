"""Audio features without any model: mel spectrum, pitch, energy; ten steps a second."""

import numpy as np
from jaxtyping import Float

from msa_jax.clips import mel, pitch
from msa_jax.clips.decode import AUDIO_RATE, Clip
from msa_jax.clips.extractor import About, Features, empty

_BANDS = 40
_HOPS = 10  # of 10 ms in a step
_SILENT = 1e-4  # peak below which there is nothing but noise of the last bit
_BASE = 55.0  # Hz, from which octaves are counted
COLUMNS = (
  *(f"mel_{band}_mean" for band in range(_BANDS)),
  *(f"mel_{band}_deviation" for band in range(_BANDS)),
  *("voiced_share", "pitch_octaves", "pitch_deviation"),
  *("level_db", "level_deviation", "centre_khz", "crossings_per_ms"),
)


class Sound:
  """Statistics of every 100 ms over its 10 ms frames: mean and deviation of 40 log-mel
  bands; share of voiced frames, mean and deviation of their pitch in octaves above
  55 Hz (0 where none is voiced); mean and deviation of the level; mean centre of the
  spectrum and rate of zero crossings. `COLUMNS` names them."""

  def __init__(self):
    self.about = About(
      name="sound",
      version="1",
      licence="Apache-2.0",
      width=len(COLUMNS),
      rate=AUDIO_RATE / mel.HOP / _HOPS,
      settings={
        "bands": _BANDS,
        "lowest_hz": pitch.LOWEST,
        "highest_hz": pitch.HIGHEST,
      },
    )

  def extract(self, clip: Clip) -> Features:
    """Features of the clip's first audio track; none of a silent one."""
    audio, width = clip.audio, self.about.width
    if audio is None:
      return empty(width, "no audio track")
    if np.abs(audio).max(initial=0.0) < _SILENT:
      return empty(width, "the audio track is silent throughout")
    mels, measures = mel.spectra(audio, _BANDS)
    hertz, voiced = pitch.track(audio)
    octaves = np.where(voiced, np.log2(np.where(voiced, hertz, _BASE) / _BASE), 0.0)
    count = np.ones(len(mels))
    level = measures[:, 0]
    columns = [
      *_moments(mels, count),
      _sums(voiced[:, None], count)[0] / _sums(count[:, None], count)[1],
      *_moments(octaves[:, None], voiced),
      *_moments(level[:, None], count),
      _moments(measures[:, 1:], count)[0],
    ]
    values = np.concatenate(columns, axis=1).astype(np.float32)
    begins = np.arange(len(values)) / self.about.rate
    seconds = max(len(audio) / AUDIO_RATE, 1e-3)
    ends = np.minimum(begins + 1.0 / self.about.rate, seconds)
    return Features(values, np.stack([begins, ends], axis=1).astype(np.float32))


def _sums(values, weights) -> tuple[Float[np.ndarray, "t d"], Float[np.ndarray, "t 1"]]:
  """Weighted sums and weights of each step."""
  starts = np.arange(0, len(values), _HOPS)
  weights = np.asarray(weights, np.float64)[:, None]
  total = np.add.reduceat(values * weights, starts, axis=0)
  return total, np.add.reduceat(weights, starts, axis=0)


def _moments(values, weights) -> list[Float[np.ndarray, "t d"]]:
  """Weighted mean and deviation of each step; 0 where nothing weighs."""
  total, weight = _sums(values, weights)
  mean = total / np.maximum(weight, 1.0)
  spread = values - np.repeat(mean, _HOPS, axis=0)[: len(values)]
  variance = _sums(spread**2, weights)[0] / np.maximum(weight, 1.0)
  return [mean, np.sqrt(variance)]
