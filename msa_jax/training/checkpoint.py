"""Checkpoints of one seed: `last` to resume from, `best` to predict with.

The only file that knows Orbax.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp

from msa_jax.errors import UserError
from msa_jax.typing import Collections, Params


class ResumePoint:
  """The newest full training state of one seed, replaced atomically at each save.

  Attributes:
    folder: `checkpoints/seed_<s>/last` of a run directory.
  """

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self._manager = ocp.CheckpointManager(
      folder.absolute(), options=ocp.CheckpointManagerOptions(max_to_keep=1)
    )

  def save(self, step: int, tree: Any, position: dict[str, Any]) -> None:
    """Saves `tree` (arrays) and `position` (JSON) under `step`, in the background;
    a step that is already saved is kept as it is."""
    if step in self._manager.all_steps():
      return
    self._manager.save(
      step,
      args=ocp.args.Composite(
        tree=ocp.args.StandardSave(tree), position=ocp.args.JsonSave(position)
      ),
    )

  def restore(
    self, example: Callable[[dict[str, Any]], Any]
  ) -> tuple[Any, dict[str, Any]] | None:
    """Returns (tree, position) of the newest save, or None where there is none.

    Args:
      example: position -> a tree with the structure and shapes to restore into.

    Raises:
      UserError: the files on disk do not fit `example`.
    """
    step = self._manager.latest_step()
    if step is None:
      return None
    try:
      position = self._restore(step, position=ocp.args.JsonRestore()).position
      tree = jax.tree.map(_on_device, example(position))
      return self._restore(step, tree=ocp.args.StandardRestore(tree)).tree, position
    except (ValueError, KeyError, OSError) as error:
      raise UserError(_damaged(self.folder / str(step), error)) from error

  def _restore(self, step: int, **items: Any) -> Any:
    return self._manager.restore(step, args=ocp.args.Composite(**items))

  def close(self) -> None:
    """Waits for saves in flight."""
    self._manager.wait_until_finished()
    self._manager.close()


def save_best(folder: pathlib.Path, params: Params, collections: Collections) -> None:
  """Writes the selected parameters of one seed."""
  with ocp.StandardCheckpointer() as checkpointer:
    tree = {"params": params, "collections": collections}
    checkpointer.save(folder.absolute(), tree, force=True)


def load_best(
  folder: pathlib.Path, params: Params, collections: Collections
) -> tuple[Params, Collections]:
  """Reads what `save_best` wrote.

  Args:
    folder: `checkpoints/seed_<s>/best` of a run directory.
    params, collections: trees with the expected structure and shapes (arrays or
      `jax.ShapeDtypeStruct`s).

  Raises:
    UserError: nothing there, or it does not fit the model.
  """
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
    with ocp.StandardCheckpointer() as checkpointer:
      saved = checkpointer.restore(folder.absolute(), abstract)
  except (ValueError, KeyError, OSError) as error:
    raise UserError(_damaged(folder, error)) from error
  return saved["params"], saved["collections"]


def _on_device(leaf: Any) -> jax.ShapeDtypeStruct:
  """A leaf's shape, to be restored onto the devices it names or else the first one,
  wherever it was saved."""
  device = getattr(leaf, "sharding", None)
  device = device or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)


def _damaged(folder: pathlib.Path, error: Exception) -> str:
  reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
  return f"the checkpoint {folder} is damaged or of another model: {reason}"
