"""Several processes that train as one, usually one per host: joining and agreeing.

All of them run the same program on the same input, and so come to the same decisions.
What may differ between them (signals, clocks, files) is agreed upon here. Only the
first one writes files and speaks.
"""

import hashlib
import json
import os
import pathlib
import re
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from msa_jax.devices import neighbours
from msa_jax.devices.stopping import StopRequest
from msa_jax.errors import UserError

# A process that ends waits this long for the others before it leaves them.
_GOODBYE_SECONDS = 60


_watched: list[neighbours.Neighbours] = []  # of the job that was joined, if any


def join(
  coordinator: str, count: int, index: int, stop: StopRequest | None = None
) -> None:
  """Joins the processes of a job; must come before JAX is used.

  From then on a process that is lost ends the others (`neighbours`).

  Args:
    coordinator: "host:port" of process 0, "auto" to ask the cluster (TPU slices, GKE,
      Slurm, Open MPI: whatever `jax.distributed.initialize` knows), "" = no others.
    count: of processes; 0 with "auto".
    index: of this one, from 0; -1 with "auto".
    stop: is asked where another process has been.

  Raises:
    UserError: values that do not go together, or a cluster that JAX does not know.
  """
  given = f"--process_count={count} --process_index={index}"
  if coordinator in ("", "auto"):
    if (count, index) != (0, -1):
      raise UserError(f"{given} need --coordinator=host:port of process 0.")
    if not coordinator:
      return
    where: dict[str, Any] = {}
  else:
    if not re.fullmatch(r"\S+:[0-9]+", coordinator):
      raise UserError(f"--coordinator={coordinator} must be host:port or auto.")
    if not 0 <= index < count:
      raise UserError(
        f"{given}: with --coordinator=host:port, the count must be positive and the"
        " index from 0 to count - 1."
      )
    where = {
      "coordinator_address": coordinator,
      "num_processes": count,
      "process_id": index,
      "cluster_detection_method": "deactivate",
    }
  # JAX's own handler of SIGTERM would take the place of ours.
  jax.config.update("jax_enable_preemption_service", False)
  try:
    jax.distributed.initialize(**where, shutdown_timeout_seconds=_GOODBYE_SECONDS)
  except ValueError as error:
    raise UserError(
      f"--coordinator={coordinator}: JAX finds no cluster here ({error}) Give"
      " --coordinator=host:port --process_count=N --process_index=i."
    ) from error
  _watched.append(neighbours.watch(stop or StopRequest()))


def abort_process(error: Exception) -> None:
  """Ends a process of a job after an error of its own or a lost neighbour.

  The others wait for it in the middle of a program, so it does not wait for them: they
  are told, and end too. To be called in an `except` clause; does nothing in a process
  that is alone.

  Args:
    error: that was caught. One that a program raised may come of another process that
      is gone, which is then named in one line.
  """
  if not _watched:
    return
  others = _watched[-1]
  if isinstance(error, jax.errors.JaxRuntimeError):
    reason = others.explain()
    if others.request.requested() and not reason:
      others.request.end()
    if reason:
      neighbours.leave(reason)
  traceback.print_exc()
  sys.stdout.flush()
  sys.stderr.flush()
  others.part()
  os._exit(1)


def is_one_of_several() -> bool:
  """Whether other processes belong to the job."""
  return jax.process_count() > 1


def is_primary() -> bool:
  """Whether this process writes files and speaks for all."""
  return jax.process_index() == 0


def any_of(*flags: bool) -> tuple[bool, ...]:
  """Each flag, True where it is in any process; all of them must ask."""
  if jax.process_count() == 1:
    return flags
  gathered = multihost_utils.process_allgather(np.asarray(flags))
  return tuple(bool(flag) for flag in gathered.any(axis=0))


def highest(*values: int) -> tuple[int, ...]:
  """The highest of each value over all processes; all of them must ask."""
  if jax.process_count() == 1:
    return values
  gathered = multihost_utils.process_allgather(np.asarray(values, np.int32))
  return tuple(int(value) for value in gathered.max(axis=0))


@contextmanager
def all_or_none() -> Iterator[None]:
  """A part of the program that no process leaves unless all came through it.

  Raises:
    UserError: another process failed in it.
  """
  failed = True
  try:
    yield
    failed = False
  finally:
    (any_failed,) = any_of(failed)
  if any_failed:
    raise UserError("another process of this job failed; its message says why.")


def check_same(what: str, value: Any) -> None:
  """Checks that a JSON value is the same in all processes; all of them must ask.

  Raises:
    UserError: it is not; `what` says which rule that breaks.
  """
  if jax.process_count() == 1:
    return
  text = json.dumps(value, sort_keys=True, default=str)
  digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
  gathered = multihost_utils.process_allgather(digest)
  if (gathered != gathered[0]).any():
    raise UserError(f"the processes of this job differ: {what}")


def await_shared(path: pathlib.Path, seconds: float = 30.0) -> None:
  """Waits for a file that the first process has written.

  Raises:
    UserError: it does not come: the folder is another one here.
  """
  until = time.monotonic() + seconds
  # A network file system may remember for a while that there was none.
  while not path.exists():
    if time.monotonic() > until:
      raise UserError(f"{path.parent} must be a folder that all processes share.")
    time.sleep(0.1)


def on_host(tree: Any) -> Any:
  """A tree of arrays, whole and readable in every process; all of them must ask."""
  if jax.process_count() == 1:
    return tree

  def whole(leaf):
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
      return multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)

  return jax.tree.map(whole, tree)
