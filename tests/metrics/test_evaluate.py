"""The task chooses the protocol; the table says which direction is better."""

import math

import numpy as np
import pytest

from msa_jax.errors import UserError
from msa_jax.metrics import METRICS, better, evaluate, selection_value
from msa_jax.typing import Task

TASKS = {
  "mosi": (Task("regression", -3.0, 3.0, protocol="mosi"), (6,), (6,)),
  "sims": (Task("regression", -1.0, 1.0, protocol="sims"), (6,), (6,)),
  "classes": (Task("classes", classes=("a", "b"), protocol="classes"), (6, 2), (6,)),
  "emotions": (
    Task("binary", classes=("x", "y"), protocol="emotions"),
    (6, 2, 2),
    (6, 2),
  ),
}


def example(name, seed=0):
  task, shape, label_shape = TASKS[name]
  generator = np.random.default_rng(seed)
  predictions = generator.standard_normal(shape).astype(np.float32)
  if task.kind == "regression":
    return task, predictions, generator.uniform(-1, 1, label_shape).astype(np.float32)
  labels = np.tile([0, 1], 6)[: math.prod(label_shape)].reshape(label_shape)
  return task, predictions, np.roll(labels, 1, axis=-1).astype(np.int32)


@pytest.mark.parametrize("name", TASKS)
def test_each_task_reports_the_names_of_its_protocol(name):
  got = evaluate(*example(name))
  expected = {key for key, metric in METRICS.items() if name in metric.protocol}
  assert expected <= set(got)
  for key, value in got.items():
    assert isinstance(value, float)
    assert better(key) in ("min", "max")
  base = {key for key in got if key in METRICS}
  assert base == expected


@pytest.mark.parametrize("name", TASKS)
def test_masked_rows_have_no_influence_whatever_they_hold(name):
  task, predictions, labels = example(name)
  mask = np.arange(6) < 4
  short = evaluate(task, predictions[:4], labels[:4])
  predictions[4:] = np.nan
  labels[4:] = -1 if task.kind != "regression" else np.nan
  np.testing.assert_equal(evaluate(task, predictions, labels, mask), short)


def test_utterances_of_dialogues_are_pooled_under_their_mask():
  task, predictions, labels = example("classes")
  mask = np.array([[True, True, False], [True, False, False]])
  nested = evaluate(task, predictions.reshape(2, 3, 2), labels.reshape(2, 3), mask)
  flat = evaluate(task, predictions, labels, mask.reshape(-1))
  assert nested == flat


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_prediction_that_is_not_finite_leaves_no_metric_defined(name, value):
  task, predictions, labels = example(name)
  expected = evaluate(task, predictions, labels).keys()
  predictions[1] = value
  got = evaluate(task, predictions, labels)
  assert got.keys() == expected
  assert all(math.isnan(value) for value in got.values())


def test_selection_values_are_to_be_maximised():
  metrics = {"mae": 0.7, "corr": 0.5, "acc2_non0": math.nan, "f1_happy": 0.25}
  assert selection_value(metrics, "mae") == -0.7
  assert selection_value(metrics, "corr") == 0.5
  assert selection_value(metrics, "acc2_non0") == -math.inf
  assert selection_value(metrics, "f1_happy") == 0.25


def test_unknown_names_protocols_and_shapes_are_refused():
  with pytest.raises(UserError, match="'maee'.*corr, mae"):
    selection_value({"mae": 1.0, "corr": 0.0}, "maee")
  with pytest.raises(UserError, match="'speed'"):
    better("speed")
  zeros = np.zeros(3)
  with pytest.raises(UserError, match="'mosey'.*mosi, sims"):
    evaluate(Task("regression", protocol="mosey"), zeros, zeros)
  with pytest.raises(UserError, match=r"regression needs \[n\]"):
    evaluate(Task("regression"), np.zeros((3, 2)), zeros)
  with pytest.raises(UserError, match="leading axes must agree"):
    evaluate(Task("regression"), np.zeros(4), zeros)
