"""Regression protocols: hand values, rounding, edges, floors of constant predictors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import accuracy_score, f1_score

from msa_jax.metrics import evaluate
from msa_jax.metrics import regression as metrics
from msa_jax.typing import Task

MOSI = Task("regression", -3.0, 3.0, protocol="mosi")
SIMS = Task("regression", -1.0, 1.0, protocol="sims")


def repeat(*groups):
  """(value, count) pairs -> float32 labels."""
  values, counts = zip(*groups, strict=True)
  return np.repeat(np.asarray(values, np.float32), counts)


# Label vectors with the sign counts of the published test splits and the class counts
# that their constant predictors' accuracies imply (106 of 686 labels round to 0, 145
# to -1, ...); the remaining values are chosen so that the MAE comes out as well.
LABELS = {
  # 379 negative, 30 zero, 277 positive. Round to 0: 38 + 30 + 38 = 106; to -1: 145.
  # sum |y - .2| = 196 * 2.2 + 145 * 1.2 + 38 * .6 + 30 * .2 + 38 * .2 + 126 * 1.4
  #   + 113 * 1.6 = 998.8; / 686 = 1.4560.
  "mosi": repeat(
    (-2.0, 196), (-1.0, 145), (-0.4, 38), (0.0, 30), (0.4, 38), (1.6, 126), (1.8, 113)
  ),
  # 1350 negative, 1025 zero, 2284 positive. Round to 0: 451 + 1025 + 451 = 1927.
  # sum |y| = 899 + 902 * .4 + 1019 + 1.4 + 813 * 2 = 3906.2; / 4659 = .8384.
  "mosei": repeat(
    (-1.0, 899), (-0.4, 451), (0.0, 1025), (0.4, 451), (1.0, 1019), (1.4, 1), (2.0, 813)
  ),
  # 248 negative, 69 zero, 140 positive; 97 in (-.7, -.1].
  # sum |y + .2| = 151 * .6 + 97 * .2 + 69 * .2 + 114 + 26 * 1.2 = 269.0.
  "sims": repeat((-0.8, 151), (-0.4, 97), (0.0, 69), (0.8, 114), (1.0, 26)),
  # 488 negative, 123 zero, 423 positive; 55 + 206 = 261 in (-.7, -.1].
  # sum |y| = 227 * .8 + 206 * .4 + 55 * .2 + 279 * .6 + .7 + 143 * .8 = 557.5.
  "simsv2": repeat(
    (-0.8, 227),
    (-0.4, 206),
    (-0.2, 55),
    (0.0, 123),
    (0.6, 279),
    (0.7, 1),
    (0.8, 143),
  ),
}
SIGNS = {
  "mosi": (379, 30, 277),
  "mosei": (1350, 1025, 2284),
  "sims": (248, 69, 140),
  "simsv2": (488, 123, 423),
}


@pytest.mark.parametrize("name", LABELS)
def test_the_label_vectors_have_the_published_sign_counts(name):
  labels = LABELS[name]
  assert (sum(labels < 0), sum(labels == 0), sum(labels > 0)) == SIGNS[name]


FLOORS = [
  (
    "mosi",
    0.2,
    {
      "mae": 1.456,
      "acc7": 0.1545,
      "acc5": 0.1545,
      "acc2_has0": 0.4475,
      "f1_has0": 0.2767,
      "acc2_non0": 0.4223,
      "f1_non0": 0.2507,
    },
  ),
  (
    "mosi",
    -1.0,
    {
      "acc7": 0.2114,
      "acc5": 0.2114,
      "acc2_has0": 0.5525,
      "f1_has0": 0.3932,
      "acc2_non0": 0.5777,
      "f1_non0": 0.4231,
    },
  ),
  (
    "mosei",
    0.0,
    {
      "mae": 0.8384,
      "acc7": 0.4136,
      "acc5": 0.4136,
      "acc2_has0": 0.7102,
      "f1_has0": 0.5899,
      "acc2_non0": 0.3715,
      "f1_non0": 0.2012,
    },
  ),
  (
    "mosei",
    0.146,
    {
      "mae": 0.8413,
      "acc7": 0.4136,
      "acc5": 0.4136,
      "acc2_has0": 0.7102,
      "f1_has0": 0.5899,
      "acc2_non0": 0.6285,
      "f1_non0": 0.4851,
    },
  ),
  (
    "sims",
    -0.2,
    {
      "mae": 0.5886,
      "acc2_sims": 0.6937,
      "f1_sims": 0.5682,
      "acc3_sims": 0.5427,
      "acc5_sims": 0.2123,
    },
  ),
  (
    "simsv2",
    0.0,
    {
      "mae": 0.5392,
      "acc2_sims": 0.5909,
      "f1_sims": 0.4390,
      "acc3_sims": 0.1190,
      "acc5_sims": 0.1190,
    },
  ),
  (
    "simsv2",
    -0.5,
    {
      "mae": 0.6390,
      "acc2_sims": 0.5909,
      "f1_sims": 0.4390,
      "acc3_sims": 0.4720,
      "acc5_sims": 0.2524,
    },
  ),
]


@pytest.mark.parametrize("name,constant,expected", FLOORS)
def test_constant_predictors_reach_exactly_the_published_floors(
  name, constant, expected
):
  labels = LABELS[name]
  predictions = np.full(labels.shape, constant, np.float32)
  got = evaluate(SIMS if name.startswith("sims") else MOSI, predictions, labels)
  assert {key: round(got[key], 4) for key in expected} == expected
  assert got["corr"] == 0.0


def test_half_labels_round_to_even_after_clipping():
  scores = np.array([0.5, -0.5, 1.5, 2.5, -1.5, -2.5, 3.4, -9.0, 0.51])
  rounded = metrics.round_to_class(scores, 3)
  np.testing.assert_array_equal(rounded, [0, 0, 2, 2, -2, -2, 3, -3, 1])
  # Clipping to 2 comes before rounding: 2.5 -> 2.
  np.testing.assert_array_equal(metrics.round_to_class(scores[:4], 2), [0, 0, 2, 2])
  got = metrics.mosi_metrics(np.array([0.0, 2.0, 2.0, 1.0]), scores[[0, 2, 3, 0]])
  # Three of four classes agree: 0.5 -> 0, 1.5 -> 2, 2.5 -> 2, but 0.5 -> 0 is not 1.
  assert got["acc7"] == got["acc5"] == 0.75


def test_zero_lies_on_the_side_that_each_binary_protocol_says():
  label = np.array([0.0, 1.0, -1.0, -1.0])
  prediction = np.array([-0.1, 0.0, 0.0, -2.0])
  got = metrics.mosi_metrics(prediction, label)
  # has0: truth + + - -; predicted - + + -: rows 1 and 3 right.
  assert got["acc2_has0"] == 0.5
  # non0 drops row 0: truth + - -; predicted (p > 0) - - -: two of three right.
  np.testing.assert_allclose(got["acc2_non0"], 2 / 3)
  # cenet: same rows, predicted (p >= 0) + + -: two of three right, but others.
  np.testing.assert_allclose(got["acc2_cenet"], 2 / 3)
  # Weighted F1, non0: class - has TP 2, FP 1, FN 0: F1 = .8, support 2; class + has
  # F1 0, support 1: 1.6 / 3. With swapped arguments the support is 3 of 3: .8.
  np.testing.assert_allclose(got["f1_non0"], 1.6 / 3)
  np.testing.assert_allclose(got["f1_mult"], 0.8)
  # Cenet: + has TP 1, FP 1, FN 0: 2/3, support 1; - has TP 1, FN 1: 2/3.
  np.testing.assert_allclose(got["f1_cenet"], 2 / 3)
  # Non-zero rows only: errors 1, 1, 1; all rows: .1 as well.
  np.testing.assert_allclose(got["mae_non0"], 1.0)
  np.testing.assert_allclose(got["mae"], 3.1 / 4)
  sims = metrics.sims_metrics(np.array([0.0, 0.01]), np.array([0.0, 0.0]))
  assert sims["acc2_sims"] == 0.5


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sims_bins_include_their_upper_edge_in_the_type_of_the_scores(dtype):
  edges = (-0.7, -0.1, 0.1, 0.7)
  scores = np.array([-1, -0.7, -0.69, -0.1, -0.09, 0.1, 0.11, 0.7, 0.71, 1], dtype)
  got = metrics.bin_right_closed(scores, edges)
  np.testing.assert_array_equal(got, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4])


def test_sims_scores_are_clipped_before_everything():
  label, prediction = np.array([1.0, -1.0, 0.0]), np.array([5.0, -0.5, 0.5])
  got = metrics.sims_metrics(prediction, label)
  # Errors after clipping: 0, .5, .5.
  np.testing.assert_allclose(got["mae"], 1 / 3)
  clipped = np.corrcoef([1.0, -0.5, 0.5], label)[0, 1]
  np.testing.assert_allclose(got["corr"], clipped)
  # MOSI's are not: errors 4, .5, .5.
  np.testing.assert_allclose(metrics.mosi_metrics(prediction, label)["mae"], 5 / 3)


SCORES = hnp.arrays(
  np.float32, 12, elements=st.sampled_from([-3, -1.5, -0.6, -0.2, 0, 0.2, 0.5, 2.5])
)


@settings(deadline=None, max_examples=60)
@given(prediction=SCORES, label=SCORES)
def test_mosi_metrics_agree_with_scikit_learn_and_numpy(prediction, label):
  got = metrics.mosi_metrics(prediction, label)
  with_zero = {"y_true": label >= 0, "y_pred": prediction >= 0}
  f1 = f1_score(**with_zero, average="weighted", zero_division=0)
  np.testing.assert_allclose(got["f1_has0"], f1)
  np.testing.assert_allclose(got["acc2_has0"], accuracy_score(**with_zero))
  keep = label != 0
  if keep.any():
    truth, predicted = label[keep] > 0, prediction[keep] > 0
    np.testing.assert_allclose(got["acc2_non0"], accuracy_score(truth, predicted))
    for name, first, second in (
      ("f1_non0", truth, predicted),
      ("f1_mult", predicted, truth),
      ("f1_cenet", truth, prediction[keep] >= 0),
    ):
      f1 = f1_score(first, second, average="weighted", zero_division=0)
      np.testing.assert_allclose(got[name], f1)
  if np.ptp(prediction) and np.ptp(label):
    np.testing.assert_allclose(
      got["corr"], np.corrcoef(prediction, label)[0, 1], rtol=1e-9, atol=1e-12
    )
  np.testing.assert_allclose(got["mae"], np.mean(np.abs(prediction - label)), rtol=1e-6)


@settings(deadline=None, max_examples=60)
@given(prediction=SCORES, label=SCORES)
def test_sims_metrics_agree_with_half_open_intervals_and_scikit_learn(
  prediction, label
):
  got = metrics.sims_metrics(prediction, label)
  bounds = {
    "2": (-1.01, 0.0, 1.01),
    "3": (-1.01, -0.1, 0.1, 1.01),
    "5": (-1.01, -0.7, -0.1, 0.1, 0.7, 1.01),
  }
  for name, edges in bounds.items():
    sides = []
    for scores in (prediction, label):
      clipped = np.clip(scores, -1, 1)
      classes = np.full(len(scores), -1)
      for i in range(len(edges) - 1):
        classes[(clipped > edges[i]) & (clipped <= edges[i + 1])] = i
      sides.append(classes)
    np.testing.assert_allclose(got[f"acc{name}_sims"], accuracy_score(*sides))
    if name == "2":
      f1 = f1_score(sides[1], sides[0], average="weighted", zero_division=0)
      np.testing.assert_allclose(got["f1_sims"], f1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("function", [metrics.mosi_metrics, metrics.sims_metrics])
def test_no_rows_give_nan_and_odd_sets_finite_values_without_a_warning(function):
  nothing = function(np.zeros(0, np.float32), np.zeros(0, np.float32))
  assert all(np.isnan(value) for value in nothing.values())
  one = function(np.array([0.3]), np.array([0.3]))
  assert one["mae"] == 0.0
  assert one["corr"] == 0.0
  constant = function(np.full(5, 0.1, np.float32), np.linspace(-1, 1, 5))
  assert constant["corr"] == 0.0
  assert all(np.isfinite(value) for value in constant.values())
  zeros = function(np.full(5, 0.1), np.zeros(5))
  undefined = {key for key, value in zeros.items() if np.isnan(value)}
  mosi = {"mae_non0", "corr_non0", "acc2_non0", "f1_non0", "f1_mult"}
  mosi |= {"acc2_cenet", "f1_cenet"}
  assert undefined == (mosi if function is metrics.mosi_metrics else set())


def test_correlation_is_exact_for_tiny_huge_and_shifted_scores():
  label = np.array([-1.0, 0.0, 0.5, 2.0])
  np.testing.assert_allclose(metrics.corr(1e-200 * label, label), 1.0)
  np.testing.assert_allclose(metrics.corr(-1e200 * label, label), -1.0)
  np.testing.assert_allclose(metrics.corr(label + 1e6, label), 1.0, rtol=1e-9)
