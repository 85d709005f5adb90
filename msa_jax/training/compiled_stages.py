"""The compiled pieces of a training run, by stage: what the loop calls.

A `CompiledStages` trains one seed at a time. `vmapped_stages` has the same face
for several at once; the loop does not know the difference.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from msa_jax.config.experiment import Experiment
from msa_jax.devices import compilation, sharding
from msa_jax.models.system import Stage
from msa_jax.step import compose
from msa_jax.step.recipe import Recipe
from msa_jax.training.feed import Feed, Predictions, Predictor, Steps
from msa_jax.typing import Collections, Params, TrainState

# Track name -> {"params": what the stage keeps of them, "collections": ...}.
Snapshots = Mapping[str, Mapping[str, Any]]


def snapshots(stage: Stage, state: TrainState) -> Snapshots:
  """What each track of a stage keeps of a state."""
  return {
    track: {
      "params": stage.keep(track, state.params),
      "collections": state.collections,
    }
    for track in stage.tracks
  }


def composed(
  stage: Stage, best: Snapshots, state: TrainState
) -> tuple[Params, Collections]:
  """Parameters and collections that a stage ends with."""
  # In the stage's order: mappings come back sorted from programs and checkpoints.
  parts = {track: best[track]["params"] for track in stage.tracks}
  params = stage.compose(parts, state.params)
  if stage.collections == "final":
    return params, state.collections
  return params, best[stage.collections or next(iter(stage.tracks))]["collections"]


def enter(
  before: Stage, stage: Stage, recipe: Recipe, best: Snapshots, state: TrainState
) -> tuple[TrainState, Snapshots]:
  """State and snapshots at the start of `stage`, from the end of `before`."""
  params, collections = composed(before, best, state)
  if stage.carry_opt_state:
    state = state.replace(params=params, collections=collections)
  else:
    state = recipe.start(params, collections, state.step)
  return state, snapshots(stage, state)


def mesh_of(config: Experiment) -> Mesh | None:
  """The mesh of a run, whose batches it can split."""
  sizes = {
    "optim.batch_size": config.optim.batch_size,
    "train.eval_batch_size": config.train.eval_batch_size,
  }
  return sharding.make_mesh(config.sharding, sizes)


class CompiledStages:
  """Programs of all stages; each compiles at its first call.

  Attributes:
    config: resolved.
    stages: of the system, in order.
    recipes, steps, predictors: one per stage.
    mesh: of several devices, or None.
  """

  def __init__(
    self,
    config: Experiment,
    on_one_device: bool = False,
    initial: Callable[[Recipe], Recipe] = lambda recipe: recipe,
  ):
    """Builds them; `initial` wraps the first stage's recipe, which makes the states
    (`runs.warm_start`)."""
    self.config = config
    self.stages = compose.stages_of(config)
    indices = range(len(self.stages))
    self.mesh = None if on_one_device else mesh_of(config)
    recipes = [compose.build(config, index) for index in indices]
    recipes[0] = initial(recipes[0])
    self.recipes = tuple(sharding.shard_recipe(each, self.mesh) for each in recipes)
    per_epoch = config.corpus_spec.steps_per_epoch(config.optim.batch_size)
    capacity = min(config.train.steps_per_call, per_epoch)
    mesh = self.mesh
    self.steps = tuple(Steps(recipe, capacity, mesh=mesh) for recipe in self.recipes)
    self.predictors = tuple(
      Predictor(recipe, config.train.eval_batch_size, mesh=mesh)
      for recipe in self.recipes
    )
    self._jit = functools.partial(
      jax.jit, compiler_options=compilation.options(once=True)
    )
    self._begin = self._jit(self._first)
    # Copies: the state's own buffers are donated to the next step.
    self._copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
    self._enter = tuple(self._jit(self._entering(index)) for index in indices[1:])
    self._end_epoch = tuple(
      made.end_epoch and jax.jit(made.end_epoch, donate_argnums=0)
      for made in self.recipes
    )

  def _first(self, seed):
    state = self.recipes[0].init(seed)
    return state, jax.tree.map(jnp.copy, snapshots(self.stages[0], state))

  def _entering(self, index):
    before, stage = self.stages[index - 1 : index + 1]
    return functools.partial(enter, before, stage, self.recipes[index])

  def begin(self, seeds: Sequence[int]) -> tuple[TrainState, Snapshots]:
    """State and snapshots before the first step."""
    (seed,) = seeds
    return self._begin(seed)

  def shapes(self, index: int, seeds: Sequence[int]) -> tuple[TrainState, Snapshots]:
    """Shapes of the state and snapshots during a stage."""
    (seed,) = seeds
    state, best = jax.eval_shape(self._first, seed)
    for later in range(1, index + 1):
      state, best = jax.eval_shape(self._entering(later), best, state)
    return sharding.abstract_state((state, best), self.mesh)

  def final_shapes(self) -> tuple[Params, Collections]:
    """Shapes of the parameters and collections that a seed's training selects."""
    state, best = CompiledStages.shapes(self, len(self.stages) - 1, (0,))
    return jax.eval_shape(functools.partial(composed, self.stages[-1]), best, state)

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
    """Runs the next steps of an epoch, as many as one call takes.

    Args:
      index: of the stage.
      state: donated.
      feed: the training split.
      orders: per seed, [steps b] rows of each batch of its epoch.
      first: first step to run.
      seeds: what initialisation, shuffling and dropout derive from.
      active: per seed, whether it is still in training.
      most: steps of this call; None = `config.train.steps_per_call`.

    Returns:
      The new state, and per seed the metrics with one entry per step.
    """
    del active  # a single seed that has stopped is not called
    state, figures = self.steps[index](state, feed, orders[0], first, seeds[0], most)
    return state, [figures]

  def end_epoch(
    self, index: int, state: TrainState, active: Sequence[bool]
  ) -> TrainState:
    """The state after the last step of an epoch, where a stage has something to do."""
    del active  # a single seed that has stopped is not called
    ended = self._end_epoch[index]
    return state if ended is None else ended(state)

  def predict(self, index: int, state: TrainState, feed: Feed) -> list[Predictions]:
    """Per seed, what its current parameters say of a split."""
    return [self.predictors[index](state.params, state.collections, feed)]

  def keep(
    self,
    index: int,
    best: Snapshots,
    state: TrainState,
    improved: Sequence[Mapping[str, bool]],
  ) -> Snapshots:
    """Snapshots after an epoch in which some tracks of some seeds improved."""
    current = snapshots(self.stages[index], state)
    chosen = [track for track, better in improved[0].items() if better]
    return {**best, **{track: self._copy(current[track]) for track in chosen}}

  def enter(
    self, index: int, best: Snapshots, state: TrainState
  ) -> tuple[TrainState, Snapshots]:
    """State and snapshots at the start of stage `index`."""
    return self._copy(self._enter[index - 1](best, state))

  def selected(
    self, best: Snapshots, state: TrainState
  ) -> list[tuple[Params, Collections]]:
    """Per seed, what the last stage has selected."""
    return [composed(self.stages[-1], best, state)]
