"""Several devices give the numbers of one."""

import jax
import numpy as np
import pytest
import toy
from changes import change, resolve

from msa_jax import models
from msa_jax.config import validate
from msa_jax.errors import UserError
from msa_jax.models.system import System
from msa_jax.runs import prepare, run
from msa_jax.training.checkpoint import ResumePoint
from msa_jax.training.compiled_stages import CompiledStages, mesh_of
from msa_jax.training.vmapped_stages import VmappedStages


@pytest.fixture(autouse=True)
def system(monkeypatch):
  made = System(build=lambda options, spec: toy.MixedModel())
  monkeypatch.setitem(models.SYSTEMS, "toy", made)
  monkeypatch.setattr(prepare, "load", lambda config, **_: toy.corpus())


def _config(corpus, **axes):
  sections = {"train": {"eval_batch_size": 8}, "sharding": axes}
  return resolve(change(toy.config(epochs=2), **sections), corpus)


def _trained(corpus, seeds=(0,), budget_mib=64, **axes):
  """(losses, state on the host, predictions, state) after an epoch."""
  config = change(_config(corpus, **axes), data={"device_budget_mib": budget_mib})
  programs = CompiledStages(config) if len(seeds) == 1 else VmappedStages(config)
  feeds = run.feeds_of(config, corpus, programs.mesh)
  state, _ = programs.begin(seeds)
  orders = [feeds["train"].order(seed, 0, 8) for seed in seeds]
  active = [True] * len(seeds)
  state, figures = programs.advance(0, state, feeds["train"], orders, 0, seeds, active)
  predicted = programs.predict(0, state, feeds["valid"])
  outputs = [one.outputs["sentiment"] for one in predicted]
  return [one["loss"] for one in figures], jax.device_get(state), outputs, state


def _close(ours, single):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, single
  )


@pytest.fixture(scope="module")
def single():
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(
      models.SYSTEMS, "toy", System(build=lambda options, spec: toy.MixedModel())
    )
    return _trained(toy.corpus())


@pytest.mark.parametrize(
  "axes",
  [{"data": 2}, {"data": 4}, {"expert": 4}, {"data": 2, "expert": 2}],
  ids=str,
)
def test_an_epoch_on_several_devices_gives_the_numbers_of_one(axes, single):
  *ours, state = _trained(toy.corpus(), **axes)
  _close(ours, list(single[:3]))
  kernel = state.params["MixtureOfExperts_0"]["bank"]["experts"]["kernel"]
  moment = state.opt_state
  assert len(kernel.sharding.device_set) == int(np.prod(list(axes.values())))
  shard = kernel.addressable_shards[0].data.shape
  assert shard == (4 // axes.get("expert", 1), 4, 6)
  shapes = {
    leaf.addressable_shards[0].data.shape
    for leaf in jax.tree.leaves(moment)
    if leaf.shape == (4, 4, 6)
  }
  assert shapes == {shard}


@pytest.mark.parametrize("budget_mib", [64, 0])
def test_replicas_on_devices_of_their_own_give_the_numbers_of_one(single, budget_mib):
  *ours, state = _trained(toy.corpus(), (0, 1), budget_mib, replica=2, data=2)
  first = jax.tree.map(lambda leaf: leaf[0], ours[1])
  _close((ours[0][0], first, ours[2][0]), (single[0][0], single[1], single[2][0]))
  kernel = state.params["MixtureOfExperts_0"]["bank"]["experts"]["kernel"]
  assert kernel.shape == (2, 4, 4, 6)
  assert kernel.addressable_shards[0].data.shape == (1, 4, 4, 6)


def test_a_checkpoint_of_several_devices_is_read_back_onto_them(tmp_path):
  corpus = toy.corpus()
  programs = CompiledStages(_config(corpus, expert=4))
  state, best = programs.begin((0,))
  saver = ResumePoint(tmp_path / "last")
  saver.save(1, {"state": state, "best": best}, {"stage": 0})
  saver.close()

  def read(position):
    state, best = programs.shapes(position["stage"], (0,))
    return position, {"state": state, "best": best}

  reader = ResumePoint(tmp_path / "last")
  tree, _ = reader.restore(read)
  reader.close()
  _close(jax.device_get(tree["state"]), jax.device_get(state))
  kernel = tree["state"].params["MixtureOfExperts_0"]["bank"]["experts"]["kernel"]
  assert kernel.addressable_shards[0].data.shape == (1, 4, 6)


def test_a_run_on_several_devices_ends_as_one_and_is_read_on_one(tmp_path, monkeypatch):
  config = change(toy.config(epochs=1), train={"eval_batch_size": 8})
  one = run.train(config, tmp_path / "one")
  several = run.train(change(config, sharding={"data": 4}), tmp_path / "several")
  figures = [s["splits"]["test"]["sentiment"]["mae"]["mean"] for s in (one, several)]
  assert figures[0] == pytest.approx(figures[1], rel=1e-5)
  # A machine with fewer devices than the run was trained on.
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  evaluated = run.evaluate(tmp_path / "several")
  mae = evaluated["test"]["sentiment"]["mae"]["mean"]
  assert mae == pytest.approx(figures[0], rel=1e-5)


def test_what_does_not_fit_the_devices_is_refused():
  corpus = toy.corpus()
  with pytest.raises(UserError, match="data=8, replica=1, expert=1.*needs 8 devices"):
    mesh_of(_config(corpus, data=8))
  with pytest.raises(
    UserError, match="config.optim.batch_size=8 must be a multiple of"
  ):
    mesh_of(_config(corpus, data=3))
  programs = VmappedStages(_config(corpus, replica=2))
  with pytest.raises(UserError, match="sharding.replica=2 must divide .* once, 3"):
    programs.begin((0, 1, 2))
  bad = change(_config(corpus), sharding={"data": 0})
  with pytest.raises(UserError, match="config.sharding.data=0 must be positive"):
    validate.validate(bad)
