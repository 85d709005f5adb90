"""Labels of another file count as a run's own: classes by name, not by number."""

import ml_collections
import numpy as np
import pytest

from configs import lf_dnn
from msa_jax.data.transforms.relabel import relabel
from msa_jax.errors import UserError
from msa_jax.runs import prepare
from msa_jax.typing import Corpus, Sequences, Split, Task

SEVEN = Task("classes", classes=("anger", "fear", "joy", "sad"), protocol="classes")


def corpus(labels, tasks):
  n = len(next(iter(labels.values()), [0, 0]))
  audio = Sequences(np.ones((n, 1, 2), np.float32), np.ones(n, np.int32))
  ids = np.array([f"u{i}" for i in range(n)])
  return Corpus("other", {"test": Split(ids, {"audio": audio}, labels)}, tasks)


def test_classes_are_those_of_the_same_name(caplog):
  theirs = Task("classes", classes=("bored", "joy", "sad"), protocol="classes")
  values = np.array([1, 2, -1, 0, 1], np.int32)
  found = relabel(corpus({"emotion": values}, {"emotion": theirs}), {"emotion": SEVEN})
  assert found.tasks == {"emotion": SEVEN}
  assert found.splits["test"].labels["emotion"].tolist() == [2, 3, -1, -1, 2]
  assert "1 labels are of classes that the run does not know (bored)" in caplog.text


def test_questions_are_those_of_the_same_name_and_others_have_no_answer():
  ours = Task("binary", classes=("happy", "sad", "angry"), protocol="emotions")
  theirs = Task("binary", classes=("sad", "happy"), protocol="emotions")
  values = np.array([[1, 0], [0, 1]], np.int32)
  found = relabel(corpus({"emotion": values}, {"emotion": theirs}), {"emotion": ours})
  expected = [[0, 1, -1], [1, 0, -1]]
  assert found.splits["test"].labels["emotion"].tolist() == expected


def test_what_means_something_else_is_left_out_or_named(caplog):
  ours = {"sentiment": Task("regression", -1.0, 1.0, protocol="sims")}
  values = np.array([-2.5, np.nan, 0.5, 1.0], np.float32)
  theirs = {"sentiment": Task("regression", -3.0, 3.0)}
  found = relabel(corpus({"sentiment": values}, theirs), ours)
  assert found.tasks == ours
  np.testing.assert_array_equal(found.splits["test"].labels["sentiment"], values)
  assert "1 labels are outside the run's range [-1, 1]" in caplog.text
  named = {"sentiment": Task("classes", classes=("good",), protocol="classes")}
  values = np.zeros(4, np.int32)
  found = relabel(corpus({"sentiment": values}, named), ours)
  assert not found.tasks and not found.splits["test"].labels
  assert "labels of sentiment are classes, the run's regression" in caplog.text


def resolved(task, classes):
  config = lf_dnn.get_config()
  spec = {"kind": "classes", "low": 0.0, "high": 0.0, "protocol": "classes"}
  with config.unlocked():
    config.data.task = task
    config.spec = ml_collections.ConfigDict(
      {"widths": {"audio": 2}, "tasks": {"sentiment": {**spec, "classes": classes}}}
    )
  return config


@pytest.mark.parametrize("labels", [{}, {"sentiment": [-0.6, 1.0, 0.0]}])
def test_a_run_of_classes_of_a_score_reads_files_of_few_scores_or_none(
  labels, monkeypatch
):
  labels = {name: np.array(values, np.float32) for name, values in labels.items()}
  low_high = {name: Task("regression", -1.0, 1.0, protocol="sims") for name in labels}
  monkeypatch.setattr(prepare, "load", lambda config: corpus(labels, low_high))
  seven = tuple(str(value) for value in range(-3, 4))
  found = prepare.reread(resolved("cls7", seven), "new.csv")
  values = found.splits["test"].labels.get("sentiment")
  assert (values is None) == (not labels)
  assert values is None or values.tolist() == [2, 4, 3]
  if not labels:  # A run's own file must have some.
    with pytest.raises(UserError, match="needs a sentiment regression"):
      prepare.reread(resolved("cls7", seven), "")
