"""One system at one data shape: compile, step and epoch time, and what they cost."""

import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from benchmarks import measure, shapes
from msa_jax.config.experiment import Experiment
from msa_jax.data.batching import batches
from msa_jax.devices import compilation, sharding
from msa_jax.devices.flops import matmul_flops
from msa_jax.runs import prepare, run, schedule
from msa_jax.step import compose, recipe
from msa_jax.training.compiled_stages import mesh_of
from msa_jax.training.run_directory import RunDirectory
from msa_jax.typing import Batch


def system(config: Experiment, shape: str, rows: int, repeats: int) -> dict[str, Any]:
  """Measures the training step, on a batch of the shape's training split.

  Args:
    config: of the system, unresolved.
    shape: name of the data shape.
    rows: see `shapes.apply`.
    repeats: timings, of which the median is taken.

  Returns:
    Figures by name, seconds, bytes and operations per second.
  """
  config, batch = _first_batch(config, shape, rows)
  size = len(batch.index)
  made = compose.build(config)
  state = jax.jit(made.init)(0)
  figures = {"system": config.system, "shape": shape, "batch": size}
  figures |= step_cost(made, state, jax.device_put(batch), repeats)
  figures["samples_per_second"] = size / figures["step_seconds"]
  figures["padding"] = {
    name: float(1 - each.mask.mean()) for name, each in batch.modalities.items()
  }
  return figures


def step_seconds(
  config: Experiment, shape: str, rows: int, devices: int, repeats: int
) -> float:
  """Seconds of a step whose batch is split over devices (`config.sharding.data`).

  Args:
    config, shape, rows, repeats: as for `system`.
    devices: how many; they divide the batch.

  Raises:
    UserError: not that many devices, or a batch that cannot be split evenly.
  """
  config, batch = _first_batch(config, shape, rows)
  size = len(batch.index)
  config = config.replace("sharding", data=devices).replace("optim", batch_size=size)
  mesh = mesh_of(config)
  made = sharding.shard_recipe(compose.build(config), mesh)
  step = jax.jit(
    made.step,
    donate_argnums=0,
    out_shardings=(None, sharding.replicated_sharding(mesh)),
    compiler_options=compilation.options(),
  )
  placed = jax.device_put(sharding.shard_batch(batch, mesh, size))
  call = measure.repeated(step, jax.jit(made.init)(0), placed, 0)
  return measure.median_seconds(call, repeats, measure.calls_per_timing())


def _first_batch(config: Experiment, shape: str, rows: int) -> tuple[Experiment, Batch]:
  """The resolved config and, on the host, a batch of the training split."""
  prepared = prepare.prepare(shapes.apply(config, shape, rows))
  config, corpus = prepared.config, prepared.corpus
  size = min(config.optim.batch_size, config.corpus_spec.train_size)
  order = np.asarray(batches.epoch_order(0, 0, config.corpus_spec.train_size, size))
  lengths = dict(config.corpus_spec.lengths)
  stream = batches.stream(corpus.splits["train"], corpus.tasks, order[:1], 0, lengths)
  return config, next(stream)


def step_cost(
  made: recipe.Recipe, state: Any, batch: Any, repeats: int
) -> dict[str, Any]:
  """Compiles a recipe's step anew and times it.

  Args:
    made: whose step.
    state, batch: its arguments.
    repeats: timings.
  """
  step = jax.jit(made.step, donate_argnums=0, compiler_options=compilation.options())
  start = time.perf_counter()
  # A program from the cache would not say how long compiling takes.
  compiled = measure.uncached(step.lower(state, batch, 0).compile)
  compile_seconds = time.perf_counter() - start
  call = measure.repeated(compiled, state, batch, 0)
  seconds = measure.median_seconds(call, repeats, measure.calls_per_timing())
  best = measure.ceilings(repeats=repeats)
  cost = measure.program_cost(compiled)
  flops = matmul_flops(made.step, state, batch, 0)
  moved = cost["xla_bytes"]
  return {
    "compile_seconds": compile_seconds,
    "step_seconds": seconds,
    "matmul_flops": flops,
    **cost,
    "process_peak_bytes": measure.process_peak_bytes(),
    "matmul_share": flops / seconds / best.matmul,
    "memory_share": None if moved is None else moved / seconds / best.memory,
    "matmul_ceiling": best.matmul,
    "memory_ceiling": best.memory,
  }


def epochs(
  config: Experiment,
  shape: str,
  rows: int,
  seeds: Sequence[int],
  count: int,
) -> dict[str, Any]:
  """Trains a run and reads off what an epoch took.

  That is all of it: shuffling, steps, validation, metrics, selection, checkpoints.
  The first epoch, which compiles, is not counted.

  Args:
    config, shape, rows: as for `system`.
    seeds: trained in one run.
    count: epochs to train, at least 2.
  """
  config = shapes.apply(config, shape, rows).replace("optim", epochs=count, patience=0)
  config = config.replace("replicas", seeds=tuple(seeds))
  with tempfile.TemporaryDirectory() as folder:
    run.train(config, folder)
    lines = (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines()
    resolved = RunDirectory(folder).experiment()
  ends: dict[int, dict[int, float]] = {seed: {} for seed in seeds}
  for line in map(json.loads, lines):
    ends[line["seed"]][line["epoch"]] = line["seconds"]
  medians = [
    statistics.median(np.diff([each[epoch] for epoch in sorted(each)]).tolist())
    for each in ends.values()
  ]
  # Seeds in one program end their epochs together.
  at_once = len(seeds) > 1 and schedule.at_once(resolved)
  seconds = max(medians) if at_once else sum(medians)
  return {"seeds": len(seeds), "at_once": at_once, "epoch_seconds": seconds}
