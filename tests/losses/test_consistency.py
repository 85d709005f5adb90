"""Distances between modalities: hand computations and what must not matter."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msa_jax.errors import UserError
from msa_jax.losses.consistency import distance, pairwise_distance


@pytest.mark.parametrize(
  "kind, expected",
  [
    ("l2", 5.0),  # sqrt(3^2 + 4^2)
    ("rms", math.sqrt(12.5)),  # sqrt((9 + 16) / 2)
    ("mse", 12.5),
  ],
)
def test_distances_of_a_three_four_five_triangle(kind, expected):
  found = distance(jnp.array([[1.0, 2.0]]), jnp.array([[4.0, -2.0]]), kind)
  np.testing.assert_allclose(found, [expected], rtol=1e-6)


def test_an_unknown_distance_is_refused():
  with pytest.raises(UserError, match="'cosine'.*l2, rms, mse"):
    distance(jnp.zeros((1, 2)), jnp.zeros((1, 2)), "cosine")


def test_the_pairs_of_three_modalities_are_averaged():
  # Corners of a triangle with sides 3, 4 and 5.
  vectors = jnp.array([[[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]]])
  found = pairwise_distance(vectors, jnp.ones((1, 3), bool))
  np.testing.assert_allclose(found, [4.0], rtol=1e-6)


def test_permuting_the_modalities_changes_nothing(getkey):
  vectors = jax.random.normal(getkey(), (4, 3, 5))
  present = jnp.array([[1, 1, 1], [1, 0, 1], [0, 0, 1], [1, 1, 0]], bool)
  expected = pairwise_distance(vectors, present)
  for order in itertools.permutations(range(3)):
    found = pairwise_distance(vectors[:, order], present[:, order])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_only_pairs_that_are_there_count():
  vectors = jnp.array([[[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]]] * 3)
  vectors = vectors.at[:, 1].set(jnp.nan)  # absent in every sample
  present = jnp.array([[1, 0, 1], [1, 0, 0], [0, 0, 0]], bool)
  # First sample: the one pair (0, 0) - (3, 4); the others have no pair.
  np.testing.assert_allclose(pairwise_distance(vectors, present), [5, 0, 0], rtol=1e-6)
  gradient = jax.grad(lambda v: jnp.sum(pairwise_distance(v, present)))(vectors)
  assert np.isfinite(gradient).all()
  assert not gradient[1:].any() and not gradient[0, 1].any()


@pytest.mark.parametrize("kind", ["l2", "rms", "mse"])
def test_coinciding_vectors_have_no_distance_and_a_finite_gradient(kind):
  vectors = jnp.ones((2, 3, 4))
  present = jnp.ones((2, 3), bool)
  # sqrt(1e-8) = 1e-4 is what keeps the gradient finite.
  assert (pairwise_distance(vectors, present, kind) <= 1.01e-4).all()
  assert (pairwise_distance(vectors.at[:, 0, 0].set(1.1), present, kind) > 1e-3).all()
  gradient = jax.grad(lambda v: jnp.sum(pairwise_distance(v, present, kind)))(vectors)
  np.testing.assert_array_equal(gradient, jnp.zeros_like(vectors))


def test_distances_by_step_average_the_steps_that_both_have():
  vectors = jnp.zeros((1, 2, 3, 2)).at[0, 1, :, 0].set(jnp.array([2.0, 4.0, 100.0]))
  present = jnp.array([[[1, 1, 1], [1, 1, 0]]], bool)
  # Steps 0 and 1 are shared: (2 + 4) / 2.
  np.testing.assert_allclose(pairwise_distance(vectors, present), [3.0], rtol=1e-6)
