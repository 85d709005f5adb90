"""Masked batch normalisation against numpy over the real steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from msa_jax.layers.normalization import MaskedBatchNorm


def case(seed=0, rows=8, steps=5, width=3):
  random = np.random.default_rng(seed)
  values = random.normal(2.0, 3.0, (rows, steps, width)).astype(np.float32)
  lengths = random.integers(1, steps + 1, rows)
  mask = np.arange(steps)[None] < lengths[:, None]
  return jnp.asarray(values), jnp.asarray(mask)


def train(variables, values, mask, **options):
  layer = MaskedBatchNorm(False, **options)
  return layer.apply(variables, values, mask, mutable=["batch_stats"])


def start(width=3):
  return {
    "params": {"scale": jnp.array([1.0, 2.0, 0.5]), "bias": jnp.array([0.0, 1.0, -1])},
    "batch_stats": {"mean": jnp.zeros(width), "var": jnp.ones(width)},
  }


def test_training_normalises_by_the_moments_of_the_real_steps():
  values, mask = case()
  output, updated = train(start(), values, mask)
  real = np.float64(values)[np.asarray(mask)]  # [n d]
  mean, variance = real.mean(axis=0), real.var(axis=0)
  expected = (np.float64(values) - mean) / np.sqrt(variance + 1e-5)
  expected = expected * [1.0, 2.0, 0.5] + [0.0, 1.0, -1.0]
  expected[~np.asarray(mask)] = 0.0
  np.testing.assert_allclose(output, expected, atol=1e-5)
  stats = updated["batch_stats"]
  np.testing.assert_allclose(stats["mean"], 0.1 * mean, rtol=1e-5)
  np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * variance, rtol=1e-5)


def test_evaluation_uses_the_running_statistics():
  values, mask = case()
  variables = start()
  variables["batch_stats"] = {"mean": jnp.full(3, 2.0), "var": jnp.full(3, 9.0)}
  output = MaskedBatchNorm(True).apply(variables, values, mask)
  expected = (np.float64(values) - 2.0) / np.sqrt(9.0 + 1e-5)
  expected = np.where(np.asarray(mask)[..., None], expected * [1, 2, 0.5], 0.0)
  expected += np.asarray(mask)[..., None] * [0.0, 1.0, -1.0]
  np.testing.assert_allclose(output, expected, atol=1e-5)


def test_what_masked_steps_hold_has_no_influence_not_even_nan():
  values, mask = case()
  garbage = jnp.where(mask[..., None], values, jnp.nan)
  output, updated = train(start(), values, mask)
  for each, expected in zip(
    jax.tree.leaves(train(start(), garbage, mask)),
    jax.tree.leaves((output, updated)),
    strict=True,
  ):
    np.testing.assert_array_equal(each, expected)

  def loss(values):
    return jnp.sum(train(start(), values, mask)[0] ** 3)

  gradient = jax.grad(loss)(garbage)
  assert np.isfinite(gradient).all()
  assert not gradient[~mask].any()


def test_filler_rows_do_not_move_the_running_statistics():
  values, mask = case()
  _, updated = train(start(), values, mask)
  filled = jnp.concatenate([values, jnp.full((2, 5, 3), 1e3)])
  filled_mask = jnp.concatenate([mask, jnp.zeros((2, 5), bool)])
  _, with_filler = train(start(), filled, filled_mask)
  for name in ("mean", "var"):
    np.testing.assert_allclose(
      with_filler["batch_stats"][name], updated["batch_stats"][name], rtol=1e-6
    )


def test_a_batch_without_real_steps_changes_nothing_and_gives_zeros():
  values, mask = case()
  output, updated = train(start(), values, jnp.zeros_like(mask))
  assert not output.any()
  np.testing.assert_array_equal(updated["batch_stats"]["mean"], np.zeros(3))
  np.testing.assert_array_equal(updated["batch_stats"]["var"], np.ones(3))


def test_a_batch_sharded_over_devices_has_global_statistics():
  values, mask = case()
  expected = jax.tree.leaves(train(start(), values, mask))
  mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  spread = NamedSharding(mesh, PartitionSpec("data"))
  arrays = jax.device_put((values, mask), spread)
  found = jax.jit(lambda v, m: train(start(), v, m))(*arrays)
  for one, other in zip(jax.tree.leaves(found), expected, strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_an_axis_name_joins_shards_with_unequal_numbers_of_real_steps():
  values, mask = case()
  mask = mask.at[:2].set(False)  # the first shard has no real step at all
  expected, updated = train(start(), values, mask)
  shards = (values.reshape(4, 2, 5, 3), mask.reshape(4, 2, 5))
  output, stats = jax.vmap(
    lambda v, m: train(start(), v, m, axis_name="data"), axis_name="data"
  )(*shards)
  np.testing.assert_allclose(output.reshape(8, 5, 3), expected, atol=1e-5)
  for name in ("mean", "var"):
    for shard in stats["batch_stats"][name]:
      np.testing.assert_allclose(shard, updated["batch_stats"][name], rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_output_has_the_compute_type_and_the_statistics_are_float32(dtype):
  values, mask = case()
  output, updated = train(start(), values.astype(dtype), mask, dtype=dtype)
  assert output.dtype == dtype
  assert updated["batch_stats"]["var"].dtype == jnp.float32
