"""Several optimizers in turn: each recipe trains for some epochs, then the next.

For systems whose parts are trained by objectives and optimizers of their own, one
after the other within an epoch's cycle (MMIM: first the density estimators, then the
network). All recipes are of one model; each keeps its optimizer state while the others
train.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from msa_jax.errors import UserError
from msa_jax.step.recipe import Recipe, Seed
from msa_jax.typing import Batch, Collections, Metrics, ModelOutput, Params, TrainState

PHASE = "phase"


def alternating(recipes: Sequence[Recipe], epochs: Sequence[int] = ()) -> Recipe:
  """One recipe of several that take turns.

  The state gains the collection `phase` (index of the recipe in turn, epochs it has
  had); its optimizer state is a tuple, one entry per recipe.

  Args:
    recipes: of one model: the same parameters and collections, and metrics of the same
      names. The first one initialises and the last one predicts.
    epochs: how many each one trains before the next; () = one each.

  Raises:
    UserError: as many numbers as recipes are needed, each at least 1.
  """
  recipes, epochs = tuple(recipes), tuple(epochs) or (1,) * len(recipes)
  if len(epochs) != len(recipes) or min(epochs) < 1:
    raise UserError(
      f"epochs={epochs}: give one number of at least 1 for each of the"
      f" {len(recipes)} recipes."
    )
  limits = jnp.asarray(epochs)

  def start(params: Params, collections: Collections, at: jax.Array) -> TrainState:
    inner = {name: value for name, value in collections.items() if name != PHASE}
    begun = [recipe.start(params, inner, at) for recipe in recipes]
    phase = {"index": jnp.zeros((), jnp.int32), "epochs": jnp.zeros((), jnp.int32)}
    return begun[0].replace(
      collections={**begun[0].collections, PHASE: phase},
      opt_state=tuple(state.opt_state for state in begun),
    )

  def init(seed: Seed) -> TrainState:
    state = recipes[0].init(seed)
    return start(state.params, state.collections, state.step)

  def in_turn(index: int):
    def step(state: TrainState, batch: Batch, seed: Seed):
      own = state.replace(opt_state=state.opt_state[index])
      new, metrics = recipes[index].step(own, batch, seed)
      kept = list(state.opt_state)
      kept[index] = new.opt_state
      return new.replace(opt_state=tuple(kept)), metrics

    return step

  def step(state: TrainState, batch: Batch, seed: Seed) -> tuple[TrainState, Metrics]:
    inner = dict(state.collections)
    phase = inner.pop(PHASE)
    branches = [in_turn(index) for index in range(len(recipes))]
    state = state.replace(collections=inner)
    state, metrics = jax.lax.switch(phase["index"], branches, state, batch, seed)
    return state.replace(collections={**state.collections, PHASE: phase}), metrics

  def end_epoch(state: TrainState) -> TrainState:
    phase = state.collections[PHASE]
    had = phase["epochs"] + 1
    over = had >= limits[phase["index"]]
    following = {
      "index": jnp.where(over, (phase["index"] + 1) % len(recipes), phase["index"]),
      "epochs": jnp.where(over, 0, had),
    }
    return state.replace(collections={**state.collections, PHASE: following})

  def predict(params: Params, collections: Collections, batch: Batch) -> ModelOutput:
    inner = {name: value for name, value in collections.items() if name != PHASE}
    return recipes[-1].predict(params, inner, batch)

  return Recipe(init, step, predict, start, end_epoch)
