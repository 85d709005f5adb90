"""Arrays of users in many layouts as arrays of one: the ground under readers and types.

Features come as lists, object arrays, float64, one row per sample or per frame; the
rest of the library sees padded float arrays [n t d] with lengths. NumPy alone.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from msa_jax import memory
from msa_jax.errors import UserError

_BLOCK = 256
MOST_CLASSES = 256  # of labels whose classes nobody names
COUNTS = ("non_finite_cells", "lost_steps", "absent_samples", "cells_past_length")


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
      _check_padded(rows, where)
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


def _check_padded(rows: list, where: str) -> None:
  """Checks what padding will take, before any row is copied; one row may stand at
  many places."""
  shapes = [np.shape(row) for row in rows]
  counts = np.array([shape[0] for shape in shapes])
  width = max(shape[1] for shape in shapes)
  distinct = {
    id(row): math.prod(shape) for row, shape in zip(rows, shapes, strict=True)
  }
  size = np.dtype(np.float32).itemsize
  memory.check(
    where,
    size * len(rows) * int(counts.max()) * width,
    size * sum(distinct.values()),
    f"row {counts.argmax()} has {counts.max()} steps, half of them have"
    f" {int(np.median(counts))} at most",
  )


def _padded(rows: list[np.ndarray], where: str) -> tuple[np.ndarray, np.ndarray]:
  widths = {row.shape[1] for row in rows}
  if len(widths) > 1 or 0 in widths:
    raise UserError(f"{where}: samples differ in feature width: {sorted(widths)}")
  counts = np.array([len(row) for row in rows], np.int32)
  shape = (len(rows), max(1, int(counts.max())), widths.pop())
  dtype = np.result_type(*(row.dtype for row in rows))
  array = np.zeros(shape, dtype)
  for row, target in zip(rows, array, strict=True):
    target[: len(row)] = row
  return array, counts


def strings(rows: Sequence[str], where: str) -> Shaped[np.ndarray, " n"]:
  """[n] strings, each as long in memory as the longest.

  Raises:
    UserError: one is so long that the others would take far more than they hold.
  """
  sizes = np.array([len(row) for row in rows], np.int64)
  if len(sizes):
    memory.check(
      where,
      4 * len(sizes) * int(sizes.max()),
      4 * int(sizes.sum()),
      f"row {sizes.argmax()} has {sizes.max()} characters, half of them have"
      f" {int(np.median(sizes))} at most",
    )
  return np.array(rows, dtype=np.str_).reshape(len(rows))


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


def check_lengths(
  found: Shaped[np.ndarray, "..."], steps: int, where: str, ids: np.ndarray
) -> None:
  """Raises UserError naming the first row whose length is not in [0, steps].

  Args:
    found: lengths, one for each id.
    steps: of the features.
    where: split and modality, for messages.
    ids: of the samples.
  """
  if np.shape(found) != (len(ids),):
    raise UserError(f"{where}: lengths have shape {list(np.shape(found))}")
  wrong = np.flatnonzero((found < 0) | (found > steps))
  if len(wrong):
    row = wrong[0]
    raise UserError(
      f"{where}: length {found[row]} in row {row} (id {ids[row]}) is not"
      f" within 0 and the {steps} steps of the features"
      + (f"; {len(wrong)} rows are so" if len(wrong) > 1 else "")
    )


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


def numbered(n: int, split: str) -> np.ndarray:
  """Ids for samples that came without: `test-0`, `test-1`, ..."""
  return np.array([f"{split}-{row}" for row in range(n)], dtype=np.str_)


def check_names(what: str, found: Iterable[str], known: Iterable[str]) -> None:
  """Raises UserError naming the first of `found` that is not known."""
  known = list(known)
  for name in found:
    if name not in known:
      raise UserError(f"{what} {name!r}: there are {', '.join(known) or 'none'}")


def check_rows(what: str, found: int, rows: int) -> None:
  """Raises UserError unless there are as many samples as elsewhere."""
  if found != rows:
    raise UserError(f"{what} has {found} samples, others {rows}")


def check_unique(ids: Mapping[str, np.ndarray]) -> None:
  """Raises UserError naming an id that occurs twice, in one split or in two."""
  seen: dict[str, str] = {}
  for name, found in ids.items():
    for sample in found.tolist():
      if sample in seen:
        places = f"twice in {name}" if seen[sample] == name else "in two splits"
        detail = "" if seen[sample] == name else f" ({seen[sample]}, {name})"
        raise UserError(
          f"id {sample!r} occurs {places}{detail}; ids must be unique in a corpus"
        )
      seen[sample] = name


def clean(
  array: Float[np.ndarray, "n t d"],
  length: Int[np.ndarray, " n"],
  lost: Bool[np.ndarray, "n t"],
  has_ids: bool = False,
) -> dict[str, int]:
  """Zeroes what is no content, in place, and counts it.

  Cells that are not finite become zero; a step of which no cell is finite is lost;
  steps past a sample's length become zero; a sample whose steps are all zero gets
  length 0.

  Args:
    array, length, lost: of one modality.
    has_ids: whether the steps also have integer inputs, which are content too.
  """
  t = array.shape[1]
  counts: dict[str, int] = dict.fromkeys(COUNTS, 0)
  for rows in blocks(len(array)):
    part = array[rows]
    real = np.arange(t) < length[rows][:, None]  # [b t]
    broken = ~np.isfinite(part)
    counts["non_finite_cells"] += int((broken & real[..., None]).sum())
    lost[rows] |= broken.all(-1)
    part[broken] = 0
    past = (part != 0) & ~real[..., None]
    counts["cells_past_length"] += int(past.sum())
    part[past] = 0
    part[lost[rows]] = 0
    if not has_ids:
      length[rows][~(part != 0).any((1, 2))] = 0
  lost &= np.arange(t)[None, :] < length[:, None]
  counts["absent_samples"] = int((length == 0).sum())
  counts["lost_steps"] = int(lost.sum())
  return counts


class Steps(NamedTuple):
  """One modality in memory: features [n t d], lengths [n], lost steps [n t], and how
  much of it was no content."""

  features: np.ndarray
  lengths: np.ndarray
  lost: np.ndarray
  counts: Mapping[str, int]


def steps(value: Any, length: Any, where: str) -> Steps:
  """Clean features of any layout; `value` itself is not changed.

  Args:
    value: see `features`.
    length: [n] real steps; None = those of a list of sequences, else up to the last
      step that is not all zero.
    where: for messages.

  Raises:
    UserError: see `features`, or lengths that do not fit.
  """
  array, found = features(value, where)
  if isinstance(value, np.ndarray) and np.may_share_memory(array, value):
    array = array.copy()
  n, t, _ = array.shape
  if length is not None:
    found = lengths(length, n, where)
  elif found is None:
    found = occupied(array)[1]  # NaN is not zero
  check_lengths(found, t, where, np.arange(n))
  lost = np.zeros((n, t), bool)
  return Steps(array, found, lost, clean(array, found, lost))


def labels(value: Any, where: str) -> Shaped[np.ndarray, "n *c"]:
  """Labels as float32 [n] (NaN = none), int32 [n] or int32 [n c] (-1 = none).

  Raises:
    UserError: of another type or shape.
  """
  value = np.asarray(value)
  if value.dtype.kind == "f":
    value = value.astype(np.float32).reshape(len(value), -1)
    if value.shape[1] == 1:
      value = value[:, 0]
      return np.where(np.isfinite(value), value, np.float32(np.nan))
  elif value.dtype.kind in "iub" and value.ndim in (1, 2):
    check_classes(value, where, 2**31)
    return value.astype(np.int32)
  raise UserError(
    f"{where} is {value.dtype}, shape {list(value.shape)}; labels are float [n],"
    " int [n] or int [n, classes]"
  )


def check_classes(
  values: Shaped[np.ndarray, "n *c"],
  where: str,
  below: int | None = None,
  ids: Sequence[str] | np.ndarray | None = None,
) -> None:
  """Checks integer labels, which are class numbers from 0 on, or -1 for none.

  Args:
    values: of any integer type, before it is made narrower.
    where: split and task, for messages.
    below: number of classes, or 2 for yes/no questions; None = as many as there may be
      where nobody names them (`MOST_CLASSES`).
    ids: of the samples, for messages.

  Raises:
    UserError: another number, with the sample that has it.
  """
  limit = MOST_CLASSES if below is None else below
  wrong = (values < -1) if values.dtype.kind != "u" else np.zeros(values.shape, bool)
  negative = bool(wrong.any())
  wrong = wrong if negative else values >= limit
  if not wrong.any():
    return
  place = tuple(np.argwhere(wrong)[0])
  sample = f"row {place[0]}" if ids is None else f"id {str(ids[place[0]])[:60]}"
  if negative:
    raise UserError(
      f"{where} holds {values[place]} ({sample}): integers are class numbers from 0"
      " on, or -1 for none; cast them to float if they are sentiment"
    )
  rule = f"labels are below {limit}"
  if below is None:
    rule = f"classes without names are below {limit}; give their names in tasks"
  raise UserError(f"{where} holds {values[place]} ({sample}); {rule}")


def label_range(values: Float[np.ndarray, " n"]) -> tuple[float, float, str]:
  """Range and protocol of a regression, by its labels.

  All within [-1, 1] is SIMS's scale and protocol, within [-3, 3] MOSI's; a wider
  range is kept as found, with MOSI's protocol.
  """
  values = np.append(values[np.isfinite(values)], np.float32(0))
  low, high = float(values.min()), float(values.max())
  tolerance = 1e-3  # Averages of annotators stored as float16.
  if max(-low, high) <= 1 + tolerance:
    return -1.0, 1.0, "sims"
  if max(-low, high) <= 3 + tolerance:
    return -3.0, 3.0, "mosi"
  return low, high, "mosi"
