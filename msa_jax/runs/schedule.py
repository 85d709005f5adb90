"""Which trainings run in one program, which one after the other; what is left to do."""

import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from absl import logging

from msa_jax.config.experiment import Experiment
from msa_jax.devices import processes
from msa_jax.devices.flops import matmul_flops
from msa_jax.devices.stopping import StopRequest
from msa_jax.linear.references import Reference
from msa_jax.runs import linear_start, warm_start
from msa_jax.step import compose
from msa_jax.step.recipe import Recipe, example_batch
from msa_jax.training import loop
from msa_jax.training.checkpoint import DamagedBest, ResumePoint, load_best
from msa_jax.training.compiled_stages import CompiledStages
from msa_jax.training.feed import Feed
from msa_jax.training.loop import Replica, TrainResult
from msa_jax.training.run_directory import RunDirectory
from msa_jax.training.vmapped_stages import VmappedStages

# Steps of fewer floating-point operations than this are mostly overhead on a CPU.
OVERHEAD_FLOPS = 5e7
_MEMBERS = "members.json"


def train(
  config: Experiment,
  replicas: Sequence[Replica],
  feeds: Mapping[str, Feed],
  labels: Mapping[str, Any],
  root: RunDirectory,
  stop: StopRequest,
  linear: Callable[[], Mapping[str, Reference]] = dict,
) -> list[TrainResult]:
  """Trains every replica that is not trained yet, resuming what was begun.

  Args:
    config: resolved.
    replicas: all trainings of the run.
    feeds, labels, stop: as for `loop.fit`.
    root: the run's directory; checkpoints of groups are kept there.
    linear: fits the linear models that text-only heads may start as; called where there
      is something to train.

  Returns:
    What came of each, in the order of `replicas`.

  Raises:
    stopping.Interrupted, loop.Diverged: as `loop.fit`.
  """
  processes.check_same(
    f"--workdir={root.path} must be a folder that all of them share.",
    {_name(r, root): (_finished(r), r.run.last(r.seed).is_dir()) for r in replicas},
  )
  done = {_name(r, root): _read(config, r) for r in replicas}
  cache: dict[int, CompiledStages] = {}
  parts = list(_parts(config, replicas, done, root))
  # Also waits: nothing may be written while another process looks what there is.
  names = [[_name(replica, root) for replica in part] for part in parts]
  processes.check_same("what is left to train.", names)
  for part in parts:
    programs = _programs(config, len(part), cache, linear)
    saver = ResumePoint(_checkpoint(part, root))
    trained = loop.fit(config, programs, feeds, labels, part, saver, stop)
    done |= {_name(r, root): t for r, t in zip(part, trained, strict=True)}
  results = {name: result for name, result in done.items() if result is not None}
  return [results[_name(r, root)] for r in replicas]


def _name(replica: Replica, root: RunDirectory) -> str:
  folder = replica.run.path.relative_to(root.path)
  return f"{folder}/{replica.seed}"


def _finished(replica: Replica) -> bool:
  return (replica.run.path / replica.run.trained(replica.seed)).exists()


def _read(config: Experiment, replica: Replica) -> TrainResult | None:
  """What an earlier call has left of a training that it finished; None = nothing, or
  damaged: the last checkpoint of its training says it again."""
  if not _finished(replica):
    return None
  shapes = CompiledStages(config).final_shapes()
  chosen, damage = None, None
  try:
    chosen = load_best(replica.run.best(replica.seed), *shapes)
  except DamagedBest as error:
    damage = error
  if any(processes.any_of(damage is not None)):
    if processes.is_primary():
      logging.warning("%s", damage or "another process cannot read a checkpoint.")
    return None
  chosen = processes.on_host(chosen)
  return TrainResult(
    *chosen, **replica.run.read_json(replica.run.trained(replica.seed))
  )


def _parts(config, replicas, done, root) -> Iterator[list[Replica]]:
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
  part, size = list(todo.values()), 1
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


def _programs(
  config: Experiment,
  count: int,
  cache: dict[int, CompiledStages],
  linear: Callable[[], Mapping[str, Reference]],
) -> CompiledStages:
  """Programs for some trainings; as many trainings share them."""
  if count not in cache:
    stages = VmappedStages if count > 1 else CompiledStages
    heads = linear_start.heads(config, linear)

    def initial(recipe: Recipe) -> Recipe:
      return warm_start.starting(config, linear_start.starting(config, recipe, heads))

    cache[count] = stages(config, initial=initial)
  return cache[count]


def at_once(config: Experiment) -> bool:
  """Whether several trainings run faster in one program than one after the other.

  Always on an accelerator, and where replicas have devices of their own. On a CPU only
  where a step is mostly overhead: batched matrix products cost as much there as one
  after the other, or more.
  """
  if config.replicas.mode != "auto":
    return config.replicas.mode == "vmap"
  if jax.default_backend() != "cpu" or config.sharding.replica > 1:
    return True
  return step_flops(config) < OVERHEAD_FLOPS


def step_flops(config: Experiment) -> float:
  """Floating-point operations of one step of the last stage; see `devices.flops`."""
  made = compose.build(config)
  batch = example_batch(config.corpus_spec, config.optim.batch_size)
  state = jax.eval_shape(made.init, 0)
  return matmul_flops(made.step, state, batch, 0)
