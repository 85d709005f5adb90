"""MulT's pickles become corpora with lengths, whichever side they are padded on."""

import pickle

import numpy as np
import pytest

from msa_jax.data import read
from msa_jax.data.readers.mult import EMOTIONS, MOSEI_EMOTIONS
from msa_jax.errors import UserError
from msa_jax.typing import Task


def write(tmp_path, data):
  path = tmp_path / "mult.pkl"
  path.write_bytes(pickle.dumps(data, protocol=2))
  return path


def steps(*rows):
  """[n t 1] features from rows of numbers."""
  return np.array(rows, np.float64)[..., None]


def one_split(**change):
  data = {
    "text": steps([0, 1, 2], [0, 0, 3]),
    "audio": steps([0, 0, 4, 5, 6], [0, 7, 8, 0, 0]),
    "vision": steps([1, 2, 0, 0], [1, 0, 3, 0]),
    "labels": np.array([[[1.5]], [[-3.0]]]),
    "id": np.array([[b"v[0]", b"0.1", b"2.7"], [b"v[1]", b"3", b"4"]], object),
  }
  return {**data, **change}


def test_padding_on_either_side_is_recognised_and_moved(tmp_path):
  corpus = read(write(tmp_path, {"train": one_split()}))
  found = corpus.splits["train"].modalities
  expected = {
    "text": ([[1, 2], [3, 0]], [2, 1]),
    "audio": ([[4, 5, 6], [7, 8, 0]], [3, 2]),
    "vision": ([[1, 2, 0], [1, 0, 3]], [2, 3]),
  }
  for modality, (features, lengths) in expected.items():
    np.testing.assert_array_equal(found[modality].features[..., 0], features)
    assert found[modality].lengths.tolist() == lengths
  moved = {"text": 2, "audio": 2, "vision": 0}
  assert corpus.notes["samples_moved_to_front"] == {"train": moved}
  assert corpus.notes["format"] == "mult"


def test_aligned_modalities_move_together(tmp_path):
  data = one_split(
    text=steps([0, 0, 1, 2], [0, 3, 4, 5]),
    audio=steps([0, 0, 0, 6], [0, 7, 0, 0]),
    vision=steps([0, 0, 8, 0], [0, 0, 0, 0]),
  )
  found = read(write(tmp_path, {"train": data})).splits["train"].modalities
  np.testing.assert_array_equal(found["text"].features[..., 0], [[1, 2, 0], [3, 4, 5]])
  np.testing.assert_array_equal(found["audio"].features[..., 0], [[0, 6, 0], [7, 0, 0]])
  np.testing.assert_array_equal(found["vision"].features[..., 0], [[8, 0], [0, 0]])
  assert found["text"].lengths.tolist() == [2, 3]
  assert found["audio"].lengths.tolist() == [2, 3]
  assert found["vision"].lengths.tolist() == [2, 0]  # Absent from the second sample.


def test_minus_infinite_audio_is_a_lost_step(tmp_path):
  data = one_split(audio=steps([0, 1, -np.inf, 2], [0, 0, -np.inf, 3]))
  corpus = read(write(tmp_path, {"train": data}))
  audio = corpus.splits["train"].modalities["audio"]
  np.testing.assert_array_equal(audio.features[..., 0], [[1, 0, 2], [0, 3, 0]])
  np.testing.assert_array_equal(
    audio.lost, [[False, True, False], [True, False, False]]
  )
  assert corpus.notes["non_finite_cells"] == {"audio": {"train": 2}}


def test_sentiment_labels_lose_their_extra_axes(tmp_path):
  corpus = read(write(tmp_path, {"train": one_split(), "test": one_split(id=None)}))
  assert corpus.tasks == {"sentiment": Task("regression", -3.0, 3.0, protocol="mosi")}
  labels = corpus.splits["train"].labels["sentiment"]
  np.testing.assert_array_equal(labels, np.float32([1.5, -3.0]))
  assert corpus.splits["test"].ids.tolist() == ["test-0", "test-1"]


def test_iemocap_labels_are_four_questions(tmp_path):
  labels = np.zeros((2, 4, 2))
  labels[0, [0, 1, 2, 3], [0, 1, 0, 0]] = 1  # Happy alone.
  labels[1, [0, 1, 2], [1, 0, 0]] = 1  # Neutral; nobody said whether angry.
  data = one_split(labels=labels)
  del data["id"]
  corpus = read(write(tmp_path, {"train": data}))
  assert EMOTIONS == ("neutral", "happy", "sad", "angry")
  assert corpus.tasks == {
    "emotion": Task("binary", classes=EMOTIONS, protocol="emotions")
  }
  found = corpus.splits["train"].labels["emotion"]
  assert found.dtype == np.int32
  assert found.tolist() == [[0, 1, 0, 0], [1, 0, 0, -1]]


def test_ids_join_video_and_times_and_repeated_ones_are_numbered(tmp_path):
  corpus = read(write(tmp_path, {"train": one_split(), "test": one_split()}))
  train, test = corpus.splits["train"], corpus.splits["test"]
  assert train.ids.tolist() == ["v[0]$_$0.1$_$2.7", "v[1]$_$3$_$4"]
  assert train.groups.tolist() == ["v", "v"]
  assert test.ids.tolist() == ["v[0]$_$0.1$_$2.7#2", "v[1]$_$3$_$4#2"]
  assert corpus.notes["repeated_ids_numbered"] == 2
  names = one_split(id=["abc_1", "abc_2"])
  assert read(write(tmp_path, {"train": names})).splits["train"].groups is None


@pytest.mark.parametrize("protocol", [2, 5])
def test_splits_that_share_arrays_are_cleaned_apart(tmp_path, protocol):
  split = one_split(audio=steps([0, 1, -np.inf, 2], [0, 0, 3, 4]).astype(np.float32))
  path = tmp_path / "mult.pkl"
  path.write_bytes(pickle.dumps({"train": split, "test": split}, protocol=protocol))
  corpus = read(path)
  one, two = (corpus.splits[name].modalities["audio"] for name in ("train", "test"))
  np.testing.assert_array_equal(one.features[..., 0], [[1, 0, 2], [3, 4, 0]])
  np.testing.assert_array_equal(one.features, two.features)
  np.testing.assert_array_equal(one.lost, two.lost)
  assert corpus.notes["non_finite_cells"] == {"audio": {"train": 1, "test": 1}}


def test_one_modality_alone_and_data_without_labels_are_read(tmp_path):
  data = {"text": steps([0, 1], [2, 3]), "labels": None}
  corpus = read(write(tmp_path, {"test": data}))
  assert corpus.splits["test"].modalities["text"].lengths.tolist() == [1, 2]
  assert corpus.tasks == {}


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      {"labels": np.zeros((2, 6))},
      r"labels have shape \[2, 6\]; the shapes are \[2, 1",
    ),
    ({"audio": steps([1, 2])}, "modalities differ in samples: text 2, audio 1"),
    ({"labels": np.array(["a", "b"])}, "labels are not numbers"),
  ],
)
def test_other_layouts_are_refused(tmp_path, change, message):
  with pytest.raises(UserError, match=message):
    read(write(tmp_path, {"train": one_split(**change)}))


def test_splits_with_different_kinds_of_labels_are_refused(tmp_path):
  data = {"train": one_split(), "test": one_split(labels=np.zeros((2, 4, 2)))}
  with pytest.raises(UserError, match="some splits have sentiment labels"):
    read(write(tmp_path, data))


def test_moseis_seven_columns_are_sentiment_and_six_emotions(tmp_path):
  labels = np.array(
    [[[1.5, 0, 0.66, 0, 3, 0, 0]], [[-3, 0.33, np.nan, 0, 0, 0, 0]]], np.float64
  )
  corpus = read(write(tmp_path, {"train": one_split(labels=labels)}))
  found = corpus.splits["train"].labels
  assert found["sentiment"].tolist() == [1.5, -3.0]
  assert found["emotion"].tolist() == [[0, 1, 0, 1, 0, 0], [1, -1, 0, 0, 0, 0]]
  assert corpus.tasks == {
    "sentiment": Task("regression", low=-3.0, high=3.0, protocol="mosi"),
    "emotion": Task("binary", classes=MOSEI_EMOTIONS, protocol="emotions"),
  }
  flat = read(write(tmp_path, {"train": one_split(labels=labels[:, 0])}))
  assert flat.splits["train"].labels["emotion"].tolist() == found["emotion"].tolist()
