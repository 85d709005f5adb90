"""Classification metrics against scikit-learn, hand values and odd sets."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import accuracy_score, f1_score, recall_score

from msa_jax.errors import UserError
from msa_jax.metrics import classification as metrics

CLASSES = hnp.arrays(np.int64, 14, elements=st.integers(0, 3))


@settings(deadline=None, max_examples=60)
@given(predicted=CLASSES, truth=CLASSES)
def test_accuracy_recall_and_f1_agree_with_scikit_learn(predicted, truth):
  pair = (truth, predicted)
  np.testing.assert_allclose(metrics.accuracy(predicted, truth), accuracy_score(*pair))
  present = np.unique(truth)
  recall = recall_score(*pair, labels=present, average="macro", zero_division=0)
  np.testing.assert_allclose(metrics.balanced_accuracy(predicted, truth), recall)
  for average, function in (
    ("weighted", metrics.weighted_f1),
    ("macro", metrics.macro_f1),
  ):
    expected = f1_score(*pair, average=average, zero_division=0)
    np.testing.assert_allclose(function(predicted, truth), expected)


def test_one_of_four_classes_from_logits():
  truth = np.array([0, 0, 0, 1, 2, 3])
  predicted = np.array([0, 0, 1, 1, 2, 2])
  got = metrics.class_metrics(np.eye(4)[predicted], truth, ("a", "b", "c", "d"))
  # Right: 4 of 6. Recalls 2/3, 1, 1, 0.
  np.testing.assert_allclose(got["wa"], 4 / 6)
  np.testing.assert_allclose(got["ua"], (2 / 3 + 1 + 1 + 0) / 4)
  # F1: a 2*2/(2+3) = .8; b 2/(2+1) = 2/3; c 2/3; d 0.
  np.testing.assert_allclose(got["f1_a"], 0.8)
  np.testing.assert_allclose(got["f1_d"], 0.0)
  np.testing.assert_allclose(got["f1_weighted"], (3 * 0.8 + 2 / 3 + 2 / 3) / 6)
  np.testing.assert_allclose(got["f1_macro"], (0.8 + 2 / 3 + 2 / 3) / 4)


def test_equal_logits_decide_for_the_lower_class():
  np.testing.assert_array_equal(metrics.decide(np.zeros((2, 3))), [0, 0])


BINARY = hnp.arrays(np.int64, 10, elements=st.integers(0, 1))


@settings(deadline=None, max_examples=60)
@given(predicted=BINARY, truth=BINARY)
def test_both_definitions_of_weighted_accuracy_agree(predicted, truth):
  ours = metrics.weighted_accuracy(predicted, truth)
  mult = metrics.weighted_accuracy_mult(predicted, truth)
  np.testing.assert_allclose(ours, mult)
  if 0 < truth.sum() < len(truth):
    positive = predicted[truth == 1].mean()
    negative = 1 - predicted[truth == 0].mean()
    np.testing.assert_allclose(ours, (positive + negative) / 2)
  else:
    assert math.isnan(ours)


def test_weighted_accuracy_of_hand_computed_counts():
  truth = np.array([1] * 4 + [0] * 6)
  predicted = np.array([1, 1, 1, 0] + [0] * 3 + [1] * 3)
  # TPR 3/4, TNR 3/6: .625; and (3 * 6 / 4 + 3) / 12 = 7.5 / 12 = .625.
  assert metrics.weighted_accuracy(predicted, truth) == 0.625
  assert metrics.weighted_accuracy_mult(predicted, truth) == 0.625


@pytest.mark.parametrize("paired", [True, False])
def test_questions_are_scored_one_by_one_and_averaged(paired):
  truth = np.array([[1, 0], [1, 0], [0, 0], [0, 1]])
  answers = np.array([[1, 0], [0, 0], [0, 0], [0, 0]])
  yes = np.where(answers == 1, 2.0, -2.0)
  scores = np.stack([np.zeros_like(yes), yes], -1) if paired else yes
  got = metrics.question_metrics(scores, truth, ("happy", "sad"))
  assert got["acc_happy"] == got["acc_sad"] == got["acc"] == 0.75
  for i, name in enumerate(("happy", "sad")):
    f1 = f1_score(truth[:, i], answers[:, i], average="weighted", zero_division=0)
    np.testing.assert_allclose(got[f"f1_{name}"], f1)
  np.testing.assert_allclose(got["f1"], (got["f1_happy"] + got["f1_sad"]) / 2)
  # happy: TPR 1/2, TNR 1; sad: TPR 0, TNR 1.
  assert (got["wacc_happy"], got["wacc_sad"], got["wacc"]) == (0.75, 0.5, 0.625)
  assert got["wacc_mult"] == 0.625


@pytest.mark.filterwarnings("error")
def test_odd_sets_give_nan_or_finite_values_without_a_warning():
  nothing = metrics.class_metrics(np.zeros((0, 3)), np.zeros(0, np.int64), ("a",))
  assert all(math.isnan(value) for value in nothing.values())
  single = metrics.class_metrics(np.eye(3)[[1, 1]], np.array([1, 1]))
  assert set(single.values()) == {1.0}
  absent = metrics.class_metrics(np.eye(3)[[0]], np.array([1]), ("a", "b", "c"))
  assert all(value == 0.0 for value in absent.values())
  nobody = metrics.question_metrics(np.zeros((3, 2)), np.zeros((3, 2), int), ("a", "b"))
  assert nobody["acc"] == nobody["f1"] == 1.0
  assert math.isnan(nobody["wacc"])
  empty = metrics.question_metrics(np.zeros((0, 1, 2)), np.zeros((0, 1), int), ("a",))
  assert all(math.isnan(value) for value in empty.values())


def test_a_question_that_is_undefined_is_left_out_of_the_mean():
  truth = np.array([[1, 0], [0, 0]])
  got = metrics.question_metrics(np.array([[1.0, -1.0]] * 2), truth, ("a", "b"))
  # a: TPR 1, TNR 0; b never occurs.
  assert math.isnan(got["wacc_b"])
  assert got["wacc"] == got["wacc_a"] == 0.5


def test_shapes_that_do_not_fit_are_refused():
  with pytest.raises(UserError, match=r"must be \[n c\]"):
    metrics.class_metrics(np.zeros((2, 3, 2)), np.zeros(2, np.int64))
  with pytest.raises(UserError, match=r"shape \(2, 3\).*shape \(2, 2\)"):
    metrics.question_metrics(np.zeros((2, 3)), np.zeros((2, 2), int), ("a", "b"))
  with pytest.raises(UserError, match="1 names for 2"):
    metrics.question_metrics(np.zeros((2, 2)), np.zeros((2, 2), int), ("a",))
