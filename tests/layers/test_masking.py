"""Masked entries have no influence; empty rows give zeros with finite gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msa_jax.layers.masking import hide_unavailable, masked_mean, masked_softmax
from msa_jax.typing import Batch, Modality

MASK = np.array([[True, True, False], [False, True, False], [False, False, False]])


def test_masked_softmax_is_the_softmax_over_valid_entries():
  logits = np.array([[1.0, 2.0, 50.0], [3.0, -4.0, 0.0], [1.0, 2.0, 3.0]])
  got = masked_softmax(jnp.asarray(logits, jnp.float32), jnp.asarray(MASK))
  # Row 0: e^1 / (e^1 + e^2) = 1 / (1 + e) = 0.26894; row 1 has one valid entry.
  expected = [[0.26894142, 0.73105858, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
  np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_masked_softmax_ignores_masked_values_bit_for_bit_even_infinite_ones(getkey):
  logits = jax.random.normal(getkey(), (3, 3))
  mask = jnp.asarray(MASK)
  clean = masked_softmax(logits, mask)
  for junk in (1e30, jnp.inf, jnp.nan):
    assert jnp.array_equal(clean, masked_softmax(jnp.where(mask, logits, junk), mask))


def test_masked_softmax_stays_exact_for_large_logits_and_returns_float32():
  logits = jnp.asarray([[3e4, 3e4 - 32.0]], jnp.bfloat16)
  got = masked_softmax(logits, jnp.ones((1, 2), bool))
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(jnp.sum(got), 1.0, rtol=1e-6)
  shallow = masked_softmax(jnp.full((1, 2), -1e8), jnp.ones((1, 2), bool))
  np.testing.assert_allclose(shallow, [[0.5, 0.5]])


def test_masked_softmax_normalises_over_the_chosen_axis(getkey):
  logits = jax.random.normal(getkey(), (4, 3, 2))
  got = masked_softmax(logits, jnp.ones(logits.shape, bool), axis=1)
  np.testing.assert_allclose(got, jax.nn.softmax(logits, axis=1), rtol=1e-5)


def test_masked_softmax_gradient_is_finite_and_zero_at_masked_entries_and_empty_rows():
  logits = jnp.asarray([[1.0, 2.0, 3.0], [0.5, -4.0, 0.0], [1.0, 2.0, 3.0]])

  def loss(logits):
    probs = masked_softmax(logits, jnp.asarray(MASK))
    return jnp.sum(probs * jnp.asarray([[1.0, 5.0, 7.0]] * 3))

  grad = jax.grad(loss)(logits)
  # Row 0: p0 p1 (5 - 1) = 0.26894 * 0.73106 * 4 = 0.786448.
  expected = [[-0.786448, 0.786448, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
  np.testing.assert_allclose(grad, expected, atol=1e-6)


def test_masked_mean_averages_valid_entries_and_is_zero_without_any():
  values = jnp.asarray([[1.0, 3.0, jnp.nan], [jnp.inf, 5.0, 9.0], [7.0, 7.0, 7.0]])
  got = masked_mean(values, jnp.asarray(MASK), axis=1)
  np.testing.assert_array_equal(got, [2.0, 5.0, 0.0])
  grad = jax.grad(lambda v: jnp.sum(masked_mean(v, jnp.asarray(MASK), axis=1)))(values)
  np.testing.assert_array_equal(grad, [[0.5, 0.5, 0], [0, 1, 0], [0, 0, 0]])


def test_masked_mean_over_time_of_sequences_equals_a_loop(getkey):
  values = np.asarray(jax.random.normal(getkey(), (3, 5, 2)))
  lengths = [5, 2, 0]
  mask = np.arange(5)[None] < np.array(lengths)[:, None]
  got = masked_mean(jnp.asarray(values), jnp.asarray(mask)[..., None], axis=1)
  for row, length in enumerate(lengths):
    expected = values[row, :length].mean(0) if length else np.zeros(2)
    np.testing.assert_allclose(got[row], expected, rtol=1e-5, atol=1e-7)


def make_batch(available, sample_mask, steps=3):
  rows = available.shape[0]
  modalities = {}
  for scale, name in enumerate(("audio", "text"), start=1):
    modalities[name] = Modality(
      features=jnp.full((rows, steps, 2), float(scale)),
      mask=jnp.asarray([[True, True, False]] * rows),
      lost=jnp.asarray([[False, True, True]] * rows),
    )
  index = jnp.arange(rows, dtype=jnp.int32)
  return Batch(modalities, available, {}, index, sample_mask)


@pytest.mark.parametrize("keep_lost", [False, True])
def test_hidden_content_is_exactly_what_is_absent(keep_lost):
  # Columns of `available` are text, audio. Row 2 is a filler row.
  available = jnp.asarray([[True, True], [True, False], [True, True]])
  batch = make_batch(available, jnp.asarray([True, True, False]))
  hidden = hide_unavailable(batch, keep_lost=keep_lost)
  text, audio = hidden.modalities["text"], hidden.modalities["audio"]
  # Only step 0 has content: step 1 is lost, step 2 is padding.
  np.testing.assert_array_equal(text.features[:, :, 0], [[2, 0, 0], [2, 0, 0], [0] * 3])
  np.testing.assert_array_equal(audio.features[:, :, 0], [[1, 0, 0], [0] * 3, [0] * 3])
  step1 = keep_lost
  np.testing.assert_array_equal(text.mask[0], [True, step1, False])
  np.testing.assert_array_equal(text.lost[0], [False, step1, False])
  assert not audio.mask[1:].any()
  assert not audio.lost[1:].any()


def test_hiding_dialogues_uses_the_availability_of_each_utterance():
  available = jnp.asarray([[[True, True], [True, False], [False, False]]])
  batch = make_batch(available, jnp.asarray([True]))
  batch = batch.replace(
    modalities={
      name: modality.replace(lost=jnp.zeros((1, 3), bool), mask=jnp.ones((1, 3), bool))
      for name, modality in batch.modalities.items()
    }
  )
  hidden = hide_unavailable(batch)
  np.testing.assert_array_equal(hidden.modalities["text"].mask, [[True, True, False]])
  np.testing.assert_array_equal(hidden.modalities["audio"].mask, [[True, False, False]])


def test_hidden_features_have_no_gradient_and_do_not_spread_nan():
  available = jnp.asarray([[True, False]])
  batch = make_batch(available, jnp.asarray([True]))

  def total(features):
    audio = batch.modalities["audio"].replace(features=features)
    modalities = {**batch.modalities, "audio": audio}
    hidden = hide_unavailable(batch.replace(modalities=modalities))
    return jnp.sum(hidden.modalities["audio"].features ** 2)

  value, grad = jax.value_and_grad(total)(jnp.full((1, 3, 2), jnp.nan))
  assert value == 0.0
  np.testing.assert_array_equal(grad, np.zeros((1, 3, 2)))
