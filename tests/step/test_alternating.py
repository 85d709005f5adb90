"""Recipes in turn: who trains when, with its own optimizer, also in whole runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_fusion
import toy
from changes import change

from msa_jax import models
from msa_jax.errors import UserError
from msa_jax.runs import prepare, run
from msa_jax.step.alternating import PHASE, alternating
from msa_jax.step.recipe import Recipe
from msa_jax.typing import ModelOutput, TrainState


def _pushing(name, by):
  """Adds `by` to one parameter and counts its own steps as optimizer state."""

  def start(params, collections, step):
    return TrainState(step, params, collections, jnp.zeros((), jnp.int32))

  def init(seed):
    del seed
    zero = jnp.zeros(())
    return start({"a": zero, "b": zero}, {}, jnp.zeros((), jnp.int32))

  def step(state, batch, seed):
    del batch, seed
    params = {**state.params, name: state.params[name] + by}
    state = state.replace(
      step=state.step + 1, params=params, opt_state=state.opt_state + 1
    )
    return state, {"loss": jnp.asarray(by)}

  def predict(params, collections, batch):
    del collections, batch
    return ModelOutput({"sentiment": params[name]})

  return Recipe(init, step, predict, start)


def test_each_recipe_trains_its_epochs_with_an_optimizer_of_its_own():
  made = alternating([_pushing("a", 1.0), _pushing("b", 10.0)], epochs=(2, 1))
  state, seen = made.init(0), []
  for _ in range(5):
    for _ in range(3):
      state, metrics = made.step(state, tiny_fusion.batch(1), 0)
    seen.append(float(metrics["loss"]))
    state = made.end_epoch(state)
  assert seen == [1.0, 1.0, 10.0, 1.0, 1.0]
  assert (float(state.params["a"]), float(state.params["b"])) == (12.0, 30.0)
  assert tuple(int(count) for count in state.opt_state) == (12, 3)
  output = made.predict(state.params, state.collections, tiny_fusion.batch(1))
  assert float(output.predictions["sentiment"]) == 30.0


def test_a_number_of_epochs_for_each_recipe_is_asked_for():
  for epochs in ((1,), (1, 0)):
    with pytest.raises(UserError, match="each of the 2 recipes"):
      alternating([_pushing("a", 1.0), _pushing("b", 1.0)], epochs)


def _frozen(part):
  """The recipe of a stage, in which one part of the parameters stays."""

  def of(made):
    def step(state, batch, seed):
      new, metrics = made.step(state, batch, seed)
      kept = {**new.params, part: state.params[part]}
      return new.replace(params=kept), metrics

    return made._replace(step=step)

  return of


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_a_run_goes_through_the_phases_at_the_ends_of_epochs(
  seeds, tmp_path, monkeypatch
):
  recipes = []

  def both(model, stage, made):
    del model, stage
    recipes.append(made)
    return alternating([_frozen("gate")(made), _frozen("Dense_0")(made)])

  monkeypatch.setitem(models.SYSTEMS, "toy", toy.SYSTEM._replace(recipe=both))
  monkeypatch.setattr(prepare, "load", lambda config, **_: toy.corpus())
  config = change(
    toy.config(epochs=3, patience=0, ema_decay=0.0),
    replicas={"seeds": seeds, "mode": "vmap"},
  )
  run.train(config, tmp_path)
  directory = run.RunDirectory(tmp_path)
  config = directory.experiment()
  assert len([r for r in directory.metrics() if r["seed"] == seeds[-1]]) == 3
  for _, collections in run.restore(directory, config):
    # Snapshots are made at the end of an epoch, after its phase has ended.
    assert int(collections[PHASE]["index"]) in (0, 1)
  plain = jax.eval_shape(recipes[0].init, 0)
  ((params, _), *_) = run.restore(directory, config)
  assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, plain.params)
