"""Experts by kind of sample, against values worked out by hand."""

import math

import numpy as np

from msa_jax.metrics import specialisation

ALL = np.ones(4, bool)


def test_kinds_are_polarities_classes_or_questions():
  signs = specialisation.kinds_of(np.asarray([-1.0, 0.5, 2.0, 0.0]), ALL)
  assert {name: rows.tolist() for name, rows in signs.items()} == {
    "negative": [True, False, False, False],
    "neutral": [False, False, False, True],
    "positive": [False, True, True, False],
  }
  known = np.asarray([True, True, False, True])
  classes = specialisation.kinds_of(np.asarray([1, 0, 2, 1]), known, ("a", "b", "c"))
  assert list(classes) == ["a", "b"]  # the only c has no label
  assert classes["b"].tolist() == [True, False, False, True]
  answers = np.asarray([[1, 1], [0, 1], [0, 0], [1, 0]])
  questions = specialisation.kinds_of(answers, ALL, ("x", "y"))
  assert questions["y"].tolist() == [True, True, False, False]


def test_an_expert_of_each_kind_says_all_of_it_and_equal_weights_nothing():
  kinds = {"a": np.arange(4) < 2, "b": np.arange(4) >= 2}
  sure = np.eye(2)[[0, 0, 1, 1]]
  assert np.isclose(specialisation.label_information(sure, kinds), math.log(2.0))
  assert specialisation.label_information(np.full((4, 2), 0.5), kinds) == 0.0
  # As sure, but of something else than the kind.
  other = np.eye(2)[[0, 1, 0, 1]]
  assert np.isclose(specialisation.label_information(other, kinds), 0.0)
  assert math.isnan(specialisation.label_information(np.zeros((4, 2)), kinds))


def test_the_information_is_that_of_the_joint_distribution():
  random = np.random.default_rng(0)
  weights, labels = random.dirichlet([1.0] * 3, 50), random.integers(0, 2, 50)
  kinds = {name: labels == i for i, name in enumerate("ab")}
  joint = np.stack([weights[rows].sum(axis=0) for rows in kinds.values()]) / 50
  outer = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
  wanted = np.sum(joint * np.log(joint / outer))
  found = specialisation.label_information(weights, kinds)
  np.testing.assert_allclose(found, wanted, rtol=1e-10)
  # Weights that do not add up to one, and samples that are not routed.
  scaled = np.append(weights * random.uniform(0.1, 1.0, (50, 1)), np.zeros((3, 3)), 0)
  padded = {name: np.append(rows, [True] * 3) for name, rows in kinds.items()}
  again = specialisation.label_information(scaled, padded)
  np.testing.assert_allclose(again, wanted, rtol=1e-10)


def test_weights_by_kind_leave_out_samples_that_are_not_routed():
  weights = np.asarray([[1.0, 0.0], [0.0, 0.0], [0.25, 0.75], [0.75, 0.25]])
  kinds = {"a": np.arange(4) < 2, "b": np.arange(4) >= 2, "none": np.arange(4) == 1}
  found = specialisation.weights_by_kind(weights, kinds)
  assert found == {"a": [1.0, 0.0], "b": [0.5, 0.5]}
