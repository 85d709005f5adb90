"""Every gate of MoMKE, MMoLRE, DERL and AWF moves the prediction when it is forced.

H-GEM's are in `hgem/test_gates.py`. The networks are tiny and untrained; what a gate is
told moves a prediction in [-3, 3] by more than `LEAST`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_derl
import tiny_fusion
import tiny_mmolre
import tiny_momke

from msa_jax.models.late_fusion.awf import AttentionFusion

LEAST = 1e-2
SURE = 20.0  # whatever the other candidates have
NAMES = ("text", "audio", "vision")


def raised(params, path, index, by=SURE):
  """Parameters with one entry of a bias raised."""
  leaf = params
  for key in path:
    leaf = leaf[key]
  moved = jnp.asarray(leaf).at[index].add(by)
  for depth in reversed(range(len(path))):
    node = params
    for key in path[:depth]:
      node = node[key]
    moved = {**node, path[depth]: moved}
  return moved


def change(one, other, name="sentiment"):
  return np.abs(np.asarray(one.predictions[name] - other.predictions[name])).max()


def test_momkes_routers_move_the_prediction():
  model = tiny_momke.network()
  batch = tiny_momke.batch(np.ones((2, 4, 3), bool))
  params = jax.jit(model.init)(jax.random.key(0), batch)["params"]
  apply = jax.jit(tiny_momke.apply(model))
  plain = apply({"params": params}, batch)
  for modality, name in enumerate(NAMES):
    for expert in range(3):
      path = ("network", "routers", "fc2", "bias")
      sure = apply({"params": raised(params, path, (modality, expert))}, batch)
      assert np.all(sure.routing[name].combine[..., expert] > 0.99)
      assert change(sure, plain) > LEAST, (name, expert)


def test_mmolres_routers_and_modality_gates_move_their_own_task_alone():
  made, params, data, plain = tiny_mmolre.base()
  predict = tiny_mmolre.predict(made)
  paths = {
    f"router_{m}_0_{task}": (
      f"unitse_{m}",
      "block_0",
      f"router_{task}",
      "logits",
      "bias",
    )
    for m in ("text", "audio")
    for task in tiny_mmolre.TASKS
  }
  for task in tiny_mmolre.TASKS:
    paths[f"beta_{task}"] = ("fusion", f"gate_{task}", "bias")
  for gate, path in paths.items():
    (own,) = (task for task in tiny_mmolre.TASKS if gate.endswith(task))
    (other,) = set(tiny_mmolre.TASKS) - {own}
    for choice in range(plain.routing[gate].probs.shape[-1]):
      sure = predict(raised(params, path, choice), data)
      # The second sample has no audio to choose, the last is a filler.
      chosen = np.asarray(sure.routing[gate].probs)[[0, 2, 3, 4], choice]
      assert np.all(chosen > 0.99), gate
      assert change(sure, plain, own) > LEAST, (gate, choice)
      assert change(sure, plain, other) == 0.0, (gate, choice)


def test_derls_filter_units_move_the_prediction():
  model, variables = tiny_derl.initial(tiny_derl.resolved(model={"num_layers": 2}))
  batch = tiny_derl.make_batch()
  plain = tiny_derl.predict(model, variables, batch)
  for index in range(3):
    for by in (-SURE, SURE):  # the common stream alone, the private one alone
      path = ("filter_1", "stack", "private", "bias")
      params = raised(variables["params"], path, index, by)
      sure = tiny_derl.predict(model, {**variables, "params": params}, batch)
      assert change(sure, plain) > LEAST, (NAMES[index], by)


@pytest.mark.parametrize("index", range(3))
def test_awfs_attention_moves_the_prediction(index):
  model = tiny_fusion.network(tiny_fusion.config())
  batch = tiny_fusion.batch()
  variables = tiny_fusion.variables_of(model, batch)

  def predicted(variables, weight):
    def forced(following, args, kwargs, context):
      found = following(*args, **kwargs)
      if isinstance(context.module, AttentionFusion):
        return found.at[:, index].set(weight)
      return found

    with nn.intercept_methods(forced):
      return model.apply(variables, batch).predictions["sentiment"]

  apply = tiny_fusion.quick_jit(predicted)
  moved = apply(variables, jnp.asarray(1.0)) - apply(variables, jnp.asarray(0.0))
  assert np.abs(moved).max() > LEAST
