"""Attention against explicit loops, and the exact sparsity of top-k attention."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msa_jax.layers.attention import (
  MultiHeadAttention,
  TransformerBlock,
  attention_weights,
  share_of,
)


def softmax(row):
  row = np.exp(row - row.max())
  return row / row.sum()


def dense(params, values):
  return values @ np.float64(params["kernel"]) + np.float64(params["bias"])


def loop_attention(params, n_heads, scale, query, source, key_mask):
  """Attention in float64, one row, head and query at a time."""
  parts = {name: dense(params[name], v) for name, v in
           (("query", query), ("key", source), ("value", source))}  # fmt: skip
  mixed = np.zeros_like(parts["query"])
  width = mixed.shape[-1] // n_heads
  for row in range(query.shape[0]):
    keys = np.flatnonzero(key_mask[row])
    for head in range(n_heads):
      cut = slice(head * width, (head + 1) * width)
      for step in range(query.shape[1]):
        if len(keys):
          scores = parts["key"][row, keys][:, cut] @ parts["query"][row, step, cut]
          weights = softmax(scale * scores)
          mixed[row, step, cut] = weights @ parts["value"][row, keys][:, cut]
  return dense(params["out"], mixed)


def streams(getkey):
  query = jax.random.normal(getkey(), (3, 4, 6))
  source = jax.random.normal(getkey(), (3, 5, 7))
  key_mask = jnp.arange(5)[None] < jnp.array([5, 2, 0])[:, None]
  return query, source, key_mask


@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_between_two_streams_equals_a_loop(scale, getkey):
  query, source, key_mask = streams(getkey)
  layer = MultiHeadAttention(8, 2, scale=scale)
  params = layer.init(getkey(), query, source, key_mask)["params"]
  params = jax.tree.map(lambda p: p + 0.1, params)
  result = layer.apply({"params": params}, query, source, key_mask)
  expected = loop_attention(
    params,
    2,
    scale or 1.0 / math.sqrt(4.0),
    np.float64(query),
    np.float64(source),
    np.asarray(key_mask),
  )
  np.testing.assert_allclose(result, expected, atol=1e-5)


def test_self_attention_equals_attention_to_a_copy(getkey):
  values = jax.random.normal(getkey(), (2, 5, 6))
  mask = jnp.ones((2, 5), bool)
  layer = MultiHeadAttention(6, 3)
  variables = layer.init(getkey(), values, values, mask)
  itself = layer.apply(variables, values, values, mask)
  copy = layer.apply(variables, values, values + 0.0, mask)
  np.testing.assert_allclose(itself, copy, atol=1e-6)


def test_masked_queries_come_out_as_zeros(getkey):
  query, source, key_mask = streams(getkey)
  query_mask = jnp.array([[True, False, True, False]] * 3)
  layer = MultiHeadAttention(8, 2)
  variables = layer.init(getkey(), query, source, key_mask)
  plain = layer.apply(variables, query, source, key_mask)
  masked = layer.apply(variables, query, source, key_mask, query_mask)
  assert np.array_equal(masked, jnp.where(query_mask[..., None], plain, 0.0))


def test_parameter_count_of_a_paper_sized_block():
  # Attention 4 * (768^2 + 768), feed-forward 2 * 768 * 3072 + 3072 + 768, two layer
  # norms of 2 * 768: 7,087,872.
  shapes = jax.eval_shape(
    TransformerBlock(3072, 8).init,
    jax.random.key(0),
    jnp.zeros((1, 2, 768)),
    jnp.ones((1, 2), bool),
  )
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 7_087_872


def sparse_case(getkey, n_keys=12):
  logits = 2.0 * jax.random.normal(getkey(), (4, 2, 5, n_keys))
  lengths = jnp.array([n_keys, 5, 3, 0])
  return logits, jnp.arange(n_keys)[None] < lengths[:, None], lengths


@pytest.mark.parametrize("renormalise", [False, True])
def test_each_row_has_exactly_k_nonzero_weights_in_every_head(renormalise, getkey):
  logits, key_mask, lengths = sparse_case(getkey)
  weights = attention_weights(logits, key_mask, 4, renormalise)
  counts = np.count_nonzero(weights, axis=-1)
  expected = np.minimum(4, np.asarray(lengths))[:, None, None]
  assert np.array_equal(counts, np.broadcast_to(expected, counts.shape))
  assert not np.any(np.asarray(weights)[:, 0, 0] * ~np.asarray(key_mask))


def test_literal_weights_are_those_of_the_full_softmax_where_kept(getkey):
  logits, key_mask, _ = sparse_case(getkey)
  full = attention_weights(logits, key_mask)
  kept = attention_weights(logits, key_mask, 4)
  assert np.array_equal(kept, jnp.where(kept > 0, full, 0.0))
  smallest_kept = jnp.min(jnp.where(kept > 0, kept, 1.0), axis=-1)
  largest_lost = jnp.max(jnp.where(kept > 0, 0.0, full), axis=-1)
  assert np.all(smallest_kept >= largest_lost)
  assert np.all(np.sum(kept[0], axis=-1) < 1.0)


def test_renormalised_weights_are_the_softmax_of_the_selected_logits(getkey):
  logits, key_mask, _ = sparse_case(getkey)
  weights = np.asarray(attention_weights(logits, key_mask, 4, renormalise=True))
  for index in np.ndindex(4, 2, 5):
    valid = np.flatnonzero(key_mask[index[0]])
    row = np.float64(logits[index])
    best = valid[np.argsort(-row[valid], kind="stable")[:4]]
    expected = np.zeros(row.shape)
    if len(best):
      expected[best] = softmax(row[best])
    np.testing.assert_allclose(weights[index], expected, atol=1e-6)


@pytest.mark.parametrize("renormalise", [False, True])
def test_keeping_all_keys_is_plain_attention(renormalise, getkey):
  logits, key_mask, _ = sparse_case(getkey)
  plain = attention_weights(logits, key_mask)
  for k in (12, 50):
    assert np.array_equal(attention_weights(logits, key_mask, k, renormalise), plain)


def test_tied_keys_go_to_the_lower_index():
  logits = jnp.array([0.0, 1.0, 1.0, 1.0, 0.0])[None, None, None]
  weights = attention_weights(logits, jnp.ones((1, 5), bool), 2)
  assert (np.asarray(weights[0, 0, 0]) > 0).tolist() == [
    False,
    True,
    True,
    False,
    False,
  ]


def test_unselected_logits_receive_gradient_only_in_the_literal_form():
  logits = jnp.array([3.0, 2.0, 1.0, 0.0])[None, None, None]
  mask = jnp.ones((1, 4), bool)

  def first(values, renormalise):
    return attention_weights(values, mask, 2, renormalise)[0, 0, 0, 0]

  literal = np.asarray(jax.grad(first)(logits, False))[0, 0, 0]
  renormalised = np.asarray(jax.grad(first)(logits, True))[0, 0, 0]
  p = softmax(np.arange(3.0, -1.0, -1.0))
  # d p_0 / d z_j = p_0 (1[j=0] - p_j)
  np.testing.assert_allclose(literal, p[0] * (np.eye(4)[0] - p), atol=1e-6)
  assert np.all(renormalised[2:] == 0.0)


def test_weights_are_handed_out_only_when_asked_for(getkey):
  values = jax.random.normal(getkey(), (2, 6, 4))
  mask = jnp.ones((2, 6), bool)
  layer = MultiHeadAttention(4, 2, top_k=2)
  variables = layer.init(getkey(), values, values, mask)
  assert set(variables) == {"params"}
  plain = layer.apply(variables, values, values, mask)
  asked, state = layer.apply(variables, values, values, mask, mutable="intermediates")
  assert np.array_equal(plain, asked)
  (before,) = state["intermediates"]["weights_all"]
  (after,) = state["intermediates"]["weights"]
  assert before.shape == after.shape == (2, 2, 6, 6)
  assert np.count_nonzero(before) == 2 * 2 * 6 * 6
  assert np.count_nonzero(after) == 2 * 2 * 6 * 2


@pytest.mark.parametrize("top_k", [None, 2])
def test_a_block_ignores_padding_and_has_finite_gradients(top_k, getkey):
  values = jax.random.normal(getkey(), (3, 5, 4))
  mask = jnp.arange(5)[None] < jnp.array([5, 2, 0])[:, None]
  values = jnp.where(mask[..., None], values, 0.0)
  block = TransformerBlock(8, 2, top_k=top_k)
  variables = block.init(getkey(), values, mask)
  clean = block.apply(variables, values, mask)
  other = jnp.where(mask[..., None], values, 7.0)
  assert np.array_equal(clean, block.apply(variables, other, mask))
  assert np.all(np.asarray(clean)[2] == 0.0)
  shorter = block.apply(variables, values[1:2, :2], mask[1:2, :2])
  np.testing.assert_allclose(clean[1:2, :2], shorter, atol=1e-6)
  gradients = jax.grad(lambda v: jnp.sum(block.apply(v, values, mask) ** 2))(variables)
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))


def test_a_block_with_a_source_attends_to_it_alone(getkey):
  values = jax.random.normal(getkey(), (2, 3, 4))
  source = jax.random.normal(getkey(), (2, 5, 4))
  mask, source_mask = (
    jnp.ones((2, 3), bool),
    jnp.arange(5)[None] < jnp.array([[5], [3]]),
  )
  block = TransformerBlock(8, 2)
  variables = block.init(getkey(), values, mask, source, source_mask)
  result = block.apply(variables, values, mask, source, source_mask)
  changed = source.at[1, 3:].set(9.0)
  same = block.apply(variables, values, mask, changed, source_mask)
  assert np.array_equal(result, same)
  moved = block.apply(variables, values, mask, source.at[1, 0].set(9.0), source_mask)
  assert np.array_equal(result[0], moved[0])
  assert not np.allclose(result[1], moved[1])


def test_attention_dropout_acts_only_in_training(getkey):
  values = jax.random.normal(getkey(), (2, 5, 4))
  mask = jnp.ones((2, 5), bool)
  variables = MultiHeadAttention(4, 2).init(getkey(), values, values, mask)
  layer = MultiHeadAttention(4, 2, dropout=0.5, deterministic=False)
  results = [
    layer.apply(variables, values, values, mask, rngs={"dropout": jax.random.key(seed)})
    for seed in (0, 0, 1)
  ]
  assert np.array_equal(results[0], results[1])
  assert not np.allclose(results[0], results[2])


def test_attention_in_bfloat16_stays_close_to_float32(getkey):
  values = jax.random.normal(getkey(), (2, 5, 4))
  mask = jnp.ones((2, 5), bool)
  variables = MultiHeadAttention(4, 2).init(getkey(), values, values, mask)
  exact = MultiHeadAttention(4, 2).apply(variables, values, values, mask)
  rough = MultiHeadAttention(4, 2, dtype=jnp.bfloat16).apply(
    variables, values, values, mask
  )
  assert rough.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.float32(rough), exact, atol=0.05)


@pytest.mark.parametrize("fraction", [0.14, 0.28, 0.5, 1.0])
def test_a_share_of_the_valid_keys_is_kept_and_never_one_too_many(fraction, getkey):
  logits = jax.random.normal(getkey(), (4, 2, 3, 50))
  valid = np.array([50, 25, 3, 0])
  mask = jnp.arange(50)[None] < valid[:, None]
  weights = attention_weights(logits, mask, top_fraction=fraction)
  # In hundredths, so that nothing is rounded.
  kept = -(-round(100 * fraction) * valid // 100)
  assert np.array_equal(
    np.count_nonzero(weights, axis=-1), np.broadcast_to(kept[:, None, None], (4, 2, 3))
  )
  whole = attention_weights(logits, mask)
  for row, number in enumerate(kept):
    if number:
      least = np.sort(whole[row], axis=-1)[..., -number]
      chosen = np.where(whole[row] >= least[..., None], whole[row], 0.0)
      np.testing.assert_allclose(weights[row], chosen, atol=1e-7)


def test_a_share_counts_as_the_decimal_that_it_is_written_as():
  for hundredths in range(1, 101):
    for number in range(151):
      assert share_of(hundredths / 100, number) == -(-hundredths * number // 100)
