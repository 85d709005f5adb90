"""Classes made from scores."""

import dataclasses

import numpy as np
import pytest
import ragged
from ragged import SENTIMENT, make_split

from msa_jax.data.transforms.tasks import DeriveTask
from msa_jax.errors import UserError
from msa_jax.typing import Corpus, Task


@pytest.fixture(name="corpus")
def _corpus():
  return ragged.corpus()


def derived(corpus, task):
  transform = DeriveTask(task)
  return transform.apply(corpus, transform.fit(corpus))


def scored(values, task=SENTIMENT["sentiment"]):
  split = dataclasses.replace(
    make_split(0, size=len(values)),
    labels={"sentiment": np.array(values, np.float32)},
  )
  bare = dataclasses.replace(split, labels={})
  return Corpus("ragged", {"train": split, "predict": bare}, {"sentiment": task})


def test_two_classes_are_signs_and_zeros_have_no_label():
  result = derived(scored([-0.2, 0.0, 1.4, np.nan]), "cls2")
  label = result.splits["train"].labels["sentiment"]
  assert label.dtype == np.int32
  np.testing.assert_array_equal(label, [0, -1, 1, -1])
  task = result.tasks["sentiment"]
  assert (task.kind, task.classes) == ("classes", ("negative", "positive"))
  assert result.splits["predict"].labels == {}


def test_seven_classes_round_halves_to_even_after_clipping():
  scores = [-4.0, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 2.6, np.nan]
  result = derived(scored(scores), "cls7")
  # clip and round: -3, -2, -2, 0, 0, 2, 2, 3; the class is 3 more.
  np.testing.assert_array_equal(
    result.splits["train"].labels["sentiment"], [0, 1, 1, 3, 3, 5, 5, 6, -1]
  )
  assert result.tasks["sentiment"].classes == ("-3", "-2", "-1", "0", "1", "2", "3")


def test_regression_leaves_the_corpus_alone(corpus):
  assert derived(corpus, "regression") is corpus


def test_impossible_tasks_are_refused(corpus):
  with pytest.raises(UserError, match="task='cls5' must be one of"):
    derived(corpus, "cls5")
  classes = derived(corpus, "cls2")
  with pytest.raises(UserError, match="needs a sentiment regression"):
    derived(classes, "cls7")
  narrow = scored([0.5, -1.0], Task("regression", low=-1.0, high=1.0, protocol="sims"))
  with pytest.raises(UserError, match=r"in \[-1, 1\]: choose regression or cls2"):
    derived(narrow, "cls7")


def test_later_corpora_need_no_scores_and_no_whole_range():
  narrow = scored([-0.6, 1.0, 0.0], Task("regression", -1.0, 1.0, protocol="sims"))
  found = DeriveTask("cls7").apply(narrow, {})
  assert found.splits["train"].labels["sentiment"].tolist() == [2, 4, 3]
  bare = dataclasses.replace(narrow, tasks={})
  assert DeriveTask("cls7").apply(bare, {}) is bare
