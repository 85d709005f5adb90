"""Several trainings in one program: seeds side by side.

A replica's state is one slice of a stacked state, and `vmap` trains all slices at
once: each has its own initialisation, shuffling, dropout, fusion weights, validation
and early stopping. A replica that has stopped is frozen, and gives what a training of
its own would have given, to rounding.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from msa_jax.config.experiment import Experiment
from msa_jax.data.batching import batches
from msa_jax.devices import processes, sharding
from msa_jax.step.recipe import Recipe
from msa_jax.training.compiled_stages import (
  CompiledStages,
  Snapshots,
  composed,
  snapshots,
)
from msa_jax.training.feed import Feed, Predictions, Predictor, Steps
from msa_jax.typing import Batch, Collections, Metrics, Params, TrainState


class ReplicaInputs(NamedTuple):
  """What distinguishes a replica at a step; all of them have a leading axis here.

  Attributes:
    seed: what initialisation, shuffling and dropout derive from.
    active: False = frozen.
  """

  seed: Any
  active: Any


class VmappedStages(CompiledStages):
  """`CompiledStages` for several replicas at once: everything has a leading axis."""

  def __init__(self, config: Experiment, **how: Any):
    super().__init__(config, **how)
    indices = range(len(self.stages))
    take = jax.vmap(batches.take, (None, 0))
    self.steps = tuple(
      Steps(self.lifted(i), steps.capacity, take=take, mesh=self.mesh)
      for i, steps in enumerate(self.steps)
    )
    self.predictors = tuple(
      Predictor(
        _only(predict=self.recipes[i].predict, reads=self.recipes[i].reads),
        config.train.eval_batch_size,
        True,
        self.mesh,
      )
      for i in indices
    )
    self._begin = self._jit(self._lift(self._first))
    self._enter = tuple(self._jit(self._lift(self._entering(i))) for i in indices[1:])
    self._keep = tuple(jax.jit(jax.vmap(self._keeping(i))) for i in indices)
    self._end_epoch = tuple(
      made.end_epoch and jax.jit(self._lift(self._ending(i)), donate_argnums=0)
      for i, made in enumerate(self.recipes)
    )
    self._select = jax.jit(jax.vmap(functools.partial(composed, self.stages[-1])))

  def lifted(self, index: int) -> Recipe:
    """A stage's step for all replicas at once, with `ReplicaInputs` for seeds."""
    return _only(step=self._lift(self._stepping(index)))

  def _lift(self, function):
    if self.mesh is None:
      return jax.vmap(function)
    return jax.vmap(function, spmd_axis_name=sharding.REPLICA)

  def _stepping(self, index):
    def step(
      state: TrainState, batch: Batch, lane: ReplicaInputs
    ) -> tuple[TrainState, Metrics]:
      new, metrics = self.recipes[index].step(state, batch, lane.seed)
      return _where(lane.active, new, state), metrics

    return step

  def _ending(self, index):
    def ending(state, active):
      return _where(active, self.recipes[index].end_epoch(state), state)

    return ending

  def _keeping(self, index):
    def keep(best, state, improved):
      current = snapshots(self.stages[index], state)
      return {t: _where(improved[t], current[t], best[t]) for t in current}

    return keep

  def begin(self, seeds: Sequence[int]) -> tuple[TrainState, Snapshots]:
    sharding.check_replicas(len(seeds), self.mesh)
    return self._begin(np.asarray(seeds))

  def shapes(self, index: int, seeds: Sequence[int]) -> tuple[TrainState, Snapshots]:
    state, best = jax.eval_shape(jax.vmap(self._first), np.asarray(seeds))
    for later in range(1, index + 1):
      entering = jax.vmap(self._entering(later))
      state, best = jax.eval_shape(entering, best, state)
    return sharding.abstract_state((state, best), self.mesh, lanes=True)

  def advance(
    self,
    index: int,
    state: TrainState,
    feed: Feed,
    orders: Sequence[np.ndarray],
    first: int,
    seeds: Sequence[int],
    active: Sequence[bool],
    most: int | None = None,
  ) -> tuple[TrainState, list[Mapping[str, np.ndarray]]]:
    lane = ReplicaInputs(np.asarray(seeds), np.asarray(active))
    feed = feed._replace(stream=functools.partial(_stacked, feed.stream))
    order = np.stack(orders, axis=1)  # [steps replicas b]
    state, figures = self.steps[index](state, feed, order, first, lane, most)
    return state, [
      {name: values[:, i] for name, values in figures.items()}
      for i in range(len(orders))
    ]

  def end_epoch(
    self, index: int, state: TrainState, active: Sequence[bool]
  ) -> TrainState:
    ended = self._end_epoch[index]
    return state if ended is None else ended(state, np.asarray(active))

  def predict(self, index: int, state: TrainState, feed: Feed) -> list[Predictions]:
    return _slices(self.predictors[index](state.params, state.collections, feed))

  def keep(
    self,
    index: int,
    best: Snapshots,
    state: TrainState,
    improved: Sequence[Mapping[str, bool]],
  ) -> Snapshots:
    better = {
      track: np.asarray([one[track] for one in improved])
      for track in self.stages[index].tracks
    }
    if not any(flags.any() for flags in better.values()):
      return best
    return self._keep[index](best, state, better)

  def enter(
    self, index: int, best: Snapshots, state: TrainState
  ) -> tuple[TrainState, Snapshots]:
    return self._copy(self._enter[index - 1](best, state))

  def selected(
    self, best: Snapshots, state: TrainState
  ) -> list[tuple[Params, Collections]]:
    return _slices(processes.on_host(self._select(best, state)))


def _only(**parts) -> Recipe:
  return Recipe(**{**dict.fromkeys(Recipe._fields), "reads": (), **parts})


def _slices(stacked: Any) -> list[Any]:
  """One tree per replica."""
  count = len(jax.tree.leaves(stacked)[0])
  return [jax.tree.map(lambda leaf: leaf[i], stacked) for i in range(count)]  # noqa: B023


def _where(flag, new, old):
  return jax.tree.map(lambda n, o: jnp.where(flag, n, o), new, old)


def _stacked(stream, order: np.ndarray, first: int) -> Iterator[Batch]:
  """Batches of all replicas from the host, stacked."""
  streams = [stream(rows, first) for rows in np.moveaxis(order, 1, 0)]
  for parts in zip(*streams, strict=True):
    yield jax.tree.map(lambda *leaves: np.stack(leaves), *parts)
