"""Files of users: which may be read, and whatever goes wrong as one line."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msa_jax.errors import UserError, of_system, plain


def regular(path: str | os.PathLike) -> Path:
  """The absolute path of a regular file; `~` is the home folder.

  Raises:
    UserError: there is none, or it is a folder, a device, a pipe or a socket, which
      may have no end.
  """
  try:
    absolute = Path(path).expanduser().absolute()
    mode = absolute.stat().st_mode
  except (FileNotFoundError, NotADirectoryError):
    raise UserError(f"no such file: {absolute}") from None
  except OSError as error:
    raise of_system(error, f"{_short(path)} cannot be read") from None
  except (ValueError, RuntimeError) as error:  # a null byte; no home folder
    raise UserError(f"{_short(path)} is no path: {plain(error)}") from None
  if stat.S_ISDIR(mode):
    raise UserError(f"{absolute} is a folder, not a data file")
  if not stat.S_ISREG(mode):
    raise UserError(f"{absolute} is no regular file, but a device, pipe or socket")
  return absolute


def _short(path: str | os.PathLike) -> str:
  text = str(path).encode("unicode_escape").decode("ascii")
  return text if len(text) < 200 else f"{text[:100]}..."


@contextmanager
def reading(path: str | os.PathLike, what: str) -> Iterator[None]:
  """Whatever is raised while a file is read, as one line that names it.

  A damaged file can fail anywhere in the libraries that read it (`zlib.error`,
  `RecursionError`, `OverflowError`, ...).

  Args:
    path: of the file.
    what: what it should be, e.g. "pickle".

  Raises:
    UserError: always in place of another error; `MachineError` where the machine is at
      fault.
  """
  try:
    yield
  except UserError as error:
    if str(path) in str(error):
      raise
    raise type(error)(f"{path}: {error}") from None
  except MemoryError:
    raise UserError(f"{path}: needs more memory than there is") from None
  except OSError as error:
    if error.errno is None:  # NumPy's and others', of what they read
      raise UserError(f"{path}: not a readable {what} ({plain(error)})") from None
    raise of_system(error, f"{path} cannot be read") from None
  except Exception as error:
    name = type(error).__name__
    reason = plain(error)
    reason = reason if reason == name else f"{name}: {reason}"
    raise UserError(f"{path}: not a readable {what} ({reason})") from error
