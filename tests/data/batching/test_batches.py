"""Batches: each sample once per epoch, fillers empty, device and host bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msa_jax.data.batching import batches
from msa_jax.typing import Sequences, Split, Task

TASKS = {
  "sentiment": Task("regression", low=-3.0, high=3.0),
  "emotion": Task("classes", classes=("a", "b", "c")),
  "questions": Task("binary", classes=("x", "y")),
}


@pytest.fixture
def split():
  """Seven samples with every irregularity that a batch must carry."""
  rng = np.random.default_rng(0)

  def sequences(steps, width, lengths, kind):
    lengths = np.array(lengths, np.int32)
    real = np.arange(steps) < lengths[:, None]
    lost = real & (rng.random(real.shape) < 0.3)
    features = rng.standard_normal((7, steps, width)).astype(kind)
    features[~real | lost] = 0
    codes = rng.integers(0, 9, (7, steps)).astype(np.int32)
    return Sequences(features, lengths, lost, {"codes": codes})

  return Split(
    ids=np.array([f"v$_${i}" for i in range(7)]),
    modalities={
      "vision": sequences(6, 2, [6, 0, 3, 1, 6, 2, 5], np.float32),
      "text": sequences(4, 3, [4, 2, 0, 1, 3, 4, 2], np.float16),
    },
    labels={
      "sentiment": np.array([1.5, np.nan, -2, 0, 0.2, -3, 3], np.float32),
      "emotion": np.array([0, 1, -1, 2, 1, 0, -1], np.int32),
      "questions": np.array(
        [[0, 1], [1, -1], [1, 1], [-1, -1], [0, 0], [1, 0], [0, 1]], np.int32
      ),
    },
    extras={"unread": np.zeros(7)},
  )


def assert_equal_trees(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_a_whole_split_keeps_values_and_masks_what_is_missing(split):
  data = batches.whole(split, TASKS)
  assert data.order == ("text", "vision")
  np.testing.assert_array_equal(
    data.available, [[1, 1], [1, 0], [0, 1], [1, 1], [1, 1], [1, 1], [1, 1]]
  )
  text, stored = data.modalities["text"], split.modalities["text"]
  # No copy where none is needed.
  assert np.shares_memory(text.features, stored.features)
  np.testing.assert_array_equal(text.mask.sum(axis=1), stored.lengths)
  np.testing.assert_array_equal(text.lost, stored.lost)
  sentiment, emotion = data.labels["sentiment"], data.labels["emotion"]
  np.testing.assert_array_equal(sentiment.mask, [1, 0, 1, 1, 1, 1, 1])
  assert sentiment.value[1] == 0
  assert sentiment.value.dtype == np.float32
  np.testing.assert_array_equal(emotion.mask, [1, 1, 0, 1, 1, 1, 0])
  np.testing.assert_array_equal(emotion.value, [0, 1, 0, 2, 1, 0, 0])
  # Questions answered in part are not a label.
  np.testing.assert_array_equal(data.labels["questions"].mask, [1, 0, 1, 0, 1, 1, 1])
  np.testing.assert_array_equal(data.index, np.arange(7))
  assert data.sample_mask.all()


def test_a_task_without_labels_is_masked_for_every_sample(split):
  unlabelled = Split(split.ids, split.modalities, labels={})
  data = batches.whole(unlabelled, TASKS)
  assert jax.tree.structure(data) == jax.tree.structure(batches.whole(split, TASKS))
  for label in data.labels.values():
    assert not label.mask.any()
    assert not label.value.any()


def test_what_padded_and_lost_steps_hold_is_hidden_without_touching_the_split(split):
  clean = jax.tree.map(np.copy, batches.whole(split, TASKS))
  dirty = split.modalities["vision"].features
  hidden = ~clean.modalities["vision"].mask | clean.modalities["vision"].lost
  dirty[hidden] = np.nan
  split.modalities["vision"].lost[~clean.modalities["vision"].mask] = True
  assert_equal_trees(batches.whole(split, TASKS), clean)
  assert np.isnan(dirty[hidden]).all()


def test_sequences_are_cut_or_padded_to_the_asked_lengths(split):
  data = batches.whole(split, TASKS, {"vision": 8, "text": 3})
  full = batches.whole(split, TASKS)
  assert data.modalities["vision"].features.shape == (7, 8, 2)
  assert data.modalities["text"].ids["codes"].shape == (7, 3)
  cut = jax.tree.map(lambda leaf: leaf[:, :3], full.modalities["text"])
  assert_equal_trees(data.modalities["text"], cut)
  padded = data.modalities["vision"]
  assert_equal_trees(
    jax.tree.map(lambda leaf: leaf[:, :6], padded), full.modalities["vision"]
  )
  for leaf in jax.tree.leaves(padded):
    assert not leaf[:, 6:].any()
  only_text = batches.whole(split, TASKS, {"text": 4})
  assert_equal_trees(only_text, full)


def test_taking_rows_gathers_them_in_order(split):
  data = batches.whole(split, TASKS)
  index = np.array([5, 0, 3], np.int32)
  rows = jax.jit(batches.take)(data, index)
  np.testing.assert_array_equal(rows.index, index)
  for name in ("text", "vision"):
    features = rows.modalities[name].features
    assert features.dtype == jnp.float32
    np.testing.assert_array_equal(
      features, split.modalities[name].features[index].astype(np.float32)
    )
  np.testing.assert_array_equal(
    rows.labels["questions"].value, data.labels["questions"].value[index]
  )


def test_filler_rows_carry_nothing(split):
  data = batches.whole(split, TASKS)
  rows = batches.take(data, np.array([2, -1, 6, -1], np.int32))
  np.testing.assert_array_equal(rows.index, [2, -1, 6, -1])
  np.testing.assert_array_equal(rows.sample_mask, [1, 0, 1, 0])
  for leaf in jax.tree.leaves(rows.replace(index=jnp.zeros(4, jnp.int32))):
    assert not np.asarray(leaf)[[1, 3]].any()
  # A filler row of the data stays one.
  again = batches.take(rows, np.array([1, 0], np.int32))
  np.testing.assert_array_equal(again.sample_mask, [0, 1])
  np.testing.assert_array_equal(again.index, [-1, 2])


@pytest.mark.parametrize(("size", "batch"), [(7, 3), (8, 4), (5, 9), (1, 1)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_visits_every_sample_exactly_once(size, batch, shuffle):
  order = np.asarray(batches.epoch_order(3, 2, size, batch, shuffle))
  assert order.dtype == np.int32
  assert order.shape == (-(-size // batch), batch)
  flat = order.ravel()
  np.testing.assert_array_equal(np.sort(flat[:size]), np.arange(size))
  assert (flat[size:] == -1).all()
  if not shuffle:
    np.testing.assert_array_equal(flat[:size], np.arange(size))


def test_the_order_depends_on_seed_and_epoch_alone_and_may_be_traced():
  plain = [np.asarray(batches.epoch_order(s, e, 50, 8)) for s in (0, 1) for e in (0, 1)]
  assert len({order.tobytes() for order in plain}) == 4
  traced = jax.jit(jax.vmap(lambda s, e: batches.epoch_order(s, e, 50, 8)))(
    jnp.array([0, 0, 1, 1]), jnp.array([0, 1, 0, 1])
  )
  np.testing.assert_array_equal(traced, np.stack(plain))


def test_streamed_batches_equal_those_taken_on_the_device_bit_for_bit(split):
  order = np.asarray(batches.epoch_order(0, 1, 7, 3))
  lengths = {"text": 5, "vision": 4}
  data = jax.device_put(batches.whole(split, TASKS, lengths))
  take = jax.jit(batches.take)
  streamed = list(batches.stream(split, TASKS, order, lengths=lengths))
  assert len(streamed) == 3
  for step, batch in enumerate(streamed):
    assert_equal_trees(batch, take(data, order[step]))


def test_a_stream_resumes_at_any_step(split):
  order = np.asarray(batches.epoch_order(1, 0, 7, 2))
  full = list(batches.stream(split, TASKS, order))
  for first in range(len(order) + 1):
    rest = list(batches.stream(split, TASKS, order, first))
    assert len(rest) == len(order) - first
    for a, b in zip(rest, full[first:], strict=True):
      assert_equal_trees(a, b)


def test_a_memory_mapped_split_is_streamed_alike(split, tmp_path):
  path = tmp_path / "vision.npy"
  np.save(path, split.modalities["vision"].features)
  vision = split.modalities["vision"]
  mapped = Sequences(
    np.load(path, mmap_mode="r"), vision.lengths, vision.lost, vision.ids
  )
  other = Split(split.ids, {**split.modalities, "vision": mapped}, split.labels)
  order = np.asarray(batches.epoch_order(0, 0, 7, 4))
  pairs = zip(
    batches.stream(other, TASKS, order),
    batches.stream(split, TASKS, order),
    strict=True,
  )
  for a, b in pairs:
    assert_equal_trees(a, b)


def test_a_split_fits_when_its_features_do(split):
  # text 7 x 4 x 3 x 2 bytes = 168, vision 7 x 6 x 2 x 4 bytes = 336.
  assert batches.needed_bytes(split) == 504
  assert batches.fits(split, 504)
  assert not batches.fits(split, 503)
