"""The neutral file: exact round trips, and data of one's own with plain NumPy."""

import dataclasses
import json

import numpy as np
import pytest

from msa_jax.data import read, save
from msa_jax.data.readers import npz
from msa_jax.errors import UserError
from msa_jax.typing import Corpus, Sequences, Split, Task


def full_corpus():
  """A corpus that uses every field, and that cleaning would change."""
  rng = np.random.default_rng(0)

  def split(name, n):
    lost = np.zeros((n, 7), bool)
    lost[0, 1] = True
    return Split(
      ids=np.array([f"{name}{row}" for row in range(n)]),
      modalities={
        "text": Sequences(
          rng.normal(size=(n, 7, 3)).astype(np.float16),
          np.full(n, 2, np.int32),
          lost,
          {"codes": np.arange(7 * n, dtype=np.int32).reshape(n, 7)},
        ),
        "audio": Sequences(np.ones((n, 9, 1), np.float32), np.full(n, 4, np.int32)),
        "smell": Sequences(np.zeros((n, 2, 1), np.float32), np.zeros(n, np.int32)),
      },
      labels={
        "sentiment": np.float32([np.nan, *np.linspace(-1, 1, n - 1)]),
        "emotion": np.arange(n, dtype=np.int32) % 3 - 1,
        "mixed": np.ones((n, 2), np.int32),
      },
      raw_text=np.array(["déjà vu", "", *["x"] * (n - 2)]),
      groups=None if name == "test" else np.array(["video"] * n),
      extras={
        "speaker": np.array(["F", "M", *["F"] * (n - 2)]),
        "latent": rng.normal(size=(n, 2)),
      },
    )

  tasks = {
    "sentiment": Task("regression", -3.0, 3.0, protocol="mosi"),
    "emotion": Task("classes", classes=("glad", "sad"), protocol="classes"),
    "mixed": Task("binary", classes=("a", "b"), protocol="emotions"),
  }
  notes = {"bayes": {"mae": 0.25}, "list": [1, None, "x"]}
  splits = {"train": split("train", 12), "odd_split": split("test", 3)}
  return Corpus("full corpus", splits, tasks, notes)


def assert_same(one, two):
  assert (one.name, one.notes) == (two.name, two.notes)
  assert dict(one.tasks) == dict(two.tasks)
  assert list(one.splits) == list(two.splits)
  for name, split in one.splits.items():
    ours, theirs = npz._split_arrays(split), npz._split_arrays(two.splits[name])
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
      assert value.dtype == theirs[key].dtype, key
      np.testing.assert_array_equal(value, theirs[key], err_msg=key)


def test_a_saved_corpus_comes_back_exactly(tmp_path):
  corpus = full_corpus()
  save(corpus, tmp_path / "file.npz")
  found, exact = npz.load(tmp_path / "file.npz")
  assert exact
  assert_same(found, corpus)
  assert found.splits["odd_split"].groups is None
  assert list(found.splits["train"].modalities) == ["text", "audio", "smell"]


def test_reading_a_saved_corpus_adds_only_what_file_it_was(tmp_path):
  corpus = full_corpus()
  save(corpus, tmp_path / "file.npz")
  found = read(tmp_path / "file.npz")
  assert found.notes["file"]["name"] == "file.npz"
  save(found, tmp_path / "again.npz")
  again = read(tmp_path / "again.npz")
  assert again.notes["converted_from"] == found.notes["file"]
  assert npz._split_arrays(again.splits["train"]).keys() > {
    "text_lost",
    "text_ids/codes",
  }


def test_saved_files_hold_no_pickles(tmp_path):
  corpus = full_corpus()
  corpus.splits["train"].extras["objects"] = np.array(["a", "bb"] * 6, object)
  save(corpus, tmp_path / "file.npz")
  with np.load(tmp_path / "file.npz", allow_pickle=False) as archive:
    assert not any(archive[key].dtype.hasobject for key in archive.files)
    assert archive["train/extras/objects"].tolist() == ["a", "bb"] * 6


@pytest.mark.parametrize(
  "name", ["a/b", "ids", "labels", "x_lengths", "x_lost", "x_ids", ""]
)
def test_names_that_keys_would_confuse_are_not_saved(tmp_path, name):
  one = Sequences(np.ones((1, 1, 1), np.float32), np.ones(1, np.int32))
  split = Split(np.array(["a"]), {name: one}, {})
  with pytest.raises(UserError, match="cannot name a split or modality"):
    save(Corpus("x", {"train": split}, {}), tmp_path / "file.npz")


def _one(**changes):
  """A split of two samples; keywords replace its fields."""
  text = Sequences(np.ones((2, 3, 1), np.float32), np.full(2, 3, np.int32))
  split = Split(np.array(["a", "b"]), {"text": text}, {})
  return dataclasses.replace(split, **changes)


@pytest.mark.parametrize(
  ("splits", "message"),
  [
    ({"train": _one(), "test": _one()}, r"id 'a' occurs in two splits \(train, test\)"),
    ({"train": _one(ids=np.array(["a", "a"]))}, "id 'a' occurs twice in train"),
    ({"train": _one(labels={"mood": np.zeros(2)})}, "labels/mood has no entry"),
    (
      {"train": _one(modalities={
        "text": Sequences(np.full((2, 3, 1), np.nan), np.full(2, 3, np.int32))
      })},
      "train/text holds NaN or infinite cells.*; set or mask them first",
    ),
  ],
)  # fmt: skip
def test_what_could_not_be_read_again_is_not_written(tmp_path, splits, message):
  with pytest.raises(UserError, match=message):
    save(Corpus("x", splits, {}), tmp_path / "file.npz")
  assert not (tmp_path / "file.npz").exists()


def test_a_path_that_cannot_be_written_gives_one_line(tmp_path):
  with pytest.raises(UserError, match="cannot write .*none/file.npz"):
    save(full_corpus(), tmp_path / "none" / "file.npz")


def written(tmp_path, **arrays):
  path = tmp_path / "mine.npz"
  np.savez(path, **{key.replace("__", "/"): value for key, value in arrays.items()})
  return path


def test_the_least_a_user_can_write_is_enough(tmp_path):
  text = np.arange(1.0, 13.0).reshape(2, 3, 2)
  text[1, 2] = 0
  corpus = read(written(tmp_path, train__text=text, train__labels__sentiment=[0.5, -2]))
  train = corpus.splits["train"]
  assert corpus.name == "mine"
  assert corpus.tasks == {"sentiment": Task("regression", -3.0, 3.0, protocol="mosi")}
  assert train.ids.tolist() == ["train-0", "train-1"]
  assert train.modalities["text"].lengths.tolist() == [3, 2]
  assert train.modalities["text"].features.dtype == np.float32
  np.testing.assert_array_equal(train.labels["sentiment"], np.float32([0.5, -2]))
  assert corpus.notes["format"] == "npz"


def test_keys_without_a_split_are_data_to_predict_on(tmp_path):
  corpus = read(
    written(
      tmp_path,
      text=np.ones((2, 3)),
      audio=[[[1, np.nan]], [[3, 4]]],
      audio_lengths=[1, 1],
      ids=[b"x$_$0", b"x$_$1"],
      raw_text=["one", "two"],
      extras__age=[31, 42],
      text_ids__token=[[5], [6]],
    )
  )
  assert list(corpus.splits) == ["predict"]
  split = corpus.splits["predict"]
  assert split.ids.tolist() == ["x$_$0", "x$_$1"]
  assert split.groups.tolist() == ["x", "x"]
  assert split.extras["age"].tolist() == [31, 42]
  assert split.modalities["text"].ids["token"].tolist() == [[5], [6]]
  assert corpus.notes["non_finite_cells"] == {"audio": {"predict": 1}}


def test_labels_say_what_they_are_by_their_type(tmp_path):
  corpus = read(
    written(
      tmp_path,
      train__text=np.ones((3, 2)),
      train__labels__sentiment=np.array([[0.5], [np.inf], [-1.0]]),
      train__labels__emotion=np.array([0, 2, -1]),
      train__labels__moods=np.array([[True, False]] * 3),
    )
  )
  assert corpus.tasks == {
    "sentiment": Task("regression", -1.0, 1.0, protocol="sims"),
    "emotion": Task("classes", classes=("0", "1", "2"), protocol="classes"),
    "moods": Task("binary", classes=("0", "1"), protocol="emotions"),
  }
  labels = corpus.splits["train"].labels
  np.testing.assert_array_equal(labels["sentiment"], np.float32([0.5, np.nan, -1]))
  assert labels["moods"].tolist() == [[1, 0]] * 3


def test_tasks_may_be_stated(tmp_path):
  stated = {"mood": {"kind": "classes", "classes": ["glad", "sad"]}}
  path = written(
    tmp_path,
    name="my corpus",
    tasks=json.dumps(stated),
    train__text=np.ones((2, 2)),
    train__labels__mood=[0, 1],
  )
  corpus = read(path)
  assert corpus.name == "my corpus"
  assert corpus.tasks == {
    "mood": Task("classes", classes=("glad", "sad"), protocol="classes")
  }


TEXT = {"train__text": np.ones((2, 3, 1))}


@pytest.mark.parametrize(
  ("arrays", "message"),
  [
    ({"train__txt__x": [1, 2]}, "unknown key train/txt/x"),
    ({"train__names": ["a", "b"]}, r"unknown key train/names \(<U1\)"),
    ({"train__audio_lengths": [1, 2]}, "audio_lengths has no features train/audio"),
    ({"train__text_lost": np.ones((2, 4), bool)}, r"text_lost has shape \[2, 4\]"),
    ({"train__ids": [[1, 2]]}, r"train/ids should be \[samples\] strings"),
    ({"train__ids": ["a"]}, "1 samples but 2 rows of text"),
    ({"train__labels__x": ["a", "b"]}, "labels/x is <U1"),
    ({"train__labels__x": [0.5, 1.0], "tasks": "{}"}, "has no entry in tasks"),
    ({"tasks": "[1]"}, "key 'tasks' is not a JSON object"),
    ({"tasks": "{"}, "key 'tasks' is not a JSON object"),
    ({"tasks": '{"x": {"kind": "odd"}}'}, "the kinds are regression, classes, binary"),
    ({"tasks": '{"x": {"colour": 1}}'}, "other keys than classes, high, kind, low"),
    ({"tasks": '{"x": 3}'}, "other keys than classes, high, kind, low"),
    (
      {"tasks": '{"x": {"kind": "regression", "low": "a"}}'},
      "low and high are numbers, classes a list",
    ),
    (
      {"tasks": '{"x": {"kind": "classes"}}', "train__labels__x": [0.5, 1.0]},
      "train/labels/x is float32 but the task is classes",
    ),
    (
      {"tasks": '{"x": {"kind": "binary"}}', "train__labels__x": [0, 1]},
      r"train/labels/x has shape \[2\], task binary",
    ),
    (
      {"tasks": '{"x": {"kind": "binary"}}', "train__labels__x": [[0], [1]]},
      "1 columns for 0 classes",
    ),
    (
      {
        "tasks": '{"x": {"kind": "classes", "classes": ["a"]}}',
        "train__labels__x": [0, 1],
      },
      "train/labels/x holds 1 .id train-1.; labels are below 1",
    ),
    (
      {"train__labels__x": [[0, 3], [1, 1]]},
      "labels of x holds 3 .id train-0.; labels are below 2",
    ),
    ({"train__objects": np.array([{}], object)}, "without pickles"),
    (
      {"train__raw_text": np.frombuffer(b"\xff" * 8, "<U1")},
      "'train/raw_text' has characters that do not exist",
    ),
    ({"format": "msa_jax corpus 9"}, "format is 'msa_jax corpus 9'; this version"),
  ],
)
def test_other_keys_and_contradictions_are_refused(tmp_path, arrays, message):
  with pytest.raises(UserError, match=message):
    read(written(tmp_path, **{**TEXT, **arrays}))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"train/text": np.full((12, 7, 3), np.nan)}, "remove the key 'format'"),
    ({"train/text": np.ones((12, 7, 3), int)}, "not .samples, steps, width. of floats"),
    ({"train/text_lengths": np.full(12, 8)}, "length 8 in row 0"),
    (
      {"odd_split/audio": np.ones((3, 9, 2), np.float32)},
      "audio is 2 wide in split odd",
    ),
  ],
)
def test_a_saved_file_changed_by_hand_is_checked(tmp_path, change, message):
  path = tmp_path / "file.npz"
  save(full_corpus(), path)
  with np.load(path) as archive:
    arrays = dict(archive)
  np.savez(path, **{**arrays, **change})
  with pytest.raises(UserError, match=message):
    read(path)


def test_damaged_archives_give_one_line(tmp_path):
  path = tmp_path / "file.npz"
  save(full_corpus(), path)
  content = path.read_bytes()
  for end in (5, 100, len(content) // 2, len(content) - 30):
    path.write_bytes(content[:end])
    with pytest.raises(
      UserError, match="not a readable .npz without pickles"
    ) as caught:
      read(path)
    assert "\n" not in str(caught.value)
