"""MulT: published numbers of both codes, masks, training as MMSA trains."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_weights
from flax.core import FrozenDict
from paths import REFERENCE

from msa_jax.errors import UserError
from msa_jax.models.mult import MulT
from msa_jax.models.outputs import OutputSpec
from msa_jax.typing import Batch

ARRAYS = np.load(REFERENCE / "mult_reference.npz")
SHORT = {"text": "l", "audio": "a", "vision": "v"}
INPUT = {"text": "t", "audio": "a", "vision": "v"}
EMOTIONS = OutputSpec("emotion", "binary", 8, classes=("a", "b", "c", "d"))
_SMALL = {"hidden_dim": 8, "num_heads": 2}
_ONE = FrozenDict(text=1, audio=1, vision=1)
NETWORKS = {
  "mmsa": {"num_layers": 2, "kernel_sizes": FrozenDict(text=3, audio=3, vision=3)},
  "aligned": {"num_layers": 2, "kernel_sizes": _ONE, "positions": True},
  "unaligned_iemocap": {
    "num_layers": 1,
    "kernel_sizes": _ONE,
    "positions": True,
    "output": EMOTIONS,
  },
  "text_only_target": {
    "num_layers": 1,
    "kernel_sizes": _ONE,
    "positions": True,
    "targets": ("text",),
  },
}


def network(tag, **changes):
  return MulT(**{**_SMALL, **NETWORKS[tag], **changes})


def params_of(w):
  """Our parameters from those of the published module."""
  params = {
    f"project_{name}": {
      "kernel": jnp.asarray(w[f"proj_{short}.weight"].transpose(2, 1, 0))
    }
    for name, short in SHORT.items()
  }
  for name, short in SHORT.items():
    for other, source in {**SHORT, "memory": "mem"}.items():
      theirs = f"trans_{short}_with_{source}" if other != "memory" else ""
      theirs = theirs or f"trans_{short}_mem"
      ours = f"{name}_memory" if other == "memory" else f"{name}_with_{other}"
      if f"{theirs}.layer_norm.weight" in w:
        params[ours] = torch_weights.crossmodal(w, theirs)
  for ours, theirs in (
    ("hidden", "proj1"),
    ("residual", "proj2"),
    ("out", "out_layer"),
  ):
    params[ours] = torch_weights.dense(w, theirs)
  return params


def features_of(tag):
  return {name: jnp.asarray(ARRAYS[f"{tag}/in_{x}"]) for name, x in INPUT.items()}


def batch_of(tag, features):
  lengths = {}
  if f"{tag}/t_lengths" in ARRAYS:
    lengths = {name: ARRAYS[f"{tag}/{x}_lengths"] for name, x in INPUT.items()}
  else:
    lengths = {name: np.full(4, 7) for name in INPUT}
  made = Batch.from_arrays(
    {name: np.asarray(value) for name, value in features_of(tag).items()},
    lengths=lengths,
  )
  return made.replace(
    modalities={
      name: each.replace(features=features[name])
      for name, each in made.modalities.items()
    }
  )


@functools.cache
def computed(tag, compat):
  """Predictions of a published module's weights, and gradients of their squares."""
  model = network(tag, compat=compat)
  variables = {"params": params_of(torch_weights.weights(ARRAYS, f"{tag}/weights/"))}

  def energy(features):
    output = model.apply(variables, batch_of(tag, features))
    (prediction,) = output.predictions.values()
    return jnp.sum(prediction**2), prediction

  gradient, prediction = jax.jit(jax.grad(energy, has_aux=True))(features_of(tag))
  return np.asarray(prediction).reshape(4, -1), gradient


def close(ours, theirs, tolerance):
  scale = np.maximum(1.0, np.abs(theirs))
  assert np.max(np.abs(np.asarray(ours) - theirs) / scale) < tolerance


@pytest.mark.parametrize("tag", NETWORKS)
def test_compat_mode_equals_the_published_module_in_outputs_and_gradients(tag):
  prediction, gradient = computed(tag, "mmsa")
  close(prediction, ARRAYS[f"{tag}/output"], 1e-5)
  for name, short in INPUT.items():
    close(gradient[name], ARRAYS[f"{tag}/grad_in_{short}"], 1e-4)


@pytest.mark.parametrize("tag", ["aligned", "unaligned_iemocap", "text_only_target"])
def test_default_mode_equals_each_sample_run_alone(tag):
  prediction, gradient = computed(tag, "none")
  close(prediction, ARRAYS[f"{tag}/alone_output"], 1e-5)
  close(gradient["text"], ARRAYS[f"{tag}/alone_grad_in_t"], 1e-4)
