"""MulT: published numbers of both codes, masks, sizes, a trace of MMSA's trainer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
import torch_weights
from flax.core import FrozenDict
from paths import REFERENCE

from configs import mult
from msa_jax.config.experiment import experiment
from msa_jax.errors import UserError
from msa_jax.models.mult import MulT
from msa_jax.models.outputs import OutputSpec
from msa_jax.step import compose
from msa_jax.studies.changes import changed
from msa_jax.typing import Spec, Task

ARRAYS = np.load(REFERENCE / "mult_reference.npz")
SHORT = {"text": "l", "audio": "a", "vision": "v"}
EMOTIONS = OutputSpec("emotion", "binary", 8, classes=("a", "b", "c", "d"))
_ONE = FrozenDict(text=1, audio=1, vision=1)
_ORIGINAL = {"kernel_sizes": _ONE, "positions": True}
NETWORKS = {
  "mmsa": {"num_layers": 2, "kernel_sizes": FrozenDict(text=3, audio=3, vision=3)},
  "aligned": {"num_layers": 2, **_ORIGINAL},
  "unaligned_iemocap": {"num_layers": 1, **_ORIGINAL, "output": EMOTIONS},
  "text_only_target": {"num_layers": 1, **_ORIGINAL, "targets": ("text",)},
}


def params_of(w):
  """Our parameters from those of the published module."""
  params = {}
  for name, short in SHORT.items():
    kernel = w[f"proj_{short}.weight"].transpose(2, 1, 0)
    params[f"project_{name}"] = {"kernel": jnp.asarray(kernel)}
    encoders = {f"{name}_with_{other}": f"with_{s}" for other, s in SHORT.items()}
    for ours, theirs in {**encoders, f"{name}_memory": "mem"}.items():
      if f"trans_{short}_{theirs}.layer_norm.weight" in w:
        params[ours] = torch_weights.crossmodal(w, f"trans_{short}_{theirs}")
  heads = {"hidden": "proj1", "residual": "proj2", "out": "out_layer"}
  return params | {n: torch_weights.dense(w, theirs) for n, theirs in heads.items()}


def lengths_of(tag):
  if f"{tag}/t_lengths" not in ARRAYS:
    return None
  return {n: ARRAYS[f"{tag}/{x}_lengths"] for n, x in published.INPUT.items()}


@functools.cache
def computed(tag, compat):
  """Predictions of a published module's weights, and gradients of their squares."""
  model = MulT(hidden_dim=8, num_heads=2, compat=compat, **NETWORKS[tag])
  params = params_of(torch_weights.weights(ARRAYS, f"{tag}/weights/"))
  output, gradient = published.outputs(
    model,
    {"params": params},
    published.features(ARRAYS, tag),
    lengths_of(tag),
    model.output.name,
  )
  return np.reshape(output.predictions[model.output.name], (4, -1)), gradient


# The smallest of each mode always; all of them on request.
QUICK = ("mmsa", "aligned")


def _some(tags):
  return [
    pytest.param(tag, marks=[] if tag in QUICK else [pytest.mark.slow]) for tag in tags
  ]


@pytest.mark.parametrize("tag", _some(NETWORKS))
def test_compat_mode_equals_the_published_module_in_outputs_and_gradients(tag):
  prediction, gradient = computed(tag, "mmsa")
  published.close(prediction, ARRAYS[f"{tag}/output"], 1e-5)
  published.check_gradients(gradient, ARRAYS, tag)


@pytest.mark.parametrize(
  "tag", _some(["aligned", "unaligned_iemocap", "text_only_target"])
)
def test_default_mode_equals_each_sample_run_alone(tag):
  prediction, gradient = computed(tag, "none")
  published.close(prediction, ARRAYS[f"{tag}/alone_output"], 1e-5)
  published.close(gradient["text"], ARRAYS[f"{tag}/alone_grad_in_t"], 1e-4)


@pytest.mark.parametrize(("layers", "size"), [(4, 872_131), (5, 1_071_211)])
def test_the_original_has_as_many_parameters_as_published(layers, size):
  model = MulT(hidden_dim=30, num_heads=5, num_layers=layers, kernel_sizes=_ONE)
  glove = {**published.MOSI, "text": (2, 50, 300)}
  assert published.count(model, glove) == size


def test_bad_options_are_refused():
  for options, message in (
    ({"num_heads": 3}, "num_heads=3 must divide model.hidden_dim=50"),
    ({"targets": ("smell",)}, "targets names 'smell'"),
    ({"compat": "torch"}, "compat='torch' must be one of"),
    ({"kernel_sizes": FrozenDict(text=0)}, "kernel_sizes.text=0 must be at least 1"),
    ({"attention_dropout": FrozenDict(text=1.0)}, "attention_dropout.text=1.0"),
  ):
    with pytest.raises(UserError, match=message):
      MulT(**options)


def trained():
  """Our parameters after two epochs of MMSA's trainer, and those it stored."""
  arrays = np.load(REFERENCE / "mult_training.npz")
  rates = {f"dropout.{site}": 0.0 for site in MulT.dropout}
  rates |= {f"attention_dropout.{name}": 0.0 for name in SHORT}
  sizes = {"hidden_dim": 8, "num_heads": 2, "num_layers": 1}
  kernels = {"text": 3, "audio": 1, "vision": 3}
  sizes |= {f"kernel_sizes.{name}": size for name, size in kernels.items()}
  config = changed(
    experiment(mult.get_config("paper")),
    {
      **{f"model.{key}": value for key, value in {**rates, **sizes}.items()},
      "optim.learning_rate": 2e-3,
      "optim.accumulate_steps": 2,
      "optim.grad_clip_value": 0.01,
    },
  )
  values = [
    {name: jnp.asarray(arrays[f"batch{i}/{name}"]) for name in SHORT} for i in range(5)
  ]
  spec = Spec(
    widths={name: each.shape[-1] for name, each in values[0].items()},
    lengths={name: each.shape[1] for name, each in values[0].items()},
    tasks={"sentiment": Task("regression", -3.0, 3.0)},
    train_size=20,
  )
  recipe = compose.build(config.replace(spec=spec))
  start = params_of(torch_weights.weights(arrays, "initial/"))
  state = recipe.start(start, {}, jnp.zeros((), jnp.int32))
  step = jax.jit(recipe.step)
  for _ in range(int(arrays["epochs"]) if "epochs" in arrays else 2):
    for i, features in enumerate(values):
      labels = {"sentiment": arrays[f"batch{i}/labels"]}
      state, _ = step(state, published.batch(features, labels=labels), 0)
    state = recipe.end_epoch(state)
  return state.params, params_of(torch_weights.weights(arrays, "after/"))


def test_training_follows_mmsas_trainer():
  """Gradients of two batches summed and clipped by value; the fifth is dropped."""
  ours, theirs = trained()
  moved = 0
  for (path, one), other in zip(
    jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True
  ):
    name = jax.tree_util.keystr(path)
    # A key's bias adds the same to all scores of a query: Adam turns the rounding of
    # its gradient, which is zero, into steps.
    if not name.endswith("['key']['bias']"):
      published.close(one, other, 1e-4)
      moved += 1
  assert moved > 100
