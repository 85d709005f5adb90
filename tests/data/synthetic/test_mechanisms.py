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


def test_of_echo_audio_needs_a_product_and_text_repeats_it_where_the_tell_says(echo):
  audio = pair(echo, lambda s: s.modalities["audio"].features.mean(axis=1))
  said = pair(echo, lambda s: s.extras["heard"])
  assert explained(audio, said) < 0.05
  directions = mechanisms._directions(ECHO, 5)

  def product(split, name):
    along = split.modalities[name].features.mean(axis=1) @ directions.T
    return along[:, 1:4].prod(axis=1)

  test = echo.splits["test"]
  assert np.corrcoef(product(test, "audio"), test.extras["heard"])[0, 1] > 0.95
  repeated = test.extras["repeated"]
  for rows, low, high in ((repeated, 0.95, 1.0), (~repeated, -0.2, 0.2)):
    found = np.corrcoef(product(test, "text")[rows], test.extras["heard"][rows])[0, 1]
    assert low < found <= high
  tell = test.modalities["text"].features.mean(axis=1) @ directions[4]
  np.testing.assert_array_equal(tell > 0, repeated)
  assert abs(repeated.mean() - mechanisms.ECHO_SHARE) < 0.05
