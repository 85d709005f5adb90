"""Errors that end a command with one line: the user's to mend, or the machine's."""

import errno

_MACHINE = frozenset(
  getattr(errno, name)
  for name in (
    *("ENOSPC", "EDQUOT", "EROFS", "EFBIG", "EIO", "ENOMEM", "EMFILE", "ENFILE"),
    *("ENXIO", "ENODEV", "ESTALE", "ETIMEDOUT", "EBUSY", "EAGAIN"),
  )
  if hasattr(errno, name)
)


class UserError(ValueError):
  """The user's input is at fault; the command line prints it as one line and exits
  with `exit_code`. The message says the value, the rule and the choices."""

  exit_code = 2


class MachineError(UserError):
  """The machine is at fault, and the same command may do elsewhere or later: the disk
  is full, the folder read-only, the memory short."""

  exit_code = 1


def plain(error: BaseException, length: int = 100) -> str:
  """What an error says, on one line; its type where it says nothing."""
  text = getattr(error, "strerror", None) or str(error)
  return " ".join(str(text).split())[:length] or type(error).__name__


def of_system(error: OSError, what: str = "") -> UserError:
  """A system's error as one line: a `MachineError` where the machine is at fault.

  Args:
    error: its `filename` is named if `what` is "".
    what: what could not be done, with the path, e.g. "a.csv cannot be written".
  """
  kind = MachineError if error.errno in _MACHINE else UserError
  names = [str(name) for name in (error.filename, error.filename2) if name is not None]
  what = what or " and ".join(names) or "the system"
  return kind(f"{what}: {plain(error)}")
