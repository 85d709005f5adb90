"""Tiny DERL networks and batches: what the tests of DERL share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from changes import change

from configs import derl as derl_config
from msa_jax.config.experiment import from_json, to_json
from msa_jax.layers.masking import hide_unavailable
from msa_jax.models.derl import system as derl
from msa_jax.step import compose
from msa_jax.step.objective import objective_terms
from msa_jax.step.recipe import example_batch
from msa_jax.typing import Batch, Label, Modality, Spec, Task

# What XLA's optimisations save in run time of such models they cost many times over
# in compile time.
compiled = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)

WIDTHS = {"text": 5, "audio": 4, "vision": 3}
NAMES = ("text", "audio", "vision")
CLASSES = ("a", "b", "c", "d")
TASKS = {
  "regression": {"sentiment": Task("regression", -3.0, 3.0)},
  "classes": {"emotion": Task("classes", classes=CLASSES, protocol="classes")},
  "binary": {"emotion": Task("binary", classes=CLASSES, protocol="emotions")},
}
QUIET = dict.fromkeys(("text", "attention", "residual", "ffn", "enhancement"), 0.0)
TINY = {"hidden_dim": 8, "num_heads": 2, "ffn_multiplier": 1, "dropout": QUIET}


def spec_of(names=NAMES, steps=(6, 6, 6), widths=WIDTHS, kind="regression") -> Spec:
  """A corpus of these shapes with one task."""
  lengths = dict(zip(NAMES, steps, strict=True))
  return Spec(
    widths={name: widths[name] for name in names},
    lengths={name: lengths[name] for name in names},
    tasks=TASKS[kind],
    train_size=100,
  )


def resolved(variants="", loss=None, optim=None, model=None, **spec):
  """An experiment with a tiny network on a corpus; see `spec_of`."""
  # The network and its loss alone: no modality is lost, nothing is averaged.
  config = change(
    derl_config.get_config(variants),
    model={**TINY, **(model or {})},
    loss=loss or {},
    optim={"ema_decay": 0.0, **(optim or {})},
    missing={"train": "none"},
  )
  return config.replace(spec=spec_of(**spec))


def make_batch(steps=(6, 6, 6), size=4, names=NAMES, seed=0) -> Batch:
  """Random features everywhere, padding included; rows of different lengths."""
  random = np.random.default_rng(seed)
  modalities = {}
  for name, length in zip(NAMES, steps, strict=True):
    lengths = random.integers(2, length + 1, size)
    features = random.normal(size=(size, length, WIDTHS[name])).astype(np.float32)
    if name in names:
      modalities[name] = Modality(
        features=jnp.asarray(features),
        mask=jnp.asarray(np.arange(length)[None] < lengths[:, None]),
        lost=jnp.zeros((size, length), bool),
      )
  sentiment = random.uniform(-3, 3, size).astype(np.float32)
  return Batch(
    modalities=modalities,
    available=jnp.ones((size, len(modalities)), bool),
    labels={"sentiment": Label(jnp.asarray(sentiment), jnp.ones(size, bool))},
    index=jnp.arange(size, dtype=jnp.int32),
    sample_mask=jnp.ones(size, bool),
  )


def replace(batch, name, **fields):
  changed = batch.modalities[name].replace(**fields)
  return batch.replace(modalities={**batch.modalities, name: changed})


def lengthened(batch, name, extra):
  """More padding, filled with garbage."""
  modality = batch.modalities[name]
  size, _, width = modality.features.shape
  nothing = jnp.zeros((size, extra), bool)
  return replace(
    batch,
    name,
    features=jnp.concatenate(
      [modality.features, jnp.full((size, extra, width), 9.0)], axis=1
    ),
    mask=jnp.concatenate([modality.mask, nothing], axis=1),
    lost=jnp.concatenate([modality.lost, nothing], axis=1),
  )


def drawn(shapes, seed=0):
  """Variables of these shapes, none of them zero or one; nothing is compiled."""
  random = np.random.default_rng(seed)

  def draw(path, leaf):
    noise = random.standard_normal(leaf.shape)
    name = path[-1].key
    if name == "kernel":
      value = noise / np.sqrt(np.prod(leaf.shape[-2:-1]))
    elif name in ("scale", "var"):
      value = np.exp(0.2 * noise)
    else:
      value = 0.2 * noise
    return jnp.asarray(value, leaf.dtype)

  return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def _initial(text: str):
  config = from_json(text)
  model = derl.build(config.model, config.corpus_spec)
  example = example_batch(config.corpus_spec)
  shapes = jax.eval_shape(lambda key: model.init(key, example), jax.random.key(0))
  return model, drawn(shapes)


def initial(config):
  """The model of an experiment, and variables of it."""
  return _initial(to_json(config))


@functools.cache
def _predictor(model, train: bool):
  def run(variables, batch, key):
    return model.apply(
      variables,
      hide_unavailable(batch),
      train=train,
      rngs={"dropout": key},
      mutable=["batch_stats"] if train else [],
    )

  return compiled(run)


def predict(model, variables, batch, train=False, key=0):
  """Output, and the updated collections when training."""
  output, updated = _predictor(model, train)(variables, batch, jax.random.key(key))
  return (output, updated) if train else output


def assert_close(one, other, atol=1e-5):
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    np.testing.assert_allclose(a, b, atol=atol)


def step_of(config):
  """State before, state after and metrics of one update."""
  recipe = compose.build(config)
  shapes = jax.eval_shape(recipe.init, 0)
  params, collections = drawn((shapes.params, shapes.collections))
  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
  state = zeros.replace(params=params, collections=collections)
  after, metrics = compiled(recipe.step)(state, make_batch(), 0)
  return state, after, metrics


def loss_of(config):
  """Metrics of a training step's forward pass."""
  model, variables = initial(config)
  batch = make_batch()
  output, _ = predict(model, variables, batch, train=True)
  objective = compose.objective_of(config, derl.SYSTEM, model)
  return objective_terms(objective, output, batch, jnp.zeros((), jnp.int32))[1]
