"""Fields of a data file as arrays of one kind: what every reader needs.

Users' files hold the same thing in many ways (lists, object arrays, bytes, float64,
one row per sample or one per frame); the rest of the library sees one.
"""

import re
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from msa_jax import arrays
from msa_jax.arrays import blocks, features, lengths, numbered, occupied
from msa_jax.errors import UserError
from msa_jax.typing import MODALITIES

__all__ = [
  "blocks",
  "features",
  "lengths",
  "move_to_front",
  "named_splits",
  "numbered",
  "occupied",
  "regression",
  "strings",
  "text",
  "videos",
]

SPLIT_NAMES = {"val": "valid", "dev": "valid", "validation": "valid"}
_CLIP = re.compile(r"^(?P<video>.+?)(?:\$_\$.*|\[\d+\])$", re.DOTALL)


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
  return arrays.strings([text(row) for row in rows], where)


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
  names = [match["video"] if match else name for match, name in pairs]
  return arrays.strings(names, "videos")


def regression(value: Any, n: int, where: str) -> Float[np.ndarray, " n"]:
  """[n] float32 labels; anything not finite becomes NaN (= no label)."""
  try:
    with np.errstate(over="ignore"):  # beyond float32 is infinite, so no label
      array = np.asarray(value, dtype=np.float32).reshape(-1)
  except (ValueError, TypeError, OverflowError):
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
