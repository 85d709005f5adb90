"""The rules by which modalities go missing, against counts done by hand and loops."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msa_jax.data.missing import rules


def _draw(seed, *shape):
  """Availability with some gaps, and two uniform numbers per entry."""
  random = np.random.default_rng(seed)
  available = random.random(shape) < 0.85
  return random.random((*shape, 2)), available


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
def test_random_missing_hits_its_rate_exactly_and_keeps_one_of_every_row(rate):
  for n in (32, 40, 229, 686):
    numbers = np.random.default_rng(n).random((n, 3, 2))
    keep = np.asarray(rules.at_rate(numbers, np.ones((n, 3), bool), rate))
    assert keep.any(axis=1).all()
    # By hand: 3n entries, n of them safe; np.rint rounds as the rule does.
    expected = max(n, int(np.rint(np.float32(1.0 - rate) * 3 * n)))
    assert keep.sum() == expected
    assert abs(1 - keep.mean() - min(rate, 2 / 3)) < 0.005


def test_random_missing_at_two_thirds_and_above_leaves_exactly_one():
  numbers, available = _draw(3, 60, 3)
  for rate in (0.667, 0.7, 0.9, 1.0):
    keep = np.asarray(rules.at_rate(numbers, np.ones((60, 3), bool), rate))
    assert (keep.sum(axis=1) == 1).all()
  keep = np.asarray(rules.at_rate(numbers, available, 1.0))
  assert (keep.sum(axis=1) == available.any(axis=1)).all()


def test_random_missing_treats_modalities_alike():
  numbers = np.random.default_rng(8).random((30000, 3, 2))
  for rate in (0.3, 0.7):
    shares = np.asarray(
      rules.at_rate(numbers, np.ones((30000, 3), bool), rate), float
    ).mean(axis=0)
    # Standard deviation of a share: at most 0.0029.
    np.testing.assert_allclose(shares, shares.mean(), atol=0.012)


def test_random_missing_agrees_with_a_loop_that_takes_entries_in_turn():
  numbers, available = _draw(5, 25, 3)
  rate = 0.4
  safe = set()
  for row in range(25):
    slots = [s for s in range(3) if available[row, s]]
    if slots:
      safe.add((row, max(slots, key=lambda s: numbers[row, s, 1])))
  others = [
    (row, slot)
    for row, slot in itertools.product(range(25), range(3))
    if available[row, slot] and (row, slot) not in safe
  ]
  others.sort(key=lambda entry: numbers[(*entry, 0)])
  total = round(0.6 * available.sum())
  kept = safe | set(others[: total - len(safe)])
  expected = np.zeros((25, 3), bool)
  for entry in kept:
    expected[entry] = True
  np.testing.assert_array_equal(rules.at_rate(numbers, available, rate), expected)


def test_independent_loss_follows_the_numbers_and_spares_one_modality():
  numbers = np.asarray(
    [
      [[0.1, 0.5], [0.9, 0.1], [0.6, 0.3]],  # loses the first
      [[0.1, 0.5], [0.2, 0.6], [0.3, 0.1]],  # would lose all: the second stays
      [[0.1, 0.9], [0.2, 0.6], [0.3, 0.1]],  # has only the last: it stays
      [[0.9, 0.9], [0.9, 0.6], [0.9, 0.1]],  # has none
    ]
  )
  available = np.asarray([[1, 1, 1], [1, 1, 1], [0, 0, 1], [0, 0, 0]], bool)
  expected = np.asarray([[0, 1, 1], [0, 1, 0], [0, 0, 1], [0, 0, 0]], bool)
  keep = rules.independent(numbers, available, 0.5)
  np.testing.assert_array_equal(keep, expected)


def test_any_condition_draws_every_set_equally_often():
  numbers = np.random.default_rng(0).random((14000, 3, 2))
  keep = np.asarray(rules.any_condition(numbers, np.ones((14000, 3), bool)))
  counts = np.bincount(keep @ [1, 2, 4], minlength=8)
  assert counts[0] == 0
  # 2000 expected of each, standard deviation 41.
  np.testing.assert_allclose(counts[1:], 2000, atol=200)


def test_any_condition_draws_every_set_of_what_is_there_equally_often():
  numbers = np.random.default_rng(0).random((9000, 3, 2))
  available = np.broadcast_to([True, False, True], (9000, 3))
  keep = np.asarray(rules.any_condition(numbers, available))
  counts = np.bincount(keep @ [1, 2, 4], minlength=8)
  assert counts[[0, 2, 3, 6, 7]].sum() == 0
  # 3000 expected of each, standard deviation 45.
  np.testing.assert_allclose(counts[[1, 4, 5]], 3000, atol=200)


def test_a_few_batches_an_epoch_lose_their_share_over_the_epochs():
  # Two batches at the rate 0.1: rounded, none would ever lose anything.
  numbers, available = np.zeros((2, 3, 2)), np.ones((2, 3), bool)
  position, choice = np.arange(2), np.random.default_rng(0).random((2, 3))
  lost = [
    3 - rules.by_batch(numbers, available, choice, position, 2, 0.1, rounding).sum(-1)
    for rounding in (np.arange(100) + 0.5) / 100
  ]
  counts = np.bincount(np.ravel(lost), minlength=3)
  # Of 200 batches a tenth loses two, a tenth one.
  assert counts.tolist() == [160, 20, 20]


def test_losing_one_modality_takes_the_exact_share_of_its_owners():
  numbers, available = _draw(9, 200, 3)
  keep = np.asarray(rules.without_one(numbers, available, 0, 0.4))
  np.testing.assert_array_equal(keep[:, 1:], available[:, 1:])
  lost = available[:, 0] & ~keep[:, 0]
  assert lost.sum() == round(0.4 * available[:, 0].sum())
  assert keep[available.any(axis=1)].any(axis=1).all()
  everyone = np.asarray(rules.without_one(numbers, available, 0, 1.0))
  alone = available[:, 0] & ~available[:, 1:].any(axis=1)
  np.testing.assert_array_equal(everyone[:, 0], alone)


def test_the_tables_of_the_per_batch_protocol_add_up_to_their_rates():
  rates = (2 * np.asarray(rules.LOSE_TWO) + np.asarray(rules.LOSE_ONE)) / 3
  np.testing.assert_allclose(rates[:7], np.arange(7) / 10, atol=1e-12)
  assert rates[7] == pytest.approx(2 / 3)


def test_batches_lose_two_then_one_modality_all_rows_alike():
  position = np.repeat(np.arange(10), 4)
  choice = np.random.default_rng(4).random((10, 3))[position]
  numbers, available = np.zeros((40, 3, 2)), np.ones((40, 3), bool)
  keep = np.asarray(rules.by_batch(numbers, available, choice, position, 10, 0.3))
  rows = keep.reshape(10, 4, 3)
  assert (rows == rows[:, :1]).all()
  assert rows[:, 0].sum(axis=1).tolist() == [1] * 3 + [2] * 3 + [3] * 4
  for batch in range(6):
    lost = set(np.flatnonzero(~rows[batch, 0]))
    smallest = np.argsort(choice[4 * batch])[: 2 if batch < 3 else 1]
    assert lost == set(smallest)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), rate=st.floats(0, 1), dialogues=st.booleans())
def test_every_rule_keeps_a_subset_and_leaves_nobody_with_nothing(
  seed, rate, dialogues
):
  numbers, available = _draw(seed, *((4, 6, 3) if dialogues else (24, 3)))
  position = np.zeros(available.shape[:-1], int)
  kept = {
    "independent": rules.independent(numbers, available, rate),
    "random": rules.at_rate(numbers, available, rate),
    "condition": rules.any_condition(numbers, available),
    "one": rules.without_one(numbers, available, 1, rate),
    "batch": rules.by_batch(
      numbers, available, numbers[..., 0], position, 1, round(rate * 7) / 10
    ),
  }
  for name, keep in kept.items():
    keep = np.asarray(keep)
    assert not (keep & ~available).any(), name
    np.testing.assert_array_equal(keep.any(-1), available.any(-1), err_msg=name)


def test_rules_can_be_traced_with_the_rate_as_an_argument():
  numbers, available = _draw(2, 24, 3)
  for rule in (rules.independent, rules.at_rate):
    traced = jax.jit(rule)(numbers, available, 0.3)
    np.testing.assert_array_equal(traced, rule(numbers, available, 0.3))
