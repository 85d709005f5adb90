"""Labels of another file count as a run's own: classes by name, not by number."""

import numpy as np
import pytest

from msa_jax.data.transforms.relabel import Relabel, relabel
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


@pytest.mark.parametrize("labels", [{}, {"emotion": [0, 1, -1]}])
def test_another_file_gets_the_tasks_that_were_fitted(labels):
  labels = {name: np.array(values, np.int32) for name, values in labels.items()}
  ours = corpus({"emotion": np.array([0, 3], np.int32)}, {"emotion": SEVEN})
  theirs = Task("classes", classes=("joy", "sad"), protocol="classes")
  state = Relabel().fit(ours)
  found = Relabel().apply(corpus(labels, dict.fromkeys(labels, theirs)), state)
  assert found.tasks == dict.fromkeys(labels, SEVEN)
  for name, values in found.splits["test"].labels.items():
    assert (name, values.tolist()) == ("emotion", [2, 3, -1])
