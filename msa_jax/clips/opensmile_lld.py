"""eGeMAPS by openSMILE, whose licence is for research and non-commercial use only.

F. Eyben et al., "The Geneva Minimalistic Acoustic Parameter Set (GeMAPS) for Voice
Research and Affective Computing", IEEE Transactions on Affective Computing 7(2), 2016.
"""

import threading
from typing import Any

import numpy as np

from msa_jax.clips import extractor
from msa_jax.clips.decode import AUDIO_RATE, Clip
from msa_jax.clips.extractor import About, Features, empty
from msa_jax.errors import UserError

_SILENT = 1e-4
_STEP = 0.1  # seconds
_SHORTEST = 0.1


class EGeMAPS:
  """Means over 100 ms of the 25 low-level descriptors of eGeMAPSv02."""

  def __init__(self):
    """Loads openSMILE.

    Raises:
      UserError: not installed.
    """
    try:
      import opensmile  # pyright: ignore[reportMissingImports]
    except ImportError:
      raise UserError(
        "egemaps: not installed; pip install 'msa_jax[egemaps]' (openSMILE's licence is"
        " for research and non-commercial use only)"
      ) from None
    self._smile: Any = opensmile.Smile(
      feature_set=opensmile.FeatureSet.eGeMAPSv02,
      feature_level=opensmile.FeatureLevel.LowLevelDescriptors,
    )
    self._lock = threading.Lock()
    self.about = About(
      name="egemaps",
      version="1",
      licence="openSMILE: research and non-commercial use only",
      width=len(self._smile.feature_names),
      rate=1.0 / _STEP,
      settings={"set": "eGeMAPSv02", "level": "LowLevelDescriptors"},
      packages=extractor.versions("opensmile"),
    )

  def extract(self, clip: Clip) -> Features:
    """Features of the clip's first audio track; none of a silent one."""
    audio, width = clip.audio, self.about.width
    if audio is None:
      return empty(width, "no audio track")
    if np.abs(audio).max(initial=0.0) < _SILENT:
      return empty(width, "the audio track is silent throughout")
    if len(audio) < _SHORTEST * AUDIO_RATE:
      return empty(width, f"shorter than {_SHORTEST} s")
    with self._lock:
      found = self._smile.process_signal(audio, AUDIO_RATE)
    begins = found.index.get_level_values("start").total_seconds().to_numpy()
    step = np.floor(begins / _STEP + 1e-6).astype(int)
    rows, starts = np.unique(step, return_index=True)
    values = np.nan_to_num(found.to_numpy(np.float64))
    counts = np.diff(np.append(starts, len(values)))[:, None]
    mean = np.add.reduceat(values, starts, axis=0) / counts
    times = np.stack([rows * _STEP, (rows + 1) * _STEP], axis=1)
    return Features(mean.astype(np.float32), times.astype(np.float32))
