"""Standardisation against slow loops: fitted on train, over real steps only."""

import dataclasses

import numpy as np
import pytest
import ragged
from ragged import SENTIMENT, fit_apply, make_split, visible_rows, with_modality

from msa_jax.typing import Corpus


@pytest.fixture(name="corpus")
def _corpus():
  return ragged.corpus()


def test_standardisation_uses_the_real_steps_of_train_alone(corpus):
  fitted, result = fit_apply(corpus)
  train = corpus.splits["train"].modalities["audio"]
  values = np.array(
    [train.features[row, step] for row, step in visible_rows(train)], np.float64
  )
  fitted = fitted.states["standardize"]
  np.testing.assert_allclose(fitted["mean/audio"], values.mean(axis=0), rtol=1e-12)
  np.testing.assert_allclose(fitted["scale/audio"], 1 / values.std(axis=0), rtol=1e-12)
  for name in ("train", "valid"):
    before = corpus.splits[name].modalities["audio"]
    after = result.splits[name].modalities["audio"]
    expected = np.zeros(before.features.shape)
    for row, step in visible_rows(before):
      centred = before.features[row, step] - values.mean(axis=0)
      expected[row, step] = centred / values.std(axis=0)
    np.testing.assert_allclose(after.features, expected, atol=1e-5)
    assert after.features.dtype == np.float32
    assert (
      result.splits[name].modalities["text"] is corpus.splits[name].modalities["text"]
    )
  assert result.notes == {"kept": 1}


def test_other_splits_do_not_move_the_fit(corpus):
  other = Corpus(
    "ragged",
    {**corpus.splits, "test": make_split(77), "valid": make_split(78)},
    SENTIMENT,
  )
  first, second = (fit_apply(each)[0].states for each in (corpus, other))
  np.testing.assert_array_equal(
    first["standardize"]["mean/audio"], second["standardize"]["mean/audio"]
  )
  np.testing.assert_array_equal(
    first["standardize"]["scale/audio"], second["standardize"]["scale/audio"]
  )


def test_constant_and_enormous_columns_survive(corpus):
  audio = corpus.splits["train"].modalities["audio"]
  features = audio.features.copy()
  rng = np.random.default_rng(0)
  for row, step in visible_rows(audio):
    features[row, step, 0] = 0.1  # constant
    features[row, step, 1] = 1e5 + rng.standard_normal()  # small spread, far away
  changed = dataclasses.replace(audio, features=features)
  split = with_modality(corpus.splits["train"], "audio", changed)
  corpus = Corpus("ragged", {"train": split}, SENTIMENT)
  fitted, result = fit_apply(corpus)
  assert fitted.states["standardize"]["scale/audio"][0] == 0
  result = result.splits["train"].modalities["audio"]
  assert not result.features[..., 0].any()
  seen = np.array([result.features[row, step, 1] for row, step in visible_rows(audio)])
  assert abs(seen.mean()) < 1e-3
  assert abs(seen.std() - 1) < 1e-3
