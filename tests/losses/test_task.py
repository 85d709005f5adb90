"""Task losses per example: hand values, masks, names from the config."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msa_jax.errors import UserError
from msa_jax.losses import task
from msa_jax.typing import Label


def test_regression_losses_of_hand_computed_errors():
  prediction, label = jnp.asarray([1.0, 0.5, -3.0]), jnp.asarray([0.5, 0.5, 0.0])
  # Errors 0.5, 0, -3.
  np.testing.assert_allclose(task.l1(prediction, label), [0.5, 0.0, 3.0])
  np.testing.assert_allclose(task.squared(prediction, label), [0.25, 0.0, 9.0])
  # Huber: .5^2 / 2 = .125; 3 - .5 = 2.5. With delta 2: .125; 2 * (3 - 1) = 4.
  np.testing.assert_allclose(task.huber(prediction, label), [0.125, 0.0, 2.5])
  np.testing.assert_allclose(task.huber(prediction, label, 2.0), [0.125, 0.0, 4.0])


def test_cross_entropy_is_minus_the_log_probability_of_the_class():
  logits = jnp.log(jnp.asarray([[1.0, 2.0, 5.0], [1.0, 1.0, 2.0]]))
  got = task.cross_entropy(logits, jnp.asarray([2, 0], jnp.int32))
  # -log(5 / 8), -log(1 / 4).
  np.testing.assert_allclose(got, [0.4700036, 1.3862944], rtol=1e-6)
  far = task.cross_entropy(jnp.asarray([[1e4, 0.0]]), jnp.asarray([1], jnp.int32))
  np.testing.assert_allclose(far, [1e4])


def test_questions_are_two_way_cross_entropy_averaged_over_questions(getkey):
  logits = jax.random.normal(getkey(), (4, 3, 2))
  label = jnp.asarray([[0, 1, 1], [1, 1, 1], [0, 0, 0], [1, 0, 1]], jnp.int32)
  expected = np.zeros(4)
  for i in range(4):
    for c in range(3):
      row = np.asarray(logits[i, c], np.float64)
      expected[i] -= (row[label[i, c]] - np.log(np.exp(row).sum())) / 3
  got = jax.jit(task.questions)(logits, label)
  np.testing.assert_allclose(got, expected, rtol=1e-5)
  # The two ways of writing it agree on the difference of the logits.
  single = jax.jit(task.binary_cross_entropy)(logits[..., 1] - logits[..., 0], label)
  np.testing.assert_allclose(single, got, rtol=1e-5)


def test_positive_weight_scales_the_loss_of_present_classes_only():
  logits = jnp.zeros((1, 2))
  label = jnp.asarray([[1, 0]], jnp.int32)
  # log 2 each; with weights (3, 3): (3 log 2 + log 2) / 2.
  plain = task.binary_cross_entropy(logits, label)
  heavy = task.binary_cross_entropy(logits, label, jnp.asarray([3.0, 3.0]))
  np.testing.assert_allclose(plain, [np.log(2)], rtol=1e-6)
  np.testing.assert_allclose(heavy, [2 * np.log(2)], rtol=1e-6)


CASES = {
  "regression": ((4,), jnp.asarray([0.5, -1.0, 2.0, jnp.nan])),
  "classes": ((4, 3), jnp.asarray([0, 2, 1, -1], jnp.int32)),
  "binary": ((4, 2, 2), jnp.asarray([[0, 1]] * 3 + [[-1, -1]], jnp.int32)),
}


@pytest.mark.parametrize(
  "kind,name", [(kind, name) for kind in task.LOSSES for name in task.LOSSES[kind]]
)
def test_examples_without_a_label_have_zero_loss_and_zero_gradient(kind, name, getkey):
  shape, value = CASES[kind]
  mask = jnp.asarray([True, True, True, False])
  prediction = jax.random.normal(getkey(), shape)

  def total(prediction):
    values = task.task_loss(kind, name, prediction, Label(value, mask))
    assert values.shape == (4,)
    return task.masked_average(values, mask)

  step = jax.jit(jax.value_and_grad(total))
  loss, grad = step(prediction)
  short = jax.jit(task.LOSSES[kind][name])(prediction[:3], value[:3])
  np.testing.assert_allclose(loss, np.mean(short), rtol=1e-6)
  assert np.isfinite(grad).all()
  assert np.abs(grad[:3]).max() > 0
  np.testing.assert_array_equal(grad[3], np.zeros(shape[1:]))
  broken = prediction.at[3].set(jnp.nan)
  again, grad = step(broken)
  assert float(again) == float(loss)
  assert np.isfinite(grad).all()


def test_dialogue_labels_give_one_loss_per_utterance():
  label = Label(jnp.asarray([[0.5, 1.0]]), jnp.asarray([[True, False]]))
  got = task.task_loss("regression", "l1", jnp.zeros((1, 2)), label)
  np.testing.assert_array_equal(got, [[0.5, 0.0]])


def test_default_names_are_mae_and_cross_entropy():
  label = Label(jnp.asarray([2.0]), jnp.asarray([True]))
  for name in (None, "default"):
    got = task.task_loss("regression", name, jnp.zeros(1), label)
    np.testing.assert_array_equal(got, [2.0])
  for kind in task.LOSSES:
    assert task.DEFAULTS[kind] in task.LOSSES[kind]


def test_losses_are_float32_for_bfloat16_predictions():
  got = task.l1(jnp.asarray([1.0], jnp.bfloat16), jnp.asarray([0.001]))
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, [0.999], rtol=1e-6)


def test_masked_average_ignores_masked_values_and_is_zero_without_any():
  values = jnp.asarray([1.0, 3.0, jnp.nan])
  mask = jnp.asarray([True, True, False])
  assert float(task.masked_average(values, mask)) == 2.0
  nobody = jnp.zeros(3, bool)
  value, grad = jax.value_and_grad(task.masked_average)(values, nobody)
  assert float(value) == 0.0
  np.testing.assert_array_equal(grad, np.zeros(3))


def test_unknown_loss_names_say_the_choices():
  label = Label(jnp.zeros(1), jnp.ones(1, bool))
  with pytest.raises(UserError, match="'hinge'.*default, l1, mse, huber"):
    task.task_loss("regression", "hinge", jnp.zeros(1), label)
  with pytest.raises(UserError, match="'ranking'.*regression, classes, binary"):
    task.task_loss("ranking", None, jnp.zeros(1), label)
