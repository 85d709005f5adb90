"""How a run is asked to stop: SIGTERM, or Ctrl-C once; a second Ctrl-C ends it at once.

While there is nothing to lose (data are prepared, a program compiles, everything is
saved) a request ends the run; while a training holds steps that are not saved, it is a
flag that the loop reads between two calls of its program.

This file knows nothing of JAX: a command listens before it imports it.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: the same command, run again, goes on
SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SAME_SECONDS = 0.3  # launchers forward what the terminal has sent already
_LAST_SECONDS = 6.0
_SHOW_CURSOR = "\x1b[?25h"


class Interrupted(Exception):
  """Stopped on request, with everything saved; the message says how to go on."""


class StopRequest:
  """Whether a run has been asked to stop, and what becomes of the request.

  Attributes:
    ends_process: a command's: what needs no answer from the loop ends the process
      (exit code `EXIT_CODE`), whatever its main thread is doing.
    before_end: called before that; gets a few seconds.
  """

  def __init__(self, ends_process: bool = False):
    self.ends_process = ends_process
    self.before_end: Callable[[], None] = lambda: None
    self._came = threading.Event()
    self._first = 0.0
    self._held = False
    self._lock = threading.RLock()

  def requested(self) -> bool:
    """Whether a signal, or another process of the job, has asked."""
    return self._came.is_set()

  def hold(self, held: bool) -> None:
    """Says whether the loop has something to save, and will look for a request."""
    with self._lock:
      self._held = held
      if self._came.is_set() and not held and self.ends_process:
        self.end()

  def ask(self) -> None:
    """Asks to stop; what a first signal does."""
    with self._lock:
      if self._came.is_set():
        return
      self._first = time.monotonic()
      self._came.set()
      if not self._held and self.ends_process:
        self.end()

  def again(self, number: int) -> bool:
    """Whether a signal is a second Ctrl-C, and no copy of the first."""
    later = time.monotonic() - self._first > _SAME_SECONDS
    return self._came.is_set() and later and number == signal.SIGINT

  def end(self, what: str = "stopped") -> None:
    """Ends the process; what has been saved stays."""
    shown = _SHOW_CURSOR if sys.stderr.isatty() else ""
    line = f"{shown}{what}; the same command goes on from what is saved.\n"
    os.write(2, line.encode())
    last = threading.Thread(target=self.before_end, daemon=True)
    last.start()
    last.join(_LAST_SECONDS)
    os._exit(EXIT_CODE)

  def handle(self, number: int, frame: FrameType | None) -> None:
    """Handles a signal in the main thread, between two steps of Python."""
    del frame
    if self.ends_process:
      return  # `_watch` has seen it
    again, held = self.again(number), self._held
    self.ask()
    if again or not held:
      raise KeyboardInterrupt

  def watch(self, pipe: int) -> None:
    """Handles signals in a thread, also while the main thread is in a compiler.

    Args:
      pipe: gets a byte for each signal; ends the thread when it is closed.
    """
    while numbers := os.read(pipe, 64):
      for number in numbers:
        if number in SIGNALS and self.again(number):
          self.end("ended by a second Ctrl-C")
        elif number in SIGNALS:
          self.ask()
    os.close(pipe)


@contextmanager
def listening(ends_process: bool = False) -> Iterator[StopRequest]:
  """Turns SIGTERM and SIGINT into a request during a block.

  Inside another such block it yields that one's request; in a thread other than the
  main one, which gets no signals, one that never comes.

  Args:
    ends_process: see `StopRequest`.
  """
  current = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
  if isinstance(current, StopRequest):
    yield current
    return
  request = StopRequest(ends_process)
  if threading.current_thread() is not threading.main_thread():
    yield request
    return
  previous = {number: signal.signal(number, request.handle) for number in SIGNALS}
  try:
    if ends_process:
      with _watched(request):
        yield request
    else:
      yield request
  finally:
    for number, handler in previous.items():
      # None = not set from Python.
      signal.signal(number, handler or signal.SIG_DFL)


@contextmanager
def _watched(request: StopRequest) -> Iterator[None]:
  pipe, end = os.pipe()
  os.set_blocking(end, False)
  before = signal.set_wakeup_fd(end, warn_on_full_buffer=False)
  threading.Thread(target=request.watch, args=(pipe,), daemon=True).start()
  try:
    yield
  finally:
    signal.set_wakeup_fd(before)
    os.close(end)


class Pace:
  """How many steps one call of the compiled program takes, by what steps take.

  A call is to take `_SECONDS`, so that a request is seen in time. The numbers of a
  training do not depend on where its calls end.

  Attributes:
    most: steps of a call.
    steps: of the next one.
  """

  _SECONDS = 1.0
  _GROWTH = 8  # a single measurement is not trusted further than that

  def __init__(self, most: int):
    self.most = most
    self.steps = 1
    self._cold = True

  def restart(self) -> None:
    """The next call compiles its program."""
    self.steps, self._cold = 1, True

  def measured(self, steps: int, seconds: float) -> None:
    """Learns from a call; not from one that compiled."""
    if self._cold:
      self._cold = False
      return
    wanted = int(self._SECONDS * steps / max(seconds, 1e-9))
    self.steps = max(1, min(wanted, self._GROWTH * steps, self.most))
