"""What is absent has no influence at all, in any system of the table, bit for bit."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msa_jax.models import SYSTEMS
from msa_jax.train import recipe

# Narrower than the defaults, where those take long to compile; else all is default.
NARROW = {
  "hgem": {
    "D": 16,
    "d": 8,
    "n_heads": 2,
    "gate.hidden": (8, 8, 8, 8),
    "sparse.ffn": 16,
    "sparse.layers": 1,
    "missing_mode": "embed",
  },
  "mmolre": {"modalities": ()},  # its default leaves vision out
}


def _config(name):
  config = importlib.import_module(f"configs.{name}").get_config()
  config = config.copy_and_resolve_references()
  with config.unlocked():
    for path, value in NARROW.get(name, {}).items():
      *sections, key = path.split(".")
      node = config.model
      for section in sections:
        node = node[section]
      node[key] = value
    config.spec = {
      "widths": {"text": 6, "audio": 3, "vision": 4},
      "lengths": {"text": 5, "audio": 5, "vision": 5},
      "ids": {"text": (), "audio": ("codes",), "vision": ()},
      "tasks": {
        "sentiment": {
          "kind": "regression",
          "low": -3.0,
          "high": 3.0,
          "classes": (),
          "protocol": "mosi",
        }
      },
      "priors": {"sentiment": (0.625,)},
      "train_size": 8,
      # Samples are what the system is made for: steps may be utterances of dialogues.
      "utterances": 5 if config.data.unit == "dialogue" else 0,
    }
  return config.lock()


def _batch(config, seed=0):
  """Six samples with ragged lengths and some lost steps, everything available."""
  random = np.random.default_rng(seed)
  batch = recipe.example_batch(config.spec, 6)
  modalities = {}
  for name, modality in batch.modalities.items():
    mask = np.arange(5)[None] < random.integers(2, 6, 6)[:, None]
    modalities[name] = modality.replace(
      features=jnp.asarray(random.normal(size=modality.features.shape), "float32"),
      mask=jnp.asarray(mask),
      lost=jnp.asarray(mask & (random.random((6, 5)) < 0.2)),
      ids={
        k: jnp.asarray(random.integers(0, 9, (6, 5)), "int32") for k in modality.ids
      },
    )
  return batch.replace(modalities=modalities)


def _garbage(modality, rows, seed):
  """Other contents, lengths and losses in some rows; NaN and infinities included."""
  random = np.random.default_rng(seed)
  rows = rows[:, None]
  features = random.normal(size=modality.features.shape).astype("float32") * 1e3
  features[:, ::2] = np.nan
  features[:, 1::4] = np.inf
  ids = {
    k: jnp.where(rows, jnp.asarray(random.integers(0, 9, v.shape), "int32"), v)
    for k, v in modality.ids.items()
  }
  return modality.replace(
    features=jnp.where(rows[..., None], features, modality.features),
    mask=jnp.where(rows, random.random(modality.mask.shape) < 0.5, modality.mask),
    lost=jnp.where(rows, random.random(modality.lost.shape) < 0.3, modality.lost),
    ids=ids,
  )


def _variables(system):
  """Random parameters; compiling the initialiser would take longer than the test."""
  random = np.random.default_rng(1)
  shapes = jax.eval_shape(system.init, 0)

  def fill(leaf):
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      return jnp.zeros(leaf.shape, leaf.dtype)
    return jnp.asarray(random.uniform(0.05, 0.4, leaf.shape), leaf.dtype)

  signs = jax.tree.map(
    lambda x: random.choice([-1.0, 1.0], x.shape).astype("f"), shapes.params
  )
  params = jax.tree.map(lambda leaf, sign: fill(leaf) * sign, shapes.params, signs)
  return params, jax.tree.map(fill, shapes.collections)


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_absent_modalities_have_exactly_no_influence(name):
  config = _config(name)
  system = recipe.build(config)
  params, collections = _variables(system)
  predict = jax.jit(system.predict)
  batch = _batch(config)
  absent = np.zeros((6, 3), bool)
  absent[:3] = np.eye(3, dtype=bool)  # each modality alone
  absent[3] = [True, True, False]
  absent[4] = True  # and all of them
  batch = batch.replace(
    available=batch.available & ~absent.reshape(6, *[1] * (batch.available.ndim - 2), 3)
  )
  noisy = {
    key: _garbage(batch.modalities[key], absent[:, column], column)
    for column, key in enumerate(batch.order)
  }
  for key, modality in noisy.items():
    # What a lost step held does not matter either.
    features = jnp.where(modality.lost[..., None], 7e4, modality.features)
    noisy[key] = modality.replace(features=features)
  plain = predict(params, collections, batch)
  other = predict(params, collections, batch.replace(modalities=noisy))
  for ours, theirs in zip(jax.tree.leaves(plain), jax.tree.leaves(other), strict=True):
    np.testing.assert_array_equal(ours, theirs)
    assert np.isfinite(np.asarray(ours)).all()
  full = predict(params, collections, _batch(config))
  for task, values in plain.predictions.items():
    np.testing.assert_allclose(values[4], 0.625)
    if "@" in task:
      continue  # a head of one modality need not see that another is gone
    changed = np.asarray(values != full.predictions[task]).reshape(6, -1).any(axis=1)
    # Every row that lost something, so that the equality above is not an empty one.
    assert changed[:4].all() and not changed[5]
