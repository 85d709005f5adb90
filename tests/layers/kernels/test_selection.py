"""Exact selection of the largest scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from msa_jax.layers.kernels.selection import keep_largest, keep_largest_plain


def sorted_selection(scores, k, mask):
  """Oracle: stable sort of each row's candidates, largest first."""
  selected = np.zeros(scores.shape, bool)
  for row in np.ndindex(scores.shape[:-1]):
    candidates = np.flatnonzero(mask[row])
    order = candidates[np.argsort(-scores[row][candidates], kind="stable")]
    selected[row][order[:k]] = True
  return selected


def test_selection_equals_lax_top_k_on_distinct_scores(getkey):
  scores = jax.random.normal(getkey(), (40, 150)) * 10.0
  _, index = lax.top_k(scores, 38)
  expected = np.zeros(scores.shape, bool)
  np.put_along_axis(expected, np.asarray(index), True, axis=1)
  mask = jnp.ones(scores.shape, bool)
  assert np.array_equal(keep_largest(scores, 38, mask), expected)


@pytest.mark.parametrize("k", [1, 3, 7, 20])
def test_selection_equals_a_stable_sort_with_ties_and_masks(k):
  rng = np.random.default_rng(k)
  # Few distinct values, both signs and both zeros: nearly every row has a tie.
  values = np.array([-2.0, -1e-30, -0.0, 0.0, 1e-30, 3.0], np.float32)
  scores = rng.choice(values, (5, 8, 17))
  mask = rng.random((5, 8, 17)) < 0.6
  mask[0, 0] = False
  expected = sorted_selection(scores, k, mask)
  for form in (keep_largest, keep_largest_plain):
    result = form(jnp.asarray(scores), k, jnp.asarray(mask))
    assert np.array_equal(result, expected)


def test_rows_keep_exactly_the_smaller_of_k_and_their_candidates():
  rng = np.random.default_rng(0)
  scores = rng.normal(size=(6, 10)).astype(np.float32)
  mask = np.arange(10)[None] < np.array([0, 1, 3, 4, 5, 10])[:, None]
  result = keep_largest(jnp.asarray(scores), 4, jnp.asarray(mask))
  assert np.asarray(result).sum(axis=1).tolist() == [0, 1, 3, 4, 4, 4]
  assert not np.any(np.asarray(result) & ~mask)


def test_every_row_may_keep_a_number_of_its_own():
  rng = np.random.default_rng(3)
  scores = rng.choice([0.0, 1.0, 2.0, 3.0], (4, 3, 9)).astype(np.float32)
  mask = rng.random(scores.shape) < 0.7
  numbers = rng.integers(1, 10, (4, 3))
  expected = np.stack(
    [
      [
        sorted_selection(scores[i, j][None], numbers[i, j], mask[i, j][None])[0]
        for j in range(3)
      ]
      for i in range(4)
    ]
  )
  for form in (keep_largest, keep_largest_plain):
    result = form(jnp.asarray(scores), jnp.asarray(numbers), jnp.asarray(mask))
    assert np.array_equal(result, expected)


def test_equal_scores_go_to_the_lower_index():
  scores = jnp.array([[1.0, 5.0, 1.0, 1.0, 5.0, 1.0]])
  result = keep_largest(scores, 4, jnp.ones(scores.shape, bool))
  assert result.tolist() == [[True, True, True, False, True, False]]


def test_rows_longer_than_the_packed_counters_are_exact():
  rng = np.random.default_rng(1)
  scores = rng.integers(0, 300, (2, 1100)).astype(np.float32)
  mask = np.ones(scores.shape, bool)
  result = keep_largest(jnp.asarray(scores), 1050, jnp.asarray(mask))
  assert np.array_equal(result, sorted_selection(scores, 1050, mask))


def test_selection_is_the_same_under_jit_and_vmap():
  rng = np.random.default_rng(2)
  scores = jnp.asarray(rng.choice([0.0, 1.0, 2.0], (3, 4, 9)).astype(np.float32))
  mask = jnp.asarray(rng.random((3, 4, 9)) < 0.7)
  select = lambda s, m: keep_largest(s, 3, m)  # noqa: E731
  lifted = jax.jit(jax.vmap(select))(scores, mask)
  assert np.array_equal(lifted, select(scores, mask))
