"""Files that are there whole or not at all, also after a power cut."""

import os
import pathlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress

PARTIAL = ".partial"  # ends the name of what is being written


@contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Replaces a file by what is written to the path that it yields, which is beside it.

  A reader sees the old file or the new one. A file with the same content is left
  alone; what was written is removed where the block raises.

  Args:
    path: of the file; its folder is made. What is no regular file (a pipe, a terminal)
      is written to directly.
  """
  if path.exists() and not path.is_file():
    yield path
    return
  path = path.resolve()  # a link stays one
  path.parent.mkdir(parents=True, exist_ok=True)
  # Keeps the suffix: NumPy adds its own to names that lack it.
  partial = path.with_name(f"{path.stem}{PARTIAL}{path.suffix}")
  try:
    yield partial
    if _same(partial, path):
      partial.unlink()
      return
    sync(partial)
    partial.replace(path)
  except BaseException:
    with suppress(OSError):
      partial.unlink(missing_ok=True)
    raise
  sync(path.parent)


def _same(one: pathlib.Path, other: pathlib.Path) -> bool:
  try:
    if one.stat().st_size != other.stat().st_size:
      return False
    return one.read_bytes() == other.read_bytes()
  except OSError:
    return False


def sync(path: pathlib.Path) -> None:
  """Has the system write a file, or the names in a folder, to the disk now."""
  opened = os.open(path, os.O_RDONLY)
  try:
    os.fsync(opened)
  except OSError:
    # Some file systems know no fsync of folders.
    if not path.is_dir():
      raise
  finally:
    os.close(opened)


def sync_tree(folder: pathlib.Path) -> None:
  """`sync` of everything in a folder, and of the folder."""
  for path in folder.rglob("*"):
    sync(path)
  sync(folder)


def move_folder(source: pathlib.Path, target: pathlib.Path) -> None:
  """Gives a folder its name; what had the name before is removed."""
  if target.exists():
    shutil.rmtree(target)
  source.rename(target)
  sync(target.parent)
