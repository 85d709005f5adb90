"""Frozen features: the encoder's, made once, kept, and the same by every way in."""

import dataclasses
import functools
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_encoder
import tiny_text
from changes import change

from msa_jax import train_state
from msa_jax.data import __main__ as data_main
from msa_jax.data.readers import read
from msa_jax.errors import UserError
from msa_jax.runs import prepare
from msa_jax.text import features, weights
from msa_jax.text.bert import TextEncoder


@pytest.fixture(scope="module")
def path(tmp_path_factory):
  return tiny_text.folder(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def table(tmp_path):
  """A csv file of the tiny corpus's transcripts."""
  lines = ["id,text,label,mode"]
  for name, texts in tiny_text.TEXTS.items():
    lines += [f'{name}{i},"{text}",{i},{name}' for i, text in enumerate(texts)]
  (tmp_path / "c.csv").write_text("\n".join(lines) + "\n")
  return tmp_path / "c.csv"


def test_features_are_the_last_states_of_each_text_alone(path):
  (corpus,) = features.with_text([tiny_text.corpus()], tiny_text.group(path))
  loaded = weights.load(path)
  params = jax.tree.map(jnp.asarray, loaded.params)
  apply = jax.jit(
    lambda ids: TextEncoder(loaded.config).apply(
      {"params": params}, ids, jnp.ones(ids.shape, bool)
    )[-1]
  )
  text = corpus.splits["train"].modalities["text"]
  assert text.features.dtype == np.float16 and not text.ids
  assert text.features.shape == (4, 12, 8)
  made = tiny_text.group(path, finetune="all")
  (ids,) = features.with_text([tiny_text.corpus()], made)
  tokens = ids.splits["train"].modalities["text"].ids["tokens"]
  for row in (0, 3):
    length = int(text.lengths[row])
    alone = apply(jnp.asarray(tokens[row : row + 1, :length]))[0]
    np.testing.assert_allclose(text.features[row, :length], alone, atol=2e-3)
    assert not text.features[row, length:].any()
  empty = corpus.splits["test"].modalities["text"]
  assert empty.lengths[1] == 0 and not empty.features[1].any()
  extras = corpus.splits["train"].extras
  assert set(extras) == {"text_words", "text_tokens"}
  np.testing.assert_array_equal(extras["text_tokens"], tokens)
  assert len(corpus.notes["text"]["encoder"]["sha256"]) == 64


def test_batches_of_many_lengths_put_every_state_in_its_place():
  # An encoder of known states: one-hot words, no layers' influence to speak of.
  lengths = np.random.default_rng(0).integers(0, 12, 70).astype(np.int32)
  config = weights.config_of({**tiny_encoder.OPTIONS, "num_hidden_layers": 1})
  model = TextEncoder(config)
  ids = np.random.default_rng(1).integers(1, 29, (70, 11)).astype(np.int32)
  zero = model.init(jax.random.key(0), jnp.asarray(ids[:1]), jnp.ones((1, 11), bool))
  params = jax.tree.map(jnp.zeros_like, zero["params"])
  word = jnp.asarray(np.random.default_rng(2).normal(size=(29, 8)), jnp.float32)
  ones = {name: jnp.ones(8) for name in ("scale",)}
  params["embeddings"] |= {"word": word, **ones}
  for norm in ("attention_norm", "output_norm"):
    params["layers"][norm]["scale"] = jnp.ones((1, 8))
  text = dataclasses.replace(
    tiny_text.corpus().splits["train"].modalities["audio"],
    features=np.zeros((70, 11, 0), np.float32),
    lengths=lengths,
    ids={"tokens": ids},
  )
  flat = features.last_states(config, params, text)
  table = np.asarray(word, np.float64)
  table = (table - table.mean(1, keepdims=True)) / table.std(1, keepdims=True)
  expected = [table[row[:length]] for row, length in zip(ids, lengths, strict=True)]
  np.testing.assert_allclose(flat, np.concatenate(expected), atol=2e-3)


def test_features_are_made_once_and_again_when_anything_changes(path, monkeypatch):
  calls = []
  original = features.last_states
  monkeypatch.setattr(
    features, "last_states", lambda *a: calls.append(1) or original(*a)
  )
  group = tiny_text.group(path, cache=f"{path}/other")
  (first,) = features.with_text([tiny_text.corpus()], group)
  (second,) = features.with_text([tiny_text.corpus()], group)
  assert len(calls) == 2  # of two splits
  for name in first.splits:
    np.testing.assert_array_equal(
      first.splits[name].modalities["text"].features,
      second.splits[name].modalities["text"].features,
    )
  kept = sorted(pathlib.Path(path, "other").iterdir())
  assert [file.suffix for file in kept] == [".npy", ".npy"]
  kept[0].write_bytes(kept[0].read_bytes()[:100])  # cut off
  features.with_text([tiny_text.corpus()], group)
  assert len(calls) == 3
  features.with_text(
    [tiny_text.corpus()], tiny_text.group(path, max_length=4, cache=group.cache)
  )
  assert len(calls) == 5


def test_a_folder_that_cannot_be_written_is_a_warning(path, tmp_path, caplog):
  (tmp_path / "file").write_text("")
  group = tiny_text.group(path, cache=str(tmp_path / "file"))
  (corpus,) = features.with_text([tiny_text.corpus()], group)
  assert corpus.splits["train"].modalities["text"].features.any()
  assert "text features are not kept" in caplog.text


def test_features_are_kept_in_the_users_cache_folder(monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", "/c")
  assert features.cache_folder() == pathlib.Path("/c/msa_jax/text")


def run_config(path, table, **text):
  from configs import mmolre

  return change(
    mmolre.get_config("mosi"),
    model={"modalities": ("text",)},
    data={"path": str(table), "max_steps": 0},
    train={"selection_split": "none"},
  ).replace(text=tiny_text.group(path, **text))


def test_a_run_reads_transcripts_and_later_files_are_cut_like_its_own(path, table):
  prepared = prepare.prepare(run_config(path, table))
  assert prepared.config.spec.widths == {"text": 8}
  assert prepared.config.text.max_length == 12
  assert prepared.description["notes"]["text"]["max_length"] == 12
  again = prepare.reload(prepared.config, prepared.pipeline, "")
  long = table.with_name("new.csv")
  long.write_text("text\n" + "good film " * 20 + "\nbad\n")
  new = prepare.reload(prepared.config, prepared.pipeline, str(long))
  for corpus, split in ((prepared.corpus, "train"), (again, "train"), (new, "predict")):
    assert corpus.splits[split].modalities["text"].features.shape[1:] == (12, 8)
  np.testing.assert_array_equal(
    again.splits["test"].modalities["text"].features,
    prepared.corpus.splits["test"].modalities["text"].features,
  )


def test_features_of_another_encoder_are_not_taken_for_a_run_s_own(table, tmp_path):
  folder = tiny_text.folder(tmp_path / "encoder")
  prepared = prepare.prepare(run_config(folder, table))
  tiny_text.folder(tmp_path / "encoder", seed=1)  # as large, of other values
  with pytest.raises(UserError, match="features of 'c' are of another encoder"):
    prepare.reload(prepared.config, prepared.pipeline, "")
  tuned = change(prepared.config, text={"finetune": "all"})
  prepare.reread(tuned, "")  # its own is in its checkpoints


def test_a_run_that_trains_its_encoder_gets_ids_for_it(path, table):
  config = run_config(path, table, finetune="all", linguistic=True)
  prepared = prepare.prepare(config)
  spec = prepared.config.spec
  assert spec.ids["text"] == ("pos", "sentence_polarity", "tokens", "word_polarity")
  assert spec.widths["text"] == 8 and spec.encoder.n_layers == 2
  batch = train_state.whole_split(prepared.config, prepared.corpus, "test")
  state = jax.eval_shape(functools.partial(train_state.create, prepared.config, seed=0))
  made = jax.eval_shape(
    functools.partial(train_state.predict, prepared.config), state, batch
  )
  assert made.predictions["sentiment"].shape == (3,)
  assert state.params["text_encoder"]["embeddings"]["pos"].shape == (5, 8)


def test_an_encoder_for_a_run_without_text_is_refused(path, table):
  config = change(run_config(path, table), data={"modalities": ("audio",)})
  with pytest.raises(UserError, match="leaves out the text"):
    prepare.load(config)


def test_joined_corpora_have_one_width_and_length(path, table):
  paths = {"extra_train_paths": (str(table),)}
  config = change(run_config(path, table), data=paths)
  joined = prepare.load(config).splits["train"]
  assert joined.modalities["text"].features.shape == (8, 12, 8)
  first, second = np.split(joined.modalities["text"].features, 2)
  np.testing.assert_array_equal(first, second)


def test_the_command_adds_features_to_a_file_and_keeps_the_rest(path, table, capsys):
  out = table.with_name("out.npz")
  command = ["features", f"--encoder={path}", str(table), f"--output={out}"]
  assert data_main.main([*command, f"--cache={path}/cache"]) == 0
  made = read(out)
  (expected,) = features.with_text([read(table, bare_text=True)], tiny_text.group(path))
  for name, split in expected.splits.items():
    found = made.splits[name]
    np.testing.assert_array_equal(
      found.modalities["text"].features, split.modalities["text"].features
    )
    np.testing.assert_array_equal(found.labels["sentiment"], split.labels["sentiment"])
    assert found.raw_text.tolist() == split.raw_text.tolist()
  assert data_main.main([*command, "--force", "--max-length=2"]) == 2
  assert "max_length=2 must be 0" in capsys.readouterr().err


def test_without_network_an_unknown_name_is_one_line_and_code_two(table, tmp_path):
  """In a process of its own, as users start it."""
  environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
  command = [
    sys.executable,
    "-m",
    "msa_jax.data",
    "features",
    "--encoder=nobody/nothing",
  ]
  done = subprocess.run(
    [*command, str(table), f"--output={tmp_path / 'o.npz'}"],
    env=environment,
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 2
  (line,) = done.stderr.strip().splitlines()
  assert "https://huggingface.co/nobody/nothing into a folder and give its path" in line
  assert not (tmp_path / "o.npz").exists()


def test_means_of_a_frozen_encoder_leave_out_what_is_lost(path):
  group = tiny_text.group(path)
  (tokens,) = features.with_text(
    [tiny_text.corpus()], dataclasses.replace(group, finetune="all")
  )
  text = tokens.splits["test"].modalities["text"]
  lost = np.zeros(text.ids["tokens"].shape, bool)
  lost[0, 1] = True
  text = dataclasses.replace(text, lost=lost)
  encode = features.encoder_of(group)
  assert encode is not None
  # What is lost is attended to by none, as inside a model.
  states = encode(text).astype(float)
  # As `runs.references` gives it, whose samples have a single step of features.
  one = dataclasses.replace(text, features=text.features[:, :1])
  found = features.frozen_means(one, group)
  for row, length in enumerate(text.lengths):
    kept = [states[row, t] for t in range(length) if not lost[row, t]]
    expected = np.mean(kept, axis=0) if kept else np.zeros(states.shape[2])
    np.testing.assert_allclose(found[row], expected, rtol=1e-5, atol=1e-6)
  assert not found[1].any() and found[0].any()
