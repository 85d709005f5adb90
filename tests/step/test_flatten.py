"""Packing: the numbers of an optimizer that sees every array by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

from msa_jax.step import flatten
from msa_jax.step import optimizer as optim


def _params(getkey):
  shapes = {
    "gate": {"kernel": (3, 4), "bias": (4,)},
    "wide": {"kernel": (6, 5), "bias": (5,)},  # the kernel is too large to pack
    "bank": {"experts": {"kernel": (2, 3, 3), "bias": (2, 3)}},
    "head": {"kernel": (4, 1), "scale": (1,)},
  }
  return jax.tree.map(
    lambda shape: jax.random.normal(getkey(), shape),
    shapes,
    is_leaf=lambda node: isinstance(node, tuple),
  )


@pytest.fixture
def small(monkeypatch):
  monkeypatch.setattr(flatten, "_SMALL", 12)


def _optim(**options):
  return toy.config(warmup_fraction=0.0, schedule="constant", **options).optim


def _partition(path):
  return "gate" if path[0] == "gate" else "new"


def _rates(config, params):
  def rate(path, _):
    return -config.rates[_partition(flatten.names_of(path))]

  return jax.tree_util.tree_map_with_path(rate, params)


def _by_array(config, params, decay, mask):
  """The same optimizer, written out in Optax over single arrays."""
  rates = _rates(config, params)
  scaled = optax.stateless(
    lambda updates, _: jax.tree.map(lambda u, r: u * r, updates, rates)
  )
  decayed = optax.add_decayed_weights(decay, mask)
  rule = optax.scale_by_adam()
  parts = (rule, decayed) if config.name == "adamw" else (decayed, rule)
  return optax.chain(optax.clip_by_global_norm(config.grad_clip_norm), *parts, scaled)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_updates_are_those_of_single_arrays(small, getkey, name):
  config = _optim(name=name, grad_clip_norm=0.5, weight_decay=0.1)
  params = _params(getkey)
  matrices = jax.tree.map(lambda leaf: leaf.ndim > 1, params)
  matrices["bank"]["experts"]["bias"] = False  # one bias per expert
  mask = matrices if name == "adamw" else jax.tree.map(lambda _: True, params)
  ours = optim.build(config, 20, _partition)
  theirs = _by_array(config, params, 0.1, mask)
  state, expected_state = ours.init(params), theirs.init(params)
  for _ in range(3):
    gradients = jax.tree.map(lambda p: p * jax.random.normal(getkey(), p.shape), params)
    updates, state = ours.update(gradients, state, params)
    expected, expected_state = theirs.update(gradients, expected_state, params)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
      updates,
      expected,
    )
    params = optax.apply_updates(params, updates)


def test_small_arrays_are_one_vector_per_kind_and_the_others_stay_apart(small, getkey):
  config = _optim(name="adamw", weight_decay=0.1)
  state = optim.build(config, 20, _partition).init(_params(getkey))
  moments = optax.tree.get(state, "mu")
  assert moments["packed"]["gate"]["decayed"].shape == (12,)
  assert moments["packed"]["gate"]["kept"].shape == (4,)
  assert moments["packed"]["new"]["decayed"].shape == (4,)
  assert moments["packed"]["new"]["kept"].shape == (5 + 1,)
  apart = jax.tree.map(
    jnp.shape, moments["apart"], is_leaf=lambda x: hasattr(x, "shape")
  )
  assert apart == {
    "wide": {"kernel": (6, 5)},
    "bank": {"experts": {"kernel": (2, 3, 3), "bias": (2, 3)}},
  }


def test_arrays_of_other_types_are_not_mixed_into_the_vector(getkey):
  params = {"head": {"kernel": jnp.ones((2, 2)), "half": jnp.ones(3, jnp.bfloat16)}}
  optimizer = optim.build(_optim(name="sgd", grad_clip_norm=0.0), 20, _partition)
  updates, _ = optimizer.update(params, optimizer.init(params), params)
  assert updates["head"]["half"].dtype == jnp.bfloat16
  assert updates["head"]["kernel"].dtype == jnp.float32


def test_the_norm_is_that_of_all_arrays(small, getkey):
  params = _params(getkey)
  squares = [
    np.square(np.asarray(leaf, np.float64)).sum() for leaf in jax.tree.leaves(params)
  ]
  np.testing.assert_allclose(flatten.norm(params), np.sqrt(sum(squares)), rtol=1e-6)
