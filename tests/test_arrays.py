"""Batches and corpora of arrays in memory."""

import jax
import numpy as np
import pytest

import msa_jax
from msa_jax.errors import UserError
from msa_jax.typing import Batch, Corpus, Task


def test_a_batch_has_masks_of_its_lengths_and_nothing_beyond_them():
  x = np.ones((2, 4, 3))
  x[0, 1] = np.nan  # a step of NaN alone is lost
  x[1, 0, 0] = np.inf
  batch = Batch.from_arrays(
    {"audio": np.ones((2, 3)), "text": x}, lengths={"text": [3, 2]}
  )
  text = batch.modalities["text"]
  assert batch.order == ("text", "audio")
  np.testing.assert_array_equal(text.mask, [[1, 1, 1, 0], [1, 1, 0, 0]])
  np.testing.assert_array_equal(text.lost, [[0, 1, 0, 0], [0, 0, 0, 0]])
  np.testing.assert_array_equal(text.features[:, :, 0], [[1, 0, 1, 0], [0, 1, 0, 0]])
  assert batch.modalities["audio"].features.shape == (2, 1, 3)  # one step each
  assert batch.available.all() and batch.sample_mask.all() and not batch.labels
  np.testing.assert_array_equal(batch.index, [0, 1])
  assert np.isnan(x[0, 1]).all()  # what was given is not changed


def test_without_lengths_trailing_zeros_and_ragged_lists_say_them():
  x = np.ones((2, 4, 3))
  x[0, 2:] = 0
  ragged = [np.ones((1, 3)), np.ones((4, 3))]
  batch = Batch.from_arrays({"text": x, "audio": ragged})
  assert batch.modalities["text"].mask.sum(1).tolist() == [2, 4]
  assert batch.modalities["audio"].mask.sum(1).tolist() == [1, 4]


def test_what_is_not_available_is_hidden_whole():
  arrays = {"text": np.ones((3, 2, 4)), "audio": np.ones((3, 2, 4))}
  batch = Batch.from_arrays(
    arrays, available={"audio": [True, False, True]}, lengths={"text": [2, 2, 0]}
  )
  np.testing.assert_array_equal(batch.available, [[1, 1], [1, 0], [0, 1]])
  assert not batch.modalities["audio"].mask[1].any()
  assert not batch.modalities["audio"].features[1].any()


def test_labels_are_masked_where_there_is_none():
  batch = Batch.from_arrays(
    {"text": np.ones((3, 2))},
    labels={
      "sentiment": [0.5, np.nan, -1.0],
      "emotion": np.array([2, -1, 0]),
      "many": np.array([[1, 0], [1, -1], [0, 0]]),
    },
  )
  for label in batch.labels.values():
    assert label.mask.tolist() == [True, False, True]
    assert np.isfinite(np.asarray(label.value, np.float32)).all()
  assert batch.labels["emotion"].value.dtype == np.int32
  assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(batch))


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (({},), "needs one modality"),
    (({"text": np.ones(3)},), "features have shape"),
    (({"text": np.ones((2, 3)), "audio": np.ones((3, 3))},), "audio has 3 samples"),
  ],
)
def test_arrays_that_do_not_fit_are_refused(arguments, message):
  with pytest.raises(UserError, match=message):
    Batch.from_arrays(*arguments)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"lengths": {"txt": [1, 1]}}, "lengths of 'txt': there are text"),
    ({"lengths": {"text": [1, 9]}}, "length 9 in row 1"),
    ({"lengths": {"text": [1]}}, "1 lengths for 2 samples"),
    ({"available": {"text": [True]}}, "available of text has 1 samples"),
    ({"labels": {"sentiment": [1.0]}}, "labels of sentiment has 1 samples"),
    ({"labels": {"sentiment": ["a", "b"]}}, "labels are float"),
    ({"labels": {"sentiment": np.ones((2, 2))}}, "labels are float"),
  ],
)
def test_options_of_a_batch_that_do_not_fit_are_refused(options, message):
  with pytest.raises(UserError, match=message):
    Batch.from_arrays({"text": np.ones((2, 3, 4))}, **options)


def _corpus(**options):
  arrays = {"train": {"text": np.ones((4, 3, 2))}, "test": {"text": np.ones((2, 3, 2))}}
  labels = {"sentiment": {"train": np.array([0.5, -2.0, np.nan, 1.0])}}
  return Corpus.from_arrays(**{**arrays, "labels": labels, **options})


def test_a_corpus_has_the_splits_tasks_and_ids_of_its_arrays():
  corpus = _corpus(
    lengths={"text": {"train": [3, 2, 1, 0]}},
    groups={"test": ["a", "b"]},
    raw_text={"train": list("wxyz")},
  )
  assert corpus.name == "memory" and set(corpus.splits) == {"train", "test"}
  assert corpus.tasks == {"sentiment": Task("regression", -3.0, 3.0, (), "mosi")}
  train, test = corpus.splits["train"], corpus.splits["test"]
  assert train.modalities["text"].lengths.tolist() == [3, 2, 1, 0]
  assert test.modalities["text"].lengths.tolist() == [3, 3]
  assert (train.ids[3], test.ids[0], test.groups[1]) == ("train-3", "test-0", "b")
  assert train.raw_text.tolist() == list("wxyz") and not test.labels


def test_one_split_needs_no_mapping():
  corpus = Corpus.from_arrays(
    {"text": np.ones((3, 2, 4)), "audio": [np.ones((2, 1))] * 3},
    labels={"emotion": [0, 2, 1], "both": np.array([[0, 1]] * 3)},
    ids=["a", "b", "c"],
  )
  assert corpus.splits["train"].ids.tolist() == ["a", "b", "c"]
  assert corpus.tasks["emotion"].classes == ("0", "1", "2")
  assert corpus.tasks["both"].kind == "binary"
  tasks = {"emotion": Task("classes", classes=("x", "y", "z"), protocol="classes")}
  named = Corpus.from_arrays(
    {"text": np.ones((3, 2, 4))}, labels={"emotion": [0, 2, 1]}, tasks=tasks
  )
  assert named.tasks == tasks


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"train": {}}, "split train has no modality"),
    ({"labels": {"sentiment": [1.0]}}, "the splits are train, test; give a mapping"),
    ({"labels": {"sentiment": {"valid": [1.0]}}}, "split 'valid'"),
    ({"labels": {"sentiment": {"test": [1.0]}}}, "has 1 samples, others 2"),
    ({"lengths": {"audio": {"train": [1] * 4}}}, "'audio': there are text"),
    ({"ids": {"train": ["a", "a", "b", "c"]}}, "'a' occurs twice in train"),
    ({"ids": {"test": ["train-0", "b"]}}, "occurs in two splits"),
    ({"groups": {"test": ["a"]}}, "groups has 1 samples"),
  ],
)
def test_a_corpus_that_does_not_fit_together_is_refused(options, message):
  with pytest.raises(UserError, match=message):
    _corpus(**options)


def test_a_corpus_needs_a_split():
  with pytest.raises(UserError, match="needs one split"):
    msa_jax.Corpus.from_arrays()
