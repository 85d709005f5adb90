"""Fundamental frequency by autocorrelation.

P. Boersma, "Accurate short-term analysis of the fundamental frequency and the
harmonics-to-noise ratio of a sampled sound", IFA Proceedings 17, 1993: the
autocorrelation of the windowed sound divided by that of the window (equation 9).
"""

import numpy as np
from jaxtyping import Bool, Float

from msa_jax.clips import mel
from msa_jax.clips.decode import AUDIO_RATE

LOWEST, HIGHEST = 75.0, 500.0  # Hz
_WINDOW = 640  # 40 ms: three periods of the lowest
_BINS = 2048
_VOICED = 0.45  # least strength
_QUIET = 0.03  # of the clip's peak: softer is silence
_OCTAVE_COST = 0.01
_BLOCK = 500


def track(
  audio: Float[np.ndarray, " s"],
) -> tuple[Float[np.ndarray, " t"], Bool[np.ndarray, " t"]]:
  """Pitch of every 10 ms.

  Args:
    audio: at `AUDIO_RATE`.

  Returns:
    Hz, 0 where the sound has no pitch; and where it has one.
  """
  shortest, longest = int(AUDIO_RATE / HIGHEST), int(np.ceil(AUDIO_RATE / LOWEST))
  window = np.hanning(_WINDOW + 2)[1:-1]
  own = _autocorrelation(window[None])[0, : longest + 2]
  views = mel.frames(audio, _WINDOW)
  quiet = _QUIET * np.abs(audio).max(initial=0.0)
  hertz = np.zeros(len(views), np.float32)
  lags = np.arange(shortest, longest + 1)
  cost = _OCTAVE_COST * np.log2(lags * LOWEST / AUDIO_RATE)
  for start in range(0, len(views), _BLOCK):
    block = views[start : start + _BLOCK].astype(np.float64)
    loud = np.abs(block).max(axis=1) > max(quiet, 1e-5)
    block -= block.mean(axis=1, keepdims=True)
    found = _autocorrelation(block * window)[:, : longest + 2]
    strength = found / np.maximum(found[:, :1], 1e-12) / (own / own[0])
    left, here, right = (strength[:, lags + shift] for shift in (-1, 0, 1))
    peak = (here > left) & (here >= right)
    best = np.where(peak, here - cost, -1.0).argmax(axis=1)
    row = np.arange(len(block))
    a, b, c = left[row, best], here[row, best], right[row, best]
    bend = a - 2.0 * b + c
    shift = np.where(bend < 0, 0.5 * (a - c) / np.where(bend < 0, bend, 1.0), 0.0)
    voiced = loud & peak[row, best] & (b > _VOICED)
    pitch = AUDIO_RATE / (lags[best] + shift)
    hertz[start : start + _BLOCK] = np.where(voiced, pitch, 0.0)
  return hertz, hertz > 0


def _autocorrelation(rows: Float[np.ndarray, "n w"]) -> Float[np.ndarray, "n bins"]:
  return np.fft.irfft(np.abs(np.fft.rfft(rows, _BINS)) ** 2, _BINS)
