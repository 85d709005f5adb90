"""H-GEM's gates act: what they read, what they scale, what they move."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_hgem as tiny

from msa_jax import models, testing
from msa_jax.testing import checks
from msa_jax.typing import MODALITIES

pytestmark = pytest.mark.slow


# The greatest change of a prediction over a batch, at the start, when a gate is sure
# of a candidate. Labels span [-3, 3].
LEAST = 1e-2
STRENGTH = 3.0  # e^3 / (e^3 + 2) = .91


@functools.cache
def fresh():
  """The network at its start, compiled: (params, batch) -> output, and parameters."""
  made = tiny.model({"gates.polarity_top_k": 3})
  batch = tiny.batch(rows=16)
  batch = batch.replace(
    available=jnp.ones_like(batch.available),
    sample_mask=jnp.ones_like(batch.sample_mask),
  )
  fast = {"compiler_options": tiny.FAST_COMPILE}
  params = jax.jit(made.init, **fast)(jax.random.key(0), batch)["params"]
  predict = jax.jit(lambda p: made.apply({"params": p}, tiny.hide(batch)), **fast)
  return predict, params


@pytest.mark.parametrize("gate", ["gate0", "gate1", "gate2", "gate3"])
@pytest.mark.parametrize("choice", [0, 1, 2])
def test_a_gate_that_is_sure_of_a_candidate_moves_the_prediction(gate, choice):
  predict, params = fresh()
  plain = predict(params)
  sure = predict(tiny.forced(params, gate, choice, STRENGTH))
  assert np.all(np.asarray(sure.routing[gate].combine)[:, choice] > 0.85)
  change = sure.predictions["sentiment"] - plain.predictions["sentiment"]
  assert np.abs(change).max() > LEAST


def test_a_gate_that_scales_outputs_moves_next_to_nothing():
  """The reading of earlier versions: the norms of the next layer erase the scale."""
  made = tiny.system((("gates.modality_scale", "outputs"),))
  batch = tiny.batch()
  plain = made.predict(made.variables, batch).predictions["sentiment"]
  for choice in range(3):
    params = tiny.forced(made.variables["params"], "gate0", choice, 2.0)
    sure = made.predict({"params": params}, batch)
    assert sure.routing["gate0"].combine[0, choice] > 0.7
    assert np.abs(sure.predictions["sentiment"] - plain).max() < LEAST


def layer_norm(values, params):
  values = np.float64(values)
  centred = values - values.mean(axis=-1, keepdims=True)
  scaled = centred / np.sqrt(values.var(axis=-1, keepdims=True) + 1e-5)
  return scaled * np.float64(params["scale"]) + np.float64(params["bias"])


def unit(params, index, view, scale=1.0):
  """Scores of one gating unit in float64."""
  own = jax.tree.map(lambda leaf: np.float64(leaf[index]), params)
  hidden = layer_norm(view, own["norm"]) * scale
  hidden = np.maximum(hidden @ own["hidden"]["kernel"] + own["hidden"]["bias"], 0.0)
  return hidden @ own["scores"]["kernel"] + own["scores"]["bias"]


@functools.cache
def inside():
  """Parameters, output, the adapter's tokens [b t m d] and the embeddings [b t d]."""
  made, batch = tiny.system(), tiny.hide(tiny.batch())

  def named(module, method):
    return module.name == "l2_adapter" or str(module.name).startswith("ln_in_")

  def run(variables, batch):
    return made.model.apply(
      variables, batch, capture_intermediates=named, mutable=["intermediates"]
    )

  output, state = jax.jit(run, compiler_options=tiny.FAST_COMPILE)(
    made.variables, batch
  )
  found = state["intermediates"]
  tokens = np.float64(found["l2_adapter"]["__call__"][0])
  embedded = [np.float64(found[f"ln_in_{m}"]["__call__"][0]) for m in "tav"]
  masks = [np.asarray(batch.modalities[name].mask) for name in MODALITIES]
  return made.variables["params"], output, tokens, embedded, masks


def test_gate_zero_reads_the_embeddings_and_gate_one_the_adapted_tokens():
  params, output, tokens, embedded, masks = inside()
  for row in range(5):
    seen = [slot for slot in range(3) if masks[slot][row].any()]
    weights = np.asarray(output.routing["gate0"].combine[row], np.float64)
    scores = {"gate0": [], "gate1": []}
    for slot in seen:
      real = masks[slot][row]
      mean = embedded[slot][row][real].mean(axis=0)
      scores["gate0"].append(unit(params["gate0"]["units"]["experts"], slot, mean))
      mean = tokens[row, :, slot][real].mean(axis=0)
      own, scale = params["gate1"]["units"]["experts"], len(seen) * weights[slot]
      scores["gate1"].append(unit(own, slot, mean, scale))
    for gate, found in scores.items():
      logits = output.routing[gate].logits[row]
      np.testing.assert_allclose(logits, np.mean(found, axis=0), atol=2e-5)


def test_layer_two_reads_what_layer_one_makes_of_the_embeddings():
  made, batch = tiny.system(), tiny.hide(tiny.batch())
  params = made.variables["params"]
  moved = {
    name: jax.tree.map(lambda leaf: leaf + 0.3, tree)
    if name.startswith("L1_")
    else tree
    for name, tree in params.items()
  }
  before, after = (
    made.predict({**made.variables, "params": each}, batch).routing["gate1"].logits
    for each in (params, moved)
  )
  assert np.abs(np.asarray(before) - np.asarray(after))[:5].max(axis=1).min() > 1e-4


def test_gate_two_is_the_mean_of_its_units():
  params, output, *_ = inside()
  own = params["gate2"]["units"]["experts"]
  fused = np.asarray(output.features["z_fused"])
  scores = [unit(own, index, fused) for index in range(3)]
  np.testing.assert_allclose(
    output.routing["gate2"].logits, np.mean(scores, axis=0), atol=2e-5
  )
  # One unit alone would not do.
  assert np.abs(scores[0] - np.mean(scores, axis=0)).max() > 0.1


def test_the_fusion_experts_read_tokens_scaled_by_gate_zero():
  made, batch = tiny.system(), tiny.hide(tiny.batch())
  read = {}

  def record(following, args, kwargs, context):
    if type(context.module).__name__ in ("SparseExpert", "DenseExpert", "RobustExpert"):
      read[type(context.module).__name__] = args[0]
    return following(*args, **kwargs)

  def run(variables, batch):
    with nn.intercept_methods(record):
      return made.model.apply(variables, batch).routing["gate0"].combine, dict(read)

  weights, found = jax.jit(run, compiler_options=tiny.FAST_COMPILE)(
    made.variables, batch
  )
  _, _, tokens, _, masks = inside()
  mask = np.stack(masks, axis=2)
  scale = np.asarray(weights) * mask.any(axis=1).sum(axis=1, keepdims=True)
  expected = np.where(mask[..., None], tokens, 0.0) * scale[:, None, :, None]
  assert len(found) == 3
  for values in found.values():
    np.testing.assert_allclose(values, expected, atol=1e-5)
  # An undecided gate would change nothing.
  assert np.abs(scale[:5][mask.any(axis=1)[:5]] - 1.0).max() > 0.1


def test_the_contract_s_check_finds_no_parameter_without_a_gradient(monkeypatch):
  """Once it found `gate0/units/experts/norm/scale`."""
  monkeypatch.setattr(testing, "CHECKS", (checks.check_gradients,))
  options = tiny.options({"gates.fusion_top_k": 3, "gates.polarity_top_k": 3})
  losses = ("route_discrimination", "route_mi", "denoising", "load_balance")
  testing.check_system(
    models.get("hgem"),
    {**options, "max_steps": 8},
    loss=dict.fromkeys(losses, 0.1),
    unused=("id_", "miss_"),
  )
