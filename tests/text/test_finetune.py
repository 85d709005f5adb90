"""Encoders trained with a model: where they start, what moves, what a run keeps."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_encoder
import tiny_systems
import toy
from changes import change, resolve

from configs import lf_dnn
from msa_jax import train_state
from msa_jax.config.options import TextConfig
from msa_jax.errors import UserError
from msa_jax.models.with_text_encoder import in_encoder_or
from msa_jax.runs import prepare, run
from msa_jax.step import compose
from msa_jax.step import optimizer as optim
from msa_jax.step.balance import omega
from msa_jax.text import finetune as tuning
from msa_jax.text import weights

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path):
  return tiny_encoder.folder(tmp_path / "encoder")


@pytest.fixture
def reading(monkeypatch):
  """Runs read the corpus of tokens, whatever file they name."""
  monkeypatch.setattr(prepare, "load", lambda config, **_: tiny_encoder.corpus())


def config(folder, finetune="all", linguistic=False, **optim_options):
  modalities = {"modalities": ("text", "audio"), "standardize": ("audio",)}
  return change(
    lf_dnn.get_config(),
    model={"hidden_dims": {"text": 4, "audio": 4}, "text_dim": 4, "post_dim": 4},
    data={**modalities, "align": "none"},
    optim={"epochs": 1, "batch_size": 8, "weight_decay": 0.1, **optim_options},
    text={
      "input": "encoder",
      "encoder": folder,
      "finetune": finetune,
      "linguistic": linguistic,
      "learning_rate": 1e-2,
    },
  )


def same(ours, theirs):
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_every_seed_starts_from_the_checkpoint_and_shapes_need_none(folder, reading):
  prepared = prepare.prepare(config(folder)).config
  made = compose.build(prepared)
  states = jax.jit(jax.vmap(made.init))(np.arange(2))
  loaded = weights.load(folder).params
  for lane in range(2):
    same(jax.tree.map(lambda leaf: leaf[lane], states.params["text_encoder"]), loaded)  # noqa: B023
  heads = states.params["last_audio"]["kernel"]
  assert np.any(heads[0] != heads[1])
  shutil.rmtree(folder)
  shapes = jax.eval_shape(made.init, 0).params["text_encoder"]
  jax.tree.map(lambda leaf, shape: leaf.shape == shape.shape or 1 / 0, loaded, shapes)


def test_an_encoder_from_scratch_has_its_own_values_for_every_seed(folder, reading):
  made = change(config(folder), text={"start": "scratch"})
  prepared = prepare.prepare(made).config
  states = jax.jit(jax.vmap(compose.build(prepared).init))(np.arange(2))
  words = states.params["text_encoder"]["embeddings"]["word"]
  assert np.any(words[0] != words[1])
  loaded = weights.load(folder).params["embeddings"]["word"]
  assert words[0].shape == loaded.shape
  # Of a normal distribution with deviation .02; the checkpoint's is .3.
  assert 0.015 < float(words.std()) < 0.025 < float(loaded.std())


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
  assert exported.config == resolved.spec.encoder


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
  rates = {"new": 0.1, "text_encoder": 0.1}
  for name in ("adamw", "adam"):
    made = toy.config(
      name=name, weight_decay=0.5, warmup_fraction=0.0, schedule="constant"
    )
    optimizer = optim.build(made.optim, 20, lambda path: "new", rates=rates)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    for path, leaf in jax.tree_util.tree_flatten_with_path(updates)[0]:
      inside = path[0].key == "text_encoder"
      # The L2 penalty of `adam` is on all of a network from scratch.
      expected = path[-1].key in decayed or (name == "adam" and not inside)
      assert np.all(leaf != 0.0) == expected, (name, path)


def test_the_encoder_has_a_learning_rate_of_its_own_and_is_the_text_s_network(folder):
  made = tiny_systems.encoding("awf", folder)
  made = change(
    made,
    optim={"learning_rate": 0.0, "warmup_fraction": 0.0, "schedule": "constant"},
    text={"learning_rate": 0.25},
  )
  recipe = compose.build(made)
  state = jax.jit(recipe.init)(0)
  after, _ = jax.jit(recipe.step)(state, tiny_systems.batch(made), 0)
  for name, before in state.params.items():
    moved = jax.tree.map(lambda a, b: np.any(a != b), before, after.params[name])
    assert any(jax.tree.leaves(moved)) == (name == "text_encoder")
  path = ("text_encoder", "layers", "query", "kernel")
  assert in_encoder_or(lambda path: "", path) == "text_encoder"
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
  monkeypatch.setattr(prepare, "load", lambda config, **_: corpus)
  made = config(folder, linguistic=True, weight_decay=0.0, warmup_fraction=0.0)
  made, corpus = train_state.prepare(made)
  state = train_state.create(made)
  batch = jax.device_get(train_state.whole_split(made, corpus, "valid"))
  after, _ = jax.jit(lambda s, b: train_state.train_step(made, s, b))(state, batch)
  for name, rows in tuning.LINGUISTIC:
    table = state.params["text_encoder"]["embeddings"][name]
    assert table.shape == (rows, 8) and not np.any(table)
    assert np.any(after.params["text_encoder"]["embeddings"][name] != 0.0)
  # The format has no such tables.
  tuning.export(made.text, made.spec.encoder, after.params, folder + "/out")
  assert weights.load(folder + "/out").config.extras == ()


def test_what_contradicts_the_encoder_or_the_corpus_is_one_line(folder, reading):
  with pytest.raises(UserError, match="'top_3': the encoder has 2 layers"):
    prepare.prepare(config(folder, "top_3"))
  with pytest.raises(UserError, match="has no pos, word_polarity, sentence_polarity"):
    prepare.prepare(config(folder, linguistic=True))
  with pytest.raises(UserError, match="tables lie below all layers"):
    tuning.encoder_sizes(config(folder, "top_1", linguistic=True).text)
  with pytest.raises(UserError, match="text has no tokens"):
    resolve(config(folder), toy.corpus())
  made = prepare.prepare(config(folder)).config
  dialogues = change(made, spec={"utterances": 4})
  with pytest.raises(UserError, match="config.data.sample_unit='dialogue'"):
    compose.build(dialogues)
  tiny_encoder.folder(tiny_encoder.pathlib.Path(folder), n_layers=1)
  with pytest.raises(UserError, match="holds another encoder"):
    tuning.pretrained(made.text, made.spec.encoder)
  with pytest.raises(UserError, match="the run trained no text encoder"):
    tuning.export(TextConfig(), made.spec.encoder, {}, folder)


def test_adapters_alone_are_trained_and_exported_as_plain_weights(
  folder, reading, tmp_path
):
  made = config(folder, "lora", weight_decay=0.0)
  made = change(
    made, text={"lora_rank": 2, "lora_alpha": 6.0, "lora_projections": ("value", "out")}
  )
  work = tmp_path / "run"
  trained = run.train(made, work)
  _, state = train_state.load(str(work))
  found = jax.device_get(state.params["text_encoder"])
  before = weights.split(weights.load(folder).params, 0)
  for part in ("embeddings", "lower"):
    same(found[part], before[part])
  assert all(np.any(leaf) for leaf in jax.tree.leaves(found["adapters"]))
  names = {str(p) for p, _ in jax.tree_util.tree_flatten_with_path(state.opt_state)[0]}
  assert not any("lower" in name or "embeddings" in name for name in names)
  train_state.export_encoder(str(work), str(tmp_path / "out"))
  merged = weights.load(str(tmp_path / "out")).params["layers"]
  for name, kinds in before["lower"].items():
    change_ = merged[name]["kernel"] - kinds["kernel"] if "kernel" in kinds else 0.0
    want = np.zeros_like(change_)
    if name in ("value", "attention"):
      pair = (found["adapters"][f"{name}_{part}"] for part in ("down", "up"))
      want = 3.0 * np.einsum("ldr,lre->lde", *pair)
    np.testing.assert_allclose(change_, want, atol=1e-6, err_msg=name)
  assert run.evaluate(work)["test"] == trained["splits"]["test"]
  # Another run starts from the merged weights; adapters of its own add nothing yet.
  start = {"from_run": str(work)}
  later, _ = train_state.prepare(change(made, init=start))
  params = jax.device_get(train_state.create(later).params["text_encoder"])
  np.testing.assert_allclose(
    params["lower"]["value"]["kernel"], merged["value"]["kernel"], atol=1e-6
  )
  assert not np.any(params["adapters"]["value_up"])


@pytest.mark.parametrize("finetune", ["top_1", "lora"])
def test_what_is_frozen_may_be_kept_in_half_the_size(folder, reading, finetune):
  wide, corpus = train_state.prepare(config(folder, finetune))
  narrow = change(wide, text={"frozen_dtype": "bfloat16"})
  batch = train_state.whole_split(wide, corpus, "valid")
  states = {}
  for made in (wide, narrow):
    recipe = compose.build(made)
    state = jax.jit(recipe.init)(0)
    states[made.text.frozen_dtype] = state, jax.jit(recipe.step)(state, batch, 0)[0]
  (first, _), (start, after) = states["float32"], states["bfloat16"]
  encoder, moved = start.params["text_encoder"], after.params["text_encoder"]
  trained = "adapters" if finetune == "lora" else "layers"
  for part, tree in encoder.items():
    dtype = jnp.float32 if part == trained else jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype(dtype)}
    if part != trained:
      same(tree, moved[part])
      rounded = jax.tree.map(
        lambda leaf: leaf.astype(jnp.bfloat16), first.params["text_encoder"][part]
      )
      same(tree, rounded)
  assert any(
    np.any(a != b)
    for a, b in zip(
      jax.tree.leaves(encoder[trained]), jax.tree.leaves(moved[trained]), strict=True
    )
  )


def test_adapters_that_make_no_sense_are_refused(folder, reading):
  for changes, message in (
    ({"frozen_dtype": "float16"}, "frozen_dtype='float16' must be one of"),
    ({"lora_rank": 0}, "lora_rank=0 and lora_alpha=16.0 must be"),
    ({"lora_projections": ("query", "query")}, "each once"),
    ({"lora_projections": ("output",)}, "must be one or more of"),
    ({"finetune": "lower_2"}, "must be none, all, top_<n> or lora"),
  ):
    with pytest.raises(UserError, match=message):
      prepare.prepare(change(config(folder, "lora"), text=changes))
