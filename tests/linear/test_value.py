"""Cross-validated value of features."""

import numpy as np

from msa_jax.linear import value
from msa_jax.typing import Sequences


def test_moments_are_of_the_visible_steps():
  features = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
  visible = np.array([[True, True, False, True], [False] * 4])
  found = value.moments(Sequences(features, np.array([4, 4], np.int32)), visible)
  kept = features[0, [0, 1, 3]]
  expected = np.concatenate([kept.mean(axis=0), kept.std(axis=0)])
  np.testing.assert_allclose(found, [expected, np.zeros(6)], rtol=1e-6)
  one = value.moments(Sequences(features[:, :1], np.ones(2, np.int32)), visible[:, :1])
  np.testing.assert_allclose(one, [features[0, 0], np.zeros(3)])


def test_signal_is_explained_as_far_as_it_goes():
  random = np.random.default_rng(0)
  x = random.normal(size=(2000, 3))
  y = (x[:, 0] + random.normal(size=2000))[:, None]
  found = value.of(x, y, np.arange(2000))
  np.testing.assert_allclose(found.explained, 0.5, atol=0.04)
  assert found.z > 15 and found.rows == 2000


def test_noise_passes_as_rarely_as_the_level_says():
  random = np.random.default_rng(1)
  scores = [
    value.of(
      random.normal(size=(120, 10)), random.normal(size=(120, 1)), np.arange(120)
    ).z
    for each in [np.arange(120)] * 200
  ]
  assert np.mean(np.asarray(scores) > 1.645) < 0.08


def test_videos_are_not_split():
  """Features that name the video are worth nothing on others."""
  random = np.random.default_rng(2)
  group = np.repeat(np.arange(20), 10)
  x, y = np.eye(20)[group], random.normal(size=(20, 1))[group]
  assert value.of(x, y, group).explained <= 0.05
  assert value.of(x, y, np.arange(200)).explained > 0.9
