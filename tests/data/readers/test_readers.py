"""Files are recognised by content and named in every message."""

import hashlib
import pickle
import socket

import numpy as np
import pytest

from msa_jax.data import FORMATS, read, save
from msa_jax.data.readers import read_lenient
from msa_jax.errors import UserError
from msa_jax.safe_io.files import regular

TEXT = np.arange(1.0, 7.0).reshape(3, 2, 1)


def write(path, split):
  path.write_bytes(pickle.dumps({"train": split}))
  return path


def test_the_format_is_recognised_by_content_not_by_name(tmp_path):
  mmsa = {"text": TEXT, "regression_labels": [1.0, 0, -2]}
  mult = {"text": TEXT, "labels": np.float32([1, 0, -2]).reshape(3, 1, 1)}
  corpora = [
    read(write(tmp_path / "mosi_data_noalign.npz", mmsa)),
    read(write(tmp_path / "unaligned_50.pkl", mult)),
  ]
  save(corpora[0], tmp_path / "converted.pkl")
  corpora.append(read(tmp_path / "converted.pkl"))
  assert [corpus.notes["format"] for corpus in corpora] == ["mmsa", "mult", "mmsa"]
  for corpus in corpora:
    train = corpus.splits["train"]
    np.testing.assert_array_equal(train.labels["sentiment"], [1, 0, -2])
    np.testing.assert_array_equal(train.modalities["text"].features, TEXT)
  assert corpora[2].notes["converted_from"]["name"] == "mosi_data_noalign.npz"


def test_a_stated_format_is_obeyed(tmp_path):
  both = {"text": TEXT, "labels": [1.0, 0, -2], "regression_labels": [0.5, 0, 0]}
  path = write(tmp_path / "a.pkl", both)
  for format, first in (("auto", 0.5), ("mmsa", 0.5), ("mult", 1.0)):
    labels = read(path, format=format).splits["train"].labels["sentiment"]
    assert labels[0] == first
  with pytest.raises(UserError, match="not a readable .npz"):
    read(path, format="npz")
  with pytest.raises(UserError, match="format 'xml'; the formats are auto, mmsa, mult"):
    read(path, format="xml")
  assert FORMATS[0] == "auto"


def test_notes_tell_which_file_it_was(tmp_path):
  path = write(tmp_path / "a.pkl", {"text": TEXT})
  content = path.read_bytes()
  assert read(path).notes["file"] == {
    "name": "a.pkl",
    "bytes": len(content),
    "sha256": hashlib.sha256(content).hexdigest(),
  }


def test_a_missing_file_names_the_absolute_path(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError, match=f"no such file: {tmp_path}/mosi.pkl"):
    read("mosi.pkl")
  with pytest.raises(UserError, match=f"{tmp_path} is a folder"):
    read(tmp_path)


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  write(tmp_path / "a.pkl", {"text": TEXT})
  assert regular("~/a.pkl") == tmp_path / "a.pkl"
  assert len(read("~/a.pkl").splits["train"]) == 3


def test_a_file_that_does_not_open_gives_the_reason(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)  # The address of a socket is a short path.
  with socket.socket(socket.AF_UNIX) as listener:
    listener.bind("odd.pkl")
    with pytest.raises(UserError, match=f"{tmp_path}/odd.pkl is no regular file"):
      read("odd.pkl")


def test_separate_features_go_with_mmsa_files_only(tmp_path):
  mult = write(tmp_path / "a.pkl", {"text": TEXT, "labels": [1.0, 0, -2]})
  with pytest.raises(UserError, match="MMSA pickles only, not with MulT"):
    read(mult, features={"audio": mult})
  save(read(mult), tmp_path / "a.npz")
  with pytest.raises(UserError, match="MMSA pickles only, not with .npz"):
    read(tmp_path / "a.npz", features={"audio": mult})


def test_defects_name_the_file(tmp_path):
  path = write(tmp_path / "a.pkl", {"text": TEXT, "text_lengths": [1, 2, 3]})
  with pytest.raises(UserError, match=f"{path}: train, text: length 3 in row 2"):
    read(path)
  path.write_bytes(pickle.dumps([1, 2]))
  with pytest.raises(UserError, match=f"{path}: .*holds a list"):
    read(path)


def test_repeated_ids_are_refused_unless_the_caller_lists_them(tmp_path):
  path = write(tmp_path / "a.pkl", {"text": TEXT, "id": ["a", "b", "a"]})
  with pytest.raises(UserError, match=f"{path}: id 'a' occurs twice in train"):
    read(path)
  assert read_lenient(path).splits["train"].ids.tolist() == ["a", "b", "a"]
