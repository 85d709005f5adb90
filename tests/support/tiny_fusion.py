"""Tiny late-fusion systems and batches for them: what the tests of B-fusion share."""

import jax
import jax.numpy as jnp
import numpy as np

from msa_jax import config as config_lib
from msa_jax import models
from msa_jax.config.experiment import experiment
from msa_jax.models.late_fusion import awf, lf_dnn, lf_lstm, tfn
from msa_jax.step import compose
from msa_jax.step.balance.omega import omega_gradient
from msa_jax.step.balance.split_model import SplitModel
from msa_jax.step.recipe import example_batch
from msa_jax.typing import Batch, Label, Modality, Spec, Task, modality_order

WIDTHS = {"text": 5, "audio": 4, "vision": 3}
STEPS = 4
MODULES = {"awf": awf, "lf_dnn": lf_dnn, "lf_lstm": lf_lstm, "tfn": tfn}
_HIDDEN = {"text": 4, "audio": 3, "vision": 3}
_NO_DROPOUT = {"dropout": dict.fromkeys(_HIDDEN, 0.0), "post_dropout": 0.0}
SMALL = {
  "awf": {"feature_dim": 4, "post_dim": 6},
  "lf_dnn": {"hidden_dims": _HIDDEN, "text_dim": 5, "post_dim": 6, **_NO_DROPOUT},
  "lf_lstm": {"hidden_dims": _HIDDEN, "feature_dim": 4, "post_dim": 6, **_NO_DROPOUT},
  "tfn": {"hidden_dims": _HIDDEN, "text_dim": 3, "post_dim": 6, **_NO_DROPOUT},
}
SENTIMENT = Task("regression", -3.0, 3.0)
EMOTIONS = Task(
  "binary", classes=("happy", "sad", "angry", "neutral"), protocol="emotions"
)


def config(name="awf", widths=None, tasks=None, model=(), balance=(), **sections):
  """The resolved experiment of a tiny system, balanced by B-fusion.

  Args:
    name: of the system.
    widths: modality -> width.
    tasks: name -> `Task`.
    model: dotted option -> value.
    balance: option -> value.
    sections: section -> option -> value.
  """
  widths = WIDTHS if widths is None else widths
  made = config_lib.base(MODULES[name].options(), balance=True)
  made.model.update(SMALL[name])
  for path, value in dict(model).items():
    made.model.update_from_flattened_dict({path: value})
  made.balance.update({"enabled": True, **dict(balance)})
  made.optim.update(
    {"warmup_fraction": 0.0, "schedule": "constant", "grad_clip_norm": 0.0}
  )
  for section, values in sections.items():
    made[section].update(values)
  spec = Spec(
    widths=dict(widths),
    lengths=dict.fromkeys(widths, STEPS),
    tasks=tasks or {"sentiment": SENTIMENT},
    train_size=64,
  )
  return experiment(made).replace(spec=spec)


def network(made):
  """An experiment's network."""
  return compose.networks(made).inner


def split(made):
  """An experiment's network in two parts."""
  inner = network(made)
  objective = compose.objective_of(made, models.get(made.system), inner)
  return SplitModel(inner, example_batch(made.corpus_spec), objective)


def batch(size=6, widths=None, seed=0, label=None):
  """Random features, lengths from 1 to STEPS, sentiment labels."""
  widths = WIDTHS if widths is None else widths
  random = np.random.default_rng(seed)
  modalities = {}
  for name in modality_order(widths):
    lengths = random.integers(1, STEPS + 1, size)
    mask = np.arange(STEPS)[None] < lengths[:, None]
    features = random.normal(size=(size, STEPS, widths[name])) * mask[..., None]
    modalities[name] = Modality(
      jnp.asarray(features, jnp.float32),
      jnp.asarray(mask),
      jnp.zeros((size, STEPS), bool),
    )
  value = random.uniform(-3, 3, size) if label is None else np.full(size, label)
  return Batch(
    modalities=modalities,
    available=jnp.ones((size, len(widths)), bool),
    labels={
      "sentiment": Label(jnp.asarray(value, jnp.float32), jnp.ones((size,), bool))
    },
    index=jnp.arange(size, dtype=jnp.int32),
    sample_mask=jnp.ones((size,), bool),
  )


def float64(tree):
  """Floats of a tree in float64 (with x64 on)."""
  return jax.tree.map(
    lambda leaf: (
      leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
    ),
    tree,
  )


def random_like(shapes, seed=0, scale=0.5, dtype=jnp.float64):
  """Random arrays in place of shapes: quicker than compiling an initialisation."""
  random = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: jnp.asarray(scale * random.normal(size=leaf.shape), dtype), shapes
  )


def variables_of(module, data):
  """Random float32 variables of a model; running statistics are 0 and 1."""
  shapes = jax.eval_shape(
    lambda key: module.init(key, data, train=False), jax.random.key(0)
  )
  made = random_like(shapes, dtype=jnp.float32)
  fresh = {"mean": jnp.zeros_like, "var": jnp.ones_like}
  return {
    name: tree
    if name == "params"
    else jax.tree_util.tree_map_with_path(lambda p, leaf: fresh[p[-1].key](leaf), tree)
    for name, tree in made.items()
  }


def quick_jit(function, **options):
  """Compiles in a fraction of the time; these programs are tiny."""
  return jax.jit(
    function, compiler_options={"xla_backend_optimization_level": 0}, **options
  )


def predict(module, variables, data, name="sentiment"):
  """Predictions of one task in evaluation mode."""
  apply = quick_jit(lambda v, b: module.apply(v, b, train=False).predictions[name])
  return np.asarray(apply(variables, data))


class Double:
  """A system's tail in float64 on random features: what finite differences need."""

  def __init__(self, made, data=None):
    self.config = made
    data = batch(widths=made.corpus_spec.widths) if data is None else data
    with jax.enable_x64(False):  # the encoders compute in float32
      self.host = split(made)
      shapes = jax.eval_shape(self.host.init, jax.random.key(0))
      features, _ = jax.eval_shape(self.host.encode, shapes, data, {})
    self.variables, self.batch = random_like(shapes), float64(data)
    self.features = random_like(features, seed=1, scale=1.0)
    self.seen = jnp.ones((len(self.host.modalities),), bool)
    self._compile()

  def _compile(self):
    self.function = self.host.gradient_sizes(
      self.variables, self.features, self.batch, {}
    )
    self.sizes = quick_jit(self.function)

  def silence(self, name):
    """Makes one modality's features zero, and with them its gradient."""
    self.features = {**self.features, name: jnp.zeros_like(self.features[name])}
    self._compile()

  def report(self, omega, balance=None):
    """`omega_gradient` of these sizes."""
    options = self.config.balance if balance is None else balance
    return quick_jit(lambda w: omega_gradient(options, self.function, w, self.seen))(
      omega
    )
