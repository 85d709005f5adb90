"""Arrays in NumPy's files, alone (`.npy`) or in zip archives (`.npz`).

NumPy makes an array of the shape that a header names before it reads, and a member of
an archive may unpack to a thousand times its size: both are held against the file
first.
"""

import math
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from msa_jax import memory
from msa_jax.errors import UserError
from msa_jax.safe_io import files

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_LOCAL_HEADER = 30  # bytes in front of a member, at least
_EXPANSION = 256  # sizes of an archive that its members may unpack to


@contextmanager
def opened(path: Path, what: str, otherwise: str = "") -> Iterator[zipfile.ZipFile]:
  """A zip archive whose members are what its directory says.

  Args:
    path: a regular file.
    what: what it should be, for messages.
    otherwise: says that it is no archive.

  Raises:
    UserError: no archive, members of one name, members that overlap or lie outside the
      file, encrypted or packed by another method, or sizes that no such file has.
  """
  path = files.regular(path)
  with path.open("rb") as stream:
    try:
      archive = zipfile.ZipFile(stream)
    except zipfile.BadZipFile as error:
      reason = otherwise or f"not a readable {what} ({error})"
      raise UserError(reason) from None
    with archive:
      _check(archive.infolist(), os.fstat(stream.fileno()).st_size)
      yield archive


def _check(members: list[zipfile.ZipInfo], size: int) -> None:
  total, end, seen = 0, 0, set()
  for info in sorted(members, key=lambda info: info.header_offset):
    name = info.filename[:60]
    if info.filename in seen:
      raise UserError(f"two members are named {name!r}")
    seen.add(info.filename)
    if info.compress_type not in _METHODS or info.flag_bits & 1:
      raise UserError(f"member {name!r} is encrypted or packed by an unknown method")
    if info.header_offset < end or info.compress_size < 0 or info.file_size < 0:
      raise UserError(f"member {name!r} overlaps the one before it")
    end = info.header_offset + _LOCAL_HEADER + info.compress_size
    if end > size:
      raise UserError(f"member {name!r} ends outside the file; it is cut off")
    stored = info.compress_type == zipfile.ZIP_STORED
    if stored and info.file_size != info.compress_size:
      raise UserError(f"member {name!r} has another size than it says")
    total += info.file_size
  # Deflate packs zeros a thousand to one; features are not zeros throughout.
  if total > max(memory.FLOOR, _EXPANSION * size):
    raise UserError(
      f"its members would take {memory.amount(total)} out of {memory.amount(size)}"
    )


def read_npz(path: Path) -> dict[str, np.ndarray]:
  """Name -> array of a `.npz`; runs nothing from the file.

  Raises:
    UserError: damaged, pickled or structured arrays, members that are no arrays, or an
      array that is larger than its member.
  """
  with (
    files.reading(path, ".npz without pickles"),
    opened(path, ".npz without pickles") as archive,
  ):
    arrays = {}
    for info in archive.infolist():
      name = info.filename.removesuffix(".npy")
      if name == info.filename:
        raise UserError(f"not a readable .npz: member {name[:60]!r} is no array")
      with archive.open(info) as stream:
        _check_header(stream, info.file_size, name)
      with archive.open(info) as stream:
        arrays[name] = np.lib.format.read_array(stream, allow_pickle=False)
        if stream.read(1):
          raise UserError(f"member {name[:60]!r} is longer than its array")
    return arrays


def read_npy(path: Path) -> np.ndarray:
  """The array of a `.npy`; runs nothing from the file.

  Raises:
    UserError: no regular file, damaged, a pickled or structured array, or one that is
      larger than the file.
  """
  with files.reading(path, ".npy of numbers"), files.regular(path).open("rb") as stream:
    _check_header(stream, os.fstat(stream.fileno()).st_size, "it")
    stream.seek(0)
    return np.lib.format.read_array(stream, allow_pickle=False)


def _check_header(stream: Any, size: int, name: str) -> None:
  """Holds the shape in the header of an array against the bytes that follow it."""
  shape, dtype = _header(stream)
  if dtype.hasobject:
    raise UserError(
      f"{name[:60]} holds Python objects; only arrays without pickles are read"
    )
  if (
    dtype.names is not None or dtype.subdtype is not None or dtype.kind not in "biufcUS"
  ):
    raise UserError(f"{name[:60]} is of type {str(dtype)[:40]}, not numbers or strings")
  if any(length < 0 for length in shape):
    raise UserError(f"{name[:60]} has a negative shape")
  needed = math.prod(shape) * max(1, dtype.itemsize)
  if needed > size - stream.tell():
    raise UserError(
      f"{name[:60]} says it is {memory.amount(needed)}, of which the file has"
      f" {memory.amount(max(0, size - stream.tell()))}"
    )


def _header(stream: Any) -> tuple[tuple[int, ...], np.dtype]:
  read = {
    1: np.lib.format.read_array_header_1_0,
    # Version 3 is 2 with names of fields in UTF-8; there are no fields here.
    2: np.lib.format.read_array_header_2_0,
    3: np.lib.format.read_array_header_2_0,
  }
  major, _ = np.lib.format.read_magic(stream)
  if major not in read:
    raise UserError(f"version {major} of NumPy's format is unknown")
  shape, _, dtype = read[major](stream)
  return shape, dtype
