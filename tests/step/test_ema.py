"""The running mean of the parameters, against a loop in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_hgem as tiny

from msa_jax.step.ema import with_ema
from msa_jax.step.recipe import Recipe
from msa_jax.typing import ModelOutput, TrainState


def counting() -> Recipe:
  """One parameter, 10 at first, that every step doubles; predicts itself."""

  def init(seed):
    params = {"w": jnp.full((2,), 10.0)}
    return TrainState(jnp.zeros((), jnp.int32), params, {"seen": jnp.zeros(())}, ())

  def step(state, batch, seed):
    del batch, seed
    assert set(state.collections) == {"seen"}  # the mean is not the model's business
    params = jax.tree.map(lambda leaf: 2 * leaf, state.params)
    seen = {"seen": state.collections["seen"] + 1}
    state = state.replace(step=state.step + 1, params=params, collections=seen)
    return state, {"loss": jnp.ones(())}

  def predict(params, collections, batch):
    del batch
    assert set(collections) == {"seen"}
    return ModelOutput({"sentiment": params["w"]}, {}, {}, {})

  def start(params, collections, step):
    return TrainState(step, params, collections, ())

  return Recipe(init, step, predict, start)


@pytest.mark.parametrize("decay", [0.05, 0.3])
def test_the_mean_equals_a_loop(decay):
  recipe = with_ema(counting(), decay)
  state = recipe.init(0)
  mean, value = 10.0, 10.0
  for n in range(1, 6):
    state, _ = recipe.step(state, tiny.batch(), 0)
    value *= 2
    kept = min(decay, n / (n + 9))
    mean = kept * mean + (1 - kept) * value
  output = recipe.predict(state.params, state.collections, tiny.batch())
  np.testing.assert_allclose(output.predictions["sentiment"], [mean] * 2, rtol=1e-6)
  np.testing.assert_array_equal(state.params["w"], [320.0, 320.0])
  assert float(state.collections["seen"]) == 5


def test_without_decay_the_recipe_is_untouched():
  recipe = counting()
  assert with_ema(recipe, 0.0) is recipe


def test_the_state_shares_no_buffer_with_the_mean():
  """Buffers are donated to the next step, which none survives twice."""
  recipe = with_ema(counting(), 0.5)
  step = jax.jit(lambda state: recipe.step(state, tiny.batch(), 0)[0], donate_argnums=0)
  state = step(step(recipe.init(0)))
  assert int(state.step) == 2
