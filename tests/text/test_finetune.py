"""Encoders trained with a model: where they start, what moves, what a run keeps."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import tiny_encoder
import tiny_systems
import toy

from configs import lf_dnn
from msa_jax import config as config_lib
from msa_jax import train_state
from msa_jax.errors import UserError
from msa_jax.runs import prepare, run
from msa_jax.step import optimizer as optim
from msa_jax.step import recipe
from msa_jax.step.balance import omega
from msa_jax.text import finetune as tuning
from msa_jax.text import weights


@pytest.fixture
def folder(tmp_path):
  return tiny_encoder.folder(tmp_path / "encoder")


@pytest.fixture
def reading(monkeypatch):
  """Runs read the corpus of tokens, whatever file they name."""
  monkeypatch.setattr(prepare, "load", lambda config: tiny_encoder.corpus())


def config(folder, finetune="all", **optim_options):
  made = lf_dnn.get_config()
  with made.unlocked():
    made.model.hidden = {"text": 4, "audio": 4}
    made.model.update({"text_out": 4, "post": 4})
    made.data.update({"modalities": ("text", "audio"), "align": "none"})
    made.data.standardize = ("audio",)
    made.optim.update(
      {"epochs": 1, "batch_size": 8, "weight_decay": 0.1, **optim_options}
    )
    made.text.update({"input": "encoder", "encoder": folder, "finetune": finetune})
    made.text.learning_rate = 1e-2
  return made


def same(ours, theirs):
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_every_seed_starts_from_the_checkpoint_and_shapes_need_none(folder, reading):
  prepared = prepare.prepare(config(folder)).config
  made = recipe.build(prepared)
  states = jax.jit(jax.vmap(made.init))(np.arange(2))
  loaded = weights.load(folder).params
  for lane in range(2):
    same(jax.tree.map(lambda leaf: leaf[lane], states.params["text_encoder"]), loaded)  # noqa: B023
  heads = states.params["last_audio"]["kernel"]
  assert np.any(heads[0] != heads[1])
  shutil.rmtree(folder)
  shapes = jax.eval_shape(made.init, 0).params["text_encoder"]
  jax.tree.map(lambda leaf, shape: leaf.shape == shape.shape or 1 / 0, loaded, shapes)


def test_a_run_trains_the_top_layer_keeps_it_and_needs_no_checkpoint_again(
  folder, reading, tmp_path
):
  work = tmp_path / "run"
  trained = run.train(config(folder, "top_1"), work)
  before = weights.split(weights.load(folder).params, 1)
  shutil.move(folder, tmp_path / "elsewhere")
  resolved, state = train_state.load(str(work))
  after = state.params["text_encoder"]
  for part in ("embeddings", "lower"):
    same(after[part], before[part])
  moved = jax.tree.map(lambda a, b: np.any(a != b), before["layers"], after["layers"])
  assert all(jax.tree.leaves(moved))
  moments = [
    leaf
    for path, leaf in jax.tree_util.tree_flatten_with_path(state.opt_state)[0]
    if "lower" in str(path) or "embeddings" in str(path)
  ]
  assert not moments
  again = run.evaluate(work)
  assert again["test"] == trained["splits"]["test"]
  with pytest.raises(UserError, match="no such folder"):
    train_state.export_encoder(str(work), str(tmp_path / "exported"))
  shutil.move(tmp_path / "elsewhere", folder)
  train_state.export_encoder(str(work), str(tmp_path / "exported"))
  exported = weights.load(str(tmp_path / "exported"))
  same(weights.split(exported.params, 1), jax.tree.map(np.asarray, after))
  assert exported.config == tuning.encoder_config(resolved)


def test_norms_and_biases_of_stacked_layers_are_not_decayed():
  kinds = {"kernel": jnp.ones((2, 3, 3)), "bias": jnp.ones((2, 3))}
  norm = {"scale": jnp.ones((2, 3)), "bias": jnp.ones((2, 3))}
  layers = {"query": kinds, "output_norm": norm}
  embeddings = {"word": jnp.ones((5, 3)), "scale": jnp.ones(3), "bias": jnp.ones(3)}
  params = {
    "text_encoder": {"layers": layers, "embeddings": embeddings},
    "head": {"kernel": jnp.ones((3, 1)), "bias": jnp.ones(1)},
  }
  decayed = {"kernel", "word"}
  for name in ("adamw", "adam"):
    made = toy.config(
      name=name, weight_decay=0.5, warmup_fraction=0.0, schedule="constant"
    )
    optimizer = optim.build(made, lambda path: "new")
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    for path, leaf in jax.tree_util.tree_flatten_with_path(updates)[0]:
      inside = path[0].key == "text_encoder"
      # The L2 penalty of `adam` is on all of a network from scratch.
      expected = path[-1].key in decayed or (name == "adam" and not inside)
      assert np.all(leaf != 0.0) == expected, (name, path)


def test_the_encoder_has_a_learning_rate_of_its_own_and_is_the_text_s_network(folder):
  made = tiny_systems.encoding("awf", folder)
  assert optim.learning_rates(made)["text_encoder"] == made.text.learning_rate
  path = ("text_encoder", "layers", "query", "kernel")
  from msa_jax.models import SYSTEMS

  assert SYSTEMS["awf"].partition(path) == "text_encoder"
  assert SYSTEMS["mmolre"].shared(path) == "text_encoder"
  assert omega.owner_of(path, ("text", "audio")) == "text"


def linguistic(corpus):
  def add(split):
    text = split.modalities["text"]
    ids = {n: text.ids["tokens"] % rows for n, rows in tuning.LINGUISTIC}
    text = dataclasses.replace(text, ids={**text.ids, **ids})
    return dataclasses.replace(split, modalities={**split.modalities, "text": text})

  splits = {name: add(split) for name, split in corpus.splits.items()}
  return dataclasses.replace(corpus, splits=splits)


def test_linguistic_tables_start_at_zero_and_are_trained(folder, monkeypatch):
  corpus = linguistic(tiny_encoder.corpus())
  monkeypatch.setattr(prepare, "load", lambda config: corpus)
  made = config(folder, weight_decay=0.0, warmup_fraction=0.0)
  with made.unlocked():
    made.text.linguistic = True
  made, corpus = train_state.prepare(made)
  state = train_state.create(made)
  batch = jax.device_get(train_state.whole_split(made, corpus, "valid"))
  after, _ = jax.jit(lambda s, b: train_state.train_step(made, s, b))(state, batch)
  for name, rows in tuning.LINGUISTIC:
    table = state.params["text_encoder"]["embeddings"][name]
    assert table.shape == (rows, 8) and not np.any(table)
    assert np.any(after.params["text_encoder"]["embeddings"][name] != 0.0)
  tuning.export(made, after.params, folder + "/out")  # the format has no such tables
  assert weights.load(folder + "/out").config.extras == ()


def test_what_contradicts_the_encoder_or_the_corpus_is_one_line(folder, reading):
  with pytest.raises(UserError, match="'top_3': the encoder has 2 layers"):
    prepare.prepare(config(folder, "top_3"))
  wrong = config(folder, "top_1")
  with wrong.unlocked():
    wrong.text.linguistic = True
  with pytest.raises(UserError, match="has no pos, word_polarity, sentence_polarity"):
    prepare.prepare(wrong)
  wrong.spec.ids = {"text": ("tokens",)}
  with pytest.raises(UserError, match="tables lie below all layers"):
    tuning.encoder_spec(wrong)
  with pytest.raises(UserError, match="text has no tokens"):
    config_lib.resolve(config(folder), toy.corpus())
  made = prepare.prepare(config(folder)).config
  dialogues = made.copy_and_resolve_references()
  with dialogues.unlocked():
    dialogues.spec.utterances = 4
  with pytest.raises(UserError, match="config.data.sample_unit='dialogue'"):
    recipe.build(dialogues)
  tiny_encoder.folder(tiny_encoder.pathlib.Path(folder), n_layers=1)
  with pytest.raises(UserError, match="holds another encoder"):
    tuning.pretrained(made)
  features = ml_collections.ConfigDict(
    {"text": {"input": "features", "finetune": "none"}}
  )
  with pytest.raises(UserError, match="the run trained no text encoder"):
    tuning.export(features, {}, folder)
