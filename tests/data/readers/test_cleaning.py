"""Cleaning keeps the promises of `Sequences` and counts what it had to do."""

import numpy as np
import pytest

from msa_jax.data.readers.cleaning import check_unique_ids, clean
from msa_jax.errors import UserError
from msa_jax.typing import Corpus, Sequences, Split, Task


def sequences(features, lengths, **more):
  return Sequences(np.array(features, np.float32), np.array(lengths, np.int64), **more)


def corpus(*, ids=None, labels=None, **splits):
  """One corpus from split name -> modality -> Sequences."""
  made = {}
  for name, modalities in splits.items():
    n = len(next(iter(modalities.values())).features)
    names = np.array(ids or [f"{name}{row}" for row in range(n)])
    made[name] = Split(names, modalities, labels or {})
  return Corpus("small", made, {"sentiment": Task("regression")})


def cleaned(*, modality="audio", **splits):
  result = clean(corpus(**{k: {modality: v} for k, v in splits.items()}))
  return {k: v.modalities[modality] for k, v in result.splits.items()}, result.notes


def test_non_finite_cells_become_zeros_and_are_counted():
  inf, nan = np.inf, np.nan
  found, notes = cleaned(
    train=sequences(
      [[[1, nan], [-inf, 2], [nan, inf]], [[inf, 5], [6, 7], [0, 0]]], [2, 2]
    ),
    test=sequences([[[1, 2], [3, 4]]], [2]),
  )
  # Row 0's third step is padding: its two broken cells are zeroed but not counted.
  np.testing.assert_array_equal(
    found["train"].features, [[[1, 0], [0, 2]], [[0, 5], [6, 7]]]
  )
  assert notes["non_finite_cells"] == {"audio": {"train": 3}}
  assert found["train"].lost is None
  assert notes["lost_steps"] == {}


def test_a_step_without_any_finite_cell_is_lost():
  found, notes = cleaned(train=sequences([[[1, 2], [np.nan, -np.inf], [3, 4]]], [3]))
  np.testing.assert_array_equal(found["train"].lost, [[False, True, False]])
  np.testing.assert_array_equal(found["train"].features[0, 1], [0, 0])
  np.testing.assert_array_equal(found["train"].lengths, [3])
  assert notes["lost_steps"] == {"audio": {"train": 1}}


def test_steps_known_to_be_lost_stay_lost_and_empty():
  lost = np.array([[True, False, True]])
  found, _ = cleaned(train=sequences([[[9], [1], [9]]], [2], lost=lost))
  np.testing.assert_array_equal(found["train"].lost, [[True, False]])
  np.testing.assert_array_equal(found["train"].features[0, :, 0], [0, 1])


def test_a_sample_of_lost_or_zero_steps_lacks_the_modality():
  found, notes = cleaned(
    train=sequences(
      [[[np.nan], [np.nan]], [[0], [0]], [[0], [1]], [[3], [4]]], [2] * 3 + [0]
    )
  )
  # A zero step before a real one is real; a stated length of 0 hides what is there.
  np.testing.assert_array_equal(found["train"].lengths, [0, 0, 2, 0])
  assert found["train"].lost is None
  assert not found["train"].features[[0, 1, 3]].any()
  assert notes["absent_samples"] == {"audio": {"train": 3}}
  assert notes["cells_past_length"] == {"audio": {"train": 2}}
  assert notes["unavailable_modalities"] == []


def test_steps_after_the_length_become_zero():
  found, notes = cleaned(train=sequences([[[1], [2], [7]], [[1], [2], [3]]], [2, 3]))
  np.testing.assert_array_equal(
    found["train"].features[:, :, 0], [[1, 2, 0], [1, 2, 3]]
  )
  assert notes["cells_past_length"] == {"audio": {"train": 1}}


def test_left_padding_moves_to_the_end():
  found, notes = cleaned(
    train=sequences(
      [[[0], [0], [1], [2]], [[1], [0], [0], [0]], [[0], [0], [0], [3]]], [2, 1, 2]
    )
  )
  # Row 2: its two steps are (0, 3), the first of them zero but real.
  np.testing.assert_array_equal(
    found["train"].features[:, :, 0], [[1, 2], [1, 0], [0, 3]]
  )
  assert notes["left_padded_samples"] == {"audio": {"train": 2}}
  assert notes["cells_past_length"] == {}


def test_padding_is_cut_to_the_longest_sample_of_all_splits():
  lost = np.zeros((1, 5), bool)
  lost[0, 0] = True
  codes = np.arange(5, dtype=np.int32)[None]
  long = np.zeros((1, 5, 1))
  long[0, :3] = 1
  found, notes = cleaned(
    train=sequences(long, [3], lost=lost, ids={"codes": codes}),
    test=sequences([[[4], [5]]], [2]),
  )
  assert [one.features.shape for one in found.values()] == [(1, 3, 1), (1, 3, 1)]
  np.testing.assert_array_equal(found["test"].features[0, :, 0], [4, 5, 0])
  np.testing.assert_array_equal(found["train"].ids["codes"], [[0, 1, 2]])
  np.testing.assert_array_equal(found["train"].lost, [[True, False, False]])
  assert notes["padding_cut"] == {"audio": {"from": 5, "to": 3}}


def test_a_modality_nobody_has_is_unavailable_and_keeps_one_step():
  found, notes = cleaned(
    train=sequences(np.zeros((2, 4, 3)), [0, 0]),
    test=sequences(np.zeros((1, 4, 3)), [4]),
  )
  assert found["train"].features.shape == (2, 1, 3)
  assert found["test"].lengths.tolist() == [0]
  assert notes["unavailable_modalities"] == ["audio"]


def test_a_modality_that_never_changes_is_unavailable():
  same = np.tile(np.float32([1, 2]), (10, 3, 1))
  found, notes = cleaned(
    train=sequences(same, [3] * 10), test=sequences(same, [1] * 10)
  )
  assert not found["train"].features.any()
  assert not found["test"].lengths.any()
  assert notes["constant_modalities"] == ["audio"]
  assert notes["absent_samples"] == {"audio": {"train": 10, "test": 10}}
  same[4, 1, 0] = 5
  found, notes = cleaned(train=sequences(same, [3] * 10))
  assert found["train"].lengths.tolist() == [3] * 10
  assert notes["unavailable_modalities"] == []


def test_a_few_equal_samples_or_integer_inputs_are_not_called_constant():
  _, notes = cleaned(predict=sequences(np.ones((2, 1, 3)), [1, 1]))
  assert notes["unavailable_modalities"] == []
  codes = {"codes": np.arange(20, dtype=np.int32).reshape(20, 1)}
  found, notes = cleaned(train=sequences(np.ones((20, 1, 1)), [1] * 20, ids=codes))
  assert notes["unavailable_modalities"] == []
  found, _ = cleaned(train=sequences(np.zeros((20, 1, 1)), [1] * 20, ids=codes))
  assert found["train"].lengths.tolist() == [1] * 20


def test_cleaning_works_in_place_over_blocks_of_rows():
  n = 600  # More than two blocks.
  features = np.random.default_rng(0).normal(size=(n, 3, 2)).astype(np.float16)
  lengths = np.arange(n, dtype=np.int32) % 4
  features[599, 0, 0] = np.nan
  lengths[599] = 3
  expected = features.copy()
  expected[599, 0, 0] = 0
  expected *= (np.arange(3) < lengths[:, None])[..., None]
  split = {"audio": Sequences(features, lengths)}
  result = clean(corpus(train=split)).splits["train"].modalities["audio"]
  np.testing.assert_array_equal(result.features, expected)
  np.testing.assert_array_equal(result.lengths, lengths)
  assert result.features is features
  assert result.features.dtype == np.float16


def test_cleaning_twice_changes_nothing_more():
  first = clean(
    corpus(train={"audio": sequences([[[1, np.nan], [np.nan] * 2, [0, 0]]], [2])})
  )
  again = clean(first)
  one, two = (c.splits["train"].modalities["audio"] for c in (first, again))
  for field in ("features", "lengths", "lost"):
    np.testing.assert_array_equal(getattr(one, field), getattr(two, field))
  assert again.notes["non_finite_cells"] == {}


def test_lengths_outside_the_steps_name_the_row():
  for wrong in (-1, 4):
    message = (
      rf"train, audio: length {wrong} in row 1 \(id b\) is not within 0 and the 3"
    )
    with pytest.raises(UserError, match=message):
      clean(
        corpus(
          ids=["a", "b"], train={"audio": sequences(np.ones((2, 3, 1)), [1, wrong])}
        )
      )
  with pytest.raises(UserError, match="2 rows are so"):
    cleaned(train=sequences(np.ones((3, 3, 1)), [9, 1, 9]))
  with pytest.raises(UserError, match=r"lengths have shape \[1\]"):
    cleaned(train=sequences(np.ones((2, 3, 1)), [1]))


def test_splits_that_contradict_each_other_are_refused():
  one = sequences(np.ones((2, 3, 4)), [1, 1])
  with pytest.raises(UserError, match="no splits"):
    clean(corpus())
  with pytest.raises(UserError, match="split train has no modality"):
    clean(Corpus("x", {"train": Split(np.array(["a"]), {}, {})}, {}))
  with pytest.raises(UserError, match="split test is empty"):
    cleaned(train=one, test=sequences(np.ones((0, 3, 4)), []))
  with pytest.raises(UserError, match="audio is 5 wide in split test but 4 in train"):
    cleaned(train=one, test=sequences(np.ones((1, 3, 5)), [1]))
  with pytest.raises(UserError, match="split test has text but split train has audio"):
    clean(corpus(train={"audio": one}, test={"text": one}))
  with pytest.raises(UserError, match="2 samples but 1 rows of labels of sentiment"):
    clean(corpus(train={"audio": one}, labels={"sentiment": np.zeros(1)}))
  with pytest.raises(UserError, match="1 samples but 2 rows of audio"):
    clean(corpus(ids=["a"], train={"audio": one}))


def test_ids_occur_once_in_a_corpus():
  one = {"audio": sequences(np.ones((2, 1, 1)), [1, 1])}
  check_unique_ids(corpus(train=one, test=one))
  with pytest.raises(UserError, match="id 'a' occurs twice in train"):
    check_unique_ids(corpus(ids=["a", "a"], train=one))
  both = corpus(ids=["a", "b"], train=one, test=one)
  with pytest.raises(UserError, match=r"id 'a' occurs in two splits \(train, test\)"):
    check_unique_ids(both)


def test_a_deep_cut_frees_the_padding_and_a_shallow_one_copies_nothing():
  features = np.zeros((2, 8, 1), np.float32)
  for longest, shared in ((4, False), (5, True)):
    features[:, :longest] = 1
    given = Sequences(features, np.full(2, longest, np.int32))
    found, _ = cleaned(train=given)
    assert found["train"].features.shape == (2, longest, 1)
    assert np.shares_memory(found["train"].features, features) == shared
