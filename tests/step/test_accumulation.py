"""One update from several batches: both semantics by hand, tails, seeds at once."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from msa_jax.step.accumulation import accumulated
from msa_jax.typing import TrainState

GRADIENTS = ((1.0, -0.2), (3.0, 0.1), (-0.5, 0.3), (1.0, 1.0), (0.25, -4.0))


def run(mode, clip=0.0, epochs=1):
  """Parameters after every batch of plain descent with rate one."""
  rule, end_epoch = accumulated(optax.sgd(1.0), 2, mode, clip)
  params = {"w": jnp.zeros(2)}
  state = TrainState(0, params, {}, rule.init(params))
  seen = []
  for _ in range(epochs):
    for gradient in GRADIENTS:
      updates, held = rule.update(
        {"w": jnp.asarray(gradient)}, state.opt_state, state.params
      )
      params = optax.apply_updates(state.params, updates)
      state = state.replace(params=params, opt_state=held)
      seen.append(np.asarray(state.params["w"]))
    state = end_epoch(state)
    seen.append(np.asarray(state.params["w"]))
  return np.array(seen)


def test_the_mean_of_a_group_is_applied_at_its_end_and_that_of_the_rest():
  g = np.array(GRADIENTS)
  first, second = -(g[0] + g[1]) / 2, -(g[2] + g[3]) / 2
  expected = [0 * first, first, first, first + second, first + second]
  np.testing.assert_allclose(run("mean")[:-1], expected, atol=1e-6)
  np.testing.assert_allclose(run("mean")[-1], first + second - g[4], atol=1e-6)


def test_the_sum_is_clipped_after_every_batch_and_the_rest_is_dropped():
  # Entry 1: clip(clip(1) + 3) = 1.5; entry 2: -.2 + .1. Then 0 + .5 and 1.3.
  first, second = np.array([-1.5, 0.1]), np.array([-0.5, -1.3])
  once = run("sum", clip=1.5)
  np.testing.assert_allclose(once[1], first, atol=1e-6)
  np.testing.assert_allclose(once[3:], [first + second] * 3, atol=1e-6)
  # The fifth batch has no part in the first group of the next epoch.
  twice = run("sum", clip=1.5, epochs=2)
  np.testing.assert_allclose(twice[-1], 2 * (first + second), atol=1e-6)


@pytest.mark.parametrize("mode", ["mean", "sum"])
def test_seeds_side_by_side_accumulate_each_for_itself(mode):
  rule, end_epoch = accumulated(optax.adam(0.1), 2, mode)

  def trained(scale):
    params = {"w": jnp.ones(2) * scale}
    state = TrainState(0, params, {}, rule.init(params))
    for gradient in GRADIENTS:
      updates, held = rule.update(
        {"w": jnp.asarray(gradient) * scale}, state.opt_state, state.params
      )
      params = optax.apply_updates(state.params, updates)
      state = state.replace(params=params, opt_state=held)
    return end_epoch(state).params["w"]

  scales = jnp.asarray([0.5, -2.0])
  alone = [trained(scale) for scale in scales]
  np.testing.assert_allclose(jax.vmap(trained)(scales), alone, atol=1e-6)
