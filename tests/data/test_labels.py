"""Labels are read as what they are, or refused with the sample that is none."""

import dataclasses
import pickle

import numpy as np
import pytest
import toy

from msa_jax.corpus import Corpus
from msa_jax.data.__main__ import main
from msa_jax.data.readers import npz, read
from msa_jax.data.transforms.splits import check_trainable
from msa_jax.errors import UserError
from msa_jax.runs import prepare
from msa_jax.typing import Task

TEXT = np.ones((3, 2, 4), np.float32) * np.arange(1, 4)[:, None, None]
IDS = np.array(["a", "b", "c"])


def write(path, labels, **more):
  arrays = {"train/text": TEXT, "train/ids": IDS, "train/labels/x": labels}
  np.savez(path, **{**arrays, **more})
  return path


@pytest.mark.parametrize("kind", [np.int8, np.int32, np.int64])
def test_negative_integers_are_no_classes(tmp_path, kind):
  path = write(tmp_path / "a.npz", np.array([1, -3, 0], kind))
  with pytest.raises(UserError, match=r"labels/x holds -3 \(row 1\).* cast them to fl"):
    read(path)
  with pytest.raises(UserError, match="cast them to float if they are sentiment"):
    Corpus.from_arrays(
      train={"text": TEXT}, labels={"sentiment": np.array([1, -3, 0], kind)}
    )
  path = write(tmp_path / "b.npz", np.array([1, -1, 0], kind))
  assert read(path).splits["train"].labels["x"].tolist() == [1, -1, 0]


@pytest.mark.parametrize("number", [999, 2**31 - 1, 2**31, 2**40])
def test_a_class_number_that_is_none_names_its_sample(tmp_path, number):
  path = write(tmp_path / "a.npz", np.array([0, 1, number]))
  where = r"\(id c\)|\(row 2\)"
  with pytest.raises(UserError, match=f"holds {number} ({where}); .* below"):
    read(path)
  with pytest.raises(UserError, match=f"holds {number} "):
    Task.from_labels([np.array([0, number])])


def test_named_classes_bound_their_numbers(tmp_path):
  tasks = '{"x": {"kind": "classes", "classes": ["no", "yes"]}}'
  path = write(tmp_path / "a.npz", np.array([0, 1, 2]), tasks=np.array(tasks))
  with pytest.raises(UserError, match=r"holds 2 \(id c\); labels are below 2"):
    read(path)
  names = ", ".join(f'"c{n}"' for n in range(1000))
  many = f'{{"x": {{"kind": "classes", "classes": [{names}]}}}}'
  path = write(tmp_path / "b.npz", np.array([0, 1, 999]), tasks=np.array(many))
  assert len(read(path).tasks["x"].classes) == 1000


def test_questions_are_answered_by_0_and_1(tmp_path):
  path = write(tmp_path / "a.npz", np.array([[0, 1], [1, 2], [-1, 0]]))
  with pytest.raises(UserError, match=r"holds 2 \(id b\); labels are below 2"):
    read(path)


def test_splits_of_two_kinds_of_labels_are_refused(tmp_path):
  more = {"test/text": TEXT, "test/ids": np.array(["d", "e", "f"])}
  more["test/labels/x"] = np.array([1, 0, 1])
  path = write(tmp_path / "a.npz", np.array([0.5, 1, 0]), **more)
  with pytest.raises(UserError, match="test, labels of x are int32, those of other"):
    read(path)


def test_numbers_of_classes_in_csv_files_are_not_negative(tmp_path):
  path = tmp_path / "a.csv"
  path.write_text("text,emotion\nhi,2\noh,-1\nah,0\n")
  corpus = read(path, bare_text=True)
  assert corpus.tasks["emotion"].classes == ("0", "2")
  assert corpus.splits["train"].labels["emotion"].tolist() == [1, -1, 0]
  path.write_text("text,emotion\nhi,2\noh,-3\n")
  with pytest.raises(UserError, match="row 3 of emotion is -3: numbers of classes are"):
    read(path, bare_text=True)


def test_an_empty_split_is_one_clear_line(tmp_path):
  full = {"text": TEXT, "regression_labels": np.ones(3)}
  for empty in ([], np.zeros((0, 2, 4)), np.zeros((0,)), ()):
    path = tmp_path / "a.pkl"
    part = {"text": empty, "regression_labels": np.zeros(0)}
    path.write_bytes(pickle.dumps({"train": full, "valid": part}))
    with pytest.raises(UserError, match="a.pkl: split valid is empty; remove it or f"):
      read(path)
  for empty in (np.zeros((0, 2, 4)), np.zeros((0,))):
    np.savez(tmp_path / "a.npz", **{"train/text": TEXT, "valid/text": empty})
    with pytest.raises(UserError, match="a.npz: split valid is empty"):
      read(tmp_path / "a.npz")


def unlabelled(corpus, value):
  train = corpus.splits["train"]
  labels = {name: np.full_like(v, value) for name, v in train.labels.items()}
  splits = {**corpus.splits, "train": dataclasses.replace(train, labels=labels)}
  return dataclasses.replace(corpus, splits=splits)


def test_a_training_split_without_labels_of_the_task_is_refused(toys):
  corpus = unlabelled(toy.corpus(), np.nan)
  check_trainable(corpus)  # There are labels, but not where they are needed.
  with pytest.raises(UserError, match="the training split has no label of 'sentiment'"):
    prepare.prepare(toy.config(), corpus)
  assert prepare.prepare(toy.config(), toy.corpus()).config.spec is not None


@pytest.fixture
def toys(monkeypatch):
  from msa_jax import models

  monkeypatch.setitem(models.SYSTEMS, "toy", toy.SYSTEM)


def test_the_command_check_tells_of_all_of_these(tmp_path, capsys):
  cases = {
    "negative": (np.array([1, -3, 0]), "cast them to float"),
    "large": (np.array([0, 1, 999]), "holds 999 (id c)"),
  }
  for name, (labels, message) in cases.items():
    assert main(["check", str(write(tmp_path / f"{name}.npz", labels))]) == 2
    assert message in capsys.readouterr().err
  npz.save(unlabelled(toy.corpus(), np.nan), tmp_path / "none.npz")
  assert main(["check", str(tmp_path / "none.npz")]) == 0
  assert "train has no label of sentiment: it cannot be trained on" in (
    capsys.readouterr().out
  )
