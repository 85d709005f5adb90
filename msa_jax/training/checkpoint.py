"""Checkpoints of one seed: `last` to resume from, `best` to predict with.

The only file that knows Orbax. A checkpoint is a folder that is written under another
name, summed (`safe_io.hashing`), put on the disk and then renamed: what has its name is
complete, and says itself whether it still is what was written. Folders of version 0.1
have no sums and are taken as they are.
"""

import pathlib
import shutil
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import multihost

from msa_jax.devices import processes
from msa_jax.errors import UserError
from msa_jax.safe_io import durable, hashing
from msa_jax.typing import Collections, Params

KEPT = 2  # a damaged newest one leaves the one before
_TEMPORARY = (durable.PARTIAL, ".orbax-checkpoint-tmp")
_BARRIER_SECONDS = 600
_ASIDE = "damaged_"  # begins the name of a checkpoint that could not be read

Position = TypeVar("Position")


class DamagedBest(UserError):
  """The selected parameters of a seed cannot be read."""


class ResumePoint:
  """The newest full training states of one seed; the last `KEPT` saves are kept.

  Attributes:
    folder: `checkpoints/seed_<s>/last` of a run directory, with a folder per save
      that is named by its step.
  """

  def __init__(self, folder: pathlib.Path):
    self.folder = folder.absolute()
    self._saver = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
    self._pool = futures.ThreadPoolExecutor(1, "commit")
    self._pending: futures.Future[None] | None = None
    if processes.is_primary():
      self.folder.mkdir(parents=True, exist_ok=True)
      for left in self.folder.iterdir():  # by a save that was cut off
        if any(mark in left.name for mark in _TEMPORARY):
          shutil.rmtree(left, ignore_errors=True)

  def steps(self) -> list[int]:
    """Steps that are saved, ascending."""
    if not self.folder.is_dir():
      return []
    found = (each.name for each in self.folder.iterdir())
    return sorted(int(name) for name in found if name.isdecimal())

  def save(self, step: int, tree: Any, position: dict[str, Any]) -> None:
    """Saves `tree` (arrays) and `position` (JSON) under `step`, in the background;
    a step that is already saved is kept as it is.

    Raises:
      OSError: the save before this one has failed.
    """
    self._wait()
    if step in self.steps():
      return
    partial = self.folder / f"{step}{durable.PARTIAL}"
    items = ocp.args.Composite(
      tree=ocp.args.StandardSave(tree), position=ocp.args.JsonSave(position)
    )
    with _named(partial):
      self._saver.save(partial, args=items, force=True)
    self._pending = self._pool.submit(self._commit, partial, self.folder / str(step))

  def _commit(self, partial: pathlib.Path, folder: pathlib.Path) -> None:
    self._saver.wait_until_finished()
    _seal(partial, folder)
    if processes.is_primary():
      for step in self.steps()[:-KEPT]:
        shutil.rmtree(self.folder / str(step), ignore_errors=True)

  def restore(
    self, read: Callable[[dict[str, Any]], tuple[Position, Any]]
  ) -> tuple[Any, Position] | None:
    """Returns (tree, position) of the newest save that is whole, None where there is
    none at all.

    Saves that cannot be read are set aside with one warning.

    Args:
      read: what was saved as position -> the position, and a tree with the structure
        and shapes to restore into. What it raises counts as damage.

    Raises:
      UserError: there are saves, but none can be read.
    """
    steps = self.steps()
    processes.check_same(f"what they see in {self.folder}.", steps)
    damaged: dict[int, Exception | None] = {}
    for step in reversed(steps):
      found, error = None, None
      try:
        found = self._read(self.folder / str(step), read)
      except Exception as caught:  # noqa: BLE001 - whatever damage makes Orbax raise
        error = caught
      (failed,) = processes.any_of(error is not None)
      if not failed:
        self._set_aside(damaged, step)
        return found
      damaged[step] = error
    if not damaged:
      return None
    newest = self.folder / str(steps[-1])
    raise UserError(
      f"{_damage(newest, damaged[steps[-1]])}, and so is every other one there:"
      f" delete {self.folder} to train from the start."
    ) from damaged[steps[-1]]

  def _read(self, folder, read):
    hashing.check_sums(folder)
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:

      def restored(**items):
        return checkpointer.restore(folder, args=ocp.args.Composite(**items))

      saved = restored(position=ocp.args.JsonRestore()).position
      position, example = read(saved)
      tree = jax.tree.map(_on_device, example)
      return restored(tree=ocp.args.StandardRestore(tree)).tree, position

  def _set_aside(self, damaged: dict[int, Exception | None], step: int) -> None:
    if not damaged or not processes.is_primary():
      return
    newest = max(damaged)
    logging.warning(
      "%s; it is set aside, and training goes on from step %d.",
      _damage(self.folder / str(newest), damaged[newest]),
      step,
    )
    for each in damaged:
      aside = self.folder / f"{_ASIDE}{each}"
      durable.move_folder(self.folder / str(each), aside)

  def _wait(self) -> None:
    """Waits for the save in flight."""
    pending, self._pending = self._pending, None
    if pending is not None:
      with _named(self.folder):
        pending.result()

  def close(self) -> None:
    """Waits for the save in flight.

    Raises:
      OSError: it has failed.
    """
    try:
      self._wait()
    finally:
      self._pool.shutdown()
      self._saver.close()


@contextmanager
def _named(folder: pathlib.Path) -> Iterator[None]:
  """What goes wrong in the block is an OSError that names the checkpoint."""
  try:
    yield
  except Exception as error:
    raise OSError(f"{folder} cannot be written: {_reason(error)}") from error


def _seal(partial: pathlib.Path, folder: pathlib.Path) -> None:
  """Sums a folder that is written, puts it on the disk, gives it its name."""
  if processes.is_primary():
    hashing.write_sums(partial)
    durable.sync_tree(partial)
    durable.move_folder(partial, folder)
  # Nobody goes on, or ends, before the first process has come to here.
  barrier = multihost.get_barrier_sync_fn()
  barrier(key=f"sealed:{folder}", timeout_ms=_BARRIER_SECONDS * 1000)


def save_best(folder: pathlib.Path, params: Params, collections: Collections) -> None:
  """Writes the selected parameters of one seed.

  Raises:
    OSError: they cannot be written.
  """
  folder = folder.absolute()
  partial = folder.with_name(f"{folder.name}{durable.PARTIAL}")
  with _named(folder):
    with ocp.StandardCheckpointer() as checkpointer:
      tree = {"params": params, "collections": collections}
      checkpointer.save(partial, tree, force=True)
    _seal(partial, folder)


def load_best(
  folder: pathlib.Path, params: Params, collections: Collections
) -> tuple[Params, Collections]:
  """Reads what `save_best` wrote.

  Args:
    folder: `checkpoints/seed_<s>/best` of a run directory.
    params, collections: trees with the expected structure and shapes (arrays or
      `jax.ShapeDtypeStruct`s).

  Raises:
    UserError: nothing there.
    DamagedBest: it is not what was written, or does not fit the model.
  """
  folder = folder.absolute()
  if not folder.is_dir():
    raise UserError(
      f"{folder} is not there: the run has not finished training this seed (run the"
      " training command again to resume it)."
    )
  tree = {"params": params, "collections": collections}
  place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  abstract = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree
  )
  try:
    hashing.check_sums(folder)
    with ocp.StandardCheckpointer() as checkpointer:
      saved = checkpointer.restore(folder, abstract)
    return saved["params"], saved["collections"]
  except Exception as error:
    raise DamagedBest(
      f"{_damage(folder, error)}; the training command, run again, makes it anew from"
      " the last checkpoint of training."
    ) from error


def _on_device(leaf: Any) -> jax.ShapeDtypeStruct:
  """A leaf's shape, to be restored onto the devices it names or else the first one,
  wherever it was saved."""
  device = getattr(leaf, "sharding", None)
  device = device or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)


def _damage(folder: pathlib.Path, error: Exception | None) -> str:
  reason = "another process cannot read it" if error is None else _reason(error)
  return f"the checkpoint {folder} is damaged or of another model ({reason})"


def _reason(error: Exception) -> str:
  text = str(error).strip()
  return text.splitlines()[0][:200] if text else type(error).__name__
