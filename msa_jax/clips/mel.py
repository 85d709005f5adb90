"""Log-mel spectra and spectral measures of sound, in NumPy."""

import functools

import numpy as np
from jaxtyping import Float

from msa_jax.clips.decode import AUDIO_RATE

HOP = 160  # samples: 10 ms
_WINDOW = 400  # 25 ms
_BINS = 512
_BLOCK = 1000  # frames at a time, so that memory does not grow with the clip
_FLOOR = 1e-10


def frames(
  audio: Float[np.ndarray, " s"], window: int
) -> Float[np.ndarray, "t window"]:
  """Windows around every `HOP`th sample, as a view; zeros beyond both ends."""
  count = max(1, -(-len(audio) // HOP))
  padded = np.zeros((count - 1) * HOP + window, np.float32)
  kept = audio[: len(padded) - window // 2]
  padded[window // 2 : window // 2 + len(kept)] = kept
  return np.lib.stride_tricks.sliding_window_view(padded, window)[::HOP]


@functools.cache
def filters(
  bands: int, bins: int, low: float, high: float
) -> Float[np.ndarray, "bands f"]:
  """Triangles of equal area on Slaney's mel scale (linear below 1 kHz, then
  logarithmic: Auditory Toolbox, 1998).

  Args:
    bands: how many.
    bins: length of the Fourier transform at `AUDIO_RATE`.
    low, high: Hz, ends of the first and last triangle.
  """

  def mel(hertz):
    above = 15.0 + 27.0 * np.log(np.maximum(hertz, 1e-9) / 1000.0) / np.log(6.4)
    return np.where(hertz < 1000.0, hertz * 3.0 / 200.0, above)

  def hertz(mel):
    return np.where(mel < 15.0, mel * 200.0 / 3.0, 1000.0 * 6.4 ** ((mel - 15) / 27))

  edges = hertz(np.linspace(mel(np.array(low)), mel(np.array(high)), bands + 2))
  centres = np.arange(bins // 2 + 1) * AUDIO_RATE / bins
  rise = (centres - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
  fall = (edges[2:, None] - centres) / (edges[2:] - edges[1:-1])[:, None]
  triangles = np.maximum(0.0, np.minimum(rise, fall))
  return triangles * (2.0 / (edges[2:] - edges[:-2]))[:, None]


def spectra(
  audio: Float[np.ndarray, " s"], bands: int
) -> tuple[Float[np.ndarray, "t bands"], Float[np.ndarray, "t 3"]]:
  """Log-mel spectrum and measures of every 10 ms.

  Args:
    audio: at `AUDIO_RATE`.
    bands: of the mel spectrum, from 20 Hz to 7600 Hz.

  Returns:
    Natural logarithms of the bands' powers; and root mean square in decibels of full
    scale, centre of the spectrum in kHz, and crossings of zero per millisecond.
  """
  views = frames(audio, _WINDOW)
  window = np.hanning(_WINDOW + 1)[:-1]
  bank = filters(bands, _BINS, 20.0, 7600.0).T
  centres = np.arange(_BINS // 2 + 1) * AUDIO_RATE / _BINS / 1000.0
  mels = np.zeros((len(views), bands), np.float32)
  measures = np.zeros((len(views), 3), np.float32)
  for start in range(0, len(views), _BLOCK):
    rows = slice(start, start + _BLOCK)
    block = views[rows].astype(np.float64)
    power = np.abs(np.fft.rfft(block * window, _BINS)) ** 2 / _WINDOW
    mels[rows] = np.log(power @ bank + _FLOOR)
    energy = np.mean(block**2, axis=1)
    measures[rows, 0] = 10.0 * np.log10(energy + _FLOOR)
    measures[rows, 1] = power @ centres / (power.sum(axis=1) + _FLOOR)
    signs = np.signbit(block)
    crossings = (signs[:, 1:] != signs[:, :-1]).sum(axis=1)
    measures[rows, 2] = crossings / (_WINDOW * 1000.0 / AUDIO_RATE)
  return mels, measures
