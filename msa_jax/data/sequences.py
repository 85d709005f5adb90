"""Which steps of a modality's sequences can be seen."""

import numpy as np
from jaxtyping import Bool

from msa_jax.typing import Sequences


def visible_steps(sequences: Sequences) -> Bool[np.ndarray, "n t"]:
  """Steps that are real and kept their content."""
  steps = np.arange(sequences.features.shape[1])[None, :]
  real = steps < sequences.lengths[:, None]
  return real if sequences.lost is None else real & ~sequences.lost
