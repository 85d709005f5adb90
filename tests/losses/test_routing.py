"""Routing losses against slow loops, pinned values, bounds and masks."""

import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msa_jax.errors import UserError
from msa_jax.layers import routing as layer
from msa_jax.losses import routing
from msa_jax.typing import Routing

STATIC = {
  "entropy": ("base", "normalised"),
  "router_entropy": ("base", "normalised"),
  "load_entropy": ("base", "normalised"),
  "routing_information": ("base", "normalised"),
  "info_nce": ("mask_duplicates",),
}
NAMES = (
  *STATIC,
  *("load_balance", "router_z", "importance_cv2", "load_cv2"),
  *("discriminative", "vertex_cosine", "information_estimate"),
)
# Compiled once per shape: the suite would otherwise compile every operation alone.
losses = types.SimpleNamespace(
  **{
    name: jax.jit(getattr(routing, name), static_argnames=STATIC.get(name, ()))
    for name in NAMES
  }
)
route = jax.jit(layer.route, static_argnames="k")


def random_probs(seed, rows=9, experts=4, sharpness=2.0):
  logits = sharpness * np.random.default_rng(seed).standard_normal((rows, experts))
  probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  return probs.astype(np.float32)


def as_routing(probs, combine=None):
  probs = jnp.asarray(probs, jnp.float32)
  combine = probs if combine is None else jnp.asarray(combine, jnp.float32)
  return Routing(probs, combine, jnp.log(probs))


@pytest.mark.parametrize("experts,k", [(8, 2), (3, 1), (4, 4), (1, 1)])
def test_uniform_routing_has_balance_loss_exactly_one(experts, k):
  # Row n selects experts n, n + 1, ..., n + k - 1 (mod e): an exactly even load.
  rows = np.arange(experts)
  combine = np.zeros((experts, experts))
  for step in range(k):
    combine[rows, (rows + step) % experts] = 1 / k
  probs = np.full((experts, experts), 1 / experts)
  assert float(losses.load_balance(as_routing(probs, combine))) == 1.0


def test_all_rows_to_one_expert_give_e_times_its_probability():
  probs = np.tile([0.7, 0.1, 0.1, 0.1], (5, 1))
  combine = np.tile([0.7, 0.0, 0.0, 0.0], (5, 1))
  got = losses.load_balance(as_routing(probs, combine))
  np.testing.assert_allclose(got, 4 * 0.7, rtol=1e-6)


def test_balance_loss_equals_a_loop_and_its_gradient_comes_from_probabilities_only():
  probs = random_probs(0)
  logits = jnp.log(jnp.asarray(probs))
  way = route(logits, 2)
  combine = np.asarray(way.combine)
  share, mean = np.zeros(4), np.zeros(4)
  for row in range(9):
    for e in range(4):
      share[e] += (combine[row, e] > 0) / (9 * 2)
      mean[e] += probs[row, e] / 9
  got = losses.load_balance(way)
  np.testing.assert_allclose(got, 4 * np.sum(share * mean), rtol=1e-6)
  grad = jax.jit(jax.grad(lambda p: losses.load_balance(way.replace(probs=p))))(
    way.probs
  )
  np.testing.assert_allclose(grad, np.tile(4 * share / 9, (9, 1)), rtol=1e-5)


MASKED = {
  "load_balance": losses.load_balance,
  "router_z": losses.router_z,
  "load_cv2": losses.load_cv2,
  "importance_cv2": lambda r, m: losses.importance_cv2(r.probs, m),
  "router_entropy": lambda r, m: losses.router_entropy(r.probs, m),
  "load_entropy": lambda r, m: losses.load_entropy(r.probs, m),
  "routing_information": lambda r, m: losses.routing_information(r.probs, m),
}


@pytest.mark.parametrize("name", MASKED)
def test_filler_rows_count_nowhere_and_no_rows_give_zero_with_zero_gradient(name):
  function = MASKED[name]
  logits = jnp.asarray(np.random.default_rng(1).standard_normal((6, 3)), jnp.float32)
  mask = jnp.asarray([True, True, True, True, False, False])
  junk = logits.at[4:].set(jnp.asarray([[50.0, -50.0, 0.0]] * 2))
  short = route(logits[:4], 2)
  everything = function(short, jnp.ones(4, bool))
  np.testing.assert_allclose(function(route(junk, 2), mask), everything, rtol=1e-6)
  nobody = jnp.zeros(6, bool)
  grad_of = jax.jit(jax.grad(lambda z, m: function(route(z, 2), m)))
  assert float(function(route(logits, 2), nobody)) == 0.0
  np.testing.assert_array_equal(grad_of(logits, nobody), np.zeros((6, 3)))
  grad = grad_of(logits, mask)
  assert np.isfinite(grad).all()
  np.testing.assert_array_equal(grad[4:], np.zeros((2, 3)))


def test_rows_without_any_available_expert_count_nowhere():
  logits = jnp.asarray(np.random.default_rng(2).standard_normal((5, 3)), jnp.float32)
  available = jnp.ones((5, 3), bool).at[3:].set(False)
  whole, short = route(logits, 2, available), route(logits[:3], 2)
  for function in MASKED.values():
    np.testing.assert_allclose(
      function(whole, jnp.ones(5, bool)),
      function(short, jnp.ones(3, bool)),
      rtol=1e-6,
      atol=1e-7,
    )


def test_z_loss_is_the_mean_squared_log_sum_of_available_logits():
  logits = jnp.log(jnp.asarray([[1.0, 2.0, 5.0], [1.0, 1.0, 1e9]]))
  available = jnp.asarray([[True, True, True], [True, True, False]])
  # (log(8)^2 + log(2)^2) / 2 = (4.324077 + 0.480453) / 2.
  got = losses.router_z(route(logits, None, available))
  np.testing.assert_allclose(got, 2.402265, rtol=1e-6)
  grad = jax.jit(jax.grad(lambda z: losses.router_z(route(z, None, available))))(logits)
  assert grad[1, 2] == 0.0
  assert np.abs(grad[0]).min() > 0


def test_coefficients_of_variation_of_hand_computed_loads():
  # Importance (2, 1, 1): mean 4/3, variance (4/9 + 1/9 + 1/9) / 3 = 2/9;
  # cv2 = (2/9) / (16/9) = 1/8.
  probs = np.array([[1.0, 0, 0], [0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1.0]])
  np.testing.assert_allclose(
    losses.importance_cv2(jnp.asarray(probs)), 0.125, rtol=1e-6
  )
  # Selections (3, 2, 1): mean 2, variance 2/3; cv2 = (2/3) / 4 = 1/6.
  np.testing.assert_allclose(losses.load_cv2(as_routing(probs)), 1 / 6, rtol=1e-6)
  one = np.tile([0.0, 1.0, 0.0], (5, 1))
  np.testing.assert_allclose(losses.load_cv2(as_routing(one)), 2.0, rtol=1e-6)
  even = np.eye(3)
  assert float(losses.load_cv2(as_routing(even))) == 0.0


def test_entropies_of_one_hot_uniform_and_top_two_routing():
  rows = jnp.asarray([[0.0, 1.0, 0.0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.0, 0.5]])
  nats = losses.entropy(rows)
  np.testing.assert_allclose(nats, [0.0, math.log(3), math.log(2)], rtol=1e-6)
  bits = losses.entropy(rows, base="bits")
  np.testing.assert_allclose(bits, [0.0, math.log2(3), 1.0], rtol=1e-6)
  share = losses.entropy(rows, normalised=True)
  np.testing.assert_allclose(share, [0, 1, math.log(2) / math.log(3)], rtol=1e-6)
  assert float(losses.entropy(jnp.ones((1, 1)), normalised=True)[0]) == 0.0
  masked = losses.entropy(rows, jnp.asarray([True, False, True]))
  np.testing.assert_allclose(masked, [0.0, 0.0, math.log(2)], rtol=1e-6)


def test_firm_and_even_routing_has_low_router_and_high_load_entropy():
  firm = jnp.eye(4)
  assert float(losses.router_entropy(firm)) == 0.0
  np.testing.assert_allclose(losses.load_entropy(firm, base="bits"), 2.0)
  np.testing.assert_allclose(losses.routing_information(firm, base="bits"), 2.0)
  np.testing.assert_allclose(losses.routing_information(firm, normalised=True), 1.0)
  collapsed = jnp.tile(firm[:1], (5, 1))
  assert float(losses.load_entropy(collapsed)) == 0.0


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), sharpness=st.floats(0.0, 20.0))
def test_entropy_of_the_mean_is_never_below_the_mean_entropy(seed, sharpness):
  probs = jnp.asarray(random_probs(seed, sharpness=sharpness))
  assert float(losses.routing_information(probs)) >= -1e-5
  assert float(losses.load_entropy(probs)) <= math.log(4) + 1e-5


def test_entropy_gradient_is_finite_where_a_probability_is_zero():
  grad = jax.jit(jax.grad(lambda p: jnp.sum(losses.entropy(p))))(
    jnp.asarray([[0.0, 1.0]])
  )
  assert np.isfinite(grad).all()


def test_unknown_entropy_base_is_refused():
  with pytest.raises(UserError, match="'hartleys'.*'nats' or 'bits'"):
    losses.entropy(jnp.ones((1, 2)), base="hartleys")


def loop_discriminative(weights, classes, mask):
  alike, apart = [], []
  for i in range(len(weights)):
    for j in range(len(weights)):
      if i == j or not (mask[i] and mask[j]):
        continue
      distance = float(np.sum((weights[i] - weights[j]) ** 2))
      (alike if classes[i] == classes[j] else apart).append(distance)
  return (np.mean(alike) if alike else 0.0) - (np.mean(apart) if apart else 0.0)


@settings(deadline=None, max_examples=40)
@given(
  seed=st.integers(0, 10**6),
  classes=st.lists(st.integers(-3, 3), min_size=9, max_size=9),
  mask=st.lists(st.booleans(), min_size=9, max_size=9),
)
def test_discriminative_equals_a_double_loop_and_is_bounded(seed, classes, mask):
  weights = random_probs(seed, sharpness=5.0)
  got = losses.discriminative(
    jnp.asarray(weights), jnp.asarray(classes, jnp.int32), jnp.asarray(mask)
  )
  expected = loop_discriminative(weights.astype(np.float64), classes, mask)
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
  assert -2.0 - 1e-5 <= float(got) <= 2.0 + 1e-5


def test_discriminative_reaches_both_bounds_and_handles_empty_sets_of_pairs():
  eye = jnp.eye(2)
  best = losses.discriminative(jnp.tile(eye, (2, 1)), jnp.asarray([0, 1, 0, 1]))
  np.testing.assert_allclose(best, -2.0, rtol=1e-6)
  # A single class, two opposite routes: only the first term, |w - w'|^2 = 2.
  worst = losses.discriminative(eye, jnp.asarray([5, 5]))
  np.testing.assert_allclose(worst, 2.0, rtol=1e-6)
  assert float(losses.discriminative(eye[:1], jnp.asarray([0]))) == 0.0
  nobody = losses.discriminative(eye, jnp.asarray([0, 1]), jnp.zeros(2, bool))
  assert float(nobody) == 0.0


def test_discriminative_gradient_equals_that_of_the_pairwise_formula():
  weights = jnp.asarray(random_probs(3, rows=7))
  classes = jnp.asarray([0, 1, 0, 2, 1, 1, 0])
  mask = jnp.asarray([True, True, True, True, True, False, True])

  def pairwise(weights):
    difference = weights[:, None, :] - weights[None, :, :]
    distance = jnp.sum(difference**2, axis=-1)
    valid = mask[:, None] & mask[None, :] & ~jnp.eye(7, dtype=bool)
    same = classes[:, None] == classes[None, :]
    alike, apart = valid & same, valid & ~same
    mean = lambda pairs: jnp.sum(distance * pairs) / jnp.sum(pairs)  # noqa: E731
    return mean(alike) - mean(apart)

  gradient = jax.jit(jax.grad(losses.discriminative))
  expected = jax.jit(jax.grad(pairwise))(weights)
  got = gradient(weights, classes, mask)
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
  np.testing.assert_array_equal(got[5], np.zeros(4))
  empty = gradient(weights, classes, jnp.zeros(7, bool))
  np.testing.assert_array_equal(empty, np.zeros((7, 4)))


def loop_info_nce(scores, classes, mask, temperature, mask_duplicates):
  terms = []
  rows = [i for i in range(len(scores)) if mask[i]]
  for i in rows:
    keep = [
      j for j in rows if not (mask_duplicates and j != i and classes[j] == classes[i])
    ]
    similarity = [scores[i, classes[j]] / temperature for j in keep]
    top = max(similarity)
    log_sum = top + math.log(sum(math.exp(s - top) for s in similarity))
    terms.append(log_sum - scores[i, classes[i]] / temperature)
  return sum(terms) / len(terms) if terms else 0.0


@settings(deadline=None, max_examples=40)
@given(
  seed=st.integers(0, 10**6),
  classes=st.lists(st.integers(0, 2), min_size=8, max_size=8),
  mask=st.lists(st.booleans(), min_size=8, max_size=8),
  temperature=st.floats(0.05, 1.0),
  mask_duplicates=st.booleans(),
)
def test_info_nce_equals_the_sum_over_the_batch(
  seed, classes, mask, temperature, mask_duplicates
):
  scores = np.random.default_rng(seed).uniform(-1, 1, (8, 3))
  got = losses.info_nce(
    jnp.asarray(scores, jnp.float32),
    jnp.asarray(classes, jnp.int32),
    jnp.asarray(mask),
    jnp.float32(temperature),
    mask_duplicates=mask_duplicates,
  )
  expected = loop_info_nce(scores, classes, mask, temperature, mask_duplicates)
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_info_nce_is_cross_entropy_with_class_counts_plus_a_constant():
  scores = losses.vertex_cosine(jnp.asarray(random_probs(4, rows=6, experts=3)))
  classes = jnp.asarray([0, 0, 0, 1, 1, 2])
  counts = jnp.asarray([3.0, 2.0, 1.0])
  logits = scores / 0.12 + jnp.log(counts).reshape(1, 3)
  cross = -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(6), classes])
  expected = cross + jnp.mean(jnp.log(counts)[classes])
  np.testing.assert_allclose(losses.info_nce(scores, classes), expected, rtol=1e-5)


def test_perfect_balanced_routing_gives_log_rows_per_class_and_log_e_information():
  # B = 12 rows, E = 3 classes, one-hot routes: L_MI -> log(B / E) = log 4.
  classes = jnp.asarray([0, 1, 2] * 4)
  scores = losses.vertex_cosine(jnp.eye(3)[classes])
  loss = losses.info_nce(scores, classes, temperature=0.02)
  np.testing.assert_allclose(loss, math.log(4.0), rtol=1e-5)
  estimate = losses.information_estimate(loss, jnp.ones(12, bool))
  np.testing.assert_allclose(estimate, math.log(3.0), rtol=1e-5)
  firm = losses.info_nce(scores, classes, temperature=0.02, mask_duplicates=True)
  np.testing.assert_allclose(firm, 0.0, atol=1e-6)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6))
def test_the_information_estimate_never_exceeds_log_e_at_balance(seed):
  classes = jnp.asarray([0, 1, 2] * 4)
  scores = losses.vertex_cosine(jnp.asarray(random_probs(seed, 12, 3, 20.0)))
  loss = losses.info_nce(scores, classes)
  estimate = losses.information_estimate(loss, jnp.ones(12, bool))
  assert float(estimate) <= math.log(3.0) + 1e-4


def test_info_nce_ignores_rows_without_a_class_and_is_zero_without_rows():
  scores = jnp.asarray(random_probs(5, rows=5, experts=3))
  classes = jnp.asarray([0, 1, 2, -1, 7])
  short = losses.info_nce(scores[:3], classes[:3])
  whole, grad = jax.jit(jax.value_and_grad(losses.info_nce))(scores, classes)
  np.testing.assert_allclose(whole, short, rtol=1e-6)
  np.testing.assert_array_equal(grad[3:], np.zeros((2, 3)))
  nobody = jnp.zeros(5, bool)
  value, grad = jax.jit(jax.value_and_grad(losses.info_nce))(scores, classes, nobody)
  assert float(value) == 0.0
  np.testing.assert_array_equal(grad, np.zeros((5, 3)))


def test_vertex_cosine_is_the_cosine_with_each_corner_and_zero_for_a_zero_row():
  # |(.6, .8)| = 1; |(3, 4)| = 5.
  rows = jnp.asarray([[0.6, 0.8], [3.0, 4.0], [0.0, 0.0]])
  got = losses.vertex_cosine(rows)
  np.testing.assert_allclose(got, [[0.6, 0.8], [0.6, 0.8], [0, 0]], rtol=1e-6)
  grad = jax.jit(jax.grad(lambda w: jnp.sum(losses.vertex_cosine(w)[:, 0])))(rows)
  assert np.isfinite(grad).all()
