"""The worlds that show a mechanism: what their data say, and what they do not."""

import numpy as np
import pytest

from msa_jax.data import synthetic
from msa_jax.data.synthetic import mechanisms
from msa_jax.data.synthetic.generator import CONFLICT, ECHO, SyntheticOptions
from msa_jax.errors import UserError


def explained(inputs, target):
  """Share of the variance that a linear model with an intercept explains in test."""
  train, test = (np.pad(x, ((0, 0), (0, 1)), constant_values=1.0) for x in inputs)
  y, truth = target
  weights = np.linalg.lstsq(train, y, rcond=None)[0]
  return 1 - np.mean((test @ weights - truth) ** 2) / np.var(truth)


def pair(corpus, read):
  return [read(corpus.splits[name]) for name in ("train", "test")]


@pytest.fixture(scope="module")
def conflict():
  return synthetic.synthetic(CONFLICT)


@pytest.fixture(scope="module")
def echo():
  return synthetic.synthetic(ECHO)


def sentiment(split):
  return split.labels["sentiment"]


def test_the_same_options_draw_the_same_world_and_other_seeds_another(conflict):
  again = synthetic.synthetic(CONFLICT).splits["valid"]
  features = conflict.splits["valid"].modalities["text"].features
  np.testing.assert_array_equal(again.modalities["text"].features, features)
  other = synthetic.synthetic(SyntheticOptions(world="conflict", seed=1))
  first = other.splits["valid"].modalities["text"].features
  assert np.abs(first[:200] - features[:200]).mean() > 0.1
  groups = [set(split.groups) for split in conflict.splits.values()]
  assert not groups[0] & groups[1] and not groups[1] & groups[2]
  with pytest.raises(UserError, match="world moon: choose from sentiment, conflict"):
    SyntheticOptions(world="moon")


def test_of_conflict_the_mean_says_nothing_and_four_directions_say_all(conflict):
  mean = pair(conflict, lambda s: s.modalities["text"].features.mean(axis=1))
  assert explained(mean, pair(conflict, sentiment)) < 0.05
  directions = mechanisms._directions(CONFLICT, 4)

  def sizes(split, count=4):
    along = split.modalities["text"].features @ directions[:count].T
    return np.abs(along).mean(axis=1)

  assert explained(pair(conflict, sizes), pair(conflict, sentiment)) > 0.9
  # The tasks need different ones: two are of no use to the other task.
  first = pair(conflict, lambda s: sizes(s)[:, :2])
  for quality in (0, 1):
    high = pair(conflict, lambda s, q=quality: (s.labels["emotion"] >> q) & 1)
    assert explained(first, high) < 0.02
    own = pair(conflict, lambda s, q=quality: sizes(s)[:, [2 + q]])
    assert explained(own, high) > 0.6
  assert np.bincount(conflict.splits["train"].labels["emotion"]).min() > 250


def test_of_echo_audio_needs_a_curve_and_text_repeats_it_where_the_tell_says(echo):
  audio = pair(echo, lambda s: s.modalities["audio"].features.mean(axis=1))
  assert explained(audio, pair(echo, lambda s: s.extras["meant"])) < 0.15
  directions = mechanisms._directions(ECHO, 3)

  def along(split, name):
    return split.modalities[name].features.mean(axis=1) @ directions.T

  test = echo.splits["test"]
  repeated, meant = test.extras["repeated"], test.extras["meant"]
  audio, text = (np.sin(5 * along(test, name)[:, 1]) for name in ("audio", "text"))
  assert np.corrcoef(audio, meant)[0, 1] > 0.95
  assert np.corrcoef(text[repeated], meant[repeated])[0, 1] > 0.95
  assert abs(np.corrcoef(text[~repeated], meant[~repeated])[0, 1]) < 0.2
  np.testing.assert_array_equal(along(test, "text")[:, 2] > 0, repeated)
  said = along(test, "text")[:, 0]
  assert np.corrcoef(said, test.extras["said"])[0, 1] > 0.95
  shares = [split.extras["repeated"].mean() for split in echo.splits.values()]
  np.testing.assert_allclose(shares, mechanisms.ECHO_SHARES, atol=0.06)
