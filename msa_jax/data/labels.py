"""Which samples have a label."""

import numpy as np
from jaxtyping import Bool, Shaped


def known(values: Shaped[np.ndarray, "*n"]) -> Bool[np.ndarray, "*n"]:
  """Entries that are labels: finite floats, integers from 0 on (`Split.labels`)."""
  return np.isfinite(values) if values.dtype.kind == "f" else values >= 0
