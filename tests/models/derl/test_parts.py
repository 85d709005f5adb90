"""DERL's layers against float64 numpy and in their limits."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msa_jax.models.derl.parts import (
  EncoderLayer,
  EnhancementUnit,
  FilterUnit,
  ModalityBank,
  attention_scale,
  enhancement_weights,
)

# What XLA's optimisations save in run time of such models they cost many times over
# in compile time.
compiled = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


def softmax(row):
  row = np.exp(row - row.max())
  return row / row.sum()


def linear(params, values):
  result = values @ np.float64(params["kernel"])
  return result + np.float64(params["bias"]) if "bias" in params else result


def layer_norm(params, values):
  centred = values - values.mean(axis=-1, keepdims=True)
  deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
  return centred / deviation * np.float64(params["scale"]) + np.float64(params["bias"])


def attention(params, num_heads, scale, query, source, mask):
  """One sample; every head, query and key in a loop."""
  q, k, v = (
    linear(params[name], values)
    for name, values in (("query", query), ("key", source), ("value", source))
  )
  width = q.shape[-1] // num_heads
  mixed = np.zeros_like(q)
  keys = np.flatnonzero(mask)
  if not len(keys):
    return mixed
  for head in range(num_heads):
    cut = slice(head * width, (head + 1) * width)
    for step in range(len(q)):
      weights = softmax(scale * (k[keys][:, cut] @ q[step, cut]))
      mixed[step, cut] = weights @ v[keys][:, cut]
  return linear(params["out"], mixed)


def feed_forward(params, values):
  hidden = np.maximum(linear(params["ffn_1"], values), 0.0)
  return linear(params["ffn_2"], hidden)


def encoder(params, num_heads, scale, values, sources, masks):
  """Eq. 5-11 for one sample."""
  for stage, (source, mask) in enumerate(zip(sources, masks, strict=True), start=1):
    weights = params[f"attention_{stage}"]
    added = attention(weights, num_heads, scale, values, source, mask)
    values = layer_norm(params[f"norm_{stage}"], values + added)
  norm = params[f"norm_{len(sources) + 1}"]
  return layer_norm(norm, values + feed_forward(params, values))


def normal(getkey, *shape):
  # Through numpy: JAX would compile a generator for every shape.
  random = np.random.default_rng(int(jax.random.bits(getkey())))
  return jnp.asarray(random.standard_normal(shape, np.float32))


def start(module, key, *arguments):
  return compiled(module.init)(key, *arguments)


def apply(module, params, *arguments):
  return compiled(module.apply)({"params": params}, *arguments)


def lengths_mask(steps, *lengths):
  return jnp.arange(steps)[None] < jnp.array(lengths)[:, None]


def scattered(params, getkey):
  """Parameters without zeros and ones, so that none can be left out unnoticed."""
  return jax.tree.map(lambda p: p + 0.3 * normal(getkey, *p.shape), params)


def cross_case(getkey, width=20, num_heads=10, **options):
  values = normal(getkey, 3, 5, width)
  sources = (normal(getkey, 3, 4, width), normal(getkey, 3, 6, width))
  mask = lengths_mask(5, 5, 3, 4)
  masks = (lengths_mask(4, 4, 2, 0), lengths_mask(6, 1, 6, 3))
  layer = EncoderLayer(num_heads, 2 * width, (True, True), **options)
  params = start(layer, getkey(), values, mask, sources, masks)["params"]
  return layer, scattered(params, getkey), (values, mask, sources, masks)


@pytest.mark.parametrize("kind", ["head", "model"])
def test_the_cross_modal_encoder_equals_a_float64_loop(kind, getkey):
  scale = attention_scale(kind, 20, 10)
  layer, params, arguments = cross_case(getkey, scale=scale)
  output = apply(layer, params, *arguments)
  values, mask, sources, masks = jax.tree.map(np.asarray, arguments)
  for row in range(3):
    expected = encoder(
      params,
      10,
      scale,
      np.float64(values[row]),
      [np.float64(source[row]) for source in sources],
      [each[row] for each in masks],
    )
    expected[~mask[row]] = 0.0
    np.testing.assert_allclose(output[row], expected, atol=2e-4)


def test_the_intra_modal_encoder_equals_a_float64_loop(getkey):
  values, mask = normal(getkey, 2, 5, 20), lengths_mask(5, 5, 2)
  layer = EncoderLayer(10, 40)
  params = scattered(start(layer, getkey(), values, mask)["params"], getkey)
  output = apply(layer, params, values, mask)
  scale = 1.0 / math.sqrt(2.0)
  for row in range(2):
    steps, real = np.float64(values[row]), np.asarray(mask[row])
    expected = encoder(params, 10, scale, steps, [steps], [real])
    expected[~real] = 0.0
    np.testing.assert_allclose(output[row], expected, atol=2e-4)


def test_one_head_and_one_token_give_the_value_itself(getkey):
  layer, params, (values, mask, _, _) = cross_case(getkey, 4, 1)
  token = normal(getkey, 3, 1, 4)
  one = jnp.ones((3, 1), bool)
  # Matrices of identity, and the feed-forward part out of the way.
  params = jax.tree.map(jnp.asarray, params)
  eye = {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}
  for stage in (1, 2):
    params[f"attention_{stage}"]["value"] = eye
    params[f"attention_{stage}"]["out"] = eye
  params["ffn_2"] = jax.tree.map(jnp.zeros_like, params["ffn_2"])
  output = apply(layer, params, values, mask, (token, token), (one, one))
  expected = np.float64(values)
  for stage in (1, 2):
    expected = layer_norm(params[f"norm_{stage}"], expected + np.float64(token))
  expected = layer_norm(params["norm_3"], expected)
  expected = np.where(np.asarray(mask)[..., None], expected, 0.0)
  np.testing.assert_allclose(output, expected, atol=1e-5)


def test_the_literal_scale_flattens_logits_by_exactly_the_root_of_ten(getkey):
  values, mask = normal(getkey, 2, 4, 50), lengths_mask(4, 4, 3)
  log_odds = {}
  for kind in ("head", "model"):
    layer = EncoderLayer(10, 50, scale=attention_scale(kind, 50, 10))
    params = start(layer, jax.random.key(1), values, mask)["params"]
    _, sown = layer.apply({"params": params}, values, mask, mutable=["intermediates"])
    (weights,) = sown["intermediates"]["attention_1"]["weights"]
    log_odds[kind] = np.log(weights[..., 1] / weights[..., 0])
  ratio = attention_scale("head", 50, 10) / attention_scale("model", 50, 10)
  assert ratio == pytest.approx(math.sqrt(10.0), rel=1e-12)
  np.testing.assert_allclose(log_odds["head"], ratio * log_odds["model"], atol=1e-4)


def test_an_absent_source_adds_nothing_not_even_the_output_bias(getkey):
  layer, params, (values, mask, sources, masks) = cross_case(getkey)
  absent = (masks[0], jnp.zeros_like(masks[1]))
  output = apply(layer, params, values, mask, sources, absent)
  muted = {**params, "attention_2": dict(params["attention_2"])}
  muted["attention_2"]["out"] = jax.tree.map(
    jnp.zeros_like, params["attention_2"]["out"]
  )
  everything = (masks[0], jnp.ones_like(masks[1]))
  expected = apply(layer, muted, values, mask, sources, everything)
  np.testing.assert_allclose(output, expected, atol=1e-6)
  # The bias alone would have shown.
  present = apply(layer, params, values, mask, sources, everything)
  assert np.abs(present - output).max() > 1e-2


def test_two_absent_sources_leave_the_chain_of_norms(getkey):
  layer, params, (values, mask, sources, masks) = cross_case(getkey)
  absent = jax.tree.map(jnp.zeros_like, masks)
  garbage = jax.tree.map(lambda s: jnp.full_like(s, 1e6), sources)
  output = apply(layer, params, values, mask, garbage, absent)
  chain = layer_norm(params["norm_2"], layer_norm(params["norm_1"], np.float64(values)))
  expected = layer_norm(params["norm_3"], chain + feed_forward(params, chain))
  expected = np.where(np.asarray(mask)[..., None], expected, 0.0)
  np.testing.assert_allclose(output, expected, atol=1e-4)
  gradient = compiled(
    jax.grad(
      lambda p: jnp.sum(layer.apply({"params": p}, values, mask, garbage, absent))
    )
  )(params)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_a_stage_without_attention_equals_one_with_an_absent_source(getkey):
  layer, params, (values, mask, sources, masks) = cross_case(getkey)
  absent = (jnp.zeros_like(masks[0]), masks[1])
  expected = apply(layer, params, values, mask, sources, absent)
  fewer = {name: p for name, p in params.items() if name != "attention_1"}
  output = apply(
    layer.clone(attends=(False, True)), fewer, values, mask, sources[1:], masks[1:]
  )
  np.testing.assert_allclose(output, expected, atol=1e-6)


def test_the_order_of_the_sources_matters(getkey):
  layer, params, (values, mask, sources, masks) = cross_case(getkey)
  run = lambda *each: apply(layer, params, values, mask, *each)  # noqa: E731
  swapped = run(sources[::-1], masks[::-1])
  assert np.abs(run(sources, masks) - swapped).max() > 1e-2
  params = {**params, "attention_2": params["attention_1"]}
  params["norm_2"] = params["norm_1"]
  same, same_masks = (sources[0], sources[0] + 0.0), (masks[0], masks[0])
  np.testing.assert_array_equal(
    run(same, same_masks), run(same[::-1], same_masks[::-1])
  )


def test_rows_of_the_enhancement_map_sum_to_one_over_real_tokens(getkey):
  private, product = normal(getkey, 2, 5, 6), normal(getkey, 2, 5, 6)
  mask = lengths_mask(5, 5, 3)
  weights = np.asarray(compiled(enhancement_weights)(private, product, mask))
  np.testing.assert_allclose(weights.sum(axis=-1), np.ones((2, 5)), atol=1e-6)
  assert not weights[1, :, 3:].any()
  for row, keys in ((0, 5), (1, 3)):
    units = np.float64(product[row, :keys])
    units /= np.linalg.norm(units, axis=-1, keepdims=True)
    for step in range(5):
      expected = softmax(units @ np.float64(private[row, step]))
      np.testing.assert_allclose(weights[row, step, :keys], expected, atol=1e-5)


@pytest.mark.parametrize("factor", [0.01, 100.0])
def test_scaling_the_product_leaves_the_enhancement_map(factor, getkey):
  private, product = normal(getkey, 2, 5, 6), 3 + normal(getkey, 2, 5, 6)
  mask = lengths_mask(5, 5, 3)
  expected = enhancement_weights(private, product, mask)
  scaled = enhancement_weights(private, factor * product, mask)
  # 1e-6 inside the root shows a little at the smallest scale.
  np.testing.assert_allclose(scaled, expected, atol=5e-4)


def test_a_zero_product_weighs_all_real_tokens_alike(getkey):
  private, mask = normal(getkey, 2, 4, 6), lengths_mask(4, 4, 3)

  def total(product):
    weights = enhancement_weights(private, product, mask)
    return jnp.sum(weights**2), weights

  gradient, weights = compiled(jax.grad(total, has_aux=True))(jnp.zeros((2, 4, 6)))
  np.testing.assert_allclose(weights[0], np.full((4, 4), 1 / 4), atol=1e-6)
  np.testing.assert_allclose(weights[1, :, :3], np.full((4, 3), 1 / 3), atol=1e-6)
  assert np.isfinite(gradient).all()


def unit_case(getkey, unit):
  common, private = normal(getkey, 2, 5, 6), normal(getkey, 2, 5, 6)
  mask = lengths_mask(5, 5, 2)
  params = start(unit, getkey(), common, private, mask)["params"]
  return jax.tree.map(jnp.asarray, params), common, private, mask


def test_the_enhancement_unit_equals_its_equations(getkey):
  unit = EnhancementUnit()
  params, common, private, mask = unit_case(getkey, unit)
  output = apply(unit, params, common, private, mask)
  assert params["common"].keys() == params["private"].keys() == {"kernel"}
  for row, keys in ((0, 5), (1, 2)):
    left = linear(params["common"], np.float64(common[row, :keys]))
    right = linear(params["private"], np.float64(private[row, :keys]))
    product = left * right
    product /= np.sqrt((product**2).sum(axis=-1, keepdims=True) + 1e-6)
    for step in range(keys):
      weights = softmax(product @ right[step])
      expected = weights @ right + np.float64(common[row, step])
      np.testing.assert_allclose(output[row, step], expected, atol=1e-5)
  assert not output[1, 2:].any()


def test_an_enhancement_unit_without_private_matrix_passes_the_common_stream(getkey):
  unit = EnhancementUnit()
  params, common, private, mask = unit_case(getkey, unit)
  params["private"] = {"kernel": jnp.zeros((6, 6))}
  output = apply(unit, params, common, private, mask)
  np.testing.assert_array_equal(output, jnp.where(mask[..., None], common, 0.0))


@pytest.mark.parametrize("bias", [60.0, -60.0])
def test_a_saturated_filter_unit_passes_one_of_its_streams(bias, getkey):
  unit = FilterUnit()
  params, common, private, mask = unit_case(getkey, unit)
  params["private"]["bias"] = jnp.full(6, bias)
  output = apply(unit, params, common, private, mask)
  kept = private if bias > 0 else common
  np.testing.assert_allclose(output, jnp.where(mask[..., None], kept, 0.0), atol=1e-6)


def test_the_filter_unit_stays_between_its_streams_and_equals_its_equation(getkey):
  unit = FilterUnit()
  params, common, private, mask = unit_case(getkey, unit)
  assert params["common"].keys() == {"kernel"}
  params["private"]["bias"] = normal(getkey, 6)
  output = apply(unit, params, common, private, mask)
  m, h = np.float64(common), np.float64(private)
  gate = 1 / (1 + np.exp(-linear(params["common"], m) - linear(params["private"], h)))
  expected = np.where(np.asarray(mask)[..., None], gate * h + (1 - gate) * m, 0.0)
  np.testing.assert_allclose(output, expected, atol=1e-5)
  real = np.asarray(mask)
  assert (output[real] >= np.minimum(m, h)[real] - 1e-6).all()
  assert (output[real] <= np.maximum(m, h)[real] + 1e-6).all()


def bank_case(getkey, deterministic, stacked=True):
  layer = EncoderLayer(
    2, 8, attention_dropout=0.3, residual_dropout=0.3, deterministic=deterministic,
    parent=None,
  )  # fmt: skip
  inputs = [(normal(getkey, 2, 5, 4), lengths_mask(5, 5, 3)) for _ in range(3)]
  bank = ModalityBank(layer, ("a", "b", "c"), stacked)
  return bank, start(bank, {"params": getkey(), "dropout": getkey()}, inputs), inputs


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_bank_gives_the_same_numbers_stacked_and_looped(deterministic, getkey):
  bank, variables, inputs = bank_case(getkey, deterministic)
  loop = bank.clone(stacked=False)
  rngs = {"dropout": getkey()}
  expected = compiled(loop.apply)(variables, inputs, rngs=rngs)
  stack = compiled(bank.apply)
  found = stack(variables, inputs, rngs=rngs)
  for one, other in zip(found, expected, strict=True):
    np.testing.assert_allclose(one, other, atol=1e-6)
  # With equal parameters and inputs, only dropout differs between the modalities.
  equal = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), variables)
  again = stack(equal, [inputs[0]] * 3, rngs=rngs)
  assert np.allclose(again[0], again[1], atol=1e-6) == deterministic


def test_a_bank_has_separate_parameters_on_a_leading_axis(getkey):
  bank, variables, inputs = bank_case(getkey, True)
  for leaf in jax.tree.leaves(variables["params"]):
    assert leaf.shape[0] == 3
  kernel = variables["params"]["stack"]["ffn_1"]["kernel"]
  assert np.abs(kernel[0] - kernel[1]).max() > 0.01
  alone = jax.tree.map(lambda p: p[1], variables["params"]["stack"])
  expected = apply(bank.layer, alone, *inputs[1])
  np.testing.assert_allclose(
    compiled(bank.apply)(variables, inputs)[1], expected, atol=1e-6
  )


def test_a_banks_parameters_do_not_depend_on_the_lengths(getkey):
  bank, variables, inputs = bank_case(getkey, True)
  uneven = [(v[:, :n], m[:, :n]) for n, (v, m) in zip((5, 4, 3), inputs, strict=True)]
  key = getkey()
  for one, other in zip(
    jax.tree.leaves(start(bank, key, inputs)),
    jax.tree.leaves(start(bank, key, uneven)),
    strict=True,
  ):
    np.testing.assert_array_equal(one, other)
  outputs = jax.eval_shape(bank.apply, variables, uneven)
  assert [output.shape[1] for output in outputs] == [5, 4, 3]


@pytest.mark.parametrize("stacked", [False, True])
def test_a_bank_reports_what_its_layers_sow_under_each_name(stacked, getkey):
  bank, variables, inputs = bank_case(getkey, True, stacked=stacked)
  _, sown = bank.apply(variables, inputs, mutable=["intermediates"])
  for name, (_, mask) in zip(bank.names, inputs, strict=True):
    (maps,) = sown["intermediates"][name]
    (weights,) = maps["attention_1"]["weights"]
    assert weights.shape == (2, 2, 5, 5)
    np.testing.assert_allclose(weights.sum(axis=-1), np.ones((2, 2, 5)), atol=1e-5)
    assert not np.asarray(weights)[1, :, :, 3:].any() and not mask[1, 3:].any()
