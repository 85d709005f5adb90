"""Several seeds in one program: the same as one by one, resumed, frozen, streamed."""

import importlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
import toy_stages
from changes import change, resolve
from small_spec import with_spec
from stops import StopAt

from msa_jax import models
from msa_jax.config import validate
from msa_jax.config.options import BalanceConfig
from msa_jax.data.batching import batches
from msa_jax.errors import UserError
from msa_jax.layers.masking import masked_mean
from msa_jax.models.system import System
from msa_jax.runs import prepare, run
from msa_jax.runs import schedule as groups
from msa_jax.step import recipe
from msa_jax.training import loop, run_directory
from msa_jax.training.feed import Steps
from msa_jax.training.vmapped_stages import ReplicaInputs, VmappedStages
from msa_jax.typing import ModelOutput

SEEDS = (0, 3, 5)


class Balanced(nn.Module):
  """A model that B-fusion can balance."""

  def setup(self):
    self.last = {m: nn.Dense(3, use_bias=False) for m in ("text", "audio")}
    self.head = nn.Dense(1)

  def encode(self, batch, *, train):
    del train
    seen = batch.modalities
    return {m: masked_mean(x.features, x.mask[..., None], 1) for m, x in seen.items()}

  def tail(self, features, omega, batch, *, train):
    del train
    parts = [omega[m] * self.last[m](features[m]) for m in batch.order]
    value = self.head(jnp.concatenate(parts, axis=-1))[:, 0]
    return ModelOutput({"sentiment": value}, {}, {}, {})


_PATIENT = [stage._replace(epochs=8, patience=2) for stage in toy_stages.BOTH]
SYSTEMS = {
  "one stage": toy.SYSTEM,
  "stages": toy_stages.system(*_PATIENT),
  "B-fusion": System(build=lambda options, spec: Balanced()),
}


@pytest.fixture(autouse=True)
def toy_system(monkeypatch):
  monkeypatch.setitem(models.SYSTEMS, "toy", toy.SYSTEM)
  monkeypatch.setattr(prepare, "load", lambda config, **_: toy.corpus())


def _config(mode="vmap", seeds=SEEDS, **sections):
  # Steps that overshoot, so that seeds stop at different epochs.
  config = toy.config(
    epochs=8,
    patience=2,
    learning_rate=0.4,
    learning_rates={"gate": 0.4},
    schedule="constant",
  )
  config = change(config, replicas={"seeds": seeds, "mode": mode})
  if "balance" in sections:
    config = config.replace(balance=BalanceConfig(**sections.pop("balance")))
  return change(config, **sections)


def _records(folder, seed):
  return [r for r in run_directory.RunDirectory(folder).metrics() if r["seed"] == seed]


def _close(ours, theirs):
  """Trees of figures agree to float tolerance."""
  ours, theirs = (jax.tree.map(float, tree) for tree in (ours, theirs))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), ours, theirs
  )


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_replica_equals_the_run_of_its_seed(tmp_path, monkeypatch, name):
  monkeypatch.setitem(models.SYSTEMS, "toy", SYSTEMS[name])
  balance = {"enabled": name == "B-fusion"}
  summaries = {
    mode: run.train(_config(mode, balance=balance), tmp_path / mode)
    for mode in ("sequential", "vmap")
  }
  one_by_one, at_once = summaries["sequential"], summaries["vmap"]
  assert at_once["trained_together"] == [3, 3, 3]
  assert one_by_one["trained_together"] == [1, 1, 1]
  assert len(set(at_once["epochs"])) > 1  # some were frozen while others went on
  for key in ("epochs", "selected_epoch"):
    assert at_once[key] == one_by_one[key]
  for split in ("valid", "test"):
    ours, theirs = (
      s["splits"][split]["sentiment"]["mae"]["values"] for s in (at_once, one_by_one)
    )
    np.testing.assert_allclose(ours, theirs, rtol=2e-4)
  figure = at_once["splits"]["test"]["sentiment"]["mae"]
  low, high = figure["interval"]
  assert min(figure["values"]) <= low < figure["mean"] < high <= max(figure["values"])
  for seed in SEEDS:
    ours, theirs = (_records(tmp_path / m, seed) for m in ("vmap", "sequential"))
    for key in ("epoch", "selected", "stage", "improved"):
      assert [r.get(key) for r in ours] == [r.get(key) for r in theirs]
    for mine, other in zip(ours, theirs, strict=True):
      _close(mine["train"], other["train"])
      _close(mine["valid"], other["valid"])


def _stop_at(monkeypatch, calls):
  """Makes `loop.fit` stop at the given call of the step program."""
  original, stop = loop.fit, StopAt(calls)
  monkeypatch.setattr(loop, "fit", lambda *a: original(*a[:-1], stop))


@pytest.mark.slow
@pytest.mark.parametrize("calls", [2, 12])
def test_replicas_that_were_stopped_end_bit_identical(tmp_path, monkeypatch, calls):
  monkeypatch.setitem(models.SYSTEMS, "toy", SYSTEMS["stages"])
  config = _config(train={"steps_per_call": 2})
  straight = run.train(config, tmp_path / "straight")["parameter_hash"]
  with monkeypatch.context() as patch:
    _stop_at(patch, calls)
    with pytest.raises(loop.Interrupted, match="of seed 0; seed 3; seed 5"):
      run.train(config, tmp_path / "stopped")
  resumed = run.train(config, tmp_path / "stopped")
  assert resumed["parameter_hash"] == straight
  for seed in SEEDS:
    ours, theirs = (_records(tmp_path / f, seed) for f in ("stopped", "straight"))
    assert [r["valid"] for r in ours] == [r["valid"] for r in theirs]


def test_a_group_that_was_begun_is_finished_as_it_was(tmp_path, monkeypatch):
  straight = run.train(_config(seeds=(0, 1)), tmp_path / "straight")["parameter_hash"]
  with monkeypatch.context() as patch:
    _stop_at(patch, 2)
    with pytest.raises(loop.Interrupted):
      run.train(_config(seeds=(0, 1)), tmp_path / "begun")
  # Another mode and one more seed: the two go on together, the new one is alone.
  summary = run.train(_config("sequential", seeds=(0, 1, 2)), tmp_path / "begun")
  assert summary["trained_together"] == [2, 2, 1]
  assert summary["parameter_hash"][:2] == straight
  # All of them are done now: nothing is trained, whatever is asked for.
  monkeypatch.setattr(loop, "fit", None)
  again = run.train(_config(seeds=(2, 0)), tmp_path / "begun")
  assert again["parameter_hash"] == [summary["parameter_hash"][i] for i in (2, 0)]


def test_replicas_are_split_where_memory_is_short(tmp_path):
  config = change(_config(optim={"epochs": 1}), replicas={"most_at_once": 2})
  assert run.train(config, tmp_path)["trained_together"] == [2, 2, 1]


def test_replicas_streamed_from_the_host_are_the_same(tmp_path):
  short = {"optim": {"epochs": 2}}
  resident = run.train(_config(**short), tmp_path / "resident")
  config = _config(data={"device_budget_mib": 0}, **short)
  streamed = run.train(config, tmp_path / "streamed")
  ours, theirs = (
    s["splits"]["test"]["sentiment"]["mae"]["values"] for s in (streamed, resident)
  )
  np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_a_loop_on_the_device_gives_the_same_replicas():
  corpus = toy.corpus()
  config = resolve(_config(), corpus)
  programs = VmappedStages(config)
  feed = run.feeds_of(config, corpus)["train"]
  orders = [np.asarray(batches.epoch_order(s, 0, feed.size, 8)) for s in SEEDS]
  order = np.stack(orders, axis=1)
  lane = ReplicaInputs(np.asarray(SEEDS), np.asarray([True, False, True]))
  results = []
  for looped in (True, False):
    take = jax.vmap(batches.take, (None, 0))
    made = programs.lifted(0)
    state, best = programs.begin(SEEDS)
    state, figures = Steps(made, 5, looped, take)(state, feed, order, 0, lane)
    results.append((figures["loss"], *jax.tree.leaves(state.params)))
  for ours, theirs in zip(*results, strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
  # The second is frozen: it still is what it was.
  before, after = (jax.tree.map(lambda x: x[1], s) for s in (best, state))
  for ours, theirs in zip(
    jax.tree.leaves(after.params),
    jax.tree.leaves(before["selected"]["params"]),
    strict=True,
  ):
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", sorted(models.SYSTEMS))
def test_every_system_can_be_replicated(name):
  module = importlib.import_module(f"configs.{name}")
  config = with_spec(module.get_config(), "")
  programs = VmappedStages(config)
  example = recipe.example_batch(config.corpus_spec)
  stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), example)
  lane = ReplicaInputs(np.arange(2), np.ones(2, bool))
  for index in range(len(programs.stages)):
    state, best = programs.shapes(index, (0, 1))
    step = programs.lifted(index).step
    assert jax.eval_shape(step, state, stacked, lane)[1]["loss"].shape == (2,)
  assert {leaf.shape[0] for leaf in jax.tree.leaves((state, best))} == {2}


def test_a_step_of_overhead_alone_is_shared_on_a_cpu(monkeypatch):
  config = resolve(_config("auto"), toy.corpus())
  assert groups.at_once(config)
  monkeypatch.setattr(groups, "OVERHEAD_FLOPS", 1.0)
  assert not groups.at_once(config)
  assert groups.at_once(config.replace("replicas", mode="vmap"))


@pytest.mark.parametrize(
  ("replicas", "message"),
  [
    ({"mode": "parallel"}, "replicas.mode='parallel' must be one of"),
    ({"most_at_once": -1}, "replicas.most_at_once=-1 must be 0"),
  ],
)
def test_bad_options_are_named(replicas, message):
  with pytest.raises(UserError, match=message):
    validate.validate(_config(replicas=replicas))
