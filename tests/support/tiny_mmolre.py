"""A tiny MMoLRE and batches with two labels: what the tests of the system share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from changes import change

from configs import mmolre as mmolre_config
from msa_jax.config.experiment import from_json, to_json
from msa_jax.layers.masking import hide_unavailable
from msa_jax.models.mmolre import system as mmolre
from msa_jax.step import compose
from msa_jax.step.objective import objective_terms
from msa_jax.step.recipe import example_batch
from msa_jax.typing import Batch, Label, Modality, Spec, Task, modality_order

WIDTHS = {"text": 8, "audio": 3, "vision": 5}
STEPS = {"text": 5, "audio": 4, "vision": 3}
QUESTIONS = ("happy", "sad", "angry")
SENTIMENT = Task("regression", -3.0, 3.0)
EMOTION = Task("binary", classes=QUESTIONS, protocol="emotions")
TINY = {"hidden_dim": 8, "shared_ranks": (1, 2), "task_rank": 3, "num_heads": 2}
TINY |= {"ffn_dim": 4, "head_hidden_dim": 4, "second_init": "lecun"}
TINY |= {"dropout": 0.0, "attention_dropout": 0.0}

TASKS = ("sentiment", "emotion")

# What XLA's optimisations save in run time of such models they cost in compile time.
compiled = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


def config(widths=None, loss=None, labels=None, train=None, **model):
  """A resolved experiment of the tiny network; keywords are options of the model."""
  widths = {n: WIDTHS[n] for n in ("text", "audio")} if widths is None else widths
  made = change(
    mmolre_config.get_config(),
    model={**TINY, **model},
    loss=loss or {},
    train=train or {},
  )
  spec = Spec(
    widths=dict(widths),
    lengths={name: STEPS[name] for name in widths},
    tasks=labels or {"sentiment": SENTIMENT, "emotion": EMOTION},
    train_size=64,
  )
  return made.replace(spec=spec)


def network(made):
  """The network of an experiment."""
  return mmolre.build(made.model, made.corpus_spec)


def batch(widths=None, rows=6, seed=0, steps=None):
  """Six samples: ragged, the second without audio, the third without sentiment, the
  fourth without emotion, the last a filler row."""
  random = np.random.default_rng(seed)
  widths = {n: WIDTHS[n] for n in ("text", "audio")} if widths is None else widths
  steps = STEPS if steps is None else steps
  order = modality_order(widths)
  modalities = {}
  for name in order:
    lengths = random.integers(1, STEPS[name] + 1, rows)
    mask = np.arange(steps[name])[None] < lengths[:, None]
    values = random.normal(size=(rows, STEPS[name], widths[name]))
    values = np.pad(values, ((0, 0), (0, steps[name] - STEPS[name]), (0, 0)))
    values = np.where(mask[..., None], values, 0.0).astype(np.float32)
    lost = jnp.zeros((rows, steps[name]), bool)
    modalities[name] = Modality(jnp.asarray(values), jnp.asarray(mask), lost)
  available = np.ones((rows, len(order)), bool)
  available[1, order.index("audio") if "audio" in order else 0] = False
  sample_mask = np.arange(rows) < rows - 1
  sentiment = random.uniform(-3, 3, rows).astype(np.float32)
  emotion = random.integers(0, 2, (rows, len(QUESTIONS))).astype(np.int32)
  owners = {"sentiment": np.arange(rows) != 2, "emotion": np.arange(rows) != 3}
  values = {"sentiment": sentiment, "emotion": emotion}
  return Batch(
    modalities=modalities,
    available=jnp.asarray(available),
    labels={
      name: Label(jnp.asarray(values[name]), jnp.asarray(owners[name]))
      for name in values
    },
    index=jnp.arange(rows, dtype=jnp.int32),
    sample_mask=jnp.asarray(sample_mask),
  )


def variables(made, seed=0):
  """Parameters of the network, all of them away from zero."""
  example = example_batch(made.corpus_spec)
  shapes = jax.eval_shape(network(made).init, jax.random.key(0), example)["params"]
  random = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: jnp.asarray(0.4 * random.normal(size=leaf.shape), leaf.dtype), shapes
  )


def apply(made, params, data):
  """The network in evaluation."""
  return network(made).apply({"params": params}, hide_unavailable(data))


def terms(made, output, data):
  """The terms of the objective, and metrics."""
  objective = compose.objective_of(made, mmolre.SYSTEM, network(made))
  return objective_terms(objective, output, data, jnp.zeros((), jnp.int32))


@functools.cache
def base():
  """Experiment, parameters, batch and output of one block per modality."""
  made = config(num_blocks=1)
  params, data = variables(made), batch()
  return made, params, data, predict(made)(params, data)


def predict(made):
  """The compiled network in evaluation: (params, batch) -> output."""
  return _predictor(to_json(made))


@functools.cache
def _predictor(text):
  return compiled(functools.partial(apply, from_json(text)))


def same(a, b, **tolerance):
  """Asserts that two trees hold the same numbers."""
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, **tolerance)
