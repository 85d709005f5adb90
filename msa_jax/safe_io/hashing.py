"""Hashes of files, which say what a run was made from and whether it is whole."""

import hashlib
from concurrent import futures
from pathlib import Path

SUMS = "SHA256SUMS"  # of a folder; `sha256sum -c SHA256SUMS` reads it too

_THREADS = 4  # hashing and reading hold no lock of Python's


class Damaged(Exception):
  """Files are not those that were written; the message names one."""


def sha256(path: Path) -> str:
  """SHA-256 of a file, in hexadecimal, read in pieces."""
  with path.open("rb") as stream:
    return hashlib.file_digest(stream, "sha256").hexdigest()


def write_sums(folder: Path) -> None:
  """Writes the SHA-256 of every file in a folder, and below it, into `SUMS` there."""
  files = sorted(path for path in folder.rglob("*") if path.is_file())
  names = [path.relative_to(folder).as_posix() for path in files]
  names = [name for name in names if name != SUMS]
  with futures.ThreadPoolExecutor(_THREADS) as pool:
    found = pool.map(sha256, [folder / name for name in names])
    lines = [f"{each}  {name}\n" for each, name in zip(found, names, strict=True)]
  (folder / SUMS).write_text("".join(lines))


def check_sums(folder: Path) -> bool:
  """Compares the files of a folder with its `SUMS`.

  Files that were not there when the sums were written do not count.

  Returns:
    False where there are no sums to compare with.

  Raises:
    Damaged: a file is missing or another one, or the sums are not readable.
  """
  sums = folder / SUMS
  if not sums.exists():
    return False
  try:
    lines = sums.read_bytes().decode("ascii").split("\n")
    # A line feed that has become something else would join two lines.
    pairs = [line.split("  ") for line in lines[:-1]]
    if lines[-1] or not pairs or any(len(each) != 2 for each in pairs):
      raise Damaged(f"{SUMS} is damaged")
  except (OSError, ValueError) as error:
    raise Damaged(f"{SUMS} cannot be read") from error
  with futures.ThreadPoolExecutor(_THREADS) as pool:
    # In the order of the sums: what is wrong is told the same way every time.
    for complaint in pool.map(lambda pair: _complaint(folder, *pair), pairs):
      if complaint:
        raise Damaged(complaint)
  return True


def _complaint(folder: Path, expected: str, name: str) -> str:
  try:
    found = sha256(folder / name)
  except (OSError, ValueError):
    return f"{name} is missing or cannot be read"
  return "" if found == expected else f"{name} is not what was written (SHA-256)"
