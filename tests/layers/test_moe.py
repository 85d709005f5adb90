"""The mixture equals a slow loop over experts; both dispatches agree."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msa_jax.errors import UserError
from msa_jax.layers.moe import (
  ExpertBank,
  MixtureOfExperts,
  capacity_of,
  combine_capacity,
  combine_dense,
  dispatch_capacity,
  plan_capacity,
)
from msa_jax.layers.routing import route
from msa_jax.typing import Routing


class Expert(nn.Module):
  """A small expert with dropout as an attribute."""

  width: int = 6
  out: int = 3
  dropout: float = 0.0
  deterministic: bool = True

  @nn.compact
  def __call__(self, inputs):
    hidden = jnp.tanh(nn.Dense(self.width)(inputs))
    hidden = nn.Dropout(self.dropout, deterministic=self.deterministic)(hidden)
    return nn.Dense(self.out)(hidden)


class Sequence(nn.Module):
  """An expert of whole sequences that needs the steps' mask."""

  @nn.compact
  def __call__(self, inputs, mask):
    return nn.Dense(2)(jnp.where(mask[..., None], inputs, 0.0)) * mask[..., None]


def setup(getkey, rows=12, experts=4, **options):
  inputs = jax.random.normal(getkey(), (rows, 5))
  layer = MixtureOfExperts(Expert(), experts, **options)
  params = jax.jit(layer.init)(getkey(), inputs)["params"]
  # A wide router, so that the weights differ.
  kernel = jax.random.normal(getkey(), params["router"]["logits"]["kernel"].shape)
  params["router"]["logits"]["kernel"] = kernel
  return layer, params, inputs


def loop(params, inputs, k, mask=None, available=None, expert=None):
  """Slow oracle: each expert by itself, weighted by a plainly written router."""
  expert = expert or Expert()
  logits = inputs @ params["router"]["logits"]["kernel"]
  routing = route(logits, k, available)
  total = 0.0
  for e in range(logits.shape[1]):
    own = jax.tree.map(lambda leaf, e=e: leaf[e], params["bank"]["experts"])
    output = expert.apply({"params": own}, inputs)
    total += routing.combine[:, e, None] * output
  return total if mask is None else jnp.where(mask[:, None], total, 0.0)


def assert_trees_close(left, right, tolerance=2e-5):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
    left,
    right,
  )


@pytest.mark.parametrize("experts,k", [(3, 1), (3, 2), (3, None), (1, 1)])
def test_both_dispatches_equal_a_loop_over_experts_in_values_and_gradients(
  getkey, experts, k
):
  dense, params, inputs = setup(getkey, experts=experts, k=k)
  ample = dense.clone(dispatch="capacity", capacity_factor=float(experts))
  target = jax.random.normal(getkey(), (12, 3))
  ways = (
    lambda params, inputs: loop(params, inputs, k),
    lambda params, inputs: dense.apply({"params": params}, inputs).outputs,
    lambda params, inputs: ample.apply({"params": params}, inputs).outputs,
  )

  @jax.jit
  def each(params, inputs):
    losses = [lambda p, x, f=f: jnp.sum((f(p, x) - target) ** 2) for f in ways]
    return [jax.value_and_grad(loss, (0, 1))(params, inputs) for loss in losses]

  expected, *results = each(params, inputs)
  for got in results:
    assert_trees_close(got, expected, 1e-4)


def test_parameters_are_stacked_and_experts_start_different(getkey):
  _, params, _ = setup(getkey, experts=4)
  kernel = params["bank"]["experts"]["Dense_0"]["kernel"]
  assert kernel.shape == (4, 5, 6)
  for i in range(3):
    assert np.abs(kernel[i] - kernel[i + 1]).max() > 0.1


def test_permuting_experts_and_gate_columns_leaves_the_output_unchanged(getkey):
  layer, params, inputs = setup(getkey, k=2)
  order = jnp.asarray([2, 0, 3, 1])
  permuted = {
    "router": {"logits": {"kernel": params["router"]["logits"]["kernel"][:, order]}},
    "bank": jax.tree.map(lambda leaf: leaf[order], params["bank"]),
  }
  run = jax.jit(lambda params: layer.apply({"params": params}, inputs).outputs)
  before, after = run(params), run(permuted)
  np.testing.assert_allclose(before, after, rtol=1e-5, atol=1e-6)


def test_dropout_acts_inside_the_experts_and_differs_between_them(getkey):
  inputs = jnp.ones((1, 5))
  drop = ExpertBank(Expert(dropout=0.5, deterministic=False), 3)
  calm = ExpertBank(Expert(dropout=0.5), 3)
  params = jax.jit(calm.init)(getkey(), inputs)["params"]
  params = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), params)
  rngs = {"dropout": getkey()}
  noisy = jax.jit(drop.apply)({"params": params}, inputs, rngs=rngs)
  steady = jax.jit(calm.apply)({"params": params}, inputs)
  # Equal parameters give equal outputs without dropout, different ones with it.
  np.testing.assert_allclose(steady[0], steady[1], rtol=1e-6)
  assert np.abs(noisy - steady).max() > 1e-3
  assert np.abs(noisy[0] - noisy[1]).max() > 1e-3


def test_bank_reads_shared_inputs_or_one_input_per_expert(getkey):
  inputs = jax.random.normal(getkey(), (3, 7, 5))
  bank = ExpertBank(Expert(), 3)
  variables = jax.jit(bank.init)(getkey(), inputs[0])
  shared = jax.jit(bank.apply)(variables, inputs[1])
  apart = jax.jit(bank.apply, static_argnames="in_axes")(variables, inputs, in_axes=0)
  assert shared.shape == apart.shape == (3, 7, 3)
  np.testing.assert_allclose(apart[1], shared[1], rtol=1e-5, atol=1e-6)


def test_filler_rows_are_zero_take_no_slot_and_change_nothing(getkey):
  # ceil(2 * 1 * 12 / 4) = 6 slots: room for the six real rows wherever they go, but
  # not for six filler rows that want the expert of row 0 more than row 0 does.
  layer, params, inputs = setup(getkey, k=1, dispatch="capacity", capacity_factor=2.0)
  mask = jnp.asarray([True] * 3 + [False] * 6 + [True] * 3)
  strong = inputs.at[3:9].set(100.0 * inputs[0])
  run = jax.jit(lambda x, mask: layer.apply({"params": params}, x, mask=mask))
  plain, other = run(inputs, mask), run(strong, mask)
  for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(other), strict=True):
    np.testing.assert_array_equal(a, b)
  np.testing.assert_array_equal(plain.overflow, np.zeros(4))
  assert int(run(strong, jnp.ones(12, bool)).overflow.sum()) > 0
  np.testing.assert_array_equal(plain.outputs[3:9], np.zeros((6, 3)))
  np.testing.assert_array_equal(plain.routing.combine[3:9], np.zeros((6, 4)))
  expected = jax.jit(loop, static_argnums=2)(params, inputs, 1, mask)
  np.testing.assert_allclose(plain.outputs, expected, rtol=1e-4, atol=1e-5)


def test_unavailable_experts_have_no_influence_even_if_not_finite():
  combine = jnp.asarray([[0.25, 0.75, 0.0], [0.0, 0.0, 1.0]])
  outputs = jnp.asarray([[[2.0], [jnp.nan]], [[4.0], [jnp.inf]], [[jnp.nan], [1.0]]])
  routing = Routing(combine, combine, combine)
  # Row 0: .25 * 2 + .75 * 4 = 3.5; row 1: expert 2 alone.
  np.testing.assert_array_equal(combine_dense(outputs, routing), [[3.5], [1.0]])
  grad = jax.grad(lambda o: jnp.sum(combine_dense(o, routing)))(outputs)
  np.testing.assert_array_equal(grad[..., 0].T, combine)


def test_rows_without_an_available_expert_are_zero_with_finite_gradients(getkey):
  available = jnp.ones((12, 4), bool).at[2].set(False).at[5, :3].set(False)
  for dispatch in ("dense", "capacity"):
    layer, params, inputs = setup(getkey, k=2, dispatch=dispatch, capacity_factor=4.0)

    def outputs(params, layer=layer, inputs=inputs):
      return layer.apply({"params": params}, inputs, available=available).outputs

    got = jax.jit(outputs)(params)
    np.testing.assert_array_equal(got[2], np.zeros(3))
    np.testing.assert_allclose(
      got, loop(params, inputs, 2, available=available), rtol=1e-4, atol=1e-5
    )
    square = jax.jit(jax.grad(lambda p, run=outputs: jnp.sum(run(p) ** 2)))
    grads = square(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_full_buffers_keep_the_largest_weights_and_count_the_rest():
  # All four rows want expert 0; it has 2 slots: rows 1 and 3 weigh most.
  combine = jnp.asarray([[0.5, 0.0], [0.9, 0.0], [0.6, 0.4], [0.8, 0.0]])
  plan = plan_capacity(Routing(combine, combine, combine), capacity=2)
  np.testing.assert_array_equal(plan.overflow, [2, 0])
  np.testing.assert_array_equal(np.sort(plan.row[0]), [1, 3])
  np.testing.assert_array_equal(plan.filled, [[True, True], [True, False]])
  np.testing.assert_allclose(plan.dropped, [0.5, 0.0, 0.6, 0.0])
  inputs = jnp.asarray([[1.0], [2.0], [3.0], [4.0]])
  buffers = dispatch_capacity(inputs, plan)
  np.testing.assert_array_equal(np.sort(buffers[..., 0]), [[2.0, 4.0], [0.0, 3.0]])
  outputs = 10.0 * buffers
  # Rows 1, 3: .9 * 20 and .8 * 40; row 2 keeps expert 1: .4 * 30; row 0 keeps none.
  plain = combine_capacity(outputs, plan)
  np.testing.assert_allclose(plain[:, 0], [0.0, 18.0, 12.0, 32.0], rtol=1e-6)
  # With a residual the lost weight goes to it: .5 * 1 and .6 * 3.
  saved = combine_capacity(outputs, plan, residual=inputs)
  np.testing.assert_allclose(saved[:, 0], [0.5, 18.0, 13.8, 32.0], rtol=1e-6)


def test_overflow_goes_to_the_residual_with_gradients(getkey):
  layer, params, inputs = setup(getkey, k=1, dispatch="capacity", capacity_factor=0.34)
  # ceil(.34 * 12 / 4) = 2 slots per expert: at least 12 - 8 = 4 rows overflow.
  residual = jax.random.normal(getkey(), (12, 3))

  def run(residual):
    return layer.apply({"params": params}, inputs, residual=residual)

  result = jax.jit(run)(residual)
  assert int(result.overflow.sum()) >= 4
  grad = jax.jit(jax.grad(lambda r: jnp.sum(run(r).outputs)))(residual)[:, 0]
  lost = np.asarray(grad) > 0
  assert lost.sum() == int(result.overflow.sum())
  best = np.asarray(result.routing.combine).max(-1)
  np.testing.assert_allclose(grad, np.where(lost, best, 0.0), rtol=1e-6)
  kept = np.where(lost[:, None], 0.0, loop(params, inputs, 1))
  expected = kept + np.where(lost[:, None], best[:, None] * residual, 0.0)
  np.testing.assert_allclose(result.outputs, expected, rtol=1e-4, atol=1e-5)


def test_capacity_dispatch_follows_the_order_of_the_rows_even_when_full(getkey):
  layer, params, inputs = setup(getkey, k=2, dispatch="capacity", capacity_factor=0.5)
  order = jax.random.permutation(getkey(), 12)
  run = jax.jit(layer.apply)
  straight = run({"params": params}, inputs)
  shuffled = run({"params": params}, inputs[order])
  assert int(straight.overflow.sum()) > 0
  np.testing.assert_allclose(
    straight.outputs[order], shuffled.outputs, rtol=1e-5, atol=1e-6
  )


def test_capacity_is_the_even_load_times_the_factor():
  # 1.25 * 2 * 12 / 4 = 7.5 -> 8; 1.1 * 1 * 40 / 4 = 11; e / k fits every row.
  assert capacity_of(12, 4, 2, 1.25) == 8
  assert capacity_of(40, 4, 1, 1.1) == 11
  assert capacity_of(12, 4, 2, 2.0) == 12
  assert capacity_of(12, 4, None, 5.0) == 12
  assert capacity_of(2, 8, 1, 1.0) == 1


def test_cost_of_capacity_dispatch_follows_k_over_e(getkey):
  experts, rows, width = 8, 256, 64
  expert = Expert(width=512, out=width)
  inputs = jax.ShapeDtypeStruct((rows, width), jnp.float32)

  def flops(**options):
    layer = MixtureOfExperts(expert, experts, k=1, capacity_factor=1.0, **options)
    variables = jax.eval_shape(layer.init, jax.random.key(0), inputs)
    lowered = jax.jit(layer.apply).lower(variables, inputs)
    return lowered.compile().cost_analysis()["flops"]

  ratio = flops(dispatch="capacity") / flops(dispatch="dense")
  # 1 / 8 of the experts' work, plus router and bookkeeping.
  assert 0.12 < ratio < 0.16


def test_external_routing_and_sequences_with_masks_pass_through(getkey):
  inputs = jax.random.normal(getkey(), (6, 4, 5))
  steps = jnp.asarray(np.arange(4)[None] < np.array([4, 3, 2, 1, 4, 2])[:, None])
  routing = route(jax.random.normal(getkey(), (6, 3)), k=2)
  layer = MixtureOfExperts(Sequence(), 3, k=2)
  run = {"extras": (steps,), "routing": routing}
  variables = jax.jit(layer.init)(getkey(), inputs, **run)
  assert set(variables["params"]) == {"bank"}
  dense = jax.jit(layer.apply)(variables, inputs, **run)
  ample = layer.clone(dispatch="capacity", capacity_factor=1.5)
  sparse = jax.jit(ample.apply)(variables, inputs, **run)
  assert dense.outputs.shape == (6, 4, 2)
  np.testing.assert_allclose(dense.outputs, sparse.outputs, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(dense.routing.combine, routing.combine)
  assert not np.any(np.where(steps[..., None], 0.0, dense.outputs))


def test_sequences_can_be_routed_by_a_summary(getkey):
  inputs = jax.random.normal(getkey(), (6, 4, 5))
  layer = MixtureOfExperts(Expert(), 3, k=1)
  summary = inputs.mean(1)
  variables = jax.jit(layer.init)(getkey(), inputs, router_inputs=summary)
  result = jax.jit(layer.apply)(variables, inputs, router_inputs=summary)
  assert result.outputs.shape == (6, 4, 3)
  assert result.routing.combine.shape == (6, 3)


def test_the_result_has_one_structure_whatever_the_options():
  inputs = jnp.ones((4, 5))
  structures = set()
  for dispatch in ("dense", "capacity"):
    for mask in (None, jnp.ones(4, bool)):
      layer = MixtureOfExperts(Expert(), 2, k=1, dispatch=dispatch)

      def describe(key, layer=layer, mask=mask):
        result, _ = layer.init_with_output(key, inputs, mask=mask)
        leaves, structure = jax.tree.flatten(result)
        shapes = tuple((leaf.shape, leaf.dtype.name) for leaf in leaves)
        structures.add((structure, shapes))
        return leaves

      jax.eval_shape(describe, jax.random.key(0))
  assert len(structures) == 1


def test_the_layer_survives_vmap_over_replicas(getkey):
  layer, params, inputs = setup(getkey, k=2, dispatch="capacity")
  stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 2.0 * leaf]), params)
  run = lambda p: layer.apply({"params": p}, inputs).outputs  # noqa: E731
  both = jax.jit(jax.vmap(run))(stacked)
  for i in range(2):
    own = jax.tree.map(lambda leaf, i=i: leaf[i], stacked)
    alone = jax.jit(run)(own)
    np.testing.assert_allclose(both[i], alone, rtol=1e-4, atol=1e-5)


def test_outputs_keep_the_compute_type_and_weights_stay_float32():
  routing = route(jnp.zeros((2, 3)), k=2)
  outputs = jnp.ones((3, 2, 4), jnp.bfloat16)
  assert combine_dense(outputs, routing).dtype == jnp.bfloat16
  plan = plan_capacity(routing, 2)
  assert combine_capacity(outputs[:, :2], plan).dtype == jnp.bfloat16
  assert plan.weight.dtype == jnp.float32


def test_unknown_dispatch_and_impossible_capacity_are_refused(getkey):
  with pytest.raises(UserError, match="'dense' or 'capacity'"):
    MixtureOfExperts(Expert(), 2, dispatch="sparse").init(getkey(), jnp.ones((2, 5)))
  with pytest.raises(UserError, match="capacity_factor=0.0"):
    capacity_of(4, 2, 1, 0.0)
