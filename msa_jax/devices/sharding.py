"""Which device holds what: the only file that knows the mesh.

A training on several devices is one program over all of them: batches are split over
`data`, banks of experts over `expert`, replicas over `replica`, and the compiler adds
the communication. Nothing else changes: statistics, losses and routing are those of
the whole batch, and the numbers are those of one device, to rounding.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from msa_jax.config.options import ShardingConfig
from msa_jax.errors import UserError
from msa_jax.layers import moe
from msa_jax.step.recipe import Recipe
from msa_jax.typing import Batch

DATA, REPLICA, EXPERT = AXES = ("data", "replica", "expert")


def make_mesh(
  options: ShardingConfig, batch_sizes: Mapping[str, int] | None = None
) -> Mesh | None:
  """The mesh that `config.sharding` asks for; None = one device, no mesh.

  Args:
    options: devices per axis.
    batch_sizes: config key -> size of the batches that are split over `data`.

  Raises:
    UserError: not that many devices, or batches that cannot be split evenly.
  """
  sizes = tuple(getattr(options, axis) for axis in AXES)
  if math.prod(sizes) == 1:
    return None
  n_devices = jax.device_count()
  if math.prod(sizes) > n_devices:
    asked = ", ".join(f"{a}={s}" for a, s in zip(AXES, sizes, strict=True))
    raise UserError(
      f"config.sharding ({asked}) needs {math.prod(sizes)} devices; there are"
      f" {n_devices}."
    )
  for key, size in (batch_sizes or {}).items():
    if size % sizes[0]:
      raise UserError(
        f"config.{key}={size} must be a multiple of config.sharding.data={sizes[0]}."
      )
  # Linen's dropout, recurrence and embedding fail under Explicit axes, the default.
  return jax.make_mesh(
    sizes,
    AXES,
    axis_types=(AxisType.Auto,) * len(AXES),
    devices=jax.devices()[: math.prod(sizes)],
  )


def check_processes(mesh: Mesh | None) -> None:
  """Checks that every process of a job has a part in its training.

  Raises:
    UserError: the mesh leaves devices out.
  """
  n_processes, n_devices = jax.process_count(), jax.device_count()
  used = 1 if mesh is None else mesh.size
  if n_processes > 1 and used < n_devices:
    raise UserError(
      f"config.sharding uses {used} of the {n_devices} devices of {n_processes}"
      f" processes; it must use all, e.g. --config.sharding.data={n_devices}."
    )


def check_replicas(count: int, mesh: Mesh | None) -> None:
  """Checks that replicas can be split over the mesh.

  Raises:
    UserError: they cannot be split evenly.
  """
  if mesh is not None and count % mesh.shape[REPLICA]:
    raise UserError(
      f"config.sharding.replica={mesh.shape[REPLICA]} must divide the number of"
      f" seeds trained at once, {count}."
    )


def must_wait(mesh: Mesh | None) -> bool:
  """Whether a program over the mesh must end before the next one is started.

  The devices of a CPU share its threads: where several programs are under way, some
  devices can wait in one for others that never get to it.
  """
  return mesh is not None and mesh.devices.flat[0].platform == "cpu"


def replicate(tree: Any, mesh: Mesh | None) -> Any:
  """A tree on the device, or whole on every device of the mesh."""
  if mesh is None:
    return jax.device_put(tree)
  place = NamedSharding(mesh, PartitionSpec())
  if jax.process_count() == 1:
    return jax.device_put(tree, place)
  return jax.tree.map(lambda leaf: _placed(leaf, place), tree)


def replicated_sharding(mesh: Mesh | None) -> NamedSharding | None:
  """Whole on every device of the mesh: what any process can read."""
  return None if mesh is None else NamedSharding(mesh, PartitionSpec())


def local_rows(mesh: Mesh | None, size: int) -> Int[np.ndarray, " rows"]:
  """Which rows of a batch of `size` the devices of this process hold, ascending."""
  if mesh is None:
    return np.arange(size)
  place = NamedSharding(mesh, PartitionSpec(DATA))
  held = place.addressable_devices_indices_map((size,)).values()
  return np.unique(np.concatenate([np.arange(size)[rows] for rows in held if rows]))


def shard_batch(batch: Batch, mesh: Mesh | None, size: int, lead: int = 0) -> Batch:
  """A batch over the devices of the mesh, from the rows that this process has read.

  Args:
    batch: host arrays of the rows `local_rows(mesh, size)`.
    mesh: None = the batch as it is.
    size: rows of the whole batch.
    lead: axes before that of rows.
  """
  if mesh is None:
    return batch
  rows = local_rows(mesh, size)
  place = NamedSharding(mesh, PartitionSpec(*[None] * lead, DATA))

  def whole(leaf):
    def part(index):
      start, stop, _ = index[lead].indices(size)
      first = np.searchsorted(rows, start)
      own = slice(first, first + stop - start)
      return leaf[*index[:lead], own, *index[lead + 1 :]]

    shape = (*leaf.shape[:lead], size, *leaf.shape[lead + 1 :])
    return jax.make_array_from_callback(shape, place, part)

  return jax.tree.map(whole, batch)


def _placed(leaf: Any, place: NamedSharding) -> jax.Array:
  """An array that every process has whole; `device_put` would send it for a check."""
  leaf = np.asarray(leaf)
  return jax.make_array_from_callback(leaf.shape, place, lambda index: leaf[index])


def _spec(path: Any, shape: tuple[int, ...], mesh: Mesh, lanes: bool) -> PartitionSpec:
  """How a leaf of a state is split; `lanes`: axis 0 is the replica."""
  lead = (REPLICA,) if lanes and shape[0] % mesh.shape[REPLICA] == 0 else (None,)
  lead = lead if lanes else ()
  names = {getattr(key, "key", getattr(key, "name", None)) for key in path}
  own = shape[len(lead) :]
  if moe.STACK in names and own and own[0] % mesh.shape[EXPERT] == 0:
    return PartitionSpec(*lead, EXPERT)
  return PartitionSpec(*lead)


def abstract_state(tree: Any, mesh: Mesh | None, lanes: bool = False) -> Any:
  """Shapes of a state or snapshot with the devices its leaves belong on.

  Args:
    tree: arrays or `jax.ShapeDtypeStruct`s.
    mesh: None = the tree as it is.
    lanes: whether every leaf has a leading axis of replicas.
  """
  if mesh is None:
    return tree

  def describe(path, leaf):
    place = NamedSharding(mesh, _spec(path, leaf.shape, mesh, lanes))
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

  return jax.tree_util.tree_map_with_path(describe, tree)


def shard_recipe(recipe: Recipe, mesh: Mesh | None) -> Recipe:
  """A recipe whose programs run over a mesh, with the numbers of one device.

  Under `vmap` over replicas, `spmd_axis_name` says which axis these are split over.
  """
  if mesh is None:
    return recipe

  def state_of(tree):
    def constrain(path, leaf):
      spec = _spec(path, np.shape(leaf), mesh, lanes=False)
      return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, spec))

    return jax.tree_util.tree_map_with_path(constrain, tree)

  def batch_of(batch):
    split = NamedSharding(mesh, PartitionSpec(DATA))
    return jax.lax.with_sharding_constraint(batch, split)

  def step(state, batch, seed):
    new, metrics = recipe.step(state_of(state), batch_of(batch), seed)
    return state_of(new), metrics

  return recipe._replace(
    init=lambda seed: state_of(recipe.init(seed)),
    step=step,
    predict=lambda params, collections, batch: recipe.predict(
      state_of(params), collections, batch_of(batch)
    ),
    start=lambda params, collections, count: state_of(
      recipe.start(params, collections, count)
    ),
  )
