"""Where batches come from during a run: the device when the split fits, a Grain
pipeline over the host's arrays when it does not. Same order, same numbers."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int

from msa_jax.data.batching import batches
from msa_jax.data.batching import buckets as buckets_lib
from msa_jax.data.transforms import dialogues
from msa_jax.devices import compilation, sharding
from msa_jax.layers.masking import has_content
from msa_jax.step.recipe import Recipe
from msa_jax.typing import (
  Batch,
  Collections,
  Metrics,
  Routing,
  Split,
  Task,
  TrainState,
)

# Modality and steps; hashable, so that programs are compiled per value.
Lengths = tuple[tuple[str, int], ...] | None


class Feed(NamedTuple):
  """One split, ready to be read.

  Attributes:
    size: number of samples.
    resident: the whole split on the device, or None when it is streamed.
    stream: (order [steps b], first step) -> iterator of batches, from the host.
    utterances: [n t] bool, which steps are utterances, where samples are dialogues.
    buckets: by which batches are formed and cut; None = all are of full length.
  """

  size: int
  resident: Batch | None
  stream: Callable[[np.ndarray, int], Any]
  utterances: np.ndarray | None = None
  buckets: buckets_lib.Buckets | None = None

  def order(
    self, seed: int, epoch: int, batch_size: int, shuffle: bool = True, **options: Any
  ) -> Int[np.ndarray, "steps b"]:
    """Rows of every batch of an epoch; arguments as of `batches.epoch_order`."""
    if self.buckets is not None:
      return buckets_lib.epoch_order(self.buckets, seed, epoch, batch_size, shuffle)
    made = batches.epoch_order(seed, epoch, self.size, batch_size, shuffle, **options)
    return np.asarray(made)

  def levels(self, order: Int[np.ndarray, "steps *b"]) -> Int[np.ndarray, " steps"]:
    """Which entry of `lengths` each batch is cut to."""
    if self.buckets is None:
      return np.zeros(len(order), int)
    return self.buckets.of_batches(order)

  @property
  def lengths(self) -> tuple[Lengths, ...]:
    """Static lengths that batches are cut to; None = not at all."""
    if self.buckets is None:
      return (None,)
    return tuple(tuple(sorted(each.items())) for each in self.buckets.lengths)


def make_feed(
  split: Split,
  tasks: Mapping[str, Task],
  lengths: Mapping[str, int],
  budget_bytes: int,
  n_buckets: int = 0,
  mesh: Mesh | None = None,
) -> Feed:
  """Puts a split on the device if it needs at most `budget_bytes` there.

  Args:
    split: host arrays.
    tasks: the corpus's tasks.
    lengths: static length per modality (`config.spec.lengths`).
    budget_bytes: device memory that one split may take.
    n_buckets: most length buckets; 0 = none.
    mesh: of the devices that the split is to be on; None = the first.
  """
  utterances = dialogues.real(split)
  resident = None
  if batches.fits(split, budget_bytes):
    resident = sharding.replicate(batches.whole(split, tasks, lengths), mesh)
  stream = functools.partial(batches.stream, split, tasks, lengths=lengths)
  chosen = None
  if utterances is None:
    chosen = buckets_lib.choose(split, lengths, n_buckets)
  return Feed(len(split), resident, stream, utterances, chosen)


def with_available(feed: Feed, available: np.ndarray) -> Feed:
  """The same split with other modalities missing; nothing else is copied.

  Args:
    feed: any feed.
    available: [n m] or [n t m] bool, replaces the split's own.
  """
  if feed.resident is not None:
    shape = feed.resident.available.shape
    resident = feed.resident.replace(
      available=jax.device_put(np.broadcast_to(available, shape))
    )
    return feed._replace(resident=resident)

  def stream(order: np.ndarray, first: int):
    batches_of = feed.stream(order, first)
    for rows, batch in zip(order[first:], batches_of, strict=True):
      real = (rows >= 0).reshape(-1, *[1] * (available.ndim - 1))
      yield batch.replace(available=available[rows] & real)

  return feed._replace(stream=stream)


class Steps:
  """Runs optimizer steps of an epoch, some at a time, compiled once.

  On an accelerator one call is one program: a `fori_loop` whose bounds are arguments,
  so that a run can stop after any step (signals, checkpoints) without another
  compilation. On a CPU the steps are dispatched one by one without waiting for any of
  them: XLA's CPU backend runs the body of a loop some three times slower than the
  same body as a program of its own. Both give the same numbers.

  Attributes:
    capacity: most steps of one call.
    looped: whether the steps of a call are one program.
    mesh: of several devices, or None.
  """

  def __init__(
    self,
    recipe: Recipe,
    capacity: int,
    looped: bool | None = None,
    take: Callable[[Batch, Any], Batch] = batches.take,
    mesh: Mesh | None = None,
  ):
    self.capacity = capacity
    self.mesh = mesh
    self.looped = jax.default_backend() != "cpu" if looped is None else looped
    self._take = jax.jit(functools.partial(_take_cut, take), static_argnums=2)
    jit = functools.partial(
      jax.jit,
      donate_argnums=0,
      out_shardings=(None, sharding.replicated_sharding(mesh)),
      compiler_options=compilation.options(),
    )
    self._step = jit(recipe.step)
    run = functools.partial(_run_resident, recipe, take, capacity)
    self._loop = jit(run, static_argnames="lengths")

  def __call__(
    self,
    state: TrainState,
    feed: Feed,
    order: np.ndarray,
    first: int,
    seed: Any,
    most: int | None = None,
  ) -> tuple[TrainState, Mapping[str, np.ndarray]]:
    """Runs up to `capacity` steps, starting at step `first` of the epoch.

    Args:
      state: donated.
      feed: the training split.
      order: [steps b] rows of each batch of the epoch, or what else `take` takes.
      first: first step to run.
      seed: the run's seed, or what else the recipe's step takes in its place.
      most: steps of this call, if fewer than `capacity`; compiles nothing anew.

    Returns:
      The new state, and metrics with one entry per step that was run.
    """
    count = self.capacity if most is None else min(most, self.capacity)
    last = min(first + count, len(order))
    levels, lengths = feed.levels(order), feed.lengths
    if feed.resident is not None and self.looped:
      state, metrics = self._loop(
        state, feed.resident, order, levels, first, last, seed, lengths=lengths
      )
      metrics = jax.device_get(metrics)
      return state, {name: v[: last - first] for name, v in metrics.items()}
    if feed.resident is not None:
      stream = (
        self._take(feed.resident, order[step], lengths[levels[step]])
        for step in range(first, last)
      )
    else:
      stream = _from_host(feed, order[:last], first, self.mesh)
    wait = sharding.must_wait(self.mesh)
    collected = []
    for batch in stream:
      state, metrics = self._step(state, batch, seed)
      collected.append(jax.block_until_ready(metrics) if wait else metrics)
    collected = jax.device_get(collected)
    return state, {k: np.stack([m[k] for m in collected]) for k in collected[0]}


def _cut(batch: Batch, lengths: Lengths) -> Batch:
  return buckets_lib.cut(batch, None if lengths is None else dict(lengths))


def _take_cut(take, data: Batch, rows: Any, lengths: Lengths) -> Batch:
  return _cut(take(data, rows), lengths)


def _from_host(
  feed: Feed, order: np.ndarray, first: int, mesh: Mesh | None
) -> Iterator[Batch]:
  """Batches of a streamed split; each process reads the rows of its own devices."""
  size = order.shape[-1]
  levels, lengths = feed.levels(order)[first:], feed.lengths
  own = order[..., sharding.local_rows(mesh, size)]
  for batch, level in zip(feed.stream(own, first), levels, strict=True):
    yield sharding.shard_batch(_cut(batch, lengths[level]), mesh, size, order.ndim - 2)


def _run_resident(
  recipe: Recipe,
  take: Callable[[Batch, Any], Batch],
  capacity: int,
  state: TrainState,
  data: Batch,
  order: Int[Array, "steps *b"],
  levels: Int[Array, " steps"],
  first: Int[Array, ""],
  last: Int[Array, ""],
  seed: Any,
  lengths: tuple[Lengths, ...],
) -> tuple[TrainState, Metrics]:
  def one(cut_to, state, rows):
    return recipe.step(state, _take_cut(take, data, rows, cut_to), seed)

  branches = [functools.partial(one, each) for each in lengths]

  def step(index, carry):
    state, buffers = carry
    # A switch with a single branch is that branch.
    state, metrics = jax.lax.switch(levels[index], branches, state, order[index])
    buffers = {
      name: buffer.at[index - first].set(metrics[name])
      for name, buffer in buffers.items()
    }
    return state, buffers

  _, shapes = jax.eval_shape(recipe.step, state, take(data, order[0]), seed)
  buffers = {
    name: jnp.zeros((capacity, *shape.shape), shape.dtype)
    for name, shape in shapes.items()
  }
  return jax.lax.fori_loop(first, last, step, (state, buffers))


class Predictions(NamedTuple):
  """What a model says of a split, on the host, in the split's order.

  Of dialogues, n are the utterances of all of them (`dialogues.utterances`).

  Attributes:
    outputs: task name -> [n ...].
    routing: gate name -> `Routing` of arrays on the host.
    content: [n] or [n t] bool; False = nothing of the sample is there, and the
      prediction is the training prior.
  """

  outputs: Mapping[str, np.ndarray]
  routing: Mapping[str, Routing]
  content: np.ndarray


class Predictor:
  """Predicts whole splits with one compiled program per bucket, one without buckets.

  Attributes:
    batch_size: rows per step; smaller splits are filled up and masked.
    n_programs: how many programs have been compiled so far.
    lanes: parameters, collections and predictions have a leading axis of replicas,
      whose recipe is that of one.
    mesh: of several devices, or None.
  """

  def __init__(
    self,
    recipe: Recipe,
    batch_size: int,
    lanes: bool = False,
    mesh: Mesh | None = None,
  ):
    self.batch_size = batch_size
    self.mesh = mesh
    self.lanes = lanes
    take = functools.partial(_take_cut, batches.take)
    self._take = jax.jit(take, static_argnums=2)
    predict = functools.partial(_predict_batch, recipe)
    # No annotation of JAX has the size of a function's cache.
    self._predict: Any = jax.jit(
      jax.vmap(predict, (0, 0, None)) if lanes else predict,
      out_shardings=sharding.replicated_sharding(mesh),
      compiler_options=compilation.options(),
    )

  @property
  def n_programs(self) -> int:
    return self._predict._cache_size()

  def __call__(self, params: Any, collections: Collections, feed: Feed) -> Predictions:
    """Predicts every sample of `feed`; the host waits once, at the end."""
    order = feed.order(0, 0, self.batch_size, shuffle=False)
    levels, lengths = feed.levels(order), feed.lengths
    if feed.resident is not None:
      stream = (
        self._take(feed.resident, rows, lengths[level])
        for rows, level in zip(order, levels, strict=True)
      )
    else:
      stream = _from_host(feed, order, 0, self.mesh)
    wait = sharding.must_wait(self.mesh)
    parts = []
    for batch in stream:
      part = self._predict(params, collections, batch)
      parts.append(jax.block_until_ready(part) if wait else part)
    axis = 1 if self.lanes else 0

    place = np.argsort(order.reshape(-1))[-feed.size :]  # fillers, -1, come first

    def joined(*leaves):
      whole = np.concatenate(leaves, axis=axis)
      whole = whole[:, place] if self.lanes else whole[place]
      if feed.utterances is None:
        return whole
      return whole[:, feed.utterances] if self.lanes else whole[feed.utterances]

    return Predictions(*jax.tree.map(joined, *jax.device_get(parts)))


def _predict_batch(recipe, params, collections, batch):
  output = recipe.predict(params, collections, batch)
  return (
    dict(output.predictions),
    dict(output.routing),
    has_content(batch, recipe.reads),
  )
