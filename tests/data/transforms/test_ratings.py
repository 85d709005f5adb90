"""Valence ratings become sentiment labels."""

import dataclasses

import numpy as np
import pytest
import toy

from msa_jax.data.transforms.ratings import valence_as_sentiment
from msa_jax.errors import UserError
from msa_jax.typing import Task


def _rated(**extras):
  corpus = toy.corpus((4, 2, 1))
  classes = Task("classes", classes=("a", "b"), protocol="classes")
  splits = {
    name: dataclasses.replace(
      split,
      labels={"emotion": np.zeros(len(split), np.int32)},
      extras={key: value[: len(split)] for key, value in extras.items()},
    )
    for name, split in corpus.splits.items()
  }
  return dataclasses.replace(corpus, splits=splits, tasks={"emotion": classes})


def test_one_to_five_becomes_minus_three_to_three_and_nothing_else_is_a_label():
  valence = np.asarray([1.0, 5.0, 2.5, 0.0], np.float32)
  table = np.stack([valence, np.full(4, 4.0), np.full(4, 2.0)], axis=1)
  for extras in ({"valence": valence}, {"vad": table}):
    corpus = valence_as_sentiment(_rated(**extras))
    found = corpus.splits["train"].labels["sentiment"]
    np.testing.assert_array_equal(found, [-3.0, 3.0, -0.75, np.nan])
    assert found.dtype == np.float32
    assert set(corpus.tasks) == {"sentiment", "emotion"}
    task = corpus.tasks["sentiment"]
    assert (task.kind, task.low, task.high) == ("regression", -3.0, 3.0)
    assert "emotion" in corpus.splits["test"].labels


def test_files_without_labels_are_left_alone_and_others_must_have_ratings():
  unlabelled = toy.corpus((4, 2, 1), labelled=False)
  assert valence_as_sentiment(unlabelled) is unlabelled
  with pytest.raises(UserError, match="already has sentiment labels"):
    valence_as_sentiment(toy.corpus((4, 2, 1)))
  with pytest.raises(UserError, match="has no ratings of valence"):
    valence_as_sentiment(_rated(arousal=np.ones(4)))
