"""Folds of whole videos: balanced, disjoint, the same for every seed and order."""

import dataclasses

import numpy as np
import pytest
import toy

from msa_jax.data.transforms import folds
from msa_jax.errors import UserError
from msa_jax.typing import Corpus, Sequences

NUM_FOLDS = 3


def _corpus():
  """The toy corpus with groups, longer texts in one split, a task in one only."""
  made = toy.corpus()
  splits = {}
  for name, split in made.splits.items():
    rows = np.arange(len(split))
    extras = {"row": rows, "text_words": np.zeros((len(split), 6), np.int32)}
    groups = np.asarray([f"{name}{i // 3}" for i in rows])
    splits[name] = dataclasses.replace(split, groups=groups, extras=extras)
  text = splits["test"].modalities["text"]
  longer = Sequences(np.pad(text.features, ((0, 0), (0, 2), (0, 0))), text.lengths)
  splits["test"] = dataclasses.replace(
    splits["test"],
    modalities={**splits["test"].modalities, "text": longer},
    extras={"row": splits["test"].extras["row"]},
  )
  splits["valid"].labels["emotion"] = np.ones(11, np.int32)
  emotion = dataclasses.replace(made.tasks["sentiment"], kind="classes")
  notes = {"bayes": {"test": {"mae": 0.0}}, "format": "toy"}
  return Corpus("toy", splits, {**made.tasks, "emotion": emotion}, notes)


def _by_id(corpus):
  return {
    sample: (split.labels["sentiment"][row], split.modalities["text"].features[row])
    for split in corpus.splits.values()
    for row, sample in enumerate(split.ids.tolist())
  }


def test_every_sample_is_tested_on_once_and_videos_stay_together():
  corpus = _corpus()
  made = [folds.split(corpus, k + 1, "holdout10", NUM_FOLDS) for k in range(NUM_FOLDS)]
  tested = [sample for each in made for sample in each.splits["test"].ids.tolist()]
  everything = [sample for split in corpus.splits.values() for sample in split.ids]
  assert sorted(tested) == sorted(everything) and len(everything) == 61
  known = _by_id(corpus)
  for each in made:
    groups = {name: set(s.groups.tolist()) for name, s in each.splits.items()}
    assert not groups["train"] & groups["test"] and not groups["valid"] & groups["test"]
    assert not groups["train"] & groups["valid"]
    # Of 22 videos 14 or 15 are to train and select with; one in ten of them selects.
    assert len(groups["valid"]) == round(0.1 * len(groups["train"] | groups["valid"]))
    assert abs(len(each.splits["test"]) - 61 / 3) < 2
    for sample, (label, text) in _by_id(each).items():
      assert label == known[sample][0]
      np.testing.assert_array_equal(text[:6], known[sample][1][:6])
      assert text.shape == (8, 4) and not text[6:].any()


def test_folds_do_not_depend_on_the_order_of_the_file():
  corpus = _corpus()
  order = np.random.default_rng(0).permutation(37)
  moved = {**corpus.splits, "train": folds.take(corpus.splits["train"], order)}
  other = dataclasses.replace(corpus, splits=moved)
  for name in ("train", "valid", "test"):
    ours, theirs = (
      folds.split(each, 2, "holdout10", NUM_FOLDS).splits[name].ids.tolist()
      for each in (corpus, other)
    )
    assert sorted(ours) == sorted(theirs)


def test_pooled_splits_keep_what_all_of_them_know():
  made = folds.split(_corpus(), 1, "none", NUM_FOLDS)
  assert set(made.splits) == {"train", "test"}
  whole = np.concatenate([split.labels["emotion"] for split in made.splits.values()])
  assert (whole >= 0).sum() == 11  # the others have no such label
  for split in made.splits.values():
    assert set(split.extras) == {"row"}
  assert made.notes == {"format": "toy", "fold": {"test_fold": 1, "folds": 3}}
  last = folds.split(_corpus(), 0, "none", NUM_FOLDS)
  assert last.notes["fold"]["test_fold"] == 3


def test_the_folds_of_a_corpus_are_its_sessions_or_as_many_as_are_asked_for():
  assert folds.numbers(_corpus(), 4) == [1, 2, 3, 4]
  whole = folds.split(_corpus(), 1, "none", NUM_FOLDS).splits["train"]
  sessions = np.resize([7, 2, 5], len(whole))
  whole = dataclasses.replace(whole, extras={"session": sessions})
  corpus = Corpus("s", {folds.WHOLE: whole}, toy.corpus().tasks)
  assert folds.numbers(corpus, 0) == [2, 5, 7]
  with pytest.raises(UserError, match=r"no sessions; .*config.data.num_folds=5"):
    folds.numbers(_corpus(), 0)


@pytest.mark.parametrize(
  ("fold", "num_folds", "message"),
  [
    (4, 3, "fold=4 must be from 1 to 3, or all"),
    (1, 1, "num_folds=1 must be from 2 to 22"),
    (1, 23, "num_folds=23 must be from 2 to 22"),
  ],
)
def test_folds_that_cannot_be_made_are_refused(fold, num_folds, message):
  with pytest.raises(UserError, match=message):
    folds.split(_corpus(), fold, "none", num_folds)
  with pytest.raises(UserError, match="neither groups nor ids"):
    folds.split(toy.corpus(), 1, "none", 2)
  with pytest.raises(UserError, match="no labels to make folds of"):
    folds.split(toy.corpus(labelled=False), 1, "none", 2)
