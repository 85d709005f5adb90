"""The best constant prediction, against a search over a fine grid of constants."""

import jax.numpy as jnp
import numpy as np
import pytest

from msa_jax.losses.prior import best_constant
from msa_jax.losses.task import LOSSES

LABELS = np.asarray([-3.0, -1.0, -0.5, 0.0, 0.25, 1.0, 2.0, np.nan, 3.0, 3.0], "f")
KNOWN = np.isfinite(LABELS)


@pytest.mark.parametrize("loss", ["l1", "mse", "huber"])
def test_the_regression_prior_has_the_least_training_loss(loss):
  (prior,) = best_constant("regression", loss, LABELS, KNOWN)
  constants = np.linspace(-3, 3, 2401)
  known = jnp.asarray(LABELS[KNOWN])

  def total(constant):
    return float(
      LOSSES["regression"][loss](jnp.full_like(known, constant), known).sum()
    )

  best = min(total(c) for c in constants[::8])
  assert total(prior) <= best + 1e-4
  assert -3 < prior < 3


def test_the_default_regression_prior_is_the_median_and_zero_without_labels():
  assert best_constant("regression", "default", LABELS, KNOWN) == (0.25,)
  assert best_constant("regression", "mse", LABELS, np.zeros(10, bool)) == (0.0,)


def test_class_priors_are_the_shares_of_the_training_labels():
  labels = np.asarray([[0, 2, 2], [1, 2, -1]])
  logits = best_constant("classes", "default", labels, labels >= 0, 4)
  shares = np.exp(logits)
  np.testing.assert_allclose(shares, [0.2, 0.2, 0.6, 1e-6], rtol=1e-6)


def test_question_priors_are_no_and_yes_of_each_question():
  labels = np.asarray([[1, 0], [1, 1], [0, 0], [1, 0]])
  shares = np.exp(best_constant("binary", "default", labels, np.ones(4, bool)))
  np.testing.assert_allclose(shares, [0.25, 0.75, 0.75, 0.25], rtol=1e-6)
  none = best_constant("binary", "default", labels, np.zeros(4, bool))
  np.testing.assert_allclose(np.exp(none), 0.5)
