"""The LSTM layer against an explicit loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msa_jax.layers.recurrent import LSTM


def sigmoid(x):
  return 1.0 / (1.0 + np.exp(-x))


def loop(params, direction, sequence):
  """One direction over the real steps of one sequence, in float64."""
  inputs = np.float64(params["input_kernel"][direction])
  recurrent = np.float64(params["recurrent_kernel"][direction])
  bias = np.float64(params["bias"][direction])
  hidden = recurrent.shape[0]
  cell, output, states = np.zeros(hidden), np.zeros(hidden), []
  for step in sequence if direction == 0 else sequence[::-1]:
    gates = step @ inputs + output @ recurrent + bias
    i, f, g, o = np.split(gates, 4)
    cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
    output = sigmoid(o) * np.tanh(cell)
    states.append(output)
  last = output
  return np.array(states if direction == 0 else states[::-1]), last


@pytest.mark.parametrize("bidirectional", [False, True])
def test_lstm_equals_a_loop_over_the_real_steps(bidirectional, getkey):
  lengths, n_steps, width, hidden = [5, 2, 0, 1], 5, 3, 4
  values = jax.random.normal(getkey(), (4, n_steps, width))
  mask = jnp.arange(n_steps)[None] < jnp.array(lengths)[:, None]
  layer = LSTM(hidden, bidirectional)
  params = layer.init(getkey(), values, mask)["params"]
  params = {**params, "bias": jax.random.normal(getkey(), params["bias"].shape)}
  states, last = layer.apply({"params": params}, values, mask)
  for row, length in enumerate(lengths):
    parts = [
      loop(params, direction, np.float64(values[row, :length]))
      for direction in range(2 if bidirectional else 1)
    ]
    if length:
      expected = np.concatenate([part[0] for part in parts], axis=1)
      np.testing.assert_allclose(states[row, :length], expected, atol=2e-6)
    assert np.all(np.asarray(states[row, length:]) == 0.0)
    expected = np.concatenate([part[1] for part in parts])
    np.testing.assert_allclose(last[row], expected, atol=2e-6)


def reference(params, values, mask):
  """All states by a Python loop that JAX differentiates by itself."""
  outputs = []
  for direction in range(len(params["bias"])):
    cell = output = jnp.zeros((len(values), params["recurrent_kernel"].shape[1]))
    steps = range(values.shape[1])
    states = {}
    for step in steps if direction == 0 else reversed(steps):
      gates = values[:, step] @ params["input_kernel"][direction]
      gates = gates + output @ params["recurrent_kernel"][direction]
      i, f, g, o = jnp.split(gates + params["bias"][direction][None], 4, axis=-1)
      real = mask[:, step, None]
      new_cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
      output = jnp.where(real, jax.nn.sigmoid(o) * jnp.tanh(new_cell), output)
      cell = jnp.where(real, new_cell, cell)
      states[step] = jnp.where(real, output, 0.0)
    outputs.append((jnp.stack([states[s] for s in steps], axis=1), output))
  return tuple(jnp.concatenate(parts, axis=-1) for parts in zip(*outputs, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("bidirectional", [False, True])
def test_its_derivative_is_that_of_a_plain_loop(bidirectional, getkey):
  values = jax.random.normal(getkey(), (4, 3, 3))
  mask = jnp.arange(3)[None] < jnp.array([3, 2, 0, 1])[:, None]
  layer = LSTM(4, bidirectional)
  params = layer.init(getkey(), values, mask)["params"]
  params = {**params, "bias": jax.random.normal(getkey(), params["bias"].shape)}
  shapes = jax.eval_shape(lambda: reference(params, values, mask))
  weights = [jax.random.normal(getkey(), shape.shape) for shape in shapes]

  def gradients(function):
    def total(params, values):
      parts = zip(function(params, values), weights, strict=True)
      return sum(jnp.sum(weight * part) for part, weight in parts)

    def twice(params, values):
      first = jax.grad(total, argnums=(0, 1))(params, values)
      return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(first))

    def both(params, values):
      first = jax.grad(total, argnums=(0, 1))(params, values)
      return first, jax.grad(twice)(params, values)

    return jax.jit(both)(params, values)

  ours = gradients(lambda p, v: layer.apply({"params": p}, v, mask))
  theirs = gradients(lambda p, v: reference(p, v, mask))
  for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)


def test_content_of_padding_has_no_influence(getkey):
  values = jax.random.normal(getkey(), (2, 4, 3))
  mask = jnp.arange(4)[None] < jnp.array([2, 4])[:, None]
  layer = LSTM(5, bidirectional=True)
  variables = layer.init(getkey(), values, mask)
  polluted = jnp.where(mask[..., None], values, jnp.nan)
  for clean, dirty in zip(
    layer.apply(variables, values, mask),
    layer.apply(variables, polluted, mask),
    strict=True,
  ):
    assert np.array_equal(clean, dirty)


def test_one_direction_has_one_bias_per_gate():
  # 4 gates * (768*256 input + 256*256 recurrent + 256 bias) = 1,049,600; two of them.
  layer = LSTM(256, bidirectional=True)
  shapes = jax.eval_shape(
    layer.init, jax.random.key(0), jnp.zeros((1, 2, 768)), jnp.ones((1, 2), bool)
  )
  count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  assert count == 2 * 1_049_600


def test_recurrent_kernels_start_orthogonal_per_gate(getkey):
  values, mask = jnp.zeros((1, 2, 3)), jnp.ones((1, 2), bool)
  kernel = LSTM(6, True).init(getkey(), values, mask)["params"]["recurrent_kernel"]
  for direction in range(2):
    for gate in np.split(np.asarray(kernel[direction]), 4, axis=1):
      np.testing.assert_allclose(gate @ gate.T, np.eye(6), atol=1e-5)


def test_lstm_computes_in_bfloat16_with_float32_parameters(getkey):
  values = jax.random.normal(getkey(), (2, 4, 3))
  mask = jnp.ones((2, 4), bool)
  variables = LSTM(5).init(getkey(), values, mask)
  exact, _ = LSTM(5).apply(variables, values, mask)
  rough, _ = LSTM(5, dtype=jnp.bfloat16).apply(variables, values, mask)
  assert rough.dtype == jnp.bfloat16
  assert variables["params"]["input_kernel"].dtype == jnp.float32
  np.testing.assert_allclose(np.float32(rough), exact, atol=0.02)
