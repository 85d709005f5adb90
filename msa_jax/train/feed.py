"""Where batches come from during a run: the device when the split fits, a Grain
pipeline over the host's arrays when it does not. Same order, same numbers."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from msa_jax.data import batches, dialogues
from msa_jax.train import compilation
from msa_jax.train.recipe import Recipe, has_content
from msa_jax.typing import Batch, Collections, Metrics, Split, Task, TrainState


class Feed(NamedTuple):
  """One split, ready to be read.

  Attributes:
    size: number of samples.
    resident: the whole split on the device, or None when it is streamed.
    stream: (order [steps b], first step) -> iterator of batches, from the host.
    utterances: [n t] bool, which steps are utterances, where samples are dialogues.
  """

  size: int
  resident: Batch | None
  stream: Callable[[np.ndarray, int], Any]
  utterances: np.ndarray | None = None


def make_feed(
  split: Split,
  tasks: Mapping[str, Task],
  lengths: Mapping[str, int],
  budget_bytes: int,
) -> Feed:
  """Puts a split on the device if it needs at most `budget_bytes` there.

  Args:
    split: host arrays.
    tasks: the corpus's tasks.
    lengths: static length per modality (`config.spec.lengths`).
    budget_bytes: device memory that one split may take.
  """
  utterances = dialogues.real(split)
  resident = None
  if batches.fits(split, budget_bytes):
    resident = jax.device_put(batches.whole(split, tasks, lengths))
  stream = functools.partial(batches.stream, split, tasks, lengths=lengths)
  return Feed(len(split), resident, stream, utterances)


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
  """

  def __init__(
    self,
    recipe: Recipe,
    capacity: int,
    looped: bool | None = None,
    take: Callable[[Batch, Any], Batch] = batches.take,
  ):
    self.capacity = capacity
    self.looped = jax.default_backend() != "cpu" if looped is None else looped
    self._take = jax.jit(take)
    jit = functools.partial(
      jax.jit, donate_argnums=0, compiler_options=compilation.options()
    )
    self._step = jit(recipe.step)
    self._loop = jit(functools.partial(_run_resident, recipe, take, capacity))

  def __call__(
    self, state: TrainState, feed: Feed, order: np.ndarray, first: int, seed: Any
  ) -> tuple[TrainState, Mapping[str, np.ndarray]]:
    """Runs up to `capacity` steps, starting at step `first` of the epoch.

    Args:
      state: donated.
      feed: the training split.
      order: [steps b] rows of each batch of the epoch, or what else `take` takes.
      first: first step to run.
      seed: the run's seed, or what else the recipe's step takes in its place.

    Returns:
      The new state, and metrics with one entry per step that was run.
    """
    last = min(first + self.capacity, len(order))
    if feed.resident is not None and self.looped:
      state, metrics = self._loop(state, feed.resident, order, first, last, seed)
      metrics = jax.device_get(metrics)
      return state, {name: v[: last - first] for name, v in metrics.items()}
    if feed.resident is not None:
      stream = (self._take(feed.resident, rows) for rows in order[first:last])
    else:
      stream = feed.stream(order[:last], first)
    collected = []
    for batch in stream:
      state, metrics = self._step(state, batch, seed)
      collected.append(metrics)
    collected = jax.device_get(collected)
    return state, {k: np.stack([m[k] for m in collected]) for k in collected[0]}


def _run_resident(
  recipe: Recipe,
  take: Callable[[Batch, Any], Batch],
  capacity: int,
  state: TrainState,
  data: Batch,
  order: Int[Array, "steps *b"],
  first: Int[Array, ""],
  last: Int[Array, ""],
  seed: Any,
) -> tuple[TrainState, Metrics]:
  def step(index, carry):
    state, buffers = carry
    batch = take(data, order[index])
    state, metrics = recipe.step(state, batch, seed)
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
    routing: gate name -> {"probs", "combine", "logits"} -> [n e].
    content: [n] or [n t] bool; False = nothing of the sample is there, and the
      prediction is the training prior.
  """

  outputs: Mapping[str, np.ndarray]
  routing: Mapping[str, Mapping[str, np.ndarray]]
  content: np.ndarray


class Predictor:
  """Predicts whole splits with one compiled program for all of them.

  Attributes:
    batch_size: rows per step; smaller splits are filled up and masked.
    n_programs: how many programs have been compiled so far.
    lanes: parameters, collections and predictions have a leading axis of replicas,
      whose recipe is that of one.
  """

  def __init__(self, recipe: Recipe, batch_size: int, lanes: bool = False):
    self.batch_size = batch_size
    self.lanes = lanes
    self._take = jax.jit(batches.take)
    predict = functools.partial(_predict_batch, recipe)
    self._predict = jax.jit(
      jax.vmap(predict, (0, 0, None)) if lanes else predict,
      compiler_options=compilation.options(),
    )

  @property
  def n_programs(self) -> int:
    return self._predict._cache_size()

  def __call__(self, params: Any, collections: Collections, feed: Feed) -> Predictions:
    """Predicts every sample of `feed`; the host waits once, at the end."""
    order = np.asarray(
      batches.epoch_order(0, 0, feed.size, self.batch_size, shuffle=False)
    )
    if feed.resident is not None:
      stream = (self._take(feed.resident, rows) for rows in order)
    else:
      stream = feed.stream(order, 0)
    parts = [self._predict(params, collections, batch) for batch in stream]
    axis = 1 if self.lanes else 0

    def joined(*leaves):
      whole = np.concatenate(leaves, axis=axis)
      whole = whole[:, : feed.size] if self.lanes else whole[: feed.size]
      if feed.utterances is None:
        return whole
      return whole[:, feed.utterances] if self.lanes else whole[feed.utterances]

    return Predictions(*jax.tree.map(joined, *jax.device_get(parts)))


def _predict_batch(recipe, params, collections, batch):
  output = recipe.predict(params, collections, batch)
  routing = {
    gate: {"probs": r.probs, "combine": r.combine, "logits": r.logits}
    for gate, r in output.routing.items()
  }
  return dict(output.predictions), routing, has_content(batch)
