"""Fields of any layout become arrays of one kind."""

import numpy as np
import pytest

from msa_jax.data.readers import fields
from msa_jax.errors import UserError


def test_features_become_float32_or_stay_float16():
  for kind in (np.float64, np.int32, np.uint8, bool, ">f4", np.float32):
    array, lengths = fields.features(np.ones((2, 3, 4), kind), "here")
    assert array.dtype == np.float32
    assert array.dtype.isnative
    assert lengths is None
  assert fields.features(np.ones((2, 3, 4), np.float16), "here")[0].dtype == np.float16


def test_features_of_the_right_kind_are_not_copied():
  given = np.ones((2, 3, 4), np.float32)
  assert fields.features(given, "here")[0] is given
  given.flags.writeable = False
  assert fields.features(given, "here")[0].flags.writeable


def test_numbers_beyond_float32_become_infinite():
  array, _ = fields.features(np.full((1, 1, 1), 1e300), "here")
  assert np.isinf(array).all()


def test_one_vector_per_sample_is_one_step():
  assert fields.features(np.ones((5, 7)), "here")[0].shape == (5, 1, 7)
  assert fields.features([[1, 2], [3, 4], [5, 6]], "here")[0].shape == (3, 1, 2)


def test_a_list_of_sequences_is_padded():
  ragged = np.empty(2, object)
  ragged[:] = [np.ones((1, 2)), 2 * np.ones((3, 2))]
  for value in (ragged, list(ragged)):
    array, lengths = fields.features(value, "here")
    np.testing.assert_array_equal(array[:, :, 0], [[1, 0, 0], [2, 2, 2]])
    assert lengths.tolist() == [1, 3]
  array, lengths = fields.features([np.ones((0, 2)), np.ones((0, 2))], "here")
  assert array.shape == (2, 1, 2)
  assert lengths.tolist() == [0, 0]


@pytest.mark.parametrize(
  ("value", "message"),
  [
    (np.array(["a", "b"]), "not numbers"),
    (np.ones((2, 3), complex), "not numbers"),
    (np.ones(3), r"shape \[3\]"),
    (np.ones((2, 3, 4, 5)), r"shape \[2, 3, 4, 5\]"),
    (np.ones((2, 0, 4)), r"shape \[2, 0, 4\]"),
    ([np.ones((2, 3)), np.ones((2, 4))], r"differ in feature width: \[3, 4\]"),
    ([[1, 2], [3]], "neither one array nor a list"),
    (np.array([{}, {}], object), "neither one array nor a list"),
  ],
)
def test_other_features_are_refused(value, message):
  with pytest.raises(UserError, match=f"train, audio: .*{message}"):
    fields.features(value, "train, audio")


def test_lengths_are_whole_numbers_one_per_sample():
  for value in ([1, 2], np.array([[1.0], [2.0]]), (np.int64(1), 2)):
    found = fields.lengths(value, 2, "here")
    assert found.tolist() == [1, 2]
    assert found.dtype == np.int32
  assert fields.lengths([-5, 1e12], 2, "here").tolist() == [-1, 2**31 - 1]
  for value, message in (
    ([1, 2.5], "length 2.5 in row 1 is not a whole number"),
    ([np.nan, 1], "length nan in row 0"),
    ([1], "1 lengths for 2 samples"),
    (["a", "b"], "not numbers"),
  ):
    with pytest.raises(UserError, match=message):
      fields.lengths(value, 2, "here")


def test_occupied_finds_first_and_last_nonzero_steps():
  array = np.zeros((300, 4, 2), np.float32)
  array[0, 1:3, 1] = 1
  array[299, 3, 0] = np.nan
  first, last = fields.occupied(array)
  assert (first[0], last[0]) == (1, 3)
  assert (first[299], last[299]) == (3, 4)
  assert not first[1:299].any()
  assert not last[1:299].any()


def test_strings_come_from_bytes_and_rows():
  assert fields.strings([b"d\xc3\xa9j\xc3\xa0", "b", 3], 3, "id").tolist() == [
    "déjà",
    "b",
    "3",
  ]
  rows = np.array([[b"v", b"0.5", b"2"]], object)
  assert fields.strings(rows, 1, "id").tolist() == ["v$_$0.5$_$2"]
  assert fields.strings([["v", 3]], 1, "id").tolist() == ["v$_$3"]
  assert fields.strings("one", 1, "id").tolist() == ["one"]
  with pytest.raises(UserError, match="train, id: 1 entries for 2 samples"):
    fields.strings(["a"], 2, "train, id")


def test_videos_come_from_clip_ids():
  ids = np.array(["-a_b$_$3", "-a_b$_$12", "w[4]", "plain"])
  assert fields.videos(ids).tolist() == ["-a_b", "-a_b", "w", "plain"]
  assert fields.videos(np.array(["x", "y_1"])) is None


def test_labels_that_are_not_finite_are_no_labels():
  found = fields.regression([[1.5], [np.inf], [np.nan]], 3, "here")
  np.testing.assert_array_equal(found, np.float32([1.5, np.nan, np.nan]))
  with pytest.raises(UserError, match="2 labels for 3 samples"):
    fields.regression([1, 2], 3, "here")
  with pytest.raises(UserError, match="labels are not numbers"):
    fields.regression(["positive"], 1, "here")


def test_splits_are_found_under_their_usual_names():
  one = {"text": 1}
  found = fields.named_splits({"train": one, "dev": one, b"test": one, "info": {}}, "f")
  assert list(found) == ["train", "valid", "test"]
  found["train"].clear()  # Readers empty splits; others that share one keep theirs.
  assert found["valid"] == {"text": 1}
  assert list(fields.named_splits({"audio": 1, "id": 2}, "f")) == ["predict"]
  with pytest.raises(UserError, match=r"no split with .* \(found: weights, bias\)"):
    fields.named_splits({"weights": 1, "bias": {}}, "f")
  with pytest.raises(UserError, match="found: nothing"):
    fields.named_splits({}, "f")
  with pytest.raises(UserError, match="holds a list, not a dict of splits"):
    fields.named_splits([1], "f")
