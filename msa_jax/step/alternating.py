"""Several optimizers in turn: each recipe trains for some epochs, then the next.

For systems whose parts are trained by objectives and optimizers of their own, one
after the other within an epoch's cycle (MMIM: first the density estimators, then the
network). All recipes are of one model; each keeps its optimizer state while the others
train.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

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
  parts = _Turns(recipes, epochs)
  return Recipe(
    init=functools.partial(_init, parts),
    step=functools.partial(_step, parts),
    predict=functools.partial(_predict, parts),
    start=functools.partial(_start, parts),
    end_epoch=functools.partial(_end_epoch, parts),
  )


class _Turns(NamedTuple):
  """The recipes, and how many epochs each one trains before the next."""

  recipes: tuple[Recipe, ...]
  epochs: tuple[int, ...]


def _inner(collections: Collections) -> dict[str, Any]:
  """The collections of the recipes themselves."""
  return {name: value for name, value in collections.items() if name != PHASE}


def _start(
  parts: _Turns, params: Params, collections: Collections, at: jax.Array
) -> TrainState:
  inner = _inner(collections)
  begun = [recipe.start(params, inner, at) for recipe in parts.recipes]
  phase = {"index": jnp.zeros((), jnp.int32), "epochs": jnp.zeros((), jnp.int32)}
  return begun[0].replace(
    collections={**begun[0].collections, PHASE: phase},
    opt_state=tuple(state.opt_state for state in begun),
  )


def _init(parts: _Turns, seed: Seed) -> TrainState:
  state = parts.recipes[0].init(seed)
  return _start(parts, state.params, state.collections, state.step)


def _turn(
  parts: _Turns, index: int, state: TrainState, batch: Batch, seed: Seed
) -> tuple[TrainState, Metrics]:
  """A step of one recipe, with the optimizer state that is its."""
  states = list(state.opt_state)
  own = state.replace(opt_state=states[index])
  new, metrics = parts.recipes[index].step(own, batch, seed)
  states[index] = new.opt_state
  return new.replace(opt_state=tuple(states)), metrics


def _step(
  parts: _Turns, state: TrainState, batch: Batch, seed: Seed
) -> tuple[TrainState, Metrics]:
  phase = state.collections[PHASE]
  turns = [functools.partial(_turn, parts, i) for i in range(len(parts.recipes))]
  state = state.replace(collections=_inner(state.collections))
  state, metrics = jax.lax.switch(phase["index"], turns, state, batch, seed)
  return state.replace(collections={**state.collections, PHASE: phase}), metrics


def _end_epoch(parts: _Turns, state: TrainState) -> TrainState:
  phase = state.collections[PHASE]
  had = phase["epochs"] + 1
  over = had >= jnp.asarray(parts.epochs)[phase["index"]]
  following = {
    "index": (phase["index"] + over) % len(parts.recipes),
    "epochs": jnp.where(over, 0, had),
  }
  return state.replace(collections={**state.collections, PHASE: following})


def _predict(
  parts: _Turns, params: Params, collections: Collections, batch: Batch
) -> ModelOutput:
  return parts.recipes[-1].predict(params, _inner(collections), batch)
