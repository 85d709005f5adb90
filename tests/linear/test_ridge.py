"""Ridge regression against scikit-learn and a search by hand."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge, RidgeCV

from msa_jax.linear import ridge


def problem(n, d, seed=0):
  random = np.random.default_rng(seed)
  x = random.normal(size=(n, d)) * random.uniform(0.1, 3, d) + 1
  return x, x @ random.normal(size=d) + random.normal(size=n) + 2


@pytest.mark.parametrize(("n", "d"), [(50, 8), (20, 40)])
@pytest.mark.parametrize("alpha", [0.1, 10.0, 1e3])
def test_a_penalty_gives_scikit_learn_s_weights(n, d, alpha):
  x, y = problem(n, d)
  ours, theirs = ridge.fit(x, y, alphas=(alpha,)), Ridge(alpha=alpha).fit(x, y)
  np.testing.assert_allclose(ours.weights, theirs.coef_, rtol=1e-8, atol=1e-10)
  np.testing.assert_allclose(ridge.predict(ours, x), theirs.predict(x), rtol=1e-8)


def test_the_held_out_error_picks_the_penalty():
  x, y = problem(60, 40)
  held_out = problem(30, 40, seed=0)[0] + 0.1, problem(30, 40, seed=3)[1]
  found = ridge.fit(x, y, held_out)
  errors = {
    a: np.mean(np.abs(Ridge(alpha=a).fit(x, y).predict(held_out[0]) - held_out[1]))
    for a in ridge.ALPHAS
  }
  assert found.alpha == min(errors, key=errors.__getitem__)


def test_without_held_out_rows_the_penalty_is_cross_validated():
  x, y = problem(60, 30)
  found = ridge.fit(x, y)
  # Generalised cross-validation, by the hat matrix of centred features.
  a, scores = x - x.mean(axis=0), {}
  for alpha in ridge.ALPHAS:
    hat = a @ np.linalg.solve(a.T @ a + alpha * np.eye(30), a.T) + 1 / 60
    scores[alpha] = np.mean((y - hat @ y) ** 2) / (1 - np.trace(hat) / 60) ** 2
  assert found.alpha == min(scores, key=scores.__getitem__)
  leave_one_out = RidgeCV(alphas=ridge.ALPHAS).fit(x, y).alpha_
  assert abs(np.log10(found.alpha / leave_one_out)) <= 0.5


def test_features_that_say_nothing_give_the_mean():
  found = ridge.fit(np.ones((5, 3)), np.arange(5.0))
  np.testing.assert_array_equal(found.weights, 0.0)
  assert found.bias == 2.0
