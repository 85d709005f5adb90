"""Training and predicting in length buckets gives what full padding gives."""

import dataclasses

import jax
import numpy as np
import pytest
import toy
from changes import change, resolve

from configs import derl, hgem, lf_lstm, tfn
from msa_jax import models
from msa_jax.data.batching import batches, buckets
from msa_jax.runs import run
from msa_jax.step import compose, recipe
from msa_jax.training.feed import Predictor, Steps, make_feed
from msa_jax.typing import Sequences, Spec, Task

STEPS = {"text": 24, "audio": 40}


def _corpus():
  """The toy corpus with short real lengths in long padding."""
  corpus = toy.corpus((37, 19, 13))
  random = np.random.default_rng(5)
  splits = {}
  for name, split in corpus.splits.items():
    tokens = np.where(
      random.random(len(split)) < 0.6,
      random.integers(1, 8, len(split)),
      random.integers(9, 25, len(split)),
    )
    modalities = {}
    for modality, lengths in (("text", tokens), ("audio", tokens + tokens // 2)):
      width = split.modalities[modality].features.shape[-1]
      features = random.normal(size=(len(split), STEPS[modality], width))
      features[np.arange(STEPS[modality])[None] >= lengths[:, None]] = 0.0
      modalities[modality] = Sequences(
        features.astype(np.float32), lengths.astype(np.int32)
      )
    splits[name] = dataclasses.replace(split, modalities=modalities)
  return dataclasses.replace(corpus, splits=splits)


@pytest.fixture
def resolved(monkeypatch):
  monkeypatch.setitem(models.SYSTEMS, "toy", toy.SYSTEM)
  config = change(toy.config(), model={"dropout": 0.0}, data={"buckets": 3})
  corpus = _corpus()
  return resolve(config, corpus), corpus


@pytest.mark.parametrize("budget", [0, 2**30], ids=["streamed", "resident"])
@pytest.mark.parametrize("looped", [False, True])
def test_an_epoch_in_buckets_trains_as_one_at_full_length(resolved, budget, looped):
  config, corpus = resolved
  feed = make_feed(corpus.splits["train"], corpus.tasks, STEPS, budget, 3)
  assert len(feed.lengths) > 1
  order = feed.order(0, 0, config.optim.batch_size)
  assert len(order) == 5
  assert len(set(feed.levels(order).tolist())) > 1
  system = compose.build(config)
  ended = []
  for each in (feed, feed._replace(buckets=None)):
    steps = Steps(system, capacity=3, looped=looped)
    state, first = steps(system.init(0), each, order, 0, 0)
    state, second = steps(state, each, order, 3, 0)
    losses = np.concatenate([first["loss"], second["loss"]])
    ended.append((losses, jax.device_get(state)))
  assert ended[0][0].shape == (5,)
  jax.tree.map(
    lambda ours, full: np.testing.assert_allclose(ours, full, rtol=1e-5, atol=1e-6),
    *ended,
  )


@pytest.mark.parametrize("budget", [0, 2**30], ids=["streamed", "resident"])
def test_predictions_come_back_in_the_order_of_the_split(resolved, budget):
  config, corpus = resolved
  system = compose.build(config)
  state = system.init(0)
  feed = make_feed(corpus.splits["valid"], corpus.tasks, STEPS, budget, 3)
  predictor = Predictor(system, 8)
  ours = predictor(state.params, state.collections, feed)
  full = predictor(state.params, state.collections, feed._replace(buckets=None))
  assert len(np.unique(full.outputs["sentiment"])) == 19
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    tuple(ours),
    tuple(full),
  )


def test_a_run_has_buckets_where_the_config_asks_and_the_system_allows_them(resolved):
  config, corpus = resolved
  assert len(run.feeds_of(config, corpus)["train"].lengths) > 1
  others = {
    "off": change(config, data={"buckets": 0}),
    "compat": change(config, model={"compat": "mmsa"}),
    "joint": change(config, spec={"sources": (30, 7)}),
  }
  for other in others.values():
    assert run.feeds_of(other, corpus)["train"].lengths == (None,)


def _tiny(module, **options):
  """A system's config, narrow, with the shapes of an aligned corpus of 16 steps."""
  # No mean of the parameters, which predictions would read.
  config = change(module.get_config(), model=options, optim={"ema_decay": 0.0})
  widths = {"text": 6, "audio": 3, "vision": 4}
  lengths = dict.fromkeys(widths, 16)
  tasks = {"sentiment": Task("regression", -3.0, 3.0)}
  return config.replace(spec=Spec(widths, lengths, tasks, train_size=64))


SYSTEMS = {
  "lf_lstm": lambda: _tiny(lf_lstm),
  "tfn": lambda: _tiny(tfn),
  "derl": lambda: _tiny(derl),
  "hgem": lambda: _tiny(hgem, token_dim=8, fused_dim=8),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_systems_do_not_see_the_padding_that_is_cut_off(name):
  config = SYSTEMS[name]()
  random = np.random.default_rng(1)
  lengths = np.asarray([8, 3, 5])
  batch = jax.device_get(recipe.example_batch(config.spec, 3))
  for key, each in batch.modalities.items():
    mask = np.arange(16)[None] < lengths[:, None]
    features = random.normal(size=each.features.shape) * mask[..., None]
    batch.modalities[key] = each.replace(mask=mask, features=features.astype("f"))
  system = compose.build(config)
  compiled = jax.jit(
    system.predict, compiler_options={"xla_backend_optimization_level": 0}
  )
  state = jax.eval_shape(system.init, 0)
  # Any parameters will do, and drawing them here compiles nothing.
  draw = lambda leaf: (random.normal(size=leaf.shape) * 0.2).astype(leaf.dtype)  # noqa: E731
  params = jax.tree.map(draw, state.params)
  collections = jax.tree.map(
    lambda leaf: np.ones(leaf.shape, leaf.dtype), state.collections
  )
  full = compiled(params, collections, batch).predictions["sentiment"]
  short = buckets.cut(batch, dict.fromkeys(batch.modalities, 8))
  ours = compiled(params, collections, short).predictions["sentiment"]
  assert np.ptp(full) > 1e-3
  np.testing.assert_allclose(ours, full, rtol=1e-5, atol=1e-5)
  assert batches.take(short, np.asarray([0])).modalities["text"].mask.shape == (1, 8)
