"""Which code trained a run: the commit, and a hash of the system's source."""

import functools
import hashlib
import inspect
import pathlib
import subprocess
import sys
from typing import Any

from msa_jax import models


def source(system: str) -> dict[str, str]:
  """The code of a system.

  Args:
    system: its name.

  Returns:
    `commit`: of the checkout that the system's source lies in, with `+` where files
    beside it have changed since, "" outside of one; `system_sha256`: of the system's
    source files, "" where there are none.
  """
  files = _files(system)
  digest = hashlib.sha256()
  for file in files:
    digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
  return {
    "commit": _commit(files[0].parent) if files else "",
    "system_sha256": digest.hexdigest() if files else "",
  }


def _files(system: str) -> list[pathlib.Path]:
  """The file that defines the system's network, with those beside it where they are a
  package of its own."""
  made: Any = models.get(system).build
  if isinstance(made, functools.partial):  # `system_of` builds a network's class
    made = made.args[0] if made.args else made.func
  file = _file_of(made)
  if file is None or not file.is_file():
    return []
  package = file.parent
  alone = pathlib.Path(models.__file__).parent
  if alone in package.parents:
    return sorted(package.glob("*.py"))
  return [file]


def _file_of(made: Any) -> pathlib.Path | None:
  """Where a function or class stands; None = made in an interactive session."""
  file = getattr(sys.modules.get(made.__module__), "__file__", None)
  if file:
    return pathlib.Path(file)
  # Of a config file, which is run and not imported.
  function = made.__call__ if isinstance(made, type) else made
  try:
    return pathlib.Path(inspect.getfile(inspect.unwrap(function)))
  except (TypeError, OSError):
    return None


@functools.cache
def _commit(folder: pathlib.Path) -> str:
  git = ["git", "-C", str(folder)]
  try:
    head = _output([*git, "rev-parse", "HEAD"])
    return head + ("+" if _output([*git, "status", "--porcelain", "-uno", "."]) else "")
  except (OSError, subprocess.SubprocessError):
    return ""


def _output(command: list[str]) -> str:
  done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
  return done.stdout.strip()
