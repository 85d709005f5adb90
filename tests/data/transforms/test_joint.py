"""Corpora with different labels become one, and batches draw from all of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from changes import change

from msa_jax import models
from msa_jax.config.experiment import from_json, to_json
from msa_jax.data.batching import batches
from msa_jax.data.readers import npz
from msa_jax.data.transforms import joint
from msa_jax.errors import UserError
from msa_jax.runs import prepare
from msa_jax.typing import Sequences, Task


def _emotional(sizes=(10, 4, 5), seed=1, **modalities):
  """A toy corpus with emotions besides sentiment, of other videos."""
  corpus = toy.corpus(sizes, seed)
  splits = {}
  for name, split in corpus.splits.items():
    random = np.random.default_rng(len(split))
    emotion = random.integers(0, 2, (len(split), 3)).astype(np.int32)
    splits[name] = dataclasses.replace(
      split,
      ids=np.asarray([f"e{text}" for text in split.ids]),
      labels={**split.labels, "emotion": emotion},
      modalities={**split.modalities, **modalities.get(name, {})},
    )
  emotions = Task("binary", classes=("happy", "sad", "fear"), protocol="emotions")
  return dataclasses.replace(
    corpus, name="emotional", splits=splits, tasks={**corpus.tasks, "emotion": emotions}
  )


def test_every_row_keeps_its_own_labels_and_says_where_it_is_from():
  first, second = toy.corpus(), _emotional()
  whole = joint.join([first, second])
  train = whole.splits["train"]
  assert joint.source_sizes(train) == (37, 10)
  assert whole.name == "toy+emotional" and set(whole.tasks) == {"sentiment", "emotion"}
  sentiment = [c.splits["train"].labels["sentiment"] for c in (first, second)]
  np.testing.assert_array_equal(train.labels["sentiment"], np.concatenate(sentiment))
  assert (train.labels["emotion"][:37] == -1).all()
  own = second.splits["train"].labels["emotion"]
  np.testing.assert_array_equal(train.labels["emotion"][37:], own)
  for name in ("text", "audio"):
    parts = [c.splits["train"].modalities[name] for c in (first, second)]
    got = train.modalities[name]
    np.testing.assert_array_equal(got.features[:37], parts[0].features)
    np.testing.assert_array_equal(got.lengths[37:], parts[1].lengths)
  data = batches.whole(train, whole.tasks)
  assert data.labels["emotion"].mask.tolist() == [False] * 37 + [True] * 10
  assert data.labels["sentiment"].mask.all()
  # Validation and test are the first corpus's, unless all are asked for.
  assert len(whole.splits["valid"]) == 11 and len(whole.splits["test"]) == 13
  every = joint.join([first, second], evaluation=True)
  assert len(every.splits["valid"]) == 15 and len(every.splits["test"]) == 18
  assert every.splits["test"].labels["emotion"].shape == (18, 3)
  assert (
    joint.join([first]) is first and joint.source_sizes(first.splits["train"]) == ()
  )


def test_what_one_corpus_lacks_is_absent_and_lengths_are_padded():
  extra = {
    name: {
      "vision": Sequences(
        np.ones((size, 3, 2), np.float32),
        np.full(size, 3, np.int32),
        ids={"codes": np.ones((size, 3), np.int32)},
      ),
      "text": Sequences(
        np.ones((size, 9, 4), np.float32),
        np.full(size, 9, np.int32),
        lost=np.eye(size, 9, dtype=bool),
      ),
    }
    for name, size in (("train", 10), ("valid", 4), ("test", 5))
  }
  first = toy.corpus()
  whole = joint.join([first, _emotional(**extra)])
  found = whole.splits["train"].modalities
  assert found["vision"].lengths.tolist() == [0] * 37 + [3] * 10
  assert not found["vision"].features[:37].any()
  assert found["vision"].ids["codes"].sum() == 30
  assert found["text"].features.shape == (47, 9, 4)
  assert not found["text"].features[:37, 6:].any()
  assert found["text"].lost.sum() == 9 and not found["text"].lost[:37].any()
  # Validation has the modality too, without any step of it.
  assert whole.splits["valid"].modalities["vision"].lengths.tolist() == [0] * 11
  hidden = dataclasses.replace(
    first.splits["train"], available=np.asarray([[True, False]] * 37)
  )
  masked = dataclasses.replace(first, splits={**first.splits, "train": hidden})
  table = joint.join([masked, _emotional()]).splits["train"].available
  assert table.tolist() == [[True, False]] * 37 + [[True, True]] * 10


def test_shared_names_get_the_number_of_their_corpus():
  first = toy.corpus()
  train = joint.join([first, toy.corpus((5, 1, 1), 3)]).splits["train"]
  assert len(set(train.ids.tolist())) == 42
  assert train.ids[0] == "0:v0$_$train0" and train.ids[37] == "1:v0$_$train0"
  assert train.ids[36] == first.splits["train"].ids[36]
  assert not set(train.groups[:37]) & set(train.groups[37:])


def test_corpora_that_contradict_each_other_are_refused():
  first, second = toy.corpus(), _emotional()
  narrow = dataclasses.replace(
    second,
    tasks={**second.tasks, "sentiment": Task("regression", -1.0, 1.0, protocol="sims")},
  )
  with pytest.raises(
    UserError, match=r"'sentiment' is a number in \[-3, 3\].*\[-1, 1\]"
  ):
    joint.join([first, narrow])
  classes = Task("classes", classes=("a", "b"), protocol="classes")
  other = dataclasses.replace(first, tasks={"emotion": classes})
  with pytest.raises(UserError, match="binary of happy, sad, fear.*classes of a, b"):
    joint.join([second, other])
  wide = Sequences(np.zeros((10, 2, 6), np.float32), np.ones(10, np.int32))
  with pytest.raises(UserError, match="audio is 3 wide in 'toy' and 6 in 'emotional'"):
    joint.join([first, _emotional(train={"audio": wide})])
  dialogues = dataclasses.replace(
    first.splits["train"], available=np.ones((37, 6, 2), bool)
  )
  spoken = dataclasses.replace(first, splits={**first.splits, "train": dialogues})
  with pytest.raises(UserError, match="dialogues cannot be joined"):
    joint.join([spoken, second])


def test_batches_draw_from_all_corpora_equally_and_see_every_sample():
  sources = (37, 10, 3)
  order = jax.jit(
    lambda seed, epoch: batches.epoch_order(seed, epoch, 50, 12, sources=sources)
  )
  rows = np.asarray(order(0, 0))
  assert joint.epoch_size(50, sources) == 111 and rows.shape == (10, 12)
  assert (rows[-1, 3:] == -1).all()
  flat = rows.ravel()[:111]
  source = np.digitize(flat, [37, 47])
  np.testing.assert_array_equal(source, np.tile([0, 1, 2], 37))
  counts = np.bincount(flat, minlength=50)
  assert (counts[:37] == 1).all()
  assert counts[37:47].min() >= 3 and counts[37:47].max() <= 4
  assert counts[47:].min() >= 12 and counts[47:].max() <= 13
  # Each pass over a smaller corpus is a permutation of it.
  assert sorted(flat[1::3][:10]) == sorted(flat[1::3][10:20]) == list(range(37, 47))
  assert not np.array_equal(flat[1::3][:10], flat[1::3][10:20])
  np.testing.assert_array_equal(rows, order(0, 0))
  assert not np.array_equal(rows, order(0, 1))
  assert not np.array_equal(rows, order(1, 0))
  # One source is the plain order; a traced seed gives the same numbers.
  plain = batches.epoch_order(0, 0, 50, 12)
  np.testing.assert_array_equal(batches.epoch_order(0, 0, 50, 12, sources=(50,)), plain)
  several = jax.vmap(order, in_axes=(0, None))(jnp.arange(2), 0)
  np.testing.assert_array_equal(several[0], rows)


def test_a_run_reads_further_files_and_counts_its_steps(tmp_path, monkeypatch):
  monkeypatch.setitem(models.SYSTEMS, "toy", toy.SYSTEM)
  npz.save(toy.corpus(), tmp_path / "first.npz")
  npz.save(_emotional(), tmp_path / "second.npz")
  config = change(
    toy.config(),
    data={
      "path": str(tmp_path / "first.npz"),
      "extra_train_paths": (str(tmp_path / "second.npz"),),
    },
  )
  found, corpus, pipeline, description, _ = prepare.prepare(config)
  assert found.spec.sources == (37, 10) and found.spec.train_size == 74
  assert set(found.spec.tasks) == {"sentiment", "emotion"}
  assert description["splits"]["train"]["samples"] == 47
  assert description["notes"]["joined"][0]["file"]["name"] == "second.npz"
  assert from_json(to_json(found)) == found
  # Another file to evaluate on stands alone.
  alone = prepare.reload(found, pipeline, str(tmp_path / "second.npz"))
  assert len(alone.splits["train"]) == 10
  again = prepare.reload(found, pipeline)
  assert len(again.splits["train"]) == len(corpus.splits["train"])
