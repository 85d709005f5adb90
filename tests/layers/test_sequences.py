"""GRU, stacks, windows, whole-window convolutions, MulT's encoder: loops and masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paths import REFERENCE

from msa_jax.layers import masking, positions, windows
from msa_jax.layers.convolution import ValidConvolution
from msa_jax.layers.crossmodal import CrossmodalEncoder, not_future
from msa_jax.layers.recurrent import GRU, LSTM, LSTMCells, RecurrentStack

ARRAYS = np.load(REFERENCE / "sequence_reference.npz")
MASK = jnp.arange(5)[None] < jnp.array([5, 2, 0, 1])[:, None]


def sigmoid(x):
  return 1.0 / (1.0 + np.exp(-x))


def random_params(layer, *arguments, seed=0):
  """Random values: fresh ones have biases of zero."""
  shapes = jax.eval_shape(layer.init, jax.random.key(0), *arguments)["params"]
  random = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: jnp.asarray(0.5 * random.normal(size=leaf.shape), leaf.dtype), shapes
  )


def gru_loop(params, direction, sequence):
  """One direction over real steps alone, in float64."""
  kernel, recurrent, bias, own = (
    np.float64(params[name][direction])
    for name in ("input_kernel", "recurrent_kernel", "bias", "candidate_bias")
  )
  state, states = np.zeros(len(recurrent)), []
  for step in sequence if direction == 0 else sequence[::-1]:
    x_r, x_z, x_n = np.split(step @ kernel + bias, 3)
    h_r, h_z, h_n = np.split(state @ recurrent, 3)
    keep = sigmoid(x_z + h_z)
    candidate = np.tanh(x_n + sigmoid(x_r + h_r) * (h_n + own))
    state = keep * state + (1 - keep) * candidate
    states.append(state)
  return np.array(states if direction == 0 else states[::-1]), state


def test_gru_equals_a_loop_over_the_real_steps_in_both_directions(getkey):
  values = jax.random.normal(getkey(), (4, 5, 3))
  layer = GRU(4, bidirectional=True)
  params = random_params(layer, values, MASK)
  states, last = layer.apply({"params": params}, values, MASK)
  for row, length in enumerate((5, 2, 0, 1)):
    sequence = np.float64(values[row, :length])
    parts = [gru_loop(params, direction, sequence) for direction in (0, 1)]
    if length:
      expected = np.concatenate([part[0] for part in parts], axis=1)
      np.testing.assert_allclose(states[row, :length], expected, atol=2e-6)
    assert np.all(np.asarray(states[row, length:]) == 0.0)
    expected = np.concatenate([part[1] for part in parts])
    np.testing.assert_allclose(last[row], expected, atol=2e-6)


def test_a_stack_is_its_layers_one_after_the_other(getkey):
  values = jax.random.normal(getkey(), (4, 5, 3))
  stack = RecurrentStack(4, n_layers=2, bidirectional=True)
  params = random_params(stack, values, MASK)
  states, ends = stack.apply({"params": params}, values, MASK)
  layer, hidden = LSTM(4, True), values
  for index in range(2):
    hidden, last = layer.apply({"params": params[f"layer_{index}"]}, hidden, MASK)
    np.testing.assert_array_equal(ends[:, index], last)
  np.testing.assert_array_equal(states, hidden)


def test_a_stack_drops_states_between_its_layers_and_nowhere_else(getkey):
  values = jax.random.normal(getkey(), (4, 5, 3))
  rngs = {"dropout": getkey()}
  for n_layers, same in ((1, True), (2, False)):
    stack = RecurrentStack(4, n_layers=n_layers, cell="gru")
    params = random_params(stack, values, MASK)
    plain, _ = stack.apply({"params": params}, values, MASK)
    dropped = stack.copy(dropout=0.9, deterministic=False)
    states, ends = dropped.apply({"params": params}, values, MASK, rngs=rngs)
    assert np.array_equal(states, plain) == same
    # The rows' first layer is before the dropout in any case.
    _, before = stack.apply({"params": params}, values, MASK)
    np.testing.assert_array_equal(ends[:, 0], before[:, 0])


def test_cells_are_those_of_the_lstm(getkey):
  values = jax.random.normal(getkey(), (4, 5, 3))
  params = random_params(LSTM(4), values, MASK)
  states, last = LSTM(4).apply({"params": params}, values, MASK)
  outputs, cells = LSTMCells(4).apply({"params": params}, values, MASK)
  shown = jnp.where(MASK[..., None], outputs.transpose(1, 0, 2), 0.0)
  np.testing.assert_allclose(shown, states, atol=1e-6)
  np.testing.assert_allclose(outputs[-1], last, atol=1e-6)
  # h = o tanh(c): never beyond the cell's own size, and of its sign.
  assert np.all(np.abs(outputs) <= np.abs(np.tanh(cells)) + 1e-6)
  assert np.all(np.asarray(outputs * cells) >= 0.0)
  np.testing.assert_array_equal(cells[1:, 3], np.repeat(cells[:1, 3], 4, axis=0))


@pytest.mark.parametrize("case", ["a10_v12", "a3_v4", "a400_v55"])
@pytest.mark.parametrize("name", ["a", "v"])
def test_windows_that_repeat_the_last_frame_are_mmsas(case, name):
  frames = jnp.asarray(ARRAYS[f"align/{case}/in_{name}"])
  steps = int(ARRAYS[f"align/{case}/text_length"])
  every = jnp.ones(frames.shape[:2], bool), jnp.ones((2, steps), bool)
  means, real = windows.window_mean(frames, *every, repeat_last=True)
  np.testing.assert_allclose(means, ARRAYS[f"align/{case}/output_{name}"], atol=1e-6)
  assert np.all(real)


def test_windows_follow_real_lengths_and_skip_hidden_frames():
  frames = jnp.arange(8.0).reshape(1, 8, 1).at[0, 5:].set(jnp.nan)
  mask = (jnp.arange(8) < 5)[None] & (jnp.arange(8) != 1)[None]
  anchor = (jnp.arange(6) < 2)[None]
  means, real = windows.window_mean(frames, mask, anchor)
  # Five frames, two steps: windows of three; frame 1 is hidden.
  np.testing.assert_allclose(means[0, :, 0], [1.0, 3.5, 0, 0, 0, 0])
  assert real[0].tolist() == [True, True, False, False, False, False]
  # More steps than frames: the last one is repeated.
  means, real = windows.window_mean(frames, mask, (jnp.arange(7) < 7)[None])
  np.testing.assert_allclose(means[0, :, 0], [0.0, 0.0, 2.0, 3.0, 4.0, 4.0, 4.0])
  assert real[0].tolist() == [True, False, True, True, True, True, True]
  # No anchor: one window. No frame: nothing.
  means, real = windows.window_mean(frames, mask, anchor & False)
  np.testing.assert_allclose(means[0, :2, 0], [2.25, 0.0])
  assert not windows.window_mean(frames, mask & False, anchor)[1].any()


def test_whole_windows_depend_on_real_steps_alone(getkey):
  values = jax.random.normal(getkey(), (3, 6, 2))
  mask = jnp.arange(6)[None] < jnp.array([6, 4, 1])[:, None]
  layer = ValidConvolution(width=3, kernel_size=3)
  params = layer.init(getkey(), values, mask)
  result, real = layer.apply(params, values, mask)
  assert real.sum(axis=1).tolist() == [4, 2, 1]
  kernel = np.float64(params["params"]["kernel"])
  padded = np.where(mask[..., None], values, 0.0)
  for row in range(3):
    for start in range(int(real[row].sum())):
      window = np.einsum("kd,kdc->c", padded[row, start : start + 3], kernel)
      np.testing.assert_allclose(result[row, start], window, atol=1e-5)
  short, shown = layer.apply(params, values[2:, :1], mask[2:, :1])
  np.testing.assert_allclose(short[:, 0], result[2:, 0], atol=1e-6)
  assert shown.shape == (1, 1)
  hole = mask.at[0, :4].set(False)
  assert layer.apply(params, values, hole)[1][0].tolist() == [False, False, True, True]


def test_last_steps_and_extents_count_holes():
  mask = jnp.array([[True, False, True, False], [False] * 4])
  values = jnp.arange(8.0).reshape(2, 4, 1)
  assert masking.extents(mask).tolist() == [3, 0]
  assert masking.last_step(values, mask).tolist() == [[2.0], [0.0]]


def test_half_sinusoids_are_mults():
  mult = np.load(REFERENCE / "mult_reference.npz")
  found = mult["aligned/inner_position_embedding_text"]
  lengths = mult["aligned/t_lengths"]
  table = positions.half_sinusoids(7, 8)
  for row, length in enumerate(lengths):
    np.testing.assert_allclose(found[row, :length], table[:length], atol=1e-6)
    assert not found[row, length:].any()
  assert not positions.half_sinusoids(4, 5)[:, -1].any()


def test_a_step_attends_to_what_is_not_in_its_future():
  # Lengths 2 and 3: one step further than the diagonal.
  seen = not_future(jnp.array([[True, True]]), jnp.array([[True, True, True, False]]))
  assert seen[0].tolist() == [[True, True, False, False], [True, True, True, False]]


def test_what_is_masked_has_no_influence_on_the_encoder(getkey):
  values, source = (jax.random.normal(getkey(), (2, n, 8)) for n in (4, 6))
  mask = jnp.array([[True, True, True, False], [True, False, True, True]])
  keys = jnp.array([[True] * 3 + [False] * 3, [False] * 6])
  encoder = CrossmodalEncoder(n_layers=2, n_heads=2, positions=True)
  params = random_params(encoder, values, mask, source, keys)
  run = jax.jit(lambda v, s: encoder.apply({"params": params}, v, mask, s, keys))
  plain = run(values, source)
  junk = (
    jnp.where(mask[..., None], values, 1e6),
    jnp.where(keys[..., None], source, 9.0),
  )
  np.testing.assert_array_equal(plain, run(*junk))
  assert np.all(np.asarray(plain)[~np.asarray(mask)] == 0.0)
  # The first step of row 0 sees key 0 of three, not the others: l_q = l_k.
  later = run(values, source.at[0, 1:].multiply(-1.0))
  np.testing.assert_array_equal(plain[0, 0], later[0, 0])
  assert np.abs(np.asarray(plain[0, 1] - later[0, 1])).max() > 1e-3
