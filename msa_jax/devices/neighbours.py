"""Who of a job of several processes is still there.

A process that is killed, or whose machine hangs, leaves the others in the middle of a
program that waits for it: for ever, or until JAX's own watch ends them after a hundred
seconds with a page of C++. Here every process says every two seconds that it lives, in
the key-value store that JAX's coordinator (process 0) keeps for the job, and looks
whether the others do. The store also carries a request to stop from one to all.
"""

import os
import subprocess
import sys
import threading
import time
from typing import Any

from jax._src import distributed  # has the job's key-value store; no public name has

BEAT_SECONDS = 2.0
LOST_SECONDS = 30.0  # of silence; less than the minute within which a job is to end
_SILENT_SECONDS = 7.0  # of silence that explain a program that has failed
_PREFIX = "msa_jax"
_STOP = "stopping"
_PARTING_SECONDS = 4.0


class Neighbours:
  """Says that this process lives, and ends it with one line where another does not.

  Attributes:
    index, count: of this process, and of all.
    request: is asked to stop where another process has been.
    client: of the job's key-value store.
  """

  def __init__(self, index: int, count: int, request: Any, client: Any):
    self.index, self.count = index, count
    self.request, self.client = request, client
    now = time.monotonic()
    self._beats: dict[int, str] = {}
    self._heard = {other: now for other in range(count) if other != index}
    self._asked: float | None = None  # when the call under way began
    self._parted: dict[int, str] = {}
    self._stopped = 0.0  # when another one ended on request without waiting

  def start(self) -> None:
    """Starts to watch, in threads that end with the process."""
    for target in (self._speak, self._judge):
      threading.Thread(target=target, daemon=True).start()

  def _speak(self) -> None:
    beat = 0
    while True:
      beat += 1
      # A store that hangs keeps this thread: the other one sees since when.
      self._asked = self._asked or time.monotonic()
      try:
        self._exchange(beat)
      except Exception:  # noqa: BLE001 - no answer is what the other thread judges
        time.sleep(BEAT_SECONDS)
        continue
      self._asked = None
      time.sleep(BEAT_SECONDS)

  def _exchange(self, beat: int) -> None:
    self._set("alive", str(beat))
    if self.request.requested():
      self._set("asked", _STOP)
    found = self.client.key_value_dir_get(f"{_PREFIX}/")
    for key, value in found:
      _, kind, number = key.rsplit("/", 2)
      other = int(number)
      if other == self.index:
        continue
      if kind == "alive" and self._beats.get(other) != value:
        self._beats[other], self._heard[other] = value, time.monotonic()
      elif kind == "parted":
        self._parted[other] = value
        if value == _STOP:
          self._stopped = self._stopped or time.monotonic()
      elif kind == "asked":
        self.request.ask()

  def _set(self, kind: str, value: str) -> None:
    key = f"{_PREFIX}/{kind}/{self.index}"
    self.client.key_value_set(key, value, allow_overwrite=True)

  def _judge(self) -> None:
    looked = time.monotonic()
    while True:
      time.sleep(BEAT_SECONDS / 2)
      now = time.monotonic()
      if now - looked > _SILENT_SECONDS:  # it was this process that stood still
        self._heard = dict.fromkeys(self._heard, now)
        self._asked = None
      looked = now
      reason = self.lost(LOST_SECONDS)
      if reason:
        leave(reason)
      if self._stopped and now - self._stopped > _SILENT_SECONDS:
        self.request.end()

  def lost(self, seconds: float) -> str:
    """What to say of another process that has failed or was silent for that long; ""
    if there is none."""
    now = time.monotonic()
    for other, why in self._parted.items():
      if why != _STOP:
        return f"process {other} of {self.count} has failed; its message says why"
    if self._asked is not None and now - self._asked > seconds and self.index:
      return self._silent(0, now - self._asked)
    for other, heard in sorted(self._heard.items()):
      if now - heard > seconds and other not in self._parted:
        return self._silent(other, now - heard)
    return ""

  def _silent(self, other: int, seconds: float) -> str:
    return (
      f"process {other} of {self.count} is lost: nothing was heard of it for"
      f" {seconds:.0f} s"
    )

  def explain(self) -> str:
    """Why a program that runs on all processes has failed in this one: as `lost`,
    after as long as it takes to know."""
    until = time.monotonic() + _SILENT_SECONDS + 2 * BEAT_SECONDS
    while time.monotonic() < until:
      reason = self.lost(_SILENT_SECONDS)
      if reason or self._parted:
        return reason
      time.sleep(BEAT_SECONDS / 4)
    return ""

  def part(self, failed: bool = True) -> None:
    """Says that this process ends. The coordinator stays until the others have read it:
    JAX ends them hard where they miss it."""
    try:
      self._set("parted", "failed" if failed else _STOP)
      if not failed:
        self._set("asked", _STOP)
    except Exception:  # noqa: BLE001 - there is nobody left to tell
      return
    if self.index == 0:
      time.sleep(_PARTING_SECONDS)


def leave(reason: str) -> None:
  """Ends this process with one line that names the process at fault: exit code 1,
  whatever its main thread waits for."""
  os.write(2, _line(reason).encode())
  os._exit(1)


def _line(reason: str) -> str:
  after = "This one ends too; the same command goes on from what is saved."
  return f"error: {reason}. {after}\n"


# A line of it is enough; the rest is the same story in C++.
_FILTER = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGTERM):
  signal.signal(number, signal.SIG_IGN)
fatal = False
for line in sys.stdin.buffer:
  if line[:1] == b"F" and b"JAX distributed service detected fatal errors" in line:
    os.write(2, sys.argv[1].encode())
    fatal = True
  if not fatal and b"coordination_service_agent.cc" not in line:
    os.write(2, line)
"""


def _shorten(line: str) -> None:
  """Has one line said where JAX aborts this process because the coordinator is gone.

  JAX does so in a thread of its own, with a page of C++, before anything in Python can
  know. So what the process writes to descriptor 2 goes through another one, which
  outlives it.
  """
  real = os.dup(2)
  command = [sys.executable, "-I", "-S", "-c", _FILTER, line]
  child = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=real)
  assert child.stdin is not None
  os.dup2(child.stdin.fileno(), 2)
  child.stdin.close()
  child.returncode = 0  # it ends with this process: nobody has to wait for it
  sys.stderr = os.fdopen(real, "w", buffering=1)  # bars are still drawn on a terminal


def watch(request: Any) -> Neighbours:
  """Watches the other processes of the job that this one has joined."""
  state = distributed.global_state
  made = Neighbours(state.process_id, state.num_processes, request, state.client)
  request.before_end = lambda: made.part(failed=False)
  if made.index:
    _shorten(_line(f"process 0 of {made.count}, the coordinator, is lost"))
  made.start()
  return made
