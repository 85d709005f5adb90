"""Other decisions in place of a gate's: experts taken away, decisions exchanged."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from msa_jax.data.batching import batches
from msa_jax.layers.masking import masked_mean
from msa_jax.layers.routing import Router, route
from msa_jax.step import interventions
from msa_jax.step.interventions import COLLECTION, Intervention, changed_routing
from msa_jax.step.recipe import Recipe
from msa_jax.typing import ModelOutput

KEEP_ALL, STAY = jnp.ones(4, bool), jnp.asarray(False)


class Gated(nn.Module):
  """A router over three experts, which are numbers: a prediction shows its weights."""

  @nn.compact
  def __call__(self, batch, *, train=False):
    text = batch.modalities["text"]
    pooled = masked_mean(text.features, text.mask[..., None], 1)
    gate = Router(3, k=2, name="gate")(5.0 * pooled)
    other = Router(2, name="hidden")(pooled)  # not in the output
    values = jnp.asarray([1.0, 10.0, 100.0])
    prediction = gate.combine @ values + 0.0 * jnp.sum(other.probs)
    return ModelOutput({"sentiment": prediction}, {}, {"gate": gate}, {})


@pytest.fixture(scope="module")
def gated():
  """The network as a recipe, its parameters and a batch with a filler row."""
  corpus = toy.corpus()
  whole = batches.whole(corpus.splits["valid"], corpus.tasks, {"text": 6, "audio": 5})
  batch = batches.take(whole, jnp.asarray([3, 1, 4, 5, 2, -1]))
  model = Gated()
  params = model.init(jax.random.key(1), batch)["params"]
  params = jax.tree.map(
    lambda leaf: jax.random.normal(jax.random.key(2), leaf.shape), params
  )

  def predict(params, collections, batch):
    del collections
    return model.apply({"params": params}, batch)

  return Recipe(None, None, predict, None), params, batch  # type: ignore[arg-type]


def predicted(gated, **changes):
  recipe, params, batch = gated
  made = interventions.with_interventions(recipe)
  output = jax.jit(made.predict)(params, {COLLECTION: changes}, batch)
  return np.asarray(output.predictions["sentiment"])


def test_gates_are_the_modules_that_the_output_names(gated):
  recipe, params, batch = gated
  assert interventions.gates_of(recipe, params, {}, batch) == {"gate": ("0", "1", "2")}


def test_without_change_predictions_are_the_networks_own(gated):
  recipe, params, batch = gated
  own = recipe.predict(params, {}, batch).predictions["sentiment"]
  kept = predicted(gated, gate=Intervention(jnp.ones(3, bool), STAY))
  np.testing.assert_array_equal(kept, own)
  np.testing.assert_array_equal(predicted(gated), own)


def test_an_expert_that_is_taken_away_has_no_weight_and_the_others_share_it(gated):
  recipe, params, batch = gated
  logits = np.asarray(recipe.predict(params, {}, batch).routing["gate"].logits)
  for gone in range(3):
    keep = jnp.arange(3) != gone
    left = [e for e in range(3) if e != gone]
    weights = np.exp(logits[:, left] - logits[:, left].max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    wanted = weights @ np.asarray([1.0, 10.0, 100.0])[left]
    found = predicted(gated, gate=Intervention(keep, STAY))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_exchanged_every_real_sample_has_the_decision_of_another(gated):
  recipe, params, batch = gated
  own = np.asarray(recipe.predict(params, {}, batch).predictions["sentiment"])
  found = predicted(gated, gate=Intervention(jnp.ones(3, bool), ~STAY))
  ring = np.asarray(interventions.exchange(batch))
  np.testing.assert_allclose(found[:5], own[ring[:5]], rtol=1e-5)
  assert len(np.unique(own[:5])) == 5  # so an exchange cannot hide


def test_the_exchange_is_a_ring_of_the_real_samples(gated):
  _, _, batch = gated
  ring = np.asarray(interventions.exchange(batch))
  assert ring[5] == 5 and sorted(ring[:5]) == list(range(5))
  place, seen = 0, set()
  while place not in seen:
    seen.add(place)
    place = ring[place]
  assert seen == set(range(5))
  # A sample without content is left out, and what lies in it changes nothing.
  empty = batch.replace(available=batch.available.at[2].set(False))
  ring = np.asarray(interventions.exchange(empty))
  assert ring[2] == 2 and ring[5] == 5
  assert all(ring[row] != row for row in (0, 1, 3, 4))


def test_a_candidate_that_does_not_exist_gets_no_weight_by_an_exchange():
  logits = jnp.asarray([[3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
  available = jnp.asarray([[True, True, True, True], [True, True, False, False]])
  routing = route(logits, 2, available)
  change = Intervention(KEEP_ALL, ~STAY)
  made = changed_routing(routing, change, jnp.asarray([1, 0]))
  wanted = route(logits[::-1], 2, available)
  np.testing.assert_allclose(made.combine, wanted.combine, atol=1e-7)
  np.testing.assert_allclose(made.probs, wanted.probs, atol=1e-7)


@pytest.mark.parametrize("k", [1, 3, None])
def test_as_many_experts_as_before_are_selected(k):
  logits = jax.random.normal(jax.random.key(0), (6, 4))
  routing = route(logits, k)
  keep = jnp.asarray([True, False, True, True])
  made = changed_routing(routing, Intervention(keep, STAY), jnp.arange(6))
  wanted = route(logits, k, jnp.broadcast_to(keep[None], logits.shape))
  np.testing.assert_allclose(made.combine, wanted.combine, atol=1e-7)
  assert np.all(made.combine[:, 1] == 0.0)
