"""A tiny H-GEM and batches for it: what the tests of the model share."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from msa_jax.layers.masking import hide_unavailable
from msa_jax.models.hgem import system as hgem
from msa_jax.typing import Batch, Label, Modality, Spec, Task, modality_order

WIDTHS = {"text": 5, "audio": 4, "vision": 3}
STEPS = 4
# What XLA's optimisations save in run time of such models they cost many times over
# in compile time.
FAST_COMPILE = {"xla_backend_optimization_level": 0}

SENTIMENT = Task("regression", -3.0, 3.0)
EMOTION = Task(
  "binary", classes=("happy", "sad", "angry", "neutral"), protocol="emotions"
)
SIZES = {
  "token_dim": 8,
  "fused_dim": 4,
  "max_steps": STEPS,
  "num_codes": 3,
  "text_expert.ffn_dim": 8,
  "vision_expert.ffn_dim": 8,
  "audio_expert.lstm_dim": 4,
  "gates.hidden_dims": (4, 4, 4, 4),
  "sparse_expert.ffn_dim": 8,
  "dense_expert.hidden_dim": 8,
  "robust_expert.hidden_dim": 8,
  "robust_expert.denoiser_dim": 8,
  "polarity_experts.hidden_dim": 8,
  "head_dim": 16,
}


def spec(widths=None, steps=STEPS, **tasks):
  widths = WIDTHS if widths is None else widths
  lengths = dict.fromkeys(widths, steps)
  return Spec(widths, lengths, tasks or {"sentiment": SENTIMENT})


def options(overrides=None):
  """`small`, shrunk further; `overrides` are dotted keys of `config.model`."""
  made = hgem.options("small")
  for path, value in {**SIZES, **dict(overrides or {})}.items():
    node, keys = made, path.split(".")
    for key in keys[:-1]:
      node = node[key]
    node[keys[-1]] = value
  del made["name"]
  return made


def model(overrides=None, widths=None, **tasks):
  """The network of some options and a corpus of some widths and tasks."""
  return hgem.build(options(overrides), spec(widths, **tasks))


def batch(widths=None, rows=6, seed=0, codes=False, label=None):
  """Six samples: ragged, the second without audio, the last a filler row."""
  random = np.random.default_rng(seed)
  widths = WIDTHS if widths is None else widths
  names = modality_order(widths)
  modalities = {}
  for name in names:
    lengths = random.integers(2, STEPS + 1, rows)
    lengths[0] = STEPS
    mask = np.arange(STEPS)[None] < lengths[:, None]
    features = random.normal(size=(rows, STEPS, widths[name])) * mask[..., None]
    ids = {}
    if codes and name != "text":
      ids["codes"] = jnp.asarray(random.integers(0, 3, (rows, STEPS)), jnp.int32)
    modalities[name] = Modality(
      features=jnp.asarray(features, jnp.float32),
      mask=jnp.asarray(mask),
      lost=jnp.zeros((rows, STEPS), bool),
      ids=ids,
    )
  available = np.ones((rows, len(names)), bool)
  if len(names) > 1:
    available[1, 1] = False
  if label is None:
    label = np.resize(np.array([-2.0, 1.5, 0.0, -0.4, 2.9, 1.0]), rows)
  return Batch(
    modalities=modalities,
    available=jnp.asarray(available),
    labels={"sentiment": Label(jnp.asarray(label, jnp.float32), jnp.ones(rows, bool))},
    index=jnp.arange(rows, dtype=jnp.int32),
    sample_mask=jnp.arange(rows) < rows - 1,
  )


def random_variables(initialise, seed=0):
  """Variables of the right shapes without compiling any initialiser."""
  random = np.random.default_rng(seed)
  shapes = jax.eval_shape(initialise)
  return jax.tree.map(
    lambda leaf: jnp.asarray(random.normal(size=leaf.shape) * 0.5, leaf.dtype), shapes
  )


def hide(batch_):
  """The batch as the step hands it to the network."""
  return hide_unavailable(batch_, keep_lost=True)


def shapes_of(made, example):
  """Shapes of a model's variables and output."""
  variables = jax.eval_shape(lambda: made.init(jax.random.key(0), example))
  output = jax.eval_shape(lambda v: made.apply(v, example), variables)
  return variables["params"], output


@functools.cache
def system(overrides=(), codes=False):
  """The model of some overrides (pairs), its variables, compiled `predict`."""
  made = model(overrides)
  example = batch(codes=codes)
  variables = random_variables(lambda: made.init(jax.random.key(0), example))

  def predict(variables, batch):
    return made.apply(variables, hide(batch))

  return SimpleNamespace(
    model=made,
    variables=variables,
    predict=jax.jit(predict, compiler_options=FAST_COMPILE),
  )


def edit(batch_, name, **fields):
  """The batch with fields of one modality replaced."""
  modality = batch_.modalities[name].replace(**fields)
  return batch_.replace(modalities={**batch_.modalities, name: modality})


def forced(params, gate, choice, strength):
  """The parameters with a gate whose scores are `strength` for one candidate, else 0.

  Not so strong that the others' weights vanish: a scale of exactly zero is the one
  that no norm erases.
  """
  scores = params[gate]["units"]["experts"]["scores"]
  bias = jnp.zeros_like(scores["bias"])  # [units e]; of Gate 3 [e 1]
  at = (choice,) if gate == "gate3" else (slice(None), choice)
  scores = {
    "kernel": jnp.zeros_like(scores["kernel"]),
    "bias": bias.at[at].set(strength),
  }
  units = {"experts": {**params[gate]["units"]["experts"], "scores": scores}}
  return {**params, gate: {"units": units}}
