"""Predicts with a running mean of the parameters instead of the last ones.

A behaviour around any recipe: training is untouched, `predict` reads the mean.
"""

from typing import Any

import jax
import jax.numpy as jnp

from msa_jax.step.recipe import Recipe, Seed
from msa_jax.typing import Batch, Collections, Metrics, ModelOutput, Params, TrainState

AVERAGE = "average"


def with_ema(recipe: Recipe, decay: float) -> Recipe:
  """Keeps an exponential mean of the parameters and predicts with it.

  After step n (from 1) the mean moves by 1 - min(decay, n / (n + 9)) towards the
  parameters, so that the first steps are forgotten quickly.

  Args:
    recipe: the recipe to wrap.
    decay: share of the old mean kept per step, in [0, 1); 0 = no mean.
  """
  if decay == 0.0:
    return recipe

  def init(seed: Seed) -> TrainState:
    state = recipe.init(seed)
    # A copy: a state's buffers are donated, and none may be given away twice.
    average = jax.tree.map(jnp.copy, state.params)
    return state.replace(collections={**state.collections, AVERAGE: average})

  def step(state: TrainState, batch: Batch, seed: Seed) -> tuple[TrainState, Metrics]:
    average, inner = _split(state.collections)
    state, metrics = recipe.step(state.replace(collections=inner), batch, seed)
    n = state.step.astype(jnp.float32)
    kept = jnp.minimum(decay, n / (n + 9.0))
    average = jax.tree.map(
      # What is not trained stays what it is, to the bit.
      lambda mean, new: (mean + (1.0 - kept) * (new - mean)).astype(mean.dtype),
      average,
      state.params,
    )
    return state.replace(collections={**state.collections, AVERAGE: average}), metrics

  def predict(params: Params, collections: Collections, batch: Batch) -> ModelOutput:
    del params
    average, inner = _split(collections)
    return recipe.predict(average, inner, batch)

  def start(params: Params, collections: Collections, at: Any) -> TrainState:
    average, inner = _split(collections)
    state = recipe.start(params, inner, at)
    return state.replace(collections={**state.collections, AVERAGE: average})

  return recipe._replace(init=init, step=step, predict=predict, start=start)


def _split(collections: Collections) -> tuple[Params, Collections]:
  inner = dict(collections)
  return inner.pop(AVERAGE), inner


def predicting(params: Params, collections: Collections) -> tuple[Params, Collections]:
  """Parameters that predictions are made with, the mean where one is kept, and the
  collections of the model itself."""
  if AVERAGE not in collections:
    return params, collections
  return _split(collections)
