"""Utterances grouped into dialogues, and back; folds by session."""

import dataclasses

import jax
import numpy as np
import pytest
from ragged import fit_apply

from msa_jax.data.batching import batches
from msa_jax.data.transforms import dialogues, folds
from msa_jax.data.transforms.transform import OTHER
from msa_jax.errors import UserError
from msa_jax.typing import Corpus, Sequences, Split, Task


def _split(groups, ids=None, seed=0, **extras):
  """Utterances of 3 steps; lengths 0 to 3, some steps lost."""
  random = np.random.default_rng(seed)
  n = len(groups)
  modalities = {}
  for name, width in (("text", 4), ("audio", 2)):
    lengths = random.integers(0, 4, n).astype(np.int32)
    features = random.normal(size=(n, 3, width)).astype(np.float32)
    features[np.arange(3)[None] >= lengths[:, None]] = 0.0
    lost = (random.random((n, 3)) < 0.3) & (np.arange(3)[None] < lengths[:, None])
    modalities[name] = Sequences(features, lengths, lost)
  emotion = random.integers(-1, 3, n).astype(np.int32)
  sentiment = random.uniform(-3, 3, n).astype(np.float32)
  sentiment[0] = np.nan
  labels = {"emotion": emotion, "sentiment": sentiment}
  labels["questions"] = random.integers(0, 2, (n, 2)).astype(np.int32)
  ids = [f"u{i}" for i in range(n)] if ids is None else ids
  return Split(
    ids=np.array(ids),
    modalities=modalities,
    labels=labels,
    raw_text=np.array([f"text {i}" for i in range(n)]),
    groups=np.array(groups),
    extras={name: np.asarray(values) for name, values in extras.items()},
  )


TASKS = {
  "emotion": Task("classes", classes=("x", "y", "z"), protocol="classes"),
  "sentiment": Task("regression", -3.0, 3.0),
  "questions": Task("binary", classes=("q", "r"), protocol="emotions"),
}
GROUPS = ["v", "w", "v", "v", "w", *["long"] * 9]


def _corpus():
  return Corpus(
    "c", {"train": _split(GROUPS), "test": _split(GROUPS[:5], seed=1)}, TASKS
  )


def test_dialogues_hold_the_means_of_their_utterances_visible_steps():
  corpus = _corpus()
  grouped = dialogues.group(corpus)
  train, source = grouped.splits["train"], corpus.splits["train"]
  assert train.ids.tolist() == ["v", "w", "long"]
  assert train.extras["utterance"].shape == (3, 16)  # 9 utterances, in steps of 8
  assert grouped.splits["test"].extras["utterance"].shape == (2, 16)
  rows = {"v": [0, 2, 3], "w": [1, 4], "long": range(5, 14)}
  for n, members in enumerate(rows.values()):
    for t, row in enumerate(members):
      for column, (name, one) in enumerate((("text", "text"), ("audio", "audio"))):
        theirs, ours = source.modalities[one], train.modalities[name]
        seen = [s for s in range(theirs.lengths[row]) if not theirs.lost[row, s]]
        mean = theirs.features[row, seen].mean(0) if seen else 0.0
        np.testing.assert_allclose(
          ours.features[n, t],
          np.broadcast_to(mean, ours.features[n, t].shape),
          rtol=1e-5,
          atol=1e-6,
        )
        assert train.available[n, t, column] == bool(seen)
        if ours.lengths[n]:
          assert ours.lengths[n] == len(members)
          assert (ours.lost is not None and ours.lost[n, t]) == (not seen)
    for name in TASKS:
      np.testing.assert_array_equal(
        train.labels[name][n, : len(members)], source.labels[name][list(members)]
      )
      padding = train.labels[name][n, len(members) :]
      assert np.isnan(padding).all() if name == "sentiment" else (padding == -1).all()


def test_utterances_of_dialogues_come_back_with_their_labels():
  corpus = _corpus()
  source = corpus.splits["train"]
  back = dialogues.utterances(dialogues.group(corpus).splits["train"])
  order = [source.ids.tolist().index(name) for name in back.ids]
  assert sorted(order) == list(range(14))
  assert back.groups.tolist() == source.groups[order].tolist()
  assert back.raw_text.tolist() == source.raw_text[order].tolist()
  for name, values in source.labels.items():
    np.testing.assert_array_equal(back.labels[name], values[order])
  assert dialogues.utterances(source) is source
  assert dialogues.real(source) is None


def test_a_batch_of_dialogues_has_labels_and_availability_of_utterances():
  grouped = dialogues.group(_corpus())
  batch = batches.take(batches.whole(grouped.splits["train"], TASKS), np.array([2, -1]))
  train = grouped.splits["train"]
  assert batch.available.shape == (2, 16, 2)
  np.testing.assert_array_equal(batch.available[0], train.available[2])
  for name in ("emotion", "sentiment", "questions"):
    label = batch.labels[name]
    assert label.mask.shape == (2, 16)
    known = train.labels[name][2]
    known = np.isfinite(known) if name == "sentiment" else known >= 0
    np.testing.assert_array_equal(label.mask[0], known.reshape(16, -1).all(-1))
  assert not any(leaf[1].any() for leaf in jax.tree.leaves(batch.labels))
  without = dataclasses.replace(train, labels={})
  empty = batches.whole(without, TASKS).labels
  assert empty["questions"].value.shape == (3, 16, 2)
  assert not empty["emotion"].mask.any()


def test_utterances_follow_their_clips_numbers_where_all_have_one():
  split = _split(["v"] * 3, ids=["v$_$10", "v$_$9", "v$_$1"])
  train = dialogues.group(Corpus("c", {"train": split}, TASKS)).splits["train"]
  assert train.extras["utterance"][0, :3].tolist() == ["v$_$1", "v$_$9", "v$_$10"]


def test_missing_utterances_do_not_count_in_the_statistics():
  grouped = dialogues.group(_corpus())
  fitted, _ = fit_apply(grouped)
  state = fitted.states["standardize"]
  audio = grouped.splits["train"].modalities["audio"]
  seen = grouped.splits["train"].available[..., 1]
  values = audio.features[seen].astype(float)
  np.testing.assert_allclose(state["mean/audio"], values.mean(0), rtol=1e-5)
  np.testing.assert_allclose(1 / state["scale/audio"], values.std(0), rtol=1e-5)
  # A modality the new file lacks has as many steps as the others.
  lacking = grouped.splits["test"]
  lacking = dataclasses.replace(
    lacking,
    modalities={"text": lacking.modalities["text"]},
    available=lacking.available[..., :1],
  )
  applied = fitted.apply(Corpus("c", {"predict": lacking}, {}), OTHER)
  assert applied.splits["predict"].modalities["audio"].features.shape == (2, 16, 2)


def test_samples_without_groups_cannot_become_dialogues():
  split = dataclasses.replace(_split(GROUPS), groups=None)
  with pytest.raises(
    UserError, match=r"data.sample_unit='dialogue' needs .* split 'train'"
  ):
    dialogues.group(Corpus("c", {"train": split}, TASKS))


def _sessions():
  groups = [f"s{session}d{d}" for session in (1, 2, 3) for d in range(20)]
  groups = np.repeat(groups, 2).tolist()
  sessions = np.array([int(name[1]) for name in groups], np.int32)
  split = _split(groups, session=sessions)
  return Corpus("c", {folds.WHOLE: split}, TASKS)


def test_a_fold_tests_on_one_session_and_validates_on_a_tenth_of_the_others():
  corpus = folds.by_session(_sessions(), 2, "holdout10")
  parts = {name: split.groups for name, split in corpus.splits.items()}
  assert set(corpus.splits["test"].extras["session"].tolist()) == {2}
  assert {name: len(np.unique(g)) for name, g in parts.items()} == {
    "train": 36,
    "valid": 4,
    "test": 20,
  }
  assert not set(parts["train"].tolist()) & set(parts["valid"].tolist())
  valid = corpus.splits["valid"]
  assert np.bincount(valid.extras["session"]).tolist() == [0, 4, 0, 4]
  again = folds.by_session(_sessions(), 2, "holdout10").splits["valid"]
  assert again.ids.tolist() == valid.ids.tolist()
  assert sum(map(len, corpus.splits.values())) == 120
  assert corpus.notes["fold"] == {"test_session": 2, "sessions": [1, 2, 3]}


def test_without_a_fold_the_last_session_is_tested_and_validation_may_be_left_out():
  corpus = folds.by_session(_sessions(), 0, "none")
  assert set(corpus.splits) == {"train", "test"}
  assert set(corpus.splits["test"].extras["session"].tolist()) == {3}
  own = _corpus()
  assert folds.by_session(own, 0, "holdout10") is own


def test_folds_that_cannot_be_made_are_refused():
  with pytest.raises(UserError, match="fold=9: the sessions of 'c' are 1, 2, 3"):
    folds.by_session(_sessions(), 9, "none")
  with pytest.raises(UserError, match="fold=1: 'c' comes with the splits train, test"):
    folds.by_session(_corpus(), 1, "none")
  with pytest.raises(UserError, match="iemocap_val='some' must be one of"):
    folds.by_session(_sessions(), 1, "some")
  bare = Corpus("c", {folds.WHOLE: _split(GROUPS)}, TASKS)
  with pytest.raises(UserError, match="neither splits nor sessions"):
    folds.by_session(bare, 0, "none")
