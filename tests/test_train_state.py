"""The programmatic API: the README's example, purity, vmap over seeds."""

import functools
import re

import jax
import numpy as np
import pytest
import toy
from changes import change
from paths import ROOT

import msa_jax
from configs import hgem
from msa_jax import models, train_state
from msa_jax.data import missing
from msa_jax.data.batching import batches
from msa_jax.runs import prepare, run
from msa_jax.step.recipe import Recipe, with_missing


def tiny_hgem_config(variants=""):
  """H-GEM, narrower than the default, on the smallest synthetic corpus."""
  config = _GET_CONFIG(variants).copy_and_resolve_references()
  with config.unlocked():
    config.data.synthetic.update(
      {"sizes": (32, 16, 16), "videos": (4, 2, 2), "widths": (8, 3, 4)}
    )
    config.data.max_steps = 8
    # One gate in place of four: a third of the time to compile.
    config.model.update({"token_dim": 16, "fused_dim": 8, "fusion": "single"})
  return config.lock()


_GET_CONFIG = hgem.get_config


@pytest.fixture
def toy_system(monkeypatch):
  monkeypatch.setitem(models.SYSTEMS, "toy", toy.SYSTEM)
  monkeypatch.setattr(prepare, "load", lambda config, **_: toy.corpus())


def test_the_readme_example_runs(monkeypatch, capsys):
  blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
  example = next(block for block in blocks if "train_state.create" in block)
  monkeypatch.setattr(msa_jax, "get_config", lambda name: tiny_hgem_config())
  names: dict = {}
  exec(compile(example, "README.md", "exec"), names)
  assert np.isfinite(names["metrics"]["loss"])
  assert int(names["state"].step) == 1  # 32 samples, batches of 32
  assert capsys.readouterr().out.count(".") >= 8  # eight printed predictions


def test_a_step_is_pure_and_repeats_exactly(toy_system):
  config, corpus = train_state.prepare(toy.config())
  batch = batches.take(train_state.whole_split(config, corpus, "train"), np.arange(8))
  state = train_state.create(config, seed=3)
  step = jax.jit(functools.partial(train_state.train_step, config))
  one, metrics = step(state, batch, 3)
  two, again = step(state, batch, 3)
  for ours, theirs in zip(
    jax.tree.leaves((one, metrics)), jax.tree.leaves((two, again)), strict=True
  ):
    np.testing.assert_array_equal(ours, theirs)
  assert int(one.step) == 1 and int(state.step) == 0


def test_states_vmapped_over_seeds_equal_single_runs(toy_system):
  config, corpus = train_state.prepare(toy.config())
  batch = batches.take(train_state.whole_split(config, corpus, "train"), np.arange(8))
  seeds = np.asarray([0, 7])
  states = jax.vmap(functools.partial(train_state.create, config))(seeds)
  step = functools.partial(train_state.train_step, config)
  states, metrics = jax.jit(jax.vmap(step, in_axes=(0, None, 0)))(states, batch, seeds)
  for i, seed in enumerate(seeds.tolist()):
    single, _ = jax.jit(step)(train_state.create(config, seed), batch, seed)
    for ours, theirs in zip(
      jax.tree.leaves(states.params), jax.tree.leaves(single.params), strict=True
    ):
      np.testing.assert_allclose(ours[i], theirs, rtol=1e-5, atol=1e-6)


def test_eval_step_reports_the_loss_of_predict(toy_system):
  config, corpus = train_state.prepare(toy.config())
  batch = batches.take(
    train_state.whole_split(config, corpus, "valid"), np.asarray([0, 1, 2, -1])
  )
  state = train_state.create(config)
  predict = jax.jit(functools.partial(train_state.predict, config))
  prediction = predict(state, batch).predictions["sentiment"]
  labels = corpus.splits["valid"].labels["sentiment"][:3]
  expected = np.mean(np.abs(np.asarray(prediction)[:3] - labels))
  reported = train_state.eval_step(config, state, batch)["loss/sentiment"]
  np.testing.assert_allclose(reported, expected, rtol=1e-5)


def test_a_loaded_run_predicts_what_its_csv_says(toy_system, tmp_path):
  run.train(toy.config(epochs=2), tmp_path)
  config, state = train_state.load(str(tmp_path))
  _, corpus = train_state.prepare(toy.config(epochs=2))
  batch = train_state.whole_split(config, corpus, "test")
  predict = jax.jit(functools.partial(train_state.predict, config))
  prediction = predict(state, batch).predictions["sentiment"]
  table = np.genfromtxt(
    tmp_path / "predictions" / "test.csv", delimiter=",", names=True, dtype=None
  )
  np.testing.assert_allclose(prediction, table["sentiment_seed_0"], rtol=1e-4)


def test_filler_rows_change_neither_loss_nor_update(toy_system):
  config = change(toy.config(), model={"dropout": 0.0}, loss={"size": 0.0})
  config, corpus = train_state.prepare(config)
  data = train_state.whole_split(config, corpus, "train")
  state = train_state.create(config)
  step = jax.jit(functools.partial(train_state.train_step, config))
  short, loss = step(state, batches.take(data, np.arange(3)))
  filled, same = step(state, batches.take(data, np.asarray([0, 1, 2, -1, -1])))
  np.testing.assert_allclose(loss["loss"], same["loss"], rtol=1e-6)
  for ours, theirs in zip(
    jax.tree.leaves(short.params), jax.tree.leaves(filled.params), strict=True
  ):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_dropped_modalities_are_hidden_some_never_all(toy_system):
  config, corpus = train_state.prepare(toy.config())
  data = train_state.whole_split(config, corpus, "train")
  batch = batches.take(data, np.arange(37))
  seen = {}

  def spy(state, batch, seed):
    seen["batch"] = batch
    return state, {}

  spied = with_missing(Recipe(None, spy, None, None), missing.parse("dropout:0.5"), 5)
  state = train_state.create(config)
  spied.step(state, batch, 0)
  available = np.asarray(seen["batch"].available)
  assert available.any(axis=1).all()
  assert 0 < (~available).sum() < available.size / 2
  for column, name in enumerate(batch.order):
    hidden = ~available[:, column]
    assert not np.asarray(seen["batch"].modalities[name].features)[hidden].any()
    assert not np.asarray(seen["batch"].modalities[name].mask)[hidden].any()
