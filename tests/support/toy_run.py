"""A config file for tests that start the real command: `toy` with statistics, routing
and experts. `TOY_SIGNAL=TERM@3` sends the process that signal after three calls of the
step program. `TOY_LOST=6` takes a process for lost after that many seconds."""

import os
import signal
import sys
import time

import toy

from msa_jax import config as config_lib
from msa_jax import models
from msa_jax.data.batching import batches
from msa_jax.devices import neighbours
from msa_jax.devices.stopping import StopRequest
from msa_jax.models.system import System
from msa_jax.runs import prepare


def get_config(feed="resident"):
  """`feed`: "streamed" = no split fits the device."""
  models.SYSTEMS["toy"] = System(build=lambda options, spec: toy.MixedModel())
  prepare.load = lambda config, **_: toy.corpus()
  if "TOY_SIGNAL" in os.environ:
    name, calls = os.environ["TOY_SIGNAL"].split("@")
    StopRequest.requested = _interrupted(StopRequest.requested, name, int(calls))
  neighbours.LOST_SECONDS = float(os.environ.get("TOY_LOST", neighbours.LOST_SECONDS))
  if feed == "streamed":
    batches._rows = _told(batches._rows)
  made = config_lib.base({"name": "toy"})
  made.loss.size = 0.01
  made.optim.update({"learning_rate": 0.05, "epochs": 3, "batch_size": 8})
  made.train.update({"eval_batch_size": 8, "steps_per_call": 2})
  made.train.checkpoint_every_seconds = 1e-6
  made.data.device_budget_mib = 0 if feed == "streamed" else 64
  made.sharding.data = 4
  return config_lib.finish(made)


def _told(rows):
  """`batches._rows`, which says how many rows it reads."""

  def replaced(split, index):
    sys.stderr.write(f"rows {len(index)}\n")
    return rows(split, index)

  return replaced


def _interrupted(requested, name, calls):
  """`StopRequest.requested`, with a signal that comes by itself when the loop asks."""
  left = iter(range(calls - 1))

  def replaced(self):
    if sys._getframe(1).f_code.co_name == "_agreed" and next(left, None) is None:
      os.kill(os.getpid(), signal.Signals[f"SIG{name}"])
      time.sleep(0.2)  # a thread hears of it
    return requested(self)

  return replaced
