"""One sample that is far longer than the others does not make them as long."""

import dataclasses

import numpy as np
import pytest

from msa_jax import arrays, memory
from msa_jax.data.readers.cleaning import clean
from msa_jax.data.synthetic import SyntheticOptions, synthetic
from msa_jax.data.transforms.dialogues import group
from msa_jax.errors import UserError
from msa_jax.typing import Corpus, Sequences, Split


def test_a_long_row_of_features_is_named_before_there_is_an_array():
  rows = [np.ones((1, 4))] * 3000 + [np.ones((100_000, 4))]
  with pytest.raises(UserError, match="train, text would take 4.8 GB for 1.6 MB"):
    arrays.features(rows, "train, text")
  with pytest.raises(UserError, match="row 3000 has 100000 steps, half .* 1 at most"):
    arrays.features(rows, "train, text")
  assert arrays.features(rows[-20:], "text")[0].shape == (20, 100_000, 4)


def test_one_array_many_times_counts_once():
  rows = [np.ones((2000, 50))] * 5000
  with pytest.raises(UserError, match="would take 2 GB for 400 kB of content"):
    arrays.features(rows, "text")


def test_a_long_string_is_named_before_there_is_an_array():
  with pytest.raises(UserError, match="train, id would take .* row 1 has 1000000 char"):
    arrays.strings(["a", "b" * 10**6, *"c" * 1000], "train, id")
  assert arrays.strings(["a", "b" * 1000], "id").dtype == "<U1000"
  assert arrays.strings([], "id").shape == (0,)


def test_a_long_sample_of_one_split_does_not_pad_the_others():
  def split(n, steps):
    features = np.random.default_rng(n).random((n, steps, 50), np.float32)
    return Split(
      arrays.numbered(n, f"s{steps}"),
      {"text": Sequences(features, np.full(n, steps, np.int32))},
      {},
    )

  corpus = Corpus("c", {"train": split(2000, 1), "test": split(1, 10_000)}, {})
  with pytest.raises(
    UserError, match="text of split train would .* row 0 of split test has 10000 steps"
  ):
    clean(corpus)


def test_a_long_dialogue_is_named():
  n = 3000
  groups = np.array(["long"] * n + [f"d{i}" for i in range(n)])
  split = Split(
    arrays.numbered(2 * n, "train"),
    {"text": Sequences(np.ones((2 * n, 1, 8), np.float32), np.ones(2 * n, np.int32))},
    {},
    groups=groups,
  )
  with pytest.raises(UserError, match="dialogue 'train, long' has 3000 utterances"):
    group(Corpus("c", {"train": split}, {}))
  short = dataclasses.replace(split, groups=np.repeat(np.arange(n), 2).astype(str))
  assert group(Corpus("c", {"train": short}, {})).splits["train"].ids.shape == (n,)


def test_a_synthetic_corpus_that_does_not_fit_is_refused_before_it_is_made():
  options = SyntheticOptions(sizes=(2**30, 229, 686))
  with pytest.raises(UserError, match="steps and widths would take 216 TB"):
    synthetic(options)


def test_what_the_machine_has_not_is_refused(monkeypatch):
  monkeypatch.setattr(memory, "available", lambda: 2**28)
  memory.check("text", 2**28, 2**28)
  with pytest.raises(UserError, match="would take 537 MB; this machine has 268 MB"):
    memory.check("text", 2**29, 2**29)
  memory.check("text", 2**26, 1)  # small whatever there is in it


def test_available_memory_is_a_number_on_any_machine(monkeypatch):
  assert memory.available() > 2**20

  def absent(*_, **__):
    raise FileNotFoundError

  monkeypatch.setattr(memory.Path, "read_text", absent)
  assert memory.available() > 2**20
  monkeypatch.setattr(memory.os, "sysconf", absent)
  assert memory.available() == 2**63
