"""Bootstrap intervals: known distributions, reproducibility, odd inputs."""

import math

import numpy as np
import pytest

from msa_jax.errors import UserError
from msa_jax.metrics.bootstrap import mean_interval, paired
from msa_jax.metrics.regression import corr, mae


def test_interval_of_a_mean_agrees_with_the_normal_approximation():
  values = np.random.default_rng(0).standard_normal(400) + 3.0
  got = mean_interval(values, level=0.9)
  error = values.std() / np.sqrt(400)
  assert got.estimate == values.mean()
  np.testing.assert_allclose(got.low, values.mean() - 1.645 * error, atol=0.01)
  np.testing.assert_allclose(got.high, values.mean() + 1.645 * error, atol=0.01)


def test_resamples_of_two_values_have_the_binomial_distribution():
  # Means of two draws from {0, 1}: 0, .5, 1 with chances 1/4, 1/2, 1/4.
  wide, narrow = (mean_interval(np.array([0.0, 1.0]), level) for level in (0.9, 0.4))
  assert (wide.low, wide.high) == (0.0, 1.0)
  assert (narrow.low, narrow.high) == (0.5, 0.5)


def test_coverage_with_five_seeds_is_the_documented_one():
  generator = np.random.default_rng(1)
  hits = 0
  for seed in range(400):
    got = mean_interval(generator.standard_normal(5), draws=400, seed=seed)
    hits += got.low <= 0.0 <= got.high
  assert 0.76 < hits / 400 < 0.90


def test_a_paired_difference_is_found_although_the_rows_vary_far_more():
  generator = np.random.default_rng(2)
  labels = generator.standard_normal(200)
  hard = 3.0 * generator.standard_normal(200)
  first, second = labels + hard, labels + hard + 0.1 * np.sign(hard)
  got = paired(mae, first, second, labels, draws=300)
  # Every error of the second system is larger by exactly .1.
  np.testing.assert_allclose(got.difference, [-0.1, -0.1, -0.1])
  np.testing.assert_allclose(got.p_value, 2 / 301)


def test_a_system_does_not_differ_from_itself():
  values = np.linspace(-1, 1, 30)
  got = paired(mae, values, values, np.zeros(30), draws=50)
  assert got.difference == (0.0, 0.0, 0.0)
  assert got.p_value == 1.0


def test_chance_differences_have_large_p_values():
  generator = np.random.default_rng(3)
  small = 0
  for seed in range(60):
    labels, first, second = generator.standard_normal((3, 60))
    result = paired(corr, first, second, labels, draws=60, seed=seed)
    small += result.p_value < 0.2
  # Binomial(60, .2): mean 12, standard deviation 3.1.
  assert 3 <= small <= 24


def test_the_seed_decides_the_draws():
  values = np.arange(7.0)
  assert mean_interval(values, seed=1) == mean_interval(values, seed=1)
  narrow = {mean_interval(values, draws=20, seed=seed).low for seed in range(5)}
  assert len(narrow) > 1


def test_odd_inputs_are_exact_undefined_or_refused():
  assert mean_interval(np.array([0.5])) == (0.5, 0.5, 0.5)
  undefined = paired(lambda p, y: math.nan, np.ones(3), np.ones(3), np.ones(3), draws=5)
  assert math.isnan(undefined.difference.low)
  assert undefined.p_value == 1.0
  with pytest.raises(UserError, match="bootstrap of 0 values"):
    mean_interval(np.zeros(0))
  with pytest.raises(UserError, match="all finite"):
    mean_interval(np.array([1.0, np.nan]))
  with pytest.raises(UserError, match="confidence level 95.0"):
    mean_interval(np.ones(2), level=95.0)
  with pytest.raises(UserError, match="of 3 and 2 predictions for 3 labels"):
    paired(mae, np.ones(3), np.ones(2), np.ones(3))
