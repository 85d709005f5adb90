"""A text encoder trained inside every system of the table: it takes part, and tokens
that are not there do not, bit for bit."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_encoder
import tiny_systems
from changes import change

from msa_jax.models import SYSTEMS, with_text_encoder
from msa_jax.step import compose, recipe
from msa_jax.typing import ModelOutput

VISIBLE, HIDDEN = range(2, 12), range(12, 29)  # ids that tokens have


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tiny_encoder.folder(tmp_path_factory.mktemp("encoder"), n_layers=1)


def tokens(batch, seed):
  """The batch with token ids for text; where there is none, ids by the seed."""
  text = batch.modalities["text"]
  shape = text.mask.shape
  there = batch.available[:, :1] & batch.sample_mask[:, None] & text.mask & ~text.lost
  seen = np.random.default_rng(0).integers(VISIBLE.start, VISIBLE.stop, shape)
  other = np.random.default_rng(seed).integers(HIDDEN.start, HIDDEN.stop, shape)
  ids = {"tokens": jnp.where(there, seen, other).astype(jnp.int32)}
  text = text.replace(ids=ids, features=jnp.zeros((*shape, 0)))
  return batch.replace(modalities={**batch.modalities, "text": text})


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_a_step_trains_the_encoder_by_the_tokens_that_are_there_alone(name, folder):
  config = tiny_systems.encoding(name, folder)
  system = compose.build(config)
  params, collections = tiny_systems.variables(system)
  batch = tiny_systems.batch(config)
  batch = batch.replace(
    available=batch.available.at[1, 0].set(False),  # no text
    sample_mask=batch.sample_mask.at[2].set(False),  # filler
  )

  @jax.jit
  def step(batch):
    state = system.start(params, collections, jnp.zeros((), jnp.int32))
    return system.step(state, batch, 0)

  plain, other = step(tokens(batch, 1)), step(tokens(batch, 2))
  for ours, theirs in zip(jax.tree.leaves(plain), jax.tree.leaves(other), strict=True):
    np.testing.assert_array_equal(ours, theirs)
    assert np.isfinite(np.asarray(ours, float)).all()
  before, after = params["text_encoder"], plain[0].params["text_encoder"]
  moved = jax.tree.map(lambda a, b: np.asarray(a != b), before, after)
  words = np.any(moved["embeddings"]["word"], axis=1)
  assert words[list(VISIBLE)].any() and not words[list(HIDDEN)].any()
  del moved["layers"]["key"]["bias"]  # adds the same to every score of a query
  assert all(np.any(leaf) for leaf in jax.tree.leaves(moved["layers"]))


@pytest.mark.parametrize("condition", ["atv", "all"])
def test_momke_s_mixture_starts_from_the_encoder_of_its_text_expert(condition, folder):
  config = change(
    tiny_systems.encoding("momke", folder),
    model={"condition": condition, "stage2_mask": "condition", "stage1_epochs": 1},
    optim={"epochs": 2},
  )
  first, second = compose.stages_of(config)
  shapes = jax.eval_shape(compose.build(config, 0).init, 0).params

  def numbered(number):
    return jax.tree.map(lambda leaf: jnp.full(leaf.shape, number), shapes)

  kept = {name: first.keep(name, numbered(i)) for i, name in enumerate(first.tracks)}
  composed = first.compose(kept, numbered(9))
  text = list(first.tracks).index("text")
  assert all(np.all(x == text) for x in jax.tree.leaves(composed["text_encoder"]))
  assert set(composed) == set(shapes)
  path = ("text_encoder", "layers", "query", "kernel")
  # The branches of all conditions have one encoder: it is trained before them alone.
  assert first.trainable(path) and second.trainable(path) == (condition == "atv")


def test_the_encoder_computes_in_the_system_s_type_and_gives_float32(folder):
  config = tiny_systems.encoding("hgem", folder)
  config = change(config, model={"dtype": "bfloat16"}, text={"remat": True})
  model = compose.networks(config).outer
  assert model.dtype == jnp.bfloat16 and model.remat
  batch = recipe.example_batch(config.spec)

  def encode(batch):
    encoded = lambda module, batch: module.encoded(batch, False)  # noqa: E731
    return nn.init_with_output(encoded, model)(jax.random.key(0), batch)[0]

  text = jax.eval_shape(encode, batch).modalities["text"]
  assert text.features.dtype == jnp.float32 and not text.ids


class Presence(nn.Module):
  """A model in two parts whose tail tells which steps of the text it sees."""

  def encode(self, batch, *, train):
    return {"text": batch.modalities["text"].features}

  def tail(self, features, omega, batch, *, train):
    return ModelOutput({}, {"seen": batch.modalities["text"].mask})


def test_the_tail_of_a_balanced_system_does_not_see_lost_tokens(folder):
  config = tiny_systems.encoding("awf", folder)
  batch = tiny_systems.batch(config)
  text = batch.modalities["text"]
  lost = text.mask.at[1:].set(False)  # every token of the first sample
  batch = batch.replace(
    modalities={**batch.modalities, "text": text.replace(lost=lost)}
  )
  model = with_text_encoder.with_encoder(
    Presence(), config.text, config.corpus_spec, sees_dropped=False
  )
  output = model.apply({}, {}, {}, batch, train=False, method="tail")
  expected = text.mask & ~lost
  np.testing.assert_array_equal(output.features["seen"], expected)
