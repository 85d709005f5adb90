"""A folder that one process at a time may write."""

import os
import pathlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from absl import logging

from msa_jax.errors import UserError

try:
  import fcntl
except ImportError:  # no such locks on this system
  fcntl = None

NAME = ".lock"


@contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
  """Holds a folder for this process; the system lets go of it where the process dies.

  File systems without such locks are taken as they are, with a line in the log.

  Args:
    folder: there already; gets a file `NAME` that says who holds it.

  Raises:
    UserError: another process holds it.
  """
  if fcntl is None:
    yield
    return
  with (folder / NAME).open("a+") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      file.seek(0)
      holder = " ".join(file.read(200).split()) or "another process"
      raise UserError(
        f"--workdir={folder} is in use by {holder}, which trains there: wait for it,"
        " stop it, or choose another folder."
      ) from error
    except OSError as error:
      logging.info("%s cannot be locked: %s", folder, error.strerror)
    else:
      file.truncate(0)
      file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
      file.flush()
    yield
