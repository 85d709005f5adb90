"""One process at a time holds a folder."""

import errno
import signal
import subprocess
import sys

import pytest
from paths import ROOT

from msa_jax.errors import UserError
from msa_jax.safe_io import locking

_HOLD = """
import pathlib, sys
from msa_jax.safe_io import locking
with locking.locked(pathlib.Path(sys.argv[1])):
  print("held", flush=True)
  sys.stdin.read()
"""


def test_a_folder_is_held_until_its_process_dies(tmp_path):
  command = [sys.executable, "-c", _HOLD, str(tmp_path)]
  pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
  with subprocess.Popen(command, cwd=ROOT, **pipes) as holder:
    assert holder.stdout.readline() == "held\n"
    message = f"{tmp_path} is in use by process {holder.pid} on .*another folder"
    with pytest.raises(UserError, match=message), locking.locked(tmp_path):
      pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
  with locking.locked(tmp_path):
    message = "is in use by process"
    with pytest.raises(UserError, match=message), locking.locked(tmp_path):
      pass
  with locking.locked(tmp_path):
    pass


def test_a_file_system_without_locks_is_taken_as_it_is(tmp_path, monkeypatch):
  def refuse(file, how):
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr(locking.fcntl, "flock", refuse)
  with locking.locked(tmp_path), locking.locked(tmp_path):
    pass
  monkeypatch.setattr(locking, "fcntl", None)
  with locking.locked(tmp_path), locking.locked(tmp_path):
    pass
