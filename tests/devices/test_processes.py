"""Two processes of two devices each train what one process of four does."""

import csv
import os
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import toy_run
from jax.experimental import multihost_utils
from paths import ROOT, SUPPORT

from msa_jax import models
from msa_jax.data.batching import batches
from msa_jax.devices import processes, sharding
from msa_jax.errors import UserError
from msa_jax.runs import prepare, run
from msa_jax.training.run_directory import RunDirectory

pytestmark = pytest.mark.slow


SECONDS = 120  # for a job that takes ten: a hang fails instead of lasting


def _free_port():
  with socket.socket() as found:
    found.bind(("localhost", 0))
    return found.getsockname()[1]


def _job(workdir, cache, feed="resident", signals=(None, None), **environment):
  """Runs the command in two processes; (exit code, stdout, stderr) of each."""
  known = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(SUPPORT), str(ROOT)]),
    "JAX_NUM_CPU_DEVICES": "2",
    "JAX_COMPILATION_CACHE_DIR": str(cache),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  port, jobs = _free_port(), []
  for index, name in enumerate(signals):
    command = [sys.executable, "-m", "msa_jax.main", f"--workdir={workdir}"]
    command += [f"--config={SUPPORT / 'toy_run.py'}:{feed}", "--process_count=2"]
    command += [f"--process_index={index}", f"--coordinator=localhost:{port}"]
    own = {**known, **environment} | ({"TOY_SIGNAL": name} if name else {})
    jobs.append(
      subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=own,
      )
    )
  try:
    # A frozen one is thawed by nobody: it is read once the others have ended.
    order = sorted(
      range(len(jobs)), key=lambda index: str(signals[index])[:4] == "STOP"
    )
    said = {}
    for index in order:
      if index != order[0] and "STOP" in str(signals[index]):
        jobs[index].kill()
      said[index] = jobs[index].communicate(timeout=SECONDS)
    said = [said[index] for index in range(len(jobs))]
  finally:
    for job in jobs:
      job.kill()
  return [(job.returncode, *each) for job, each in zip(jobs, said, strict=True)]


def _results(workdir):
  """Losses by epoch, test predictions, parameters."""
  directory = RunDirectory(workdir)
  toy_run.get_config()
  (chosen,) = run.restore(directory, directory.experiment())
  losses = [record["train"]["loss"] for record in directory.metrics()]
  with (workdir / "predictions" / "test.csv").open() as file:
    test = [float(row["sentiment"]) for row in csv.DictReader(file)]
  return losses, test, jax.device_get(chosen)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
  """What one process of four devices ends with."""
  workdir = tmp_path_factory.mktemp("single") / "run"
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(prepare, "load", prepare.load)
    patch.setattr(batches, "_rows", batches._rows)
    patch.setitem(models.SYSTEMS, "toy", None)
    run.train(toy_run.get_config("streamed"), workdir)
    yield _results(workdir)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp("cache")


def _check(workdir, single):
  jax.tree.map(
    lambda ours, one: np.testing.assert_allclose(ours, one, rtol=1e-5, atol=1e-5),
    _results(workdir),
    single,
  )


def test_two_processes_end_as_one_and_the_first_alone_writes(tmp_path, single, cache):
  workdir = tmp_path / "run"
  first, second = _job(workdir, cache)
  assert (first[0], second[0]) == (0, 0), first[2] + second[2]
  _check(workdir, single)
  assert f"run directory: {workdir}" in first[1] and "mae" in first[1]
  assert "mae" not in second[1] and "error" not in second[2]
  environment = RunDirectory(workdir).read_json("environment.json")
  assert (environment["processes"], len(environment["devices"])) == (2, 4)
  assert "--process_index=0" in environment["command"]


def test_a_job_that_is_stopped_and_killed_ends_as_one_that_was_not(
  tmp_path, single, cache
):
  workdir = tmp_path / "run"
  stopped = _job(workdir, cache, "streamed", (None, "TERM@3"))
  assert [code for code, *_ in stopped] == [75, 75], stopped
  said = [errors.count("stopped after step 4 of 15") for _, _, errors in stopped]
  assert said == [1, 0]
  started = time.monotonic()
  killed = _job(workdir, cache, "streamed", (None, "KILL@3"))
  # The other one does not wait for the dead: it would, for a minute, at its end.
  assert time.monotonic() - started < 55
  assert killed[1][0] == -signal.SIGKILL and killed[0][0] not in (0, 2)
  assert len(RunDirectory(workdir).metrics()) < 3
  _is_one_line(killed[0], "process 1 of 2 is lost")
  names = [each.name for each in RunDirectory(workdir).last(0).iterdir()]
  saved = [int(name) for name in names if name.isdecimal()]
  assert 4 <= max(saved) < 15
  resumed = _job(workdir, cache, "streamed")
  assert [code for code, *_ in resumed] == [0, 0], resumed
  for _, _, errors in resumed:  # of batches of eight, each reads its half
    assert set(re.findall(r"rows (\d+)", errors)) == {"4"}
  _check(workdir, single)


def _is_one_line(process, message):
  code, _, errors = process
  assert code == 1, errors
  lines = [line for line in errors.splitlines() if not line.startswith("rows ")]
  assert len(lines) == 1 and lines[0].startswith(f"error: {message}"), errors


def test_a_frozen_process_is_named_by_the_others(tmp_path, cache):
  first, _ = _job(tmp_path / "run", cache, signals=(None, "STOP@3"), TOY_LOST="6")
  _is_one_line(first, "process 1 of 2 is lost: nothing was heard of it for")


def test_the_coordinator_is_named_where_it_is_killed(tmp_path, cache):
  _, second = _job(tmp_path / "run", cache, signals=("KILL@3", None))
  code, _, errors = second
  assert code not in (0, 2, 75)
  assert errors.count("\n") == 1 and "process 0 of 2, the coordinator, is" in errors


def test_the_values_of_a_job_are_checked():
  for arguments, message in (
    (("", 2, 0), "process_count=2 --process_index=0 need --coordinator=host:port"),
    (("auto", 2, 0), "need --coordinator=host:port"),
    (("here", 2, 0), "--coordinator=here must be host:port or auto"),
    (("here:1", 2, 2), "index from 0 to count - 1"),
    (("here:1", 0, -1), "count must be positive"),
  ):
    with pytest.raises(UserError, match=message):
      processes.join(*arguments)
  assert processes.join("", 0, -1) is None and jax.process_count() == 1


def test_a_cluster_that_jax_does_not_know_is_one_line(monkeypatch):
  def initialize(**options):
    raise ValueError("coordinator_address should be defined.")

  monkeypatch.setattr(jax.distributed, "initialize", initialize)
  with pytest.raises(UserError, match="auto: JAX finds no cluster here .coordinator"):
    processes.join("auto", 0, -1)


@pytest.fixture
def two(monkeypatch):
  """Plays the first of two processes; gives what the second one says."""
  other = []

  def gather(value, tiled=False):
    return np.stack([value, other.pop(0)])

  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(multihost_utils, "process_allgather", gather)
  return other


def test_processes_agree(two):
  two += [np.asarray([False, True])]
  assert processes.any_of(False, False) == (False, True)
  two += [np.zeros(32, np.uint8)]
  with pytest.raises(UserError, match="processes of this job differ: the rule"):
    processes.check_same("the rule", {"a": 1})
  two += [np.asarray([True])]
  message = "another process of this job failed"
  with pytest.raises(UserError, match=message), processes.all_or_none():
    pass
  two += [np.asarray([True])]
  with pytest.raises(KeyError), processes.all_or_none():
    raise KeyError("its own")
  assert not two


def test_a_folder_that_is_not_shared_is_noticed(tmp_path):
  (tmp_path / "there").touch()
  processes.await_shared(tmp_path / "there", 0.0)
  with pytest.raises(UserError, match="must be a folder that all processes share"):
    processes.await_shared(tmp_path / "missing", 0.0)


def test_every_process_of_a_job_must_have_a_part(monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  message = "uses 1 of the 4 devices of 2 processes.*sharding.data=4"
  with pytest.raises(UserError, match=message):
    sharding.check_processes(None)
