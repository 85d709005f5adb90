"""Logistic regression against scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from msa_jax.linear import logistic


def problem(n=120, d=12, c=3, seed=0):
  random = np.random.default_rng(seed)
  x = random.normal(size=(n, d)) + 0.5
  logits = x @ np.random.default_rng(9).normal(size=(d, c))
  return x, logits, random


@pytest.mark.parametrize("strength", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("width", [12, 200])
def test_a_penalty_gives_scikit_learn_s_classes(strength, width):
  x, logits, random = problem(d=width)
  y = np.argmax(logits + random.gumbel(size=logits.shape), axis=1)
  ours = logistic.fit(x, y, 3, strengths=(strength,), tolerance=1e-9)
  theirs = LogisticRegression(C=strength, tol=1e-10, max_iter=5000).fit(x, y)
  found, expected = logistic.logits(ours, x), theirs.decision_function(x)
  centred = found - found.mean(axis=1, keepdims=True)
  np.testing.assert_allclose(
    centred, expected - expected.mean(axis=1, keepdims=True), rtol=1e-4, atol=1e-4
  )
  value = logistic.cross_entropy(ours, x, y)
  np.testing.assert_allclose(value, log_loss(y, theirs.predict_proba(x)), rtol=1e-5)


def test_questions_are_as_many_regressions_of_yes_and_no():
  x, logits, random = problem(c=2)
  y = (logits + random.logistic(size=logits.shape) > 0).astype(int)
  ours = logistic.fit(x, y, 2, strengths=(0.1,), tolerance=1e-9)
  for question in range(2):
    theirs = LogisticRegression(C=0.1, tol=1e-10, max_iter=5000).fit(x, y[:, question])
    np.testing.assert_allclose(
      logistic.logits(ours, x)[:, question],
      theirs.decision_function(x),
      rtol=1e-4,
      atol=1e-4,
    )


def test_the_held_out_error_picks_the_penalty():
  x, logits, random = problem(60, 30)
  y = np.argmax(logits + 5 * random.gumbel(size=logits.shape), axis=1)
  x2, logits2, random = problem(80, 30, seed=1)
  y2 = np.argmax(logits2 + 5 * random.gumbel(size=logits2.shape), axis=1)
  found = logistic.fit(x, y, 3, (x2, y2), tolerance=1e-7)
  errors = {}
  for strength in logistic.STRENGTHS:
    model = LogisticRegression(C=strength, tol=1e-9, max_iter=5000).fit(x, y)
    errors[strength] = log_loss(y2, model.predict_proba(x2))
  assert found.strength == min(errors, key=errors.__getitem__)
  assert min(logistic.STRENGTHS) < found.strength < max(logistic.STRENGTHS)
  alone = logistic.fit(x, y, 3)
  assert alone.strength in logistic.STRENGTHS
  assert logistic.cross_entropy(alone, x, y) < np.log(3)


def test_a_class_that_training_lacks_is_no_trouble():
  x, _, _ = problem()
  found = logistic.fit(x, np.zeros(len(x), int), 3, strengths=(1.0,))
  assert np.isfinite(logistic.logits(found, x)).all()
  assert (logistic.logits(found, x).argmax(axis=1) == 0).all()
