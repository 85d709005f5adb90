"""A tiny H-GEM and batches for it: what the tests of the model share."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from msa_jax.models.hgem import system as hgem
from msa_jax.typing import Batch, Label, Modality, modality_order

WIDTHS = {"text": 5, "audio": 4, "vision": 3}
STEPS = 4
# What XLA's optimisations save in run time of such models they cost many times over
# in compile time.
FAST_COMPILE = {"xla_backend_optimization_level": 0}

SENTIMENT = {
  "kind": "regression",
  "low": -3.0,
  "high": 3.0,
  "classes": (),
  "protocol": "mosi",
}
EMOTION = {
  "kind": "binary",
  "low": 0.0,
  "high": 0.0,
  "classes": ("happy", "sad", "angry", "neutral"),
  "protocol": "emotions",
}


def spec(widths=None, steps=STEPS, **tasks):
  widths = WIDTHS if widths is None else widths
  return ml_collections.ConfigDict(
    {
      "widths": dict(widths),
      "lengths": {name: steps for name in widths},
      "tasks": tasks or {"sentiment": SENTIMENT},
    }
  )


def config(overrides=None, widths=None, **tasks):
  """`small`, shrunk further; `overrides` are dotted keys of `config.model`."""
  made = ml_collections.ConfigDict({"model": hgem.options("small")})
  made.model.update(
    {
      "D": 8,
      "d": 4,
      "T": STEPS,
      "L_codes": 3,
      "text_expert": {"ffn": 8},
      "vision_expert": {"ffn": 8},
      "audio_expert": {"lstm": 4},
      "gate": {"hidden": (4, 4, 4, 4)},
      "sparse": {"ffn": 8},
      "dense": {"hidden": 8},
      "robust": {"hidden": 8, "denoiser": 8},
      "polarity": {"hidden": 8},
      "head": {"hidden": 16},
    }
  )
  made.model.update_from_flattened_dict(dict(overrides or {}))
  made.spec = spec(widths, **tasks)
  return made


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


def shapes_of(made, example):
  """Shapes of variables and output of a config's model."""
  model = hgem.build(made)
  variables = jax.eval_shape(
    lambda: model.init(jax.random.key(0), example, train=False)
  )
  output = jax.eval_shape(lambda v: model.apply(v, example, train=False), variables)
  return variables["params"], output


@functools.cache
def system(overrides=(), codes=False):
  """The model of some overrides (pairs), its variables, compiled `predict`."""
  made = config(overrides)
  model = hgem.build(made)
  example = batch(codes=codes)
  variables = random_variables(
    lambda: model.init(jax.random.key(0), example, train=False)
  )

  def predict(variables, batch):
    return model.apply(variables, batch, train=False)

  return SimpleNamespace(
    config=made,
    model=model,
    variables=variables,
    predict=jax.jit(predict, compiler_options=FAST_COMPILE),
  )


def edit(batch_, name, **fields):
  """The batch with fields of one modality replaced."""
  modality = batch_.modalities[name].replace(**fields)
  return batch_.replace(modalities={**batch_.modalities, name: modality})
