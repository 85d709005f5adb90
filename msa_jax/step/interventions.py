"""Other decisions in place of a gate's own, in a network that is trained already.

What a gate's choice is worth shows where another is made: an expert is taken away from
all samples, or every sample gets the decision of another. A gate here is a module that
returns the `Routing` of samples and has the name under which the output has it.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from msa_jax.layers.masking import has_content, masked_softmax
from msa_jax.layers.routing import ranks
from msa_jax.step.recipe import Recipe
from msa_jax.typing import Batch, Collections, Params, Routing

COLLECTION = "interventions"


class Intervention(NamedTuple):
  """What is changed of a gate's decisions.

  Attributes:
    keep: [e] False = the expert is taken away.
    permute: [] whether every sample gets the scores of another one of the batch.
  """

  keep: Bool[Array, " e"]
  permute: Bool[Array, ""]


def gates_of(
  recipe: Recipe, params: Params, collections: Collections, batch: Batch
) -> dict[str, tuple[str, ...]]:
  """The gates that can be intervened with: name -> names of its experts.

  Args:
    recipe: of the system.
    params, collections, batch: as of `recipe.predict`; nothing is computed.
  """
  found: dict[str, int] = {}

  def listen(following, args, kwargs, context):
    output = following(*args, **kwargs)
    if _is_gate(output, context):
      found[context.module.name] = output.probs.shape[1]
    return output

  def predict(params, collections, batch):
    with nn.intercept_methods(listen):
      return recipe.predict(params, collections, batch).routing

  there = jax.eval_shape(predict, params, collections, batch)
  return {
    name: tuple(there[name].experts or map(str, range(count)))
    for name, count in found.items()
    if name in there
  }


def with_interventions(recipe: Recipe) -> Recipe:
  """A recipe whose `predict` takes interventions, gate name -> `Intervention`, as one
  more collection, `COLLECTION`: one program for all of them."""

  def predict(params: Params, collections: Collections, batch: Batch):
    rest = {name: value for name, value in collections.items() if name != COLLECTION}
    changes = collections[COLLECTION]

    def intervene(following, args, kwargs, context):
      output = following(*args, **kwargs)
      name = context.module.name
      if not _is_gate(output, context) or name not in changes:
        return output
      return changed_routing(output, changes[name], exchange(batch))

    with nn.intercept_methods(intervene):
      return recipe.predict(params, rest, batch)

  return recipe._replace(predict=predict)


def _is_gate(output, context) -> bool:
  whole = context.method_name == "__call__" and isinstance(output, Routing)
  return whole and output.probs.ndim == 2


def exchange(batch: Batch) -> Array:
  """[b] row whose decision each row gets: real rows with content in a random ring, so
  that none keeps its own where there are two or more; others keep theirs."""
  real = batch.sample_mask & has_content(batch)
  key = jax.random.fold_in(jax.random.key(0), batch.index[0])
  draws = jnp.where(real, jax.random.uniform(key, real.shape), jnp.inf)
  ring = jnp.argsort(draws)  # real rows come first
  count = jnp.maximum(jnp.sum(real), 1)
  following = ring[(jnp.arange(len(ring)) + 1) % count]
  return jnp.arange(len(ring)).at[ring].set(jnp.where(real[ring], following, ring))


def changed_routing(
  routing: Routing, change: Intervention, source: Float[Array, " b"] | Array
) -> Routing:
  """The routing under an intervention; of as many experts as before, or those left.

  Args:
    routing: of a gate; a candidate whose probability is zero does not exist.
    change: what is changed.
    source: [b] row whose scores each row gets where they are permuted.
  """
  available = (routing.probs > 0) & change.keep[None, :]
  logits = jnp.where(change.permute, routing.logits[source], routing.logits)
  selected = routing.combine > 0
  most = jnp.max(jnp.sum(selected, axis=-1))  # experts that a row uses
  kept = available & (ranks(logits, available) < most)
  weights = masked_softmax(logits, kept)
  # A single expert is weighted by its probability among all; see `layers.routing`.
  alone = (most == 1) & (jnp.max(jnp.sum(routing.probs > 0, axis=-1)) > 1)
  probs = masked_softmax(logits, available)
  combine = jnp.where(alone, jnp.where(kept, probs, 0.0), weights)
  return routing.replace(probs=probs, combine=combine, logits=logits)
