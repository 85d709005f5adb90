"""What picks the epoch, over one task or several."""

import math

import numpy as np
import pytest

from msa_jax.errors import UserError
from msa_jax.models.outputs import output_spec
from msa_jax.training import selection
from msa_jax.training.scoring import LabelArrays
from msa_jax.typing import Task

TASKS = {
  "sentiment": Task("regression", -3.0, 3.0),
  "emotion": Task("binary", classes=("happy", "sad"), protocol="emotions"),
}
OUTPUTS = tuple(output_spec(name, task) for name, task in TASKS.items())
SCORES = {
  "sentiment": {"mae": 0.8, "corr": 0.5},
  "emotion": {"f1": 0.7, "wacc": 0.6},
}
OWNED = LabelArrays(np.zeros(3), np.asarray([True, False, False]))
NOBODY = LabelArrays(np.zeros(3), np.zeros(3, bool))


def _criterion(select, labels=None):
  return selection.criterion(select, TASKS, OUTPUTS, labels)


@pytest.mark.parametrize(
  ("select", "text", "value"),
  [
    ("auto", "mean of -sentiment/mae, +emotion/f1", (-0.8 + 0.7) / 2),
    ("mae", "sentiment/mae", -0.8),
    ("emotion/wacc", "emotion/wacc", 0.6),
    ("emotion/auto", "emotion/f1", 0.7),
    (
      "sentiment/corr, 3*emotion/f1",
      "mean of +sentiment/corr, +3*emotion/f1",
      (0.5 + 3 * 0.7) / 4,
    ),
  ],
)
def test_terms_are_averaged_with_each_metrics_own_sign(select, text, value):
  chosen = _criterion(select)
  assert str(chosen) == text
  assert chosen.value(SCORES) == pytest.approx(value)


def test_shown_figures_name_the_task_where_there_are_several():
  assert _criterion("mae").figures(SCORES) == {"valid mae": 0.8}
  shown = _criterion("auto").figures(SCORES)
  assert shown == {"valid sentiment/mae": 0.8, "valid emotion/f1": 0.7}


def test_an_undefined_figure_is_never_the_best():
  undefined = {**SCORES, "emotion": {"f1": math.nan}}
  assert _criterion("auto").value(undefined) == -math.inf


def test_auto_leaves_out_what_validation_has_no_label_of():
  chosen = _criterion("auto", {"sentiment": OWNED, "emotion": NOBODY})
  assert chosen.terms == ((1.0, "sentiment", "mae"),)
  chosen = _criterion("auto", {"emotion": OWNED})
  assert chosen.terms == ((1.0, "emotion", "f1"),)
  with pytest.raises(UserError, match="no labels of sentiment, emotion"):
    _criterion("auto", {"emotion": NOBODY})


@pytest.mark.parametrize(
  ("select", "message"),
  [
    ("emotion/mae", "must be one of.*wacc"),
    ("humour/mae", "no task 'humour'"),
    ("-1*sentiment/mae", "weight '-1' must be a positive number"),
    ("two*sentiment/mae", "weight 'two' must be a positive number"),
    ("sentiment/mae,emotion/f1", "'emotion' must be predicted.*must have labels"),
  ],
)
def test_bad_terms_are_answered_with_the_rule(select, message):
  with pytest.raises(UserError, match=message):
    _criterion(select, {"sentiment": OWNED, "emotion": NOBODY})


def test_a_task_that_is_not_predicted_cannot_select():
  with pytest.raises(UserError, match=r"model predicts \['sentiment'\]"):
    selection.criterion("emotion/f1", TASKS, OUTPUTS[:1])
