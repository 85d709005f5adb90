"""Fields of a data file as arrays of one kind: what every reader needs.

Users' files hold the same thing in many ways (lists, object arrays, bytes, float64,
one row per sample or one per frame); the rest of the library sees one.
"""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Integer

from msa_jax.errors import UserError
from msa_jax.typing import MODALITIES

_BLOCK = 256
SPLIT_NAMES = {"val": "valid", "dev": "valid", "validation": "valid"}
_CLIP = re.compile(r"^(?P<video>.+?)(?:\$_\$.*|\[\d+\])$", re.DOTALL)


def blocks(n: int) -> Iterator[slice]:
  """Yields slices of a few hundred rows, so that temporaries stay small."""
  for start in range(0, n, _BLOCK):
    yield slice(start, min(start + _BLOCK, n))


def features(
  value: Any, where: str
) -> tuple[Float[np.ndarray, "n t d"], Int[np.ndarray, " n"] | None]:
  """Turns features of any layout into one padded float array.

  Args:
    value: numbers [n t d]; [n d] (one vector per sample, becomes t = 1); or a list
      (or object array) of n arrays [t_i d].
    where: split and modality, for messages.

  Returns:
    Features [n t d], float16 if they were and float32 otherwise, writable; and the
    lengths [n] if `value` was a list of sequences, else None.

  Raises:
    UserError: not numbers, or not of these shapes.
  """
  if (
    isinstance(value, list | tuple) or getattr(value, "dtype", np.dtype(int)).hasobject
  ):
    rows = list(value)
    if rows and all(np.ndim(row) == 2 for row in rows):
      return _padded([_numbers(row, where) for row in rows], where)
    value = _stacked(rows, where)
  array = _numbers(value, where)
  array = array[:, None, :] if array.ndim == 2 else array
  if array.ndim != 3 or 0 in array.shape[1:]:
    raise UserError(
      f"{where}: features have shape {list(np.shape(value))}; the shapes are"
      " [samples, steps, width] and [samples, width]"
    )
  return np.require(array, requirements=("C", "W")), None


def _stacked(rows: list, where: str) -> np.ndarray:
  try:
    return np.asarray(rows, dtype=np.float32)
  except (ValueError, TypeError) as error:
    raise UserError(
      f"{where}: features are neither one array nor a list of [steps, width]"
    ) from error


def _numbers(value: Any, where: str) -> np.ndarray:
  array = np.asarray(value)
  if array.dtype.kind not in "fiub":
    raise UserError(f"{where}: features are of type {array.dtype}, not numbers")
  kind = np.float16 if array.dtype.kind == "f" and array.itemsize == 2 else np.float32
  with np.errstate(over="ignore"):  # Beyond float32 becomes inf, cleaned and counted.
    return array.astype(kind, copy=False)


def _padded(rows: list[np.ndarray], where: str) -> tuple[np.ndarray, np.ndarray]:
  widths = {row.shape[1] for row in rows}
  if len(widths) > 1 or 0 in widths:
    raise UserError(f"{where}: samples differ in feature width: {sorted(widths)}")
  lengths = np.array([len(row) for row in rows], np.int32)
  shape = (len(rows), max(1, lengths.max()), widths.pop())
  array = np.zeros(shape, np.result_type(*(row.dtype for row in rows)))
  for row, target in zip(rows, array, strict=True):
    target[: len(row)] = row
  return array, lengths


def lengths(value: Any, n: int, where: str) -> Int[np.ndarray, " n"]:
  """Checks a list or array of n whole numbers; raises UserError otherwise."""
  try:
    array = np.asarray(value, dtype=np.float64).reshape(-1)
  except (ValueError, TypeError):
    raise UserError(f"{where}: lengths are not numbers") from None
  if len(array) != n:
    raise UserError(f"{where}: {len(array)} lengths for {n} samples")
  wrong = np.flatnonzero(~(array == np.round(array)))
  if len(wrong):
    raise UserError(
      f"{where}: length {array[wrong[0]]:g} in row {wrong[0]} is not a whole number"
    )
  return np.clip(array, -1, 2**31 - 1).astype(np.int32)


def occupied(
  array: Float[np.ndarray, "n t d"],
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
  """First step that is not all zero, and one past the last (both 0 if none is)."""
  n, t, _ = array.shape
  first, last = np.zeros(n, np.int32), np.zeros(n, np.int32)
  for rows in blocks(n):
    used = (array[rows] != 0).any(-1)  # [b t]
    some = used.any(-1)
    first[rows] = np.where(some, used.argmax(-1), 0)
    last[rows] = np.where(some, t - used[:, ::-1].argmax(-1), 0)
  return first, last


def move_to_front(
  array: Float[np.ndarray, "n t d"],
  first: Integer[np.ndarray, " n"],
  last: Integer[np.ndarray, " n"],
) -> None:
  """Moves steps [first, last) of every sample to the front, zeros after; in place."""
  for row in np.flatnonzero(first):
    steps = array[row, first[row] : last[row]].copy()
    array[row] = 0
    array[row, : len(steps)] = steps


def strings(value: Any, n: int, where: str) -> np.ndarray:
  """[n] strings from strings, bytes or rows of them (joined by `$_$`)."""
  rows = list(value) if isinstance(value, list | tuple | np.ndarray) else [value]
  if len(rows) != n:
    raise UserError(f"{where}: {len(rows)} entries for {n} samples")
  return np.array([text(row) for row in rows], dtype=np.str_).reshape(n)


def text(value: Any) -> str:
  """One string from a string, bytes, a number, or a row of these (`$_$` between)."""
  if isinstance(value, bytes):
    return value.decode("utf-8", errors="replace")
  if isinstance(value, np.ndarray | list | tuple):
    return "$_$".join(text(item) for item in np.asarray(value).ravel().tolist())
  return str(value)


def videos(ids: np.ndarray) -> np.ndarray | None:
  """Video of each `video$_$clip` or `video[clip]` id; None if no id looks so."""
  matches = [_CLIP.match(name) for name in ids.tolist()]
  if not any(matches):
    return None
  pairs = zip(matches, ids.tolist(), strict=True)
  return np.array([match["video"] if match else name for match, name in pairs])


def numbered(n: int, split: str) -> np.ndarray:
  """Ids for samples that came without: `test-0`, `test-1`, ..."""
  return np.array([f"{split}-{row}" for row in range(n)], dtype=np.str_)


def regression(value: Any, n: int, where: str) -> Float[np.ndarray, " n"]:
  """[n] float32 labels; anything not finite becomes NaN (= no label)."""
  try:
    array = np.asarray(value, dtype=np.float32).reshape(-1)
  except (ValueError, TypeError):
    raise UserError(f"{where}: labels are not numbers") from None
  if len(array) != n:
    raise UserError(f"{where}: {len(array)} labels for {n} samples")
  return np.where(np.isfinite(array), array, np.float32(np.nan))


def named_splits(data: Any, where: str) -> dict[str, dict]:
  """Splits of a file by canonical name; one without splits becomes `predict`.

  A split is a dict that holds a modality; it is not copied, so that what a reader
  takes out of it is freed. Raises UserError if there is none.
  """
  if not isinstance(data, dict):
    raise UserError(f"{where}: holds a {type(data).__name__}, not a dict of splits")
  if any(name in data for name in MODALITIES):
    return {"predict": data}
  found = {}
  for key, value in data.items():
    if isinstance(value, dict) and any(name in value for name in MODALITIES):
      name = text(key)
      shared = any(value is other for other in found.values())
      found[SPLIT_NAMES.get(name, name)] = dict(value) if shared else value
  if not found:
    keys = ", ".join(text(key)[:30] for key in list(data)[:8]) or "nothing"
    raise UserError(
      f"{where}: no split with text, audio or vision features (found: {keys})"
    )
  return found
