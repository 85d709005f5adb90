"""Selection is exact, absent candidates get nothing, the k = 1 gate can learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from msa_jax.errors import UserError
from msa_jax.layers import routing as layer
from msa_jax.layers.routing import Router, select_top_k

# Compiled once per shape: the suite would otherwise compile every operation alone.
route = jax.jit(layer.route, static_argnames="k")
SELECT = jax.jit(select_top_k, static_argnames="k")


def loop_top_k(scores, k, available):
  """The definition: take the best available candidate k times, first one on ties."""
  selected = np.zeros(scores.shape, bool)
  for row in range(len(scores)):
    order = sorted(
      (e for e in range(scores.shape[1]) if available[row, e]),
      key=lambda e: (-scores[row, e], e),
    )
    selected[row, order[:k]] = True
  return selected


@settings(deadline=None, max_examples=60)
@given(
  scores=hnp.arrays(np.float32, (4, 5), elements=st.sampled_from([-2.0, 0.0, 1.0])),
  available=hnp.arrays(bool, (4, 5)),
  k=st.integers(1, 6),
)
def test_selection_equals_the_definition_with_ties_and_absent_candidates(
  scores, available, k
):
  got = SELECT(jnp.asarray(scores), k, jnp.asarray(available))
  np.testing.assert_array_equal(got, loop_top_k(scores, k, available))
  count = np.minimum(k, available.sum(-1))
  np.testing.assert_array_equal(np.sum(got, axis=-1), count)


def test_equal_scores_select_the_lower_indices():
  got = select_top_k(jnp.zeros((2, 4)), 2)
  np.testing.assert_array_equal(got, [[True, True, False, False]] * 2)


def test_selection_works_under_jit_vmap_and_extra_axes(getkey):
  scores = jax.random.normal(getkey(), (3, 4, 5))
  plain = select_top_k(scores, 2)
  mapped = jax.jit(jax.vmap(lambda s: select_top_k(s, 2)))(scores)
  np.testing.assert_array_equal(plain, mapped)
  for i in range(3):
    expected = loop_top_k(np.asarray(scores[i]), 2, np.ones((4, 5), bool))
    np.testing.assert_array_equal(plain[i], expected)


def test_selecting_no_expert_is_refused():
  with pytest.raises(UserError, match="top_k=0"):
    select_top_k(jnp.zeros((1, 3)), 0)
  with pytest.raises(UserError, match="top_k=-1"):
    layer.route(jnp.zeros((1, 3)), k=-1)


def test_dense_routing_is_the_softmax():
  routing = route(jnp.log(jnp.asarray([[1.0, 2.0, 5.0]])))
  np.testing.assert_allclose(routing.probs, [[0.125, 0.25, 0.625]], rtol=1e-6)
  np.testing.assert_array_equal(routing.combine, routing.probs)


def test_two_of_three_are_renormalised_over_the_selected():
  routing = route(jnp.log(jnp.asarray([[1.0, 2.0, 5.0]])), k=2)
  # 2 / 7 and 5 / 7; the dense distribution is kept beside.
  np.testing.assert_allclose(routing.combine, [[0.0, 2 / 7, 5 / 7]], rtol=1e-6)
  np.testing.assert_allclose(routing.probs, [[0.125, 0.25, 0.625]], rtol=1e-6)
  assert routing.combine[0, 0] == 0.0


def test_one_of_three_keeps_its_probability_so_that_the_gate_has_a_gradient():
  logits = jnp.log(jnp.asarray([[1.0, 2.0, 5.0]]))
  routing = route(logits, k=1)
  np.testing.assert_allclose(routing.combine, [[0.0, 0.0, 0.625]], rtol=1e-6)
  grad = jax.grad(lambda z: jnp.sum(route(z, k=1).combine))(logits)
  # d p2 / d z = p2 (onehot - p) = .625 * (-.125, -.25, .375).
  np.testing.assert_allclose(grad, [[-0.078125, -0.15625, 0.234375]], rtol=1e-5)


def test_absent_candidates_have_zero_weight_and_no_influence(getkey):
  logits = jax.random.normal(getkey(), (3, 4))
  available = jnp.asarray([[True, False, True, True], [False, True, False, False]])
  available = jnp.concatenate([available, jnp.zeros((1, 4), bool)])
  for k in (None, 1, 2, 4):
    clean = route(logits, k, available)
    junk = route(jnp.where(available, logits, 1e4), k, available)
    np.testing.assert_array_equal(clean.combine, junk.combine)
    np.testing.assert_array_equal(clean.probs, junk.probs)
    assert not np.any(np.where(available, 0.0, clean.combine))
    np.testing.assert_array_equal(clean.combine[2], np.zeros(4))
    np.testing.assert_allclose(clean.probs.sum(-1), [1, 1, 0], rtol=1e-6)
    grad = jax.grad(lambda z, k=k: jnp.sum(route(z, k, available).combine ** 2))(logits)
    assert np.isfinite(grad).all()
    assert not np.any(np.where(available, 0.0, grad))


def test_routing_is_float32_for_bfloat16_logits():
  routing = route(jnp.zeros((2, 3), jnp.bfloat16), k=2)
  for array in (routing.probs, routing.combine, routing.logits):
    assert array.dtype == jnp.float32


def test_noise_changes_selection_and_weights_but_not_probabilities():
  logits = jnp.asarray([[0.0, 1.0, 2.0]])
  noise = jnp.asarray([[5.0, 0.0, 0.0]])
  clean, noisy = route(logits, 1), route(logits, 1, noise=noise)
  np.testing.assert_array_equal(noisy.probs, clean.probs)
  np.testing.assert_array_equal(noisy.logits, logits)
  assert int(jnp.argmax(noisy.combine[0])) == 0
  # e^5 / (e^5 + e^1 + e^2) = 148.41 / 158.52 = 0.93624.
  np.testing.assert_allclose(noisy.combine[0, 0], 0.93623955, rtol=1e-5)


def test_router_is_a_linear_map_without_bias_in_float32(getkey):
  inputs = jax.random.normal(getkey(), (5, 3))
  router = Router(num_experts=4, k=2)
  variables = jax.jit(router.init)(getkey(), inputs)
  kernel = np.asarray(variables["params"]["logits"]["kernel"], np.float64)
  assert set(variables["params"]) == {"logits"}
  assert kernel.shape == (3, 4)
  routing = router.apply(variables, inputs)
  np.testing.assert_allclose(
    routing.logits, np.asarray(inputs, np.float64) @ kernel, rtol=1e-5, atol=1e-7
  )
  narrow = router.apply(variables, inputs.astype(jnp.bfloat16))
  assert narrow.logits.dtype == jnp.float32


def test_noisy_router_adds_scaled_normal_noise_only_in_training(getkey):
  inputs = jax.random.normal(getkey(), (2000, 3))
  calm = Router(num_experts=4, k=2, noisy=True)
  loud = Router(num_experts=4, k=2, noisy=True, deterministic=False)
  variables = jax.jit(calm.init)(getkey(), inputs)
  assert set(variables["params"]) == {"logits", "noise"}
  key = getkey()
  run = jax.jit(loud.apply)
  first = run(variables, inputs, rngs={"noise": key})
  again = run(variables, inputs, rngs={"noise": key})
  other = run(variables, inputs, rngs={"noise": getkey()})
  quiet = calm.apply(variables, inputs)
  np.testing.assert_array_equal(first.combine, again.combine)
  assert np.any(np.asarray(first.combine) != np.asarray(other.combine))
  plain = route(quiet.logits, 2).combine
  np.testing.assert_allclose(quiet.combine, plain, rtol=1e-6)
  # W_noise starts at zero: the scale is softplus(0) = log 2 everywhere. Where two
  # experts are selected, log(combine ratio) = difference of noisy logits; its
  # variance around that of the logits is 2 log(2)^2 = 0.9609 before selection, so
  # compare through the dense router, which selects nothing.
  dense = Router(num_experts=4, noisy=True, deterministic=False)
  log = np.log(dense.apply(variables, inputs, rngs={"noise": key}).combine)
  logits = np.asarray(quiet.logits)
  noise = (log[:, 0] - log[:, 1]) - (logits[:, 0] - logits[:, 1])
  np.testing.assert_allclose(np.var(noise), 2 * np.log(2) ** 2, rtol=0.1)
  assert abs(np.mean(noise)) < 0.1


def test_noise_scale_receives_a_gradient_from_the_task(getkey):
  inputs = jax.random.normal(getkey(), (8, 3))
  router = Router(num_experts=3, k=2, noisy=True, deterministic=False)
  rngs = {"params": getkey(), "noise": getkey()}
  variables = jax.jit(router.init)(rngs, inputs)

  def loss(params):
    combine = router.apply({"params": params}, inputs, rngs=rngs).combine
    return jnp.sum(combine * jnp.arange(3.0).reshape(1, 3))

  grad = jax.jit(jax.grad(loss))(variables["params"])
  assert np.abs(grad["noise"]["kernel"]).max() > 0
  assert np.abs(grad["logits"]["kernel"]).max() > 0
