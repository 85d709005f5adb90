"""Which trainings run in one program, which one after the other; what is left to do."""

import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections

from msa_jax import config as config_lib
from msa_jax.devices import processes
from msa_jax.devices.flops import matmul_flops
from msa_jax.step import recipe as recipe_lib
from msa_jax.train import loop
from msa_jax.train.checkpoint import ResumePoint, load_best
from msa_jax.train.compiled_stages import CompiledStages
from msa_jax.train.feed import Feed
from msa_jax.train.loop import Replica, TrainResult
from msa_jax.train.run_directory import RunDirectory
from msa_jax.train.vmapped_stages import VmappedStages

# Steps of fewer floating-point operations than this are mostly overhead on a CPU.
OVERHEAD_FLOPS = 5e7
_MEMBERS = "members.json"


def train(
  config: ml_collections.ConfigDict,
  replicas: Sequence[Replica],
  feeds: Mapping[str, Feed],
  labels: Mapping[str, Any],
  root: RunDirectory,
  stop_requested: Callable[[], bool],
) -> list[TrainResult]:
  """Trains every replica that is not trained yet, resuming what was begun.

  Args:
    config: a resolved config.
    replicas: all trainings of the run, with the same swept options.
    feeds, labels, stop_requested: as for `loop.fit`.
    root: the run's directory; checkpoints of groups are kept there.

  Returns:
    What came of each, in the order of `replicas`.

  Raises:
    loop.Interrupted, loop.Diverged: as `loop.fit`.
  """
  processes.check_same(
    f"--workdir={root.path} must be a folder that all of them share.",
    {_name(r, root): (_finished(r), r.run.last(r.seed).is_dir()) for r in replicas},
  )
  done = {_name(r, root): _read(config, r) for r in replicas}
  traced = traceable(config, tuple(replicas[0].values))
  cache: dict[Any, CompiledStages] = {}
  parts = list(_parts(config, replicas, done, root, traced))
  # Also waits: nothing may be written while another process looks what there is.
  names = [[_name(replica, root) for replica in part] for part in parts]
  processes.check_same("what is left to train.", names)
  for part in parts:
    programs = _programs(config, part, traced, cache)
    saver = ResumePoint(_checkpoint(part, root))
    trained = loop.fit(config, programs, feeds, labels, part, saver, stop_requested)
    done |= {_name(r, root): t for r, t in zip(part, trained, strict=True)}
  return [done[_name(r, root)] for r in replicas]


def _name(replica: Replica, root: RunDirectory) -> str:
  folder = replica.run.path.relative_to(root.path)
  return f"{folder}/{replica.seed}"


def _finished(replica: Replica) -> bool:
  return (replica.run.path / replica.run.trained(replica.seed)).exists()


def _read(config: ml_collections.ConfigDict, replica: Replica) -> TrainResult | None:
  """What an earlier call has left of a training that it finished."""
  if not _finished(replica):
    return None
  shapes = CompiledStages(config).final_shapes()
  chosen = load_best(replica.run.best(replica.seed), *shapes)
  chosen = processes.on_host(chosen)
  return TrainResult(
    *chosen, **replica.run.read_json(replica.run.trained(replica.seed))
  )


def _parts(config, replicas, done, root, traced) -> Iterator[list[Replica]]:
  """What is to be trained, in turn; what runs in one program is one list."""
  known = {_name(r, root): r for r in replicas}
  todo = {name: r for name, r in known.items() if done[name] is None}
  for file in sorted((root.path / "checkpoints").glob(f"group_*/{_MEMBERS}")):
    names = json.loads(file.read_text())
    if set(names) <= set(known) and set(names) & set(todo):  # begun by another call
      yield [known[name] for name in names]
      todo = {name: r for name, r in todo.items() if name not in names}
  for name, replica in list(todo.items()):
    if replica.run.last(replica.seed).is_dir():
      yield [todo.pop(name)]
  alike: dict[Any, list[Replica]] = {}
  for replica in todo.values():
    fixed = tuple(v for key, v in replica.values.items() if key not in traced)
    alike.setdefault(fixed, []).append(replica)
  for part in alike.values():
    size = 1
    if len(part) > 1 and at_once(config):
      size = config.replicas.most_at_once or len(part)
    yield from (part[i : i + size] for i in range(0, len(part), size))


def _checkpoint(part: list[Replica], root: RunDirectory) -> pathlib.Path:
  """Where the checkpoint of some trainings is; several have a folder of their own."""
  if len(part) == 1:
    return part[0].run.last(part[0].seed)
  names = [_name(replica, root) for replica in part]
  folder = root.path / "checkpoints"
  groups = sorted(folder.glob(f"group_*/{_MEMBERS}"))
  for file in groups:
    if json.loads(file.read_text()) == names:
      return file.parent / "last"
  number = len(groups)
  root.write_json(f"checkpoints/group_{number}/{_MEMBERS}", names)
  return folder / f"group_{number}" / "last"


def _programs(config, part, traced, cache) -> CompiledStages:
  """Programs for some trainings; those that compile alike share them."""
  values = {key: [r.values[key] for r in part] for key in traced}
  fixed = {k: v for k, v in part[0].values.items() if k not in traced}
  key = (len(part), tuple(fixed.items()))
  if key not in cache:
    bound = config_lib.bind(config, fixed) if fixed else config
    several = len(part) > 1 or values
    cache[key] = VmappedStages(bound, values) if several else CompiledStages(bound)
  if values:
    cache[key].give(values)
  return cache[key]


def traceable(
  config: ml_collections.ConfigDict, keys: tuple[str, ...]
) -> tuple[str, ...]:
  """Those of some options that may differ within one program.

  The others decide something while the program is made: one is compiled for each of
  their values.
  """
  found = []
  for key in keys:
    programs = VmappedStages(config, {key: [config_lib.get(config, key)]})
    try:
      programs.trace()
    except (TypeError, ValueError):  # what JAX raises of an option that must be known
      continue
    found.append(key)
  return tuple(found)


def at_once(config: ml_collections.ConfigDict) -> bool:
  """Whether several trainings run faster in one program than one after the other.

  Always on an accelerator, and where replicas have devices of their own. On a CPU only
  where a step is mostly overhead: batched matrix products cost as much there as one
  after the other, or more.
  """
  if config.replicas.mode != "auto":
    return config.replicas.mode == "vmap"
  if jax.default_backend() != "cpu" or config.get("sharding", {}).get("replica", 1) > 1:
    return True
  return step_flops(config) < OVERHEAD_FLOPS


def step_flops(config: ml_collections.ConfigDict) -> float:
  """Floating-point operations of one step of the last stage; see `devices.flops`."""
  made = recipe_lib.build(config)
  batch = recipe_lib.example_batch(config.spec, config.optim.batch_size)
  state = jax.eval_shape(made.init, 0)
  return matmul_flops(made.step, state, batch, 0)
