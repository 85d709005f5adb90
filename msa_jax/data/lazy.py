"""Features that stay on disk: read, and changed, a few samples at a time."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int

from msa_jax.data.readers.fields import blocks


class LazyFeatures:
  """Stands in for an array [n t d] that need not fit into memory.

  Indexing by samples reads those and gives an array; cutting other axes
  (`features[:, :20]`) gives lazy features again; `np.asarray` reads everything.

  Attributes:
    shape: (n, t, d).
    dtype: of what is read.
  """

  ndim = 3

  def __init__(
    self,
    shape: tuple[int, int, int],
    dtype: Any,
    read: Callable[[Int[np.ndarray, " rows"]], np.ndarray],
  ):
    """Makes them from a function of row numbers that gives an array [rows t d]."""
    self.shape = tuple(int(size) for size in shape)
    self.dtype = np.dtype(dtype)
    self._read = read

  def __len__(self) -> int:
    return self.shape[0]

  @property
  def nbytes(self) -> int:
    """Bytes that the whole would take in memory."""
    n, t, d = self.shape
    return n * t * d * self.dtype.itemsize

  def __getitem__(self, key: Any) -> Any:
    rows, *inner = key if isinstance(key, tuple) else (key,)
    inner = (slice(None), *inner)
    if len(inner) > 1 and isinstance(rows, slice) and rows == slice(None):
      shape = np.broadcast_to(np.zeros((), bool), (1, *self.shape[1:]))[inner].shape
      shape = (len(self), *shape[1:])
      return LazyFeatures(shape, self.dtype, lambda index: self._read(index)[inner])
    index = np.arange(len(self))[rows]
    if index.ndim == 0:
      return self._read(index[None])[inner][0]
    return self._read(index)[inner]

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    del copy  # Reading always makes a new array.
    return self._read(np.arange(len(self))).astype(dtype or self.dtype, copy=False)


Rows = np.ndarray | LazyFeatures


def map_rows(
  features: Rows,
  steps: int,
  dtype: Any,
  function: Callable[[Int[np.ndarray, " rows"], np.ndarray], np.ndarray],
) -> Rows:
  """Changes features sample by sample: at once in memory, lazily on disk.

  Args:
    features: [n t d].
    steps: number of steps of the result.
    dtype: type of the result.
    function: (row numbers, their features [rows t d]) -> [rows steps d].

  Returns:
    [n steps d] of the same kind as `features`.
  """
  shape = (len(features), steps, features.shape[-1])
  if isinstance(features, LazyFeatures):
    return LazyFeatures(
      shape,
      dtype,
      lambda index: function(index, features[index]).astype(dtype, copy=False),
    )
  changed = np.zeros(shape, dtype)
  for rows in blocks(len(features)):
    changed[rows] = function(np.arange(len(features))[rows], features[rows])
  return changed
