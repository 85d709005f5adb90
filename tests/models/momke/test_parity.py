"""MoMKE's forward pass against arrays computed by the released PyTorch code."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_momke
from paths import REFERENCE

from msa_jax.typing import Batch, Modality

ARRAYS = np.load(REFERENCE / "momke_reference.npz")
SLICES = {"audio": slice(0, 6), "text": slice(6, 14), "vision": slice(14, 24)}
WIDTHS = {"text": 8, "audio": 6, "vision": 10}
OURS = [1, 0, 2]  # rows of (a, t, v) that make (t, a, v)
TASKS = {"reg": "sentiment", "cls": "emotion"}
CASES = [(tag, p) for tag in TASKS for p in ("full", "a", "tv", "mixed")]


@functools.cache
def _model(tag, mixing):
  model = tiny_momke.network(WIDTHS, TASKS[tag], hidden_dim=16, mixing=mixing)
  start = f"{tag}/weights/"
  weights = {k.removeprefix(start): ARRAYS[k] for k in ARRAYS if k.startswith(start)}
  params = tiny_momke.from_released(weights)
  return params, {
    stage: jax.jit(tiny_momke.apply(model, stage=stage)) for stage in (1, 2)
  }


def _batch(tag, pattern):
  real = ARRAYS[f"{tag}/umask"] > 0
  x = ARRAYS[f"{tag}/{pattern}/x"].transpose(1, 0, 2)
  present = ARRAYS[f"{tag}/{pattern}/availability_atv"].transpose(1, 0, 2)[..., OURS]
  modalities = {
    name: Modality(
      features=jnp.asarray(x[..., SLICES[name]]),
      mask=jnp.asarray(real),
      lost=jnp.asarray(real & (present[..., column] == 0)),
    )
    for column, name in enumerate(("text", "audio", "vision"))
  }
  size = len(real)
  return Batch(
    modalities, jnp.ones((size, 3), bool), {}, jnp.arange(size), jnp.ones(size, bool)
  )


def _run(tag, pattern, stage, mixing="router"):
  params, apply = _model(tag, mixing)
  return apply[stage]({"params": params}, _batch(tag, pattern))


def _agree(ours, theirs):
  np.testing.assert_allclose(np.asarray(ours), theirs, rtol=1e-5, atol=1e-5)


def _hidden(values):
  width = values.shape[-1] // 3
  parts = values.reshape(*values.shape[:-1], 3, width)[..., OURS, :]
  return parts.reshape(values.shape)


@pytest.mark.parametrize(("tag", "pattern"), CASES)
def test_stage_1_agrees_with_the_released_code(tag, pattern):
  real = ARRAYS[f"{tag}/umask"] > 0
  predictions = _run(tag, pattern, 1).predictions
  for name in ("text", "audio", "vision"):
    ours = np.asarray(predictions[f"{TASKS[tag]}@{name}"]).reshape(*real.shape, -1)
    theirs = ARRAYS[f"{tag}/{pattern}/stage1/logits_{name[0]}"]
    _agree(ours[real], theirs[real])
  # Its stage 1 also fuses what each modality's own expert says.
  own = _run(tag, pattern, 2, mixing="own")
  reference = f"{tag}/{pattern}/stage1"
  prediction = np.asarray(own.predictions[TASKS[tag]]).reshape(*real.shape, -1)
  _agree(prediction, ARRAYS[f"{reference}/logits"])
  _agree(own.features["hidden"], _hidden(ARRAYS[f"{reference}/hidden"]))


@pytest.mark.parametrize(("tag", "pattern"), CASES)
def test_stage_2_and_its_routers_agree_with_the_released_code(tag, pattern):
  real = ARRAYS[f"{tag}/umask"] > 0
  output = _run(tag, pattern, 2)
  reference = f"{tag}/{pattern}/stage2"
  prediction = np.asarray(output.predictions[TASKS[tag]]).reshape(*real.shape, -1)
  _agree(prediction, ARRAYS[f"{reference}/logits"])
  _agree(output.features["hidden"], _hidden(ARRAYS[f"{reference}/hidden"]))
  theirs = ARRAYS[f"{reference}/router_atv"][OURS][..., OURS]
  present = ARRAYS[f"{tag}/{pattern}/availability_atv"].transpose(1, 0, 2)[..., OURS]
  for column, name in enumerate(("text", "audio", "vision")):
    routing = output.routing[name]
    # Also where the modality is missing, though nothing is mixed there.
    _agree(jax.nn.softmax(routing.logits, axis=-1)[real], theirs[column][real])
    seen = real & (present[..., column] > 0)
    _agree(routing.probs, np.where(seen[..., None], theirs[column], 0.0))
