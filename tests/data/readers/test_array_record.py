"""Corpora on disk: what was stored comes back, and trains to the same numbers."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest
import toy
from changes import change
from ragged import fit_apply

from msa_jax import models
from msa_jax.data import readers, synthetic
from msa_jax.data.__main__ import main
from msa_jax.data.batching import batches
from msa_jax.data.lazy import LazyFeatures
from msa_jax.data.readers import array_record
from msa_jax.data.synthetic.generator import read_options
from msa_jax.errors import UserError
from msa_jax.runs import run
from msa_jax.typing import Corpus, Sequences, Split, Task

TASKS = {
  "sentiment": Task("regression", low=-3.0, high=3.0),
  "emotion": Task("classes", classes=("a", "b", "c"), protocol="classes"),
  "questions": Task("binary", classes=("x", "y"), protocol="emotions"),
}


def _split(seed, size=300):
  """Ragged samples: some without audio, some steps lost, some labels lacking."""
  rng = np.random.default_rng(seed)
  modalities = {}
  for name, steps, width, kind in (("text", 4, 3, "f2"), ("audio", 7, 2, "f4")):
    lengths = rng.integers(name == "text", steps + 1, size).astype(np.int32)
    lengths[0] = steps
    real = np.arange(steps) < lengths[:, None]
    lost = real & (rng.random(real.shape) < 0.1)
    features = (5 + rng.standard_normal((size, steps, width))).astype(kind)
    features[~real | lost] = 0
    ids = {"words": np.where(real, rng.integers(1, 9, real.shape), 0).astype(np.int32)}
    modalities[name] = Sequences(features, lengths, lost, ids)
  score = rng.uniform(-3, 3, size).astype(np.float32)
  score[1] = np.nan
  return Split(
    ids=np.array([f"v{seed}_{i // 9}$_${i}" for i in range(size)]),
    modalities=modalities,
    labels={
      "sentiment": score,
      "emotion": rng.integers(-1, 3, size).astype(np.int32),
      "questions": rng.integers(-1, 2, (size, 2)).astype(np.int32),
    },
    raw_text=np.array([f"so, {i} \u00e9l\u00e9phants" for i in range(size)]),
    groups=np.array([f"v{seed}_{i // 9}" for i in range(size)]),
    extras={"speaker": rng.integers(0, 2, size)},
  )


CORPUS = Corpus("mine", {"train": _split(0), "valid": _split(1, 11)}, TASKS, {"a": 1})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("stored") / "corpus"
  array_record.store(CORPUS, folder)
  return folder


def _assert_same(one, other):
  for field in dataclasses.fields(Split):
    a, b = getattr(one, field.name), getattr(other, field.name)
    if field.name == "modalities":
      assert set(a) == set(b)
      for name in a:
        for key in ("features", "lengths", "lost"):
          mine, found = getattr(a[name], key), getattr(b[name], key)
          assert mine.dtype == found.dtype and mine.shape == found.shape
          np.testing.assert_array_equal(mine, np.asarray(found))
        assert set(a[name].ids) == set(b[name].ids)
        for key, values in a[name].ids.items():
          np.testing.assert_array_equal(values, b[name].ids[key])
    elif isinstance(a, dict):
      assert set(a) == set(b)
      for key, values in a.items():
        np.testing.assert_array_equal(values, b[key])
    elif a is not None:
      np.testing.assert_array_equal(a, b)


def test_a_stored_corpus_comes_back_as_it_was(folder):
  found = readers.read(folder)
  assert (found.name, found.tasks) == (CORPUS.name, CORPUS.tasks)
  assert found.notes["a"] == 1 and found.notes["file"]["name"] == "corpus"
  for name, split in CORPUS.splits.items():
    _assert_same(split, found.splits[name])


def test_records_are_read_without_this_library(folder):
  import tensorflow_datasets as tfds

  place = folder / "utterances" / "1.0.0"
  source = tfds.builder_from_directory(str(place)).as_data_source(split="valid")
  split = CORPUS.splits["valid"]
  record = source[4]
  assert record["raw_text"].decode() == split.raw_text[4]
  length = split.modalities["text"].lengths[4]
  np.testing.assert_array_equal(
    record["text"], split.modalities["text"].features[4, :length]
  )
  np.testing.assert_array_equal(record["label_questions"], split.labels["questions"][4])
  assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
  "key",
  [
    3,
    -1,
    slice(2, 9),
    np.array([8, 1, 1]),
    np.array([], int),
    np.arange(11) % 3 == 0,
    (slice(None), slice(0, 2)),
    (slice(1, 4), slice(0, 2), 1),
    (np.array([5, 2]), slice(None), slice(1, None)),
  ],
)
def test_lazy_features_are_indexed_like_arrays(key):
  values = np.random.default_rng(0).standard_normal((11, 4, 3))
  lazy = LazyFeatures(values.shape, values.dtype, lambda rows: values[rows])
  assert lazy.nbytes == values.nbytes and len(lazy) == 11
  np.testing.assert_array_equal(np.asarray(lazy[key]), values[key])
  assert lazy[key].shape == values[key].shape


def test_only_the_rows_that_are_asked_for_are_read():
  read = []
  values = np.zeros((1000, 4, 3))

  def note(rows):
    read.append(len(rows))
    return values[rows]

  lazy = LazyFeatures(values.shape, values.dtype, note)[:, :2]
  assert lazy.shape == (1000, 2, 3) and read == []
  assert lazy[[4, 7]].shape == (2, 2, 3) and read == [2]


@pytest.mark.parametrize(
  "options",
  [
    {"align": "none", "max_steps": 3, "clusters": 4},
    {"align": "pool", "max_steps": 0, "clusters": 0},
  ],
)
def test_preprocessing_on_disk_gives_the_numbers_of_memory(folder, options):
  lazy = readers.read(folder)
  fitted, expected = fit_apply(CORPUS, **options)
  again, ready = fit_apply(lazy, **options)
  assert fitted.states["standardize"]
  for name, state in fitted.states.items():
    for key, values in state.items():
      np.testing.assert_array_equal(values, again.states[name][key])
  audio = ready.splits["train"].modalities["audio"]
  assert isinstance(audio.features, LazyFeatures)
  _assert_same(expected.splits["train"], ready.splits["train"])


def test_batches_from_disk_are_those_from_memory(folder):
  split = readers.read(folder).splits["train"]
  order = np.asarray(batches.epoch_order(3, 1, len(split), 64))
  assert not batches.fits(split, 1000)
  expected = list(batches.stream(CORPUS.splits["train"], TASKS, order))
  found = list(batches.stream(split, TASKS, order, first_step=2))
  assert len(found) == len(order) - 2
  for one, other in zip(expected[2:], found, strict=True):
    np.testing.assert_equal(jax.tree.leaves(one), jax.tree.leaves(other))


def test_a_stored_split_that_fits_the_device_is_read_as_a_whole(folder):
  expected = batches.whole(CORPUS.splits["train"], TASKS)
  found = jax.device_put(batches.whole(readers.read(folder).splits["train"], TASKS))
  for one, other in zip(*map(jax.tree.leaves, (expected, found)), strict=True):
    np.testing.assert_array_equal(one, other)


def test_a_run_from_disk_ends_with_the_parameters_of_one_from_memory(
  tmp_path, monkeypatch
):
  monkeypatch.setitem(models.SYSTEMS, "toy", toy.SYSTEM)
  array_record.store(toy.corpus(), tmp_path / "corpus")
  hashes = []
  for path, budget in (("", 4096), (str(tmp_path / "corpus"), 0)):
    data = {"path": path, "device_budget_mib": budget}
    config = change(toy.config(epochs=2), data=data)
    corpus = None if path else toy.corpus()
    summary = run.train(config, tmp_path / f"run{budget}", corpus)
    hashes.append(summary["parameter_hash"])
  assert hashes[0] == hashes[1]


def test_large_training_splits_are_drawn_in_independent_parts(monkeypatch):
  monkeypatch.setattr(synthetic.corpus, "_PART", 8)
  options = read_options([("preset", "tiny")])
  parts = [make() for make in synthetic.training_parts(options, 20)]
  assert [len(part) for part in parts] == [8, 8, 4]
  names = np.concatenate([part.ids for part in parts])
  assert len(set(names)) == 20
  first, second = (part.modalities["audio"].features for part in parts[:2])
  assert not np.array_equal(first, second)


def test_the_command_stores_files_and_synthetic_corpora(tmp_path, folder, capsys):
  assert main(["store", str(folder), str(tmp_path / "copy")]) == 0
  _assert_same(CORPUS.splits["valid"], readers.read(tmp_path / "copy").splits["valid"])
  assert main(["store", "synthetic", str(tmp_path / "none")]) == 2
  assert "--utterances=0 must be positive" in capsys.readouterr().err
  assert main(["store", str(folder), "x", "--utterances=3"]) == 2
  assert "goes with 'synthetic' only" in capsys.readouterr().err
  assert main(["store", str(folder), str(folder)]) == 2
  assert "is not empty" in capsys.readouterr().err


def test_parts_that_differ_are_refused(tmp_path):
  narrow = {"text": CORPUS.splits["valid"].modalities["text"]}
  other = dataclasses.replace(CORPUS.splits["valid"], modalities=narrow)
  corpus = dataclasses.replace(CORPUS, splits={**CORPUS.splits, "valid": other})
  with pytest.raises(UserError, match="mine, valid: the parts .* must be alike"):
    array_record.store(corpus, tmp_path / "corpus")
  assert not array_record.is_stored(tmp_path / "corpus")


def test_splits_may_differ_in_what_they_lack(tmp_path):
  # Infinite cells in training only, say, and a test split without its labels.
  test = CORPUS.splits["valid"]
  text = dataclasses.replace(test.modalities["text"], lost=None)
  test = dataclasses.replace(
    test,
    ids=np.char.add(test.ids, "_test"),
    labels={},
    extras={},
    modalities={**test.modalities, "text": text},
  )
  corpus = dataclasses.replace(CORPUS, splits={**CORPUS.splits, "test": test})
  array_record.store(corpus, tmp_path / "corpus")
  found = readers.read(tmp_path / "corpus").splits["test"]
  assert not found.labels and not found.extras
  assert found.modalities["text"].lost is None
  features = found.modalities["text"].features
  np.testing.assert_array_equal(np.asarray(features), text.features)


def test_an_id_in_two_splits_is_refused_before_anything_is_written(tmp_path):
  splits = {**CORPUS.splits, "test": CORPUS.splits["valid"]}
  corpus = dataclasses.replace(CORPUS, splits=splits)
  with pytest.raises(UserError, match=r"id 'v1_0.*occurs in two splits"):
    array_record.store(corpus, tmp_path / "corpus")
  assert not (tmp_path / "corpus").exists()


def _damaged(tmp_path):
  array_record.store(
    dataclasses.replace(CORPUS, splits={"valid": CORPUS.splits["valid"]}),
    tmp_path / "corpus",
  )
  return tmp_path / "corpus", tmp_path / "corpus" / "utterances" / "1.0.0"


def test_a_folder_that_was_not_stored_whole_is_refused(tmp_path):
  (tmp_path / "corpus").mkdir()
  with pytest.raises(UserError, match=r"no columns\.npz"):
    readers.read(tmp_path / "corpus", format="stored")
  with pytest.raises(UserError, match="is a folder"):
    readers.read(tmp_path / "corpus")


def test_feature_files_do_not_go_with_a_folder(folder):
  with pytest.raises(UserError, match="MMSA pickles only, not folders"):
    readers.read(folder, features={"text": "x"})


def test_damaged_shards_are_named(tmp_path):
  folder, place = _damaged(tmp_path)
  (shard,) = place.glob("*.array_record-*")
  shard.write_bytes(shard.read_bytes()[:40])
  with pytest.raises(UserError, match="records of split 'valid' cannot be read"):
    readers.read(folder)
  (place / "dataset_info.json").unlink()
  with pytest.raises(UserError, match="cannot be opened"):
    readers.read(folder)


def test_columns_of_another_corpus_are_noticed(tmp_path, folder):
  mine, _ = _damaged(tmp_path)
  (mine / "columns.npz").write_bytes((folder / "columns.npz").read_bytes())
  with pytest.raises(UserError, match="0 records of split 'train' where"):
    readers.read(mine)
  renamed = _split(1, 11)
  renamed.ids[0] = "other"
  array_record.store(Corpus("x", {"valid": renamed}, TASKS), tmp_path / "other")
  (mine / "columns.npz").write_bytes((tmp_path / "other/columns.npz").read_bytes())
  with pytest.raises(UserError, match="record 0 of split 'valid' is 'v1_0"):
    readers.read(mine)


def test_feature_types_that_would_import_other_modules_are_refused(tmp_path):
  folder, place = _damaged(tmp_path)
  features = json.loads((place / "features.json").read_text())
  features["featuresDict"]["features"]["text"]["pythonClassName"] = "os.Evil"
  (place / "features.json").write_text(json.dumps(features))
  with pytest.raises(UserError, match=r"refused to load os\.Evil"):
    readers.read(folder)


def test_without_tensorflow_datasets_the_error_names_the_extra(folder, monkeypatch):
  monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
  with pytest.raises(UserError, match=r"pip install 'msa_jax\[stored\]'"):
    readers.read(folder)
