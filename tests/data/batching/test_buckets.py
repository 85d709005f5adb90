"""Length buckets: what they hold, which order they give, what they may not change."""

import dataclasses

import jax
import numpy as np
import pytest
import toy

from msa_jax.data.batching import batches, buckets
from msa_jax.typing import Sequences, Split

FULL = {"text": 50, "audio": 400, "vision": 400}
WIDTHS = {"text": 6, "audio": 2, "vision": 3}


def _split(size=203, seed=0):
  random = np.random.default_rng(seed)
  tokens = np.clip(np.rint(12 * np.exp(0.5 * random.normal(size=size))), 1, 50)
  lengths = {"text": tokens, "audio": 3 * tokens, "vision": 4 * tokens}
  lengths["vision"][:7] = 0
  modalities = {}
  for name, width in WIDTHS.items():
    features = np.ones((size, FULL[name], width), np.float32)
    steps = np.arange(FULL[name])[None]
    features[steps >= lengths[name][:, None]] = 0.0
    modalities[name] = Sequences(features, lengths[name].astype(np.int32))
  ids = np.asarray([f"v{i}" for i in range(size)])
  return Split(ids, modalities, {"sentiment": np.zeros(size, np.float32)})


def test_every_sample_fits_its_bucket_and_no_shorter_one():
  split = _split()
  chosen = buckets.choose(split, FULL, 4)
  assert 2 <= len(chosen.lengths) <= 4
  assert dict(chosen.lengths[-1]) == FULL
  for name, sequences in split.modalities.items():
    steps = np.asarray([each[name] for each in chosen.lengths])
    assert (np.diff(steps) >= 0).all()
    assert (sequences.lengths <= steps[chosen.level]).all()
    assert all(step % 8 == 0 or step == FULL[name] for step in steps)
  shorter = chosen.level > 0
  held = np.ones(shorter.sum(), bool)
  for name in split.modalities:
    steps = np.asarray([each[name] for each in chosen.lengths])
    # Audio and vision have one static length and so one length in every bucket.
    names = ("audio", "vision") if name != "text" else ("text",)
    longest = np.max([split.modalities[n].lengths for n in names], axis=0)
    held &= longest[shorter] <= steps[chosen.level[shorter] - 1]
  assert not held.any()


def test_token_ids_cost_what_their_encoder_does():
  split = _split()
  text = split.modalities["text"]
  ids = {"tokens": np.ones(text.features.shape[:2], np.int32)}
  text = dataclasses.replace(text, features=text.features[..., :0], ids=ids)
  alone = dataclasses.replace(split, modalities={"text": text})
  chosen = buckets.choose(alone, {"text": 50}, 3)
  assert [each["text"] for each in chosen.lengths] == [16, 24, 50]
  assert (text.lengths <= 16).mean() > 0.5


def test_no_more_buckets_than_there_are_places():
  most = buckets.choose(_split(), FULL, 16)
  assert len(buckets.choose(_split(), FULL, 40).lengths) == len(most.lengths) > 4


def test_a_modality_that_is_absent_everywhere_keeps_a_step():
  split = _split()
  absent = np.zeros_like(split.modalities["vision"].lengths)
  vision = Sequences(split.modalities["vision"].features[:, :20], absent)
  split = dataclasses.replace(split, modalities={**split.modalities, "vision": vision})
  chosen = buckets.choose(split, {**FULL, "vision": 20}, 4)
  assert len(chosen.lengths) > 1
  assert all(each["vision"] > 0 for each in chosen.lengths)


def test_buckets_cost_least_among_all_places_on_the_grid():
  split = _split()
  tokens = split.modalities["text"].lengths
  frames = np.maximum(
    split.modalities["audio"].lengths, split.modalities["vision"].lengths
  )

  def cost(chosen):
    steps = [each["text"] * 6 + each["audio"] * 2 + each["vision"] * 3
             for each in chosen.lengths]  # fmt: skip
    return float(np.asarray(steps)[chosen.level].sum())

  best = np.inf
  for share in np.arange(1, 16) / 16:
    cut = [np.quantile(each, share, method="higher") for each in (tokens, frames)]
    text, other = (-(-int(length) // 8) * 8 for length in cut)
    text = min(text, 50)
    short = (tokens <= text) & (frames <= other)
    total = short.sum() * (text * 6 + other * 5) + (~short).sum() * (300 + 2000)
    best = min(best, total)
  assert cost(buckets.choose(split, FULL, 2)) == best
  full_cost = len(split) * (300 + 2000)
  assert cost(buckets.choose(split, FULL, 4)) < best < full_cost


def test_an_epoch_has_every_sample_once_in_as_many_batches_as_without_buckets():
  split = _split()
  chosen = buckets.choose(split, FULL, 3)
  order = buckets.epoch_order(chosen, seed=3, epoch=2, batch_size=16)
  assert order.shape == (-(-len(split) // 16), 16)
  assert sorted(order[order >= 0]) == list(range(len(split)))
  again = buckets.epoch_order(chosen, 3, 2, 16)
  np.testing.assert_array_equal(order, again)
  for other in ((4, 2), (3, 3)):
    different = buckets.epoch_order(chosen, *other, 16)
    assert (different != order).mean() > 0.5
    np.testing.assert_array_equal(
      chosen.of_batches(different), chosen.of_batches(order)
    )
  both = np.stack([order, different], axis=1)  # [steps replicas b]
  np.testing.assert_array_equal(chosen.of_batches(both), chosen.of_batches(order))
  # All but one batch per bucket are of like samples, and buckets come mixed.
  levels = chosen.of_batches(order)
  pure = [(chosen.level[rows[rows >= 0]] == level).all()
          for rows, level in zip(order, levels, strict=True)]  # fmt: skip
  assert sum(pure) >= len(order) - 2
  assert (np.diff(levels) < 0).any()
  # Filler rows cost least, and long samples fill as few batches as they can.
  assert levels[(order < 0).any(axis=1)] == [0]
  longest = (chosen.level == len(chosen.lengths) - 1).sum()
  assert (levels == len(chosen.lengths) - 1).sum() == -(-longest // 16)


def test_unshuffled_orders_go_from_short_to_long():
  chosen = buckets.choose(_split(), FULL, 3)
  order = buckets.epoch_order(chosen, 0, 0, 16, shuffle=False)
  assert (np.diff(chosen.of_batches(order)) >= 0).all()
  rows = order[order >= 0]
  np.testing.assert_array_equal(rows, np.argsort(chosen.level, kind="stable"))


def test_a_cut_batch_has_lost_nothing_but_padding():
  split = _split(40)
  chosen = buckets.choose(split, FULL, 3)
  data = batches.whole(split, {}, FULL)
  rows = np.flatnonzero(chosen.level == 0)[:5]
  batch = buckets.cut(batches.take(data, rows), chosen.lengths[0])
  for name, each in batch.modalities.items():
    steps = chosen.lengths[0][name]
    assert each.features.shape == (5, steps, WIDTHS[name])
    np.testing.assert_array_equal(
      each.mask.sum(1), split.modalities[name].lengths[rows]
    )
    assert each.lost.shape == each.mask.shape
  stacked = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), batches.take(data, rows))
  twice = buckets.cut(stacked, chosen.lengths[0])
  np.testing.assert_array_equal(
    twice.modalities["text"].mask[1], batch.modalities["text"].mask
  )
  assert buckets.cut(batch, None) is batch


@pytest.mark.parametrize("count", [0, 1])
def test_there_are_no_buckets_unless_asked_for(count):
  assert buckets.choose(_split(20), FULL, count) is None


def test_there_are_no_buckets_where_they_would_not_help():
  split = toy.corpus().splits["train"]  # lengths up to 6, in steps of eight: one bucket
  assert buckets.choose(split, {"text": 6, "audio": 5}, 4) is None
  dialogues = _split(20)
  available = np.ones((20, 400, 3), bool)
  dialogues = Split(dialogues.ids, dialogues.modalities, {}, available=available)
  assert buckets.choose(dialogues, FULL, 4) is None
