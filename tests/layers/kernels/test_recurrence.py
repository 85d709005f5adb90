"""The recurrence of an LSTM against the plain scan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msa_jax.layers.kernels.recurrence import lstm_recurrence, lstm_recurrence_plain

STEPS, DIRECTIONS, ROWS, HIDDEN = 6, 2, 4, 3


def _inputs(getkey, dtype):
  inputs = jax.random.normal(getkey(), (STEPS, DIRECTIONS, ROWS, 4 * HIDDEN))
  kernel = jax.random.normal(getkey(), (DIRECTIONS, HIDDEN, 4 * HIDDEN), dtype)
  # Steps are missing at the end, at the start and in the middle of rows.
  real = jax.random.bernoulli(getkey(), 0.7, (STEPS, DIRECTIONS, ROWS, 1))
  weight = jax.random.normal(getkey(), (STEPS, DIRECTIONS, ROWS, HIDDEN))
  return inputs, kernel, real.at[:, :, 0].set(False), weight


@pytest.mark.parametrize("dtype,tolerance", [(jnp.float32, 2e-5), (jnp.bfloat16, 0.05)])
def test_states_and_gradients_are_those_of_the_plain_scan(dtype, tolerance, getkey):
  inputs, kernel, real, weight = _inputs(getkey, dtype)

  def gradients(form):
    def total(inputs, kernel):
      states = form(inputs, kernel, real)
      return jnp.sum(weight * states), states

    return jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(inputs, kernel)

  ours, plain = (jax.tree.leaves(gradients(f)) for f in _FORMS)
  for one, other in zip(ours, plain, strict=True):
    assert one.dtype == other.dtype
    one, other = np.float32(one), np.float32(other)
    np.testing.assert_allclose(one, other, atol=tolerance * np.abs(other).max())


_FORMS = (lstm_recurrence, lstm_recurrence_plain)


def test_steps_that_are_not_real_repeat_the_state(getkey):
  inputs, kernel, real, _ = _inputs(getkey, jnp.float32)
  states = np.asarray(lstm_recurrence(inputs, kernel, real))
  before = np.concatenate([np.zeros_like(states[:1]), states[:-1]])
  kept = np.broadcast_to(~np.asarray(real), states.shape)
  assert kept.any()
  assert np.array_equal(states[kept], before[kept])
