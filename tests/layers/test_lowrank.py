"""The bank of low-rank experts against loops and linear algebra."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from msa_jax.errors import UserError
from msa_jax.layers import lowrank
from msa_jax.layers.lowrank import Bank, LowRankExperts, join, mix, split

RANKS, WIDTH = (1, 3, 2), 5


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _mix(weights, rest, activation, form, ranks=RANKS):
  """`mix` with the bank's arrays as arguments."""
  return mix(Bank(ranks, *weights), *rest, activation, form)


def _random(seed, dtype=np.float32):
  random = np.random.default_rng(seed)
  total = sum(RANKS)
  shapes = ((3, WIDTH, total), (total,), (total, WIDTH), (len(RANKS), WIDTH))
  weights = [random.normal(size=shape).astype(dtype) for shape in shapes]
  values = random.normal(size=(4, 6, WIDTH)).astype(dtype)
  mask = np.arange(6)[None] < np.asarray([6, 3, 1, 0])[:, None]
  gates = random.dirichlet(np.ones(len(RANKS)), 4).astype(dtype)
  return weights, values, mask, gates


def _loop(weights, values, mask, gates, activation):
  """Every expert, every step, every tap, in float64."""
  first, first_bias, second, second_bias = (w.astype(np.float64) for w in weights)
  if gates.ndim == 2:
    gates = np.repeat(gates[:, None], values.shape[1], axis=1)
  act = {
    "gelu": lambda x: 0.5 * x * (1 + erf(x / np.sqrt(2))),
    "identity": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
  }
  result = np.zeros(values.shape)
  for row, step in np.argwhere(mask):
    start = 0
    for expert, rank in enumerate(RANKS):
      channels = slice(start, start + rank)
      hidden = first_bias[channels].copy()
      for tap in range(3):
        at = step + tap - 1
        if 0 <= at < values.shape[1] and mask[row, at]:
          hidden += values[row, at].astype(np.float64) @ first[tap][:, channels]
      output = act[activation](hidden) @ second[channels] + second_bias[expert]
      result[row, step] += gates[row, step, expert] * output
      start += rank
  return result


@pytest.mark.parametrize("form", lowrank.FORMS)
@pytest.mark.parametrize("activation", lowrank.ACTIVATIONS)
def test_the_bank_equals_a_loop_over_experts_steps_and_taps(activation, form, float64):
  weights, values, mask, gates = _random(0, np.float64)
  got = _mix(weights, (values, mask, gates), activation, form)
  assert got.dtype == float64
  expected = _loop(weights, values, mask, gates, activation)
  np.testing.assert_allclose(got, expected, atol=1e-12)


def test_fused_and_plain_agree_in_single_precision_with_gates_per_step():
  weights, values, mask, _ = _random(1)
  gates = np.random.default_rng(2).dirichlet(np.ones(3), (4, 6)).astype(np.float32)
  fused, plain = (
    _mix(weights, (values, mask, gates), "gelu", form) for form in lowrank.FORMS
  )
  scale = np.abs(plain).max()
  np.testing.assert_allclose(fused / scale, plain / scale, atol=1e-6)
  expected = _loop(weights, values, mask, gates, "gelu")
  np.testing.assert_allclose(fused / scale, expected / scale, atol=1e-6)


def test_gradients_of_fused_and_plain_agree():
  weights, values, mask, gates = _random(3)

  @functools.partial(jax.jit, static_argnums=0)
  def gradient(form, weights, values, gates):
    def total(*arguments):
      w, v, g = arguments
      return jnp.sum(mix(Bank(RANKS, *w), v, jnp.asarray(mask), g, "gelu", form) ** 2)

    return jax.grad(total, argnums=(0, 1, 2))(weights, values, gates)

  arguments = jax.tree.map(jnp.asarray, (weights, values, gates))
  fused, plain = (gradient(form, *arguments) for form in lowrank.FORMS)
  for a, b in zip(jax.tree.leaves(fused), jax.tree.leaves(plain), strict=True):
    scale = float(jnp.abs(b).max())
    np.testing.assert_allclose(a / scale, b / scale, atol=1e-5)


def test_masked_steps_and_longer_padding_change_nothing():
  weights, values, mask, gates = _random(4)
  arguments = (values, mask, gates)
  expected = _mix(weights, arguments, "gelu", "fused")
  spoiled = np.where(mask[..., None], values, np.float32(np.nan))
  np.testing.assert_array_equal(
    _mix(weights, (spoiled, mask, gates), "gelu", "fused"), expected
  )
  longer = np.pad(values, ((0, 0), (0, 3), (0, 0)), constant_values=9.0)
  got = _mix(weights, (longer, np.pad(mask, ((0, 0), (0, 3))), gates), "gelu", "fused")
  np.testing.assert_allclose(got[:, :6], expected, atol=1e-6)
  np.testing.assert_array_equal(got[:, 6:], 0.0)
  np.testing.assert_array_equal(np.asarray(expected)[~mask], 0.0)


def test_without_activation_an_expert_is_a_dense_convolution_of_its_rank(float64):
  random = np.random.default_rng(5)
  first = random.normal(size=(3, WIDTH, 2))
  second = random.normal(size=(2, WIDTH))
  biases = random.normal(size=2), random.normal(size=(1, WIDTH))
  values = random.normal(size=(2, 7, WIDTH))
  mask = np.ones((2, 7), bool)
  weights, rest = (first, biases[0], second, biases[1]), (values, mask, np.ones((2, 1)))
  got = _mix(weights, rest, "identity", "fused", (2,))
  dense = np.einsum("kir,ro->kio", first, second)
  padded = np.pad(values, ((0, 0), (1, 1), (0, 0)))
  expected = sum(padded[:, k : k + 7] @ dense[k] for k in range(3))
  np.testing.assert_allclose(got, expected + biases[0] @ second + biases[1], atol=1e-12)
  assert [np.linalg.matrix_rank(tap) for tap in dense] == [2, 2, 2]
  assert np.linalg.matrix_rank(dense.reshape(-1, WIDTH)) == 2


def test_one_hot_gates_give_one_expert_and_even_gates_the_mean():
  weights, values, mask, _ = _random(6)
  bank = Bank(RANKS, *weights)
  alone = []
  for one in split(bank):
    rest = (values, mask, np.ones((4, 1), np.float32))
    alone.append(np.asarray(_mix(one[1:], rest, "gelu", "fused", one.ranks)))
  for expert in range(3):
    gates = np.eye(3, dtype=np.float32)[[expert] * 4]
    got = _mix(weights, (values, mask, gates), "gelu", "fused")
    np.testing.assert_allclose(got, alone[expert], atol=1e-5)
  even = np.full((4, 3), 1 / 3, np.float32)
  got = _mix(weights, (values, mask, even), "gelu", "fused")
  np.testing.assert_allclose(got, np.mean(alone, axis=0), atol=1e-5)


def test_joining_the_parts_of_a_bank_gives_the_bank():
  bank = Bank(RANKS, *_random(7)[0])
  again = join(split(bank))
  assert again.ranks == RANKS
  for a, b in zip(again[1:], bank[1:], strict=True):
    np.testing.assert_array_equal(a, b)


def test_an_expert_of_rank_r_has_4dr_plus_r_plus_d_numbers():
  for ranks in ((16,), (16, 32, 64, 128)):
    params = jax.eval_shape(LowRankExperts(ranks, 768).init, jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == sum(4 * 768 * r + r + 768 for r in ranks)
  # The numbers of the paper's sheet.
  assert [4 * 768 * r + r + 768 for r in (16, 32, 64, 128)] == [
    *(49_936, 99_104, 197_440, 394_112)
  ]


def test_the_cost_grows_with_the_ranks_and_not_with_the_number_of_experts():
  """Operations of the compiled program, as XLA counts them."""

  def flops(ranks, form):
    def run(key, values, mask, gates):
      module = LowRankExperts(ranks, 32)
      return mix(module.apply(module.init(key)), values, mask, gates, "relu", form)

    shapes = (
      jax.random.key(0),
      *(jnp.zeros((4, 8, 32)), jnp.ones((4, 8), bool), jnp.ones((4, len(ranks)))),
    )
    lowered = jax.jit(run).lower(*shapes)
    return lowered.cost_analysis()["flops"]

  one = flops((16,), "fused")
  # The same total rank in eight experts costs nearly the same, ...
  assert flops((2,) * 8, "fused") < 1.2 * one
  # ... eight times the rank eight times as much, ...
  assert 6.0 < flops((128,), "fused") / one < 9.0
  # ... and eight experts of full width 8 * 32 / 16 times as much.
  assert 12.0 < flops((32,) * 8, "fused") / one < 20.0


@pytest.mark.parametrize("name", lowrank.SECOND_INITS)
def test_second_kernels_start_at_zero_or_with_the_rank_as_fan_in(name):
  params = LowRankExperts((2, 200), 300, second_init=name).init(jax.random.key(0))
  second = params["params"]["w2"]
  if name == "zeros":
    assert not second.any()
    return
  np.testing.assert_allclose(second[:2].std(), 2**-0.5, rtol=0.1)
  np.testing.assert_allclose(second[2:].std(), 200**-0.5, rtol=0.05)


def test_bad_ranks_initialisers_activations_and_forms_are_refused():
  bank, values = Bank(RANKS, *_random(8)[0]), jnp.zeros((1, 2, WIDTH))
  rest = (jnp.ones((1, 2), bool), jnp.ones((1, 3)))
  with pytest.raises(UserError, match="act='tanh'.*gelu"):
    mix(bank, values, *rest, activation="tanh")
  with pytest.raises(UserError, match="dispatch='capacity'.*fused"):
    mix(bank, values, *rest, form="capacity")
  with pytest.raises(UserError, match="rank of at least 1"):
    LowRankExperts((4, 0), 8).init(jax.random.key(0))
  with pytest.raises(UserError, match="w2_init='ones'.*zeros"):
    LowRankExperts((4,), 8, second_init="ones").init(jax.random.key(0))
