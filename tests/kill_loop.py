"""Kills a training again and again, at random moments, until it has ended; its end must
be that of one that was not killed, bit for bit.

  python tests/kill_loop.py 100          # kills; some four seconds each

Not part of the suite, which runs a short form (tests/runs/test_kill.py).
"""

import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

TESTS = pathlib.Path(__file__).resolve().parent

# Trains the toy system; saves after every call of a few steps.
_RUN = """
import sys
import toy
from changes import change
from msa_jax import models
from msa_jax.devices import compilation
from msa_jax.runs import run
models.SYSTEMS["toy"] = toy.SYSTEM
compilation.configure_process()
config = change(
  toy.config(epochs=int(sys.argv[2])),
  train={"steps_per_call": 2, "checkpoint_every_seconds": 0.05},
)
print("started", flush=True)
done = run.train(config, sys.argv[1], toy.corpus())
print(done["parameter_hash"][0], flush=True)
"""


def command(workdir, epochs):
  """A training as a process; says `started` and, at its end, the parameters' hash."""
  places = [str(TESTS / "support"), str(TESTS.parent)]
  return subprocess.Popen(
    [sys.executable, "-c", _RUN, str(workdir), str(epochs)],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
  )


def finished(workdir, epochs):
  """Trains to the end; (hash of the parameters, seconds after `started`)."""
  with command(workdir, epochs) as process:
    process.stdout.readline()
    began = time.monotonic()
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return said.strip(), time.monotonic() - began


def killed(workdir, epochs, seconds):
  """Kills a training so long after its start; whether it was still running."""
  with command(workdir, epochs) as process:
    process.stdout.readline()
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    return process.returncode == -signal.SIGKILL


def kill_loop(folder, kills, epochs=40, seed=0):
  """Kills trainings `kills` times in all; (kills, runs) whose ends were the same.

  Args:
    folder: empty.
    kills: how many; a run that has ended is followed by a new one.
    epochs: of each run.
    seed: of the moments.
  """
  draw = random.Random(seed)
  expected, seconds = finished(folder / "straight", epochs)
  done, runs, on_this = 0, 0, 0
  while done < kills:
    workdir = folder / f"run_{runs}"
    if on_this < 5 and killed(workdir, epochs, draw.uniform(0, seconds)):
      done, on_this = done + 1, on_this + 1
      if done < kills:
        continue
    found, _ = finished(workdir, epochs)
    assert found == expected, f"{workdir} ends otherwise after {on_this} kills"
    runs, on_this = runs + 1, 0
    print(f"{done} kills, {runs} runs, all ends the same", flush=True)
  return done, runs


if __name__ == "__main__":
  with tempfile.TemporaryDirectory() as temporary:
    kill_loop(pathlib.Path(temporary), int(sys.argv[1]) if sys.argv[1:] else 100)
