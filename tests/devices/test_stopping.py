"""A request to stop: in preparation, in a compiler, in training; once or twice."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import toy
from paths import ROOT, SUPPORT

from msa_jax import models
from msa_jax.devices import stopping
from msa_jax.devices.stopping import Pace, StopRequest, listening
from msa_jax.runs import prepare, run

# A run of the real command whose marked place says where it is and lasts a minute.
_SLOW = """
import ctypes, os, signal, time
import toy
from msa_jax import config as config_lib, models
from msa_jax.models.system import System
from msa_jax.runs import prepare
from msa_jax.training.feed import Steps

def here(place):
  if os.environ["SLOW"] == place:
    print(place, flush=True)
    return True
  return False

def load(config, **_):
  if here("prepare"):
    time.sleep(60)
  return toy.corpus()

def compiler():
  # What it is to Python: one call that holds no lock and that no signal interrupts.
  signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
  ctypes.CDLL(None).poll(None, ctypes.c_ulong(0), 60_000)

steps, calls = Steps.__call__, iter(range(10**6))

def advance(self, *arguments):
  call = next(calls)
  if call == 0 and here("compile"):
    compiler()
  done = steps(self, *arguments)
  if call == 3 and here("train"):
    time.sleep(3)
  if call == 3 and here("stuck"):
    compiler()
  return done

prepare.load = load
Steps.__call__ = advance

def get_config():
  models.SYSTEMS["toy"] = System(build=lambda options, spec: toy.MixedModel())
  made = config_lib.base({"name": "toy"})
  made.loss.size = 0.01
  made.optim.update({"learning_rate": 0.05, "epochs": 3, "batch_size": 8})
  return config_lib.finish(made)
"""


def _start(tmp_path, place):
  (tmp_path / "slow.py").write_text(textwrap.dedent(_SLOW))
  environment = {
    **os.environ,
    "SLOW": place,
    "PYTHONPATH": os.pathsep.join([str(SUPPORT), str(ROOT)]),
  }
  command = [sys.executable, "-m", "msa_jax.main", f"--workdir={tmp_path / 'run'}"]
  command.append(f"--config={tmp_path / 'slow.py'}")
  return subprocess.Popen(
    command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
  )


def _stopped(tmp_path, place, *signals):
  """Starts, sends signals once the place is reached; (exit code, seconds, stderr)."""
  with _start(tmp_path, place) as process:
    try:
      assert process.stdout.readline().strip() == place, process.stderr.read()
      began = time.monotonic()
      for number in signals:
        process.send_signal(number)
        time.sleep(0.5)
      _, errors = process.communicate(timeout=50)
      return process.returncode, time.monotonic() - began, errors
    finally:
      process.kill()


@pytest.mark.parametrize(
  ("place", "number"), [("prepare", signal.SIGINT), ("compile", signal.SIGTERM)]
)
def test_where_there_is_nothing_to_save_it_ends_at_once(tmp_path, place, number):
  code, seconds, errors = _stopped(tmp_path, place, number)
  assert code == stopping.EXIT_CODE == 75, errors
  assert seconds < 5
  *progress, last = errors.splitlines()
  assert last == "stopped; the same command goes on from what is saved."
  assert not progress or progress == ["seed 0: step 0 of 15, compiling"]


def test_a_training_saves_before_it_stops_and_goes_on_from_there(tmp_path):
  code, _, errors = _stopped(tmp_path, "train", signal.SIGTERM, signal.SIGTERM)
  assert code == 75, errors
  *progress, last = errors.splitlines()
  assert last.startswith("stopped after step ")
  assert all(line.startswith("seed 0: ") for line in progress)
  assert list((tmp_path / "run/checkpoints/seed_0/last").iterdir())


def test_a_second_ctrl_c_ends_a_training_that_does_not_answer(tmp_path):
  code, seconds, errors = _stopped(tmp_path, "stuck", signal.SIGINT, signal.SIGINT)
  assert code == 75, errors
  assert seconds < 5
  assert errors.splitlines()[-1].startswith("ended by a second Ctrl-C; ")


def test_a_copy_of_the_first_signal_is_no_second_one(monkeypatch):
  request = StopRequest()
  request.hold(True)
  request.handle(signal.SIGINT, None)
  request.handle(signal.SIGINT, None)  # at once: forwarded by a launcher
  monkeypatch.setattr(stopping, "_SAME_SECONDS", 0.0)
  request.handle(signal.SIGTERM, None)  # schedulers repeat it
  assert request.requested()
  with pytest.raises(KeyboardInterrupt):
    request.handle(signal.SIGINT, None)


def test_from_python_a_request_is_an_exception_and_handlers_come_back(
  tmp_path, monkeypatch
):
  monkeypatch.setitem(models.SYSTEMS, "toy", toy.SYSTEM)
  before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

  def interrupted(*_):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)

  monkeypatch.setattr(prepare, "prepare", interrupted)
  began = time.monotonic()
  with pytest.raises(stopping.Interrupted, match="the same call goes on"):
    run.train(toy.config(), tmp_path / "run", toy.corpus())
  assert time.monotonic() - began < 4
  assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


def test_one_request_serves_what_runs_inside_and_threads_get_none():
  with listening() as outer:
    with listening() as inner:
      assert inner is outer
    found = []

    def other():
      with listening() as request:
        found.append(request)

    # A thread inside a listening command is stopped with it.
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert found == [outer]
  thread = threading.Thread(target=other)
  thread.start()
  thread.join()
  assert found[1] is not outer and not found[1].requested()


def test_steps_of_a_call_follow_what_steps_take():
  pace, taken = Pace(100), []
  for seconds in (9.0, 0.01, 0.01, 0.01, 0.01):  # the first compiles
    taken.append(pace.steps)
    pace.measured(pace.steps, seconds * (1 if pace.steps == 1 else pace.steps))
  assert taken == [1, 1, 8, 64, 100]
  pace.measured(100, 20.0)  # a fifth of a second a step: five in the second asked for
  assert pace.steps == 5
  pace.measured(5, 50.0)
  assert pace.steps == 1
  pace.restart()
  pace.measured(1, 1e-3)
  assert pace.steps == 1
  pace.measured(1, 1e-3)
  assert pace.steps == 8
