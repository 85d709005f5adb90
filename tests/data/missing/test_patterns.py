"""Masks of splits: reproducible, what the protocols promise, and nothing beyond."""

import dataclasses

import numpy as np
import pytest

from msa_jax.data import missing
from msa_jax.data.batching import batches
from msa_jax.errors import UserError
from msa_jax.typing import Corpus, Sequences, Split, Task

THREE = ("text", "audio", "vision")
LENGTHS = {"text": (3, 12), "audio": (1, 40), "vision": (1, 30)}


def _split(n=120, names=THREE, seed=0):
  random = np.random.default_rng(seed)
  modalities = {}
  for name in names:
    low, high = LENGTHS[name]
    lengths = random.integers(low, high + 1, n).astype(np.int32)
    features = random.normal(size=(n, high, 4)).astype(np.float32)
    modalities[name] = Sequences(features, lengths)
  ids = np.asarray([f"v{i // 5}$_${i}" for i in range(n)])
  return Split(ids, modalities, {"sentiment": random.normal(size=n).astype("f")})


def _with_ids(split):
  """The split with token ids as MMSA's files have them: [CLS] ... [SEP]."""
  text = split.modalities["text"]
  steps, lengths = text.features.shape[1], text.lengths
  real = np.arange(steps)[None] < lengths[:, None]
  ids = np.where(real, np.random.default_rng(0).integers(1000, 2000, real.shape), 0)
  ids[:, 0] = 101
  ids[np.arange(len(ids)), lengths - 1] = 102
  stored = np.stack([ids, real, np.zeros_like(ids)], axis=1).astype(np.int32)
  return dataclasses.replace(split, extras={"text_bert": stored})


def _reordered(split, order):
  """The same samples in another order."""
  modalities = {
    name: Sequences(s.features[order], s.lengths[order])
    for name, s in split.modalities.items()
  }
  return Split(split.ids[order], modalities, {})


PATTERNS = ("text+audio", "conditions", "dropout:0.3", "random:0.4", "samples:0.4")
STEPWISE = ("frames:0.3", "tokens:0.4", "tokens:0.4:unk", "features:0.4:ends")
RANDOM_HALF = ["101", "100", "011", "001", "101", "010", "110", "100"]


@pytest.mark.parametrize("text", [*PATTERNS, *STEPWISE, "batches:0.5"])
def test_masks_depend_on_the_seed_and_the_samples_alone(text):
  split, pattern = _split(), missing.parse(text, THREE)
  np.random.seed(1)  # noqa: NPY002
  first = missing.draw(pattern, split, seed=7)
  np.random.seed(2)  # noqa: NPY002
  again = missing.draw(pattern, split, seed=7)
  for name, values in missing.arrays(first).items():
    np.testing.assert_array_equal(values, missing.arrays(again)[name])
  if text != "text+audio":
    other = missing.arrays(missing.draw(pattern, split, seed=8))
    assert any((v != other[k]).any() for k, v in missing.arrays(first).items())
  order = np.random.default_rng(3).permutation(len(split))
  moved = missing.draw(pattern, _reordered(split, order), seed=7)
  for name, values in missing.arrays(first).items():
    np.testing.assert_array_equal(values[order], missing.arrays(moved)[name])


def test_masks_stay_what_they_were():
  # Written down once: a change would make saved runs incomparable with new ones.
  masks = missing.draw(missing.parse("random:0.5"), _split(8), seed=0)
  assert ["".join("01"[int(v)] for v in row) for row in masks.available] == RANDOM_HALF


def test_fixed_conditions_keep_what_they_name_of_what_is_there():
  split = _split()
  split.modalities["text"].lengths[:5] = 0
  grid = missing.grids("conditions", THREE)["conditions"]
  assert [str(pattern) for pattern in grid] == [
    "text",
    "audio",
    "vision",
    "text+audio",
    "text+vision",
    "audio+vision",
    "text+audio+vision",
  ]
  for pattern in grid:
    masks = missing.draw(pattern, split, seed=0)
    expected = np.ones((120, 3), bool)
    expected[:5, 0] = False
    for column, name in enumerate(THREE):
      expected[:, column] &= name in str(pattern).split("+")
    np.testing.assert_array_equal(masks.available, expected)
    gone = 1 - expected.sum() / (3 * 120 - 5)
    assert masks.realised["entries"] == pytest.approx(gone)


def test_two_modalities_have_three_conditions():
  assert missing.conditions(("vision", "text")) == (
    ("text",),
    ("vision",),
    ("text", "vision"),
  )


def test_higher_rates_take_more_of_the_same():
  split = _split()
  for name in ("random", "dropout", "samples"):
    grid = missing.grids(name, THREE)[name]
    kept = [missing.draw(p, split, seed=0).available for p in grid]
    for more, less in zip(kept[1:], kept[:-1], strict=True):
      # dropout may have to spare a modality that fell at a lower rate.
      assert not (more & ~less).any() or name == "dropout"
    assert kept[0].all()
  low, high = (
    missing.draw(missing.parse(f"frames:{r}"), split, 0).lost for r in (0.2, 0.6)
  )
  assert all(not (low[name] & ~high[name]).any() for name in THREE)


def test_the_random_grid_reports_what_it_realises():
  split = _split(686)
  for pattern in missing.grids("random", THREE)["random"]:
    masks = missing.draw(pattern, split, seed=1)
    share = 1 - masks.available.mean()
    assert masks.realised == {"entries": pytest.approx(share)}
    assert abs(share - min(pattern.rate, 2 / 3)) < 0.0005
    assert masks.available.any(axis=1).all()


def test_frames_are_lost_at_their_rate_inside_the_length_sparing_cls_and_sep():
  split = _with_ids(_split(400))
  masks = missing.draw(missing.parse("frames:0.3"), split, seed=2)
  assert masks.available.all()
  lost_steps = total_steps = 0
  for name in THREE:
    lengths = split.modalities[name].lengths
    gone = 0
    for row, steps in enumerate(masks.lost[name]):
      assert not steps[lengths[row] :].any()
      if name == "text":
        assert not steps[0] and not steps[lengths[row] - 1]
      gone += steps.sum()
    exposed = lengths - 2 if name == "text" else lengths
    # Standard deviation of the share: 0.46 / sqrt(steps).
    tolerance = 4 * 0.46 / np.sqrt(exposed.sum())
    assert abs(gone / exposed.sum() - 0.3) < tolerance
    assert masks.realised[f"steps_{name}"] == pytest.approx(gone / lengths.sum())
    lost_steps, total_steps = lost_steps + gone, total_steps + lengths.sum()
  assert masks.realised["steps"] == pytest.approx(lost_steps / total_steps)
  everything = missing.draw(missing.parse("frames:1"), split, seed=2)
  rest = split.modalities["text"].lengths.sum() - everything.lost["text"].sum()
  assert rest == 2 * 400


def test_text_loss_leaves_the_other_modalities_alone():
  masks = missing.draw(missing.parse("tokens:0.4"), _split(), seed=0)
  assert set(masks.lost) == {"text"}
  assert masks.available.all()


def test_groups_of_samples_lose_by_the_tables_wherever_they_stand_in_the_file():
  # Three batches' worth, which would lose nothing at all at the rate 0.1.
  for rate, two, one in ((0.1, 1, 1), (0.5, 7, 1), (0.7, 10, 0)):
    pattern = missing.parse(f"batches:{rate}")
    kept = missing.draw(pattern, _split(90), seed=0, batch=32).available
    left = kept.sum(axis=1)
    # Ten groups of nine, each with one set.
    assert np.bincount(left, minlength=4).tolist() == [
      *(0, 9 * two, 9 * one),
      9 * (10 - two - one),
    ]
  kept = missing.draw(missing.parse("batches:0.2"), _split(90), seed=0).available
  hit = ~kept.all(axis=1)
  # 36 of 90: four of the groups. Were they the file's first, none were in its end.
  assert hit.sum() == 36 and 5 < hit[45:].sum() < 31


def test_dialogues_have_masks_per_utterance_and_padding_has_none():
  lengths = np.asarray([5, 2, 4], np.int32)
  real = np.arange(5)[None] < lengths[:, None]
  available = np.repeat(real[..., None], 2, axis=-1)
  available[0, 1, 0] = False
  split = Split(
    np.asarray(["a", "b", "c"]),
    {n: Sequences(np.ones((3, 5, 2), "f"), lengths) for n in ("text", "audio")},
    {},
    available=np.ones((3, 5, 2), bool) & available,
  )
  for text in (*PATTERNS[1:], "text"):
    masks = missing.draw(missing.parse(text, ("text", "audio")), split, seed=3)
    assert masks.available.shape == (3, 5, 2)
    assert not (masks.available & ~available).any()
    if text != "text":
      np.testing.assert_array_equal(masks.available.any(-1), real)
  masks = missing.draw(missing.parse("random:0.4"), split, seed=3)
  assert masks.available.sum() == round(0.6 * 21)
  hidden = missing.apply(split, masks)
  batch = batches.whole(hidden, {})
  np.testing.assert_array_equal(batch.available, masks.available)


def test_the_samples_of_a_drawn_batch_share_their_pattern():
  masks = missing.draw(missing.parse("batches:0.5", THREE), _split(), seed=3)
  _, counts = np.unique(masks.available, axis=0, return_counts=True)
  # 120 samples in ten batches of twelve.
  assert (counts % 12 == 0).all() and len(counts) > 2


def test_applied_masks_reach_batches_from_memory_and_from_the_host():
  split = _split(20)
  for text in ("random:0.5", "frames:0.5"):
    masks = missing.draw(missing.parse(text), split, seed=0)
    hidden = missing.apply(split, masks)
    whole = batches.whole(hidden, {})
    np.testing.assert_array_equal(whole.available, masks.available)
    for name, steps in masks.lost.items():
      np.testing.assert_array_equal(whole.modalities[name].lost, steps)
      assert not whole.modalities[name].features[steps].any()
    order = np.asarray([[3, 1, 7], [0, 19, -1]])
    (first, last) = batches.stream(hidden, {}, order)
    np.testing.assert_array_equal(first.available, masks.available[[3, 1, 7]])
    assert not last.available[2].any()


def test_what_was_missing_before_stays_missing():
  split = _split(30)
  split.modalities["audio"].lengths[:4] = 0
  lost = np.zeros((30, 12), bool)
  lost[:, 1] = True
  text = dataclasses.replace(split.modalities["text"], lost=lost)
  split = dataclasses.replace(split, modalities={**split.modalities, "text": text})
  hidden = missing.apply(split, missing.draw(missing.parse("tokens:0.5"), split, 0))
  assert hidden.modalities["text"].lost[:, 1].all()
  hidden = missing.apply(split, missing.draw(missing.parse("random:0.2"), split, 0))
  assert not hidden.available[:4, 1].any()
  again = missing.apply(hidden, missing.draw(missing.parse("audio"), hidden, 0))
  assert not batches.availability(again)[:, [0, 2]].any()


def test_a_corpus_is_degraded_split_by_split():
  corpus = Corpus(
    "c",
    {"train": _split(10), "test": _split(12, seed=1)},
    {"sentiment": Task("regression", -3.0, 3.0)},
  )
  patterns = {"train": missing.NONE, "test": missing.parse("text")}
  masks = missing.draw_all(corpus, patterns, seed=0)
  hidden = missing.apply_all(corpus, masks)
  assert hidden.splits["train"] is corpus.splits["train"]
  assert set(masks) == {"test"}
  assert hidden.splits["test"].available.sum() == 12


def test_saved_masks_are_plain_arrays_with_ids(tmp_path):
  split = _split(9)
  masks = missing.draw(missing.parse("frames:0.5"), split, seed=0)
  path = tmp_path / "predictions" / "missing_test.npz"
  missing.save(path, split, {"frames:0.5": missing.arrays(masks)})
  with np.load(path, allow_pickle=False) as file:
    assert file["ids"].tolist() == split.ids.tolist()
    assert file["modalities"].tolist() == list(THREE)
    np.testing.assert_array_equal(file["frames:0.5/available"], masks.available)
    np.testing.assert_array_equal(file["frames:0.5/lost_text"], masks.lost["text"])


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("random", "needs a rate in"),
    ("random:1.5", "needs a rate in"),
    ("frames:much", "needs a rate in"),
    ("tokens:0.3:features", "tokens:RATE may end in :hide, :unk"),
    ("tokens:0.3:", "tokens:RATE may end in :hide, :unk"),
    ("random:0.3:unk", "random:RATE has no third part"),
    ("batches:0.25", "tables of batches have rates 0, 0.1"),
    ("conditions:0.3", "must be none, modalities joined by"),
    ("", "must be none"),
    ("text+smell", "the corpus has text, audio, vision"),
    ("text+text", "must be none"),
  ],
)
def test_bad_patterns_are_refused_with_the_rule(text, message):
  with pytest.raises(UserError, match=message):
    missing.parse(text, THREE)


def test_patterns_that_do_not_fit_the_corpus_are_refused():
  with pytest.raises(UserError, match="takes text away; the corpus has audio"):
    missing.parse("tokens:0.2", ("audio", "vision"))
  with pytest.raises(UserError, match="tables for three modalities"):
    missing.parse("batches:0.2", ("text", "audio"))
  with pytest.raises(
    UserError, match=r"--missing=rates.*Whole grids: conditions, drop"
  ):
    missing.grids("rates", THREE)


def test_patterns_are_written_as_they_are_read():
  for text in (*PATTERNS, *STEPWISE, "batches:0.5", "none", "random:0"):
    assert str(missing.parse(text)) == text
  assert str(missing.parse("audio+text")) == "text+audio"
  assert str(missing.parse("tokens:0.5:hide")) == "tokens:0.5"


def test_a_whole_grid_may_say_how_words_are_lost():
  grid = missing.grids("tokens:unk,frames", THREE)
  assert [str(pattern) for pattern in grid["tokens:unk"]][:2] == [
    "tokens:0:unk",
    "tokens:0.1:unk",
  ]
  assert [len(patterns) for patterns in grid.values()] == [10, 10]
