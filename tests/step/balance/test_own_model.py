"""B-fusion around a user's model: the documented example, whole runs, names."""

import ast
import contextlib
import dataclasses
import io
import json
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_fusion
import toy
from paths import ROOT

import msa_jax
from configs import awf
from msa_jax import models
from msa_jax.config.options import BalanceConfig
from msa_jax.data.synthetic.generator import TINY
from msa_jax.errors import UserError
from msa_jax.models.system import System
from msa_jax.runs import run
from msa_jax.step import compose, recipe
from msa_jax.step.balance.omega import owner_of
from msa_jax.step.balance.recipe import balanced
from msa_jax.training import run_directory

PAGE = ROOT / "docs" / "own_model.md"
NAMES = ("text", "audio")


@pytest.fixture(scope="module")
def example():
  """What the block of the page defines and prints, run on a tiny corpus."""
  config = awf.get_config().copy_and_resolve_references()
  with config.unlocked():
    config.data.synthetic.update(dataclasses.asdict(TINY))
    config.optim.batch_size = 8
  blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
  block = next(block for block in blocks if "balanced(" in block)
  names: dict = {}
  printed = io.StringIO()
  with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
    patch.setattr(msa_jax, "get_config", lambda name: config)
    exec(compile(block, PAGE.name, "exec"), names)
  return {**names, "printed": printed.getvalue()}


def test_the_documented_example_balances_a_model_of_ones_own(example):
  assert int(example["state"].step) == 3  # 24 samples in batches of 8
  weights = ast.literal_eval(example["printed"])
  assert tuple(weights) == ("text", "audio", "vision")
  # Three steps of 0.01 times a gradient: each weight has moved, none far.
  assert all(1e-3 < abs(weight - 1.0) < 0.5 for weight in weights.values())
  assert np.isfinite(example["metrics"]["loss"])


def _parts(config, model):
  """What `balanced` takes of a tiny experiment, around another model."""
  system = System(build=lambda options, spec: model)
  objective = compose.objective_of(config, system, model)
  optimizer = optax.adam(config.optim.learning_rate)
  example = recipe.example_batch(config.corpus_spec)
  return model, example, objective, optimizer, config.balance


def test_a_model_without_the_two_parts_is_refused_with_what_to_implement():
  message = "LinearModel: it lacks encode and tail. Implement enc"
  with pytest.raises(UserError, match=message):
    balanced(*_parts(tiny_fusion.config(), toy.LinearModel(0.0)))


def test_a_model_of_ones_own_is_balanced_by_a_whole_run(example, tmp_path, monkeypatch):
  system = System(build=lambda options, spec: example["Mine"](NAMES))
  monkeypatch.setitem(models.SYSTEMS, "mine", system)
  config = toy.config(epochs=3).replace(
    system="mine", model={}, balance=BalanceConfig(enabled=True)
  )
  summary = run.train(config, tmp_path, corpus=toy.corpus())
  assert summary["model"] == "mine"
  record = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
  weights = [record["train"][f"balance/omega_{m}"] for m in NAMES]
  assert abs(weights[0] - 1.0) > 1e-3
  assert record["train"]["balance/g_text"] > 0.0
  # The learned weights are part of what is saved and predicted with.
  directory = run_directory.RunDirectory(tmp_path)
  loaded = run.restore(directory, directory.experiment())[0]
  assert np.any(np.asarray(loaded[1]["balance"]["omega"]) != 1.0)


def test_other_names_of_layers_are_given_by_functions(example):
  class Renamed(example["Mine"]):
    """The same with another name for the last linear layers."""

    def setup(self):
      self.encoder = {m: nn.Dense(8) for m in NAMES}
      self.last = {m: nn.Dense(4, name=n) for m, n in names.items()}
      self.head = nn.Dense(1)

  names = {"text": "words", "audio": "sound"}
  widths = {"text": 5, "audio": 4}
  config = tiny_fusion.config(widths=widths)
  parts = _parts(config, Renamed(NAMES))
  with pytest.raises(UserError, match="no parameter last_text/kernel in Renamed"):
    balanced(*parts)
  owners = {layer: name for name, layer in names.items()}
  made = balanced(
    *parts,
    kernel=lambda m: (names[m], "kernel"),
    owner=lambda path, m: owners.get(path[0], owner_of(path, m)),
  )
  batch = tiny_fusion.batch(widths=widths)
  shapes = jax.eval_shape(made.init, 0)
  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
  memory = {**zeros.collections["balance"], "omega": jnp.array([2.0, 1.0])}
  state = zeros.replace(
    params=tiny_fusion.random_like(shapes.params, dtype=jnp.float32),
    collections={"balance": memory},
  )
  after, metrics = tiny_fusion.quick_jit(made.step)(state, batch, 0)
  assert np.all(np.asarray(metrics["g"]) > 0.0)
  assert np.all(np.asarray(after.collections["balance"]["omega"]) != memory["omega"])
  # Adam's first update is the learning rate times the owner's weight.
  rate = config.optim.learning_rate
  for layer, weight in (("words", 2.0), ("sound", 1.0), ("encoder_text", 2.0)):
    before = state.params[layer]["kernel"]
    moved = np.abs(after.params[layer]["kernel"] - before).max()
    np.testing.assert_allclose(moved, weight * rate, rtol=0.02)
