"""How the tasks' gradients agree on the parameters they share.

The cosine between two tasks' gradients is near one where they ask for the same change,
zero where they do not care about each other, negative where they are in conflict: what
hard sharing is said to suffer from and experts to avoid (MMoLRE, abstract; the measure
is Yu et al. 2020's, Eq. 1). That of one batch is mostly noise: `with_epoch_cosines`
adds that of the epoch's mean gradients.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from msa_jax.errors import UserError
from msa_jax.step.recipe import Recipe, Seed
from msa_jax.typing import Batch, Collections, Metrics, Params, TrainState

SUMS = "task_gradients"  # collection: group/task -> the epoch's summed gradient
_VECTOR = "task_gradient/"
_COSINE, _OF_EPOCH = "task_cosine/", "task_cosine_epoch/"


def gradient_by_task(
  shared: Callable[[tuple[str, ...]], str],
  terms: Callable[..., tuple[Mapping[str, jax.Array], Any]],
  vectors: bool = False,
) -> Callable[..., tuple[Params, Any, Metrics]]:
  """Differentiates the sum of several terms, and compares the terms' gradients.

  One forward pass, and one backward pass per term.

  Args:
    shared: parameter path -> name of a group of shared parameters; "" = none.
    terms: (params, ...) -> ({name: scalar}, anything).
    vectors: give the gradients too.

  Returns:
    Function of the same arguments that gives the gradient of the sum, what came with
    the terms, and `task_cosine/<group>/<a>_<b>` for every pair of terms but
    `auxiliary` (0 where one of the gradients is zero); of `vectors` the gradients
    themselves, flat, `task_gradient/<group>/<a>`.
  """

  def gradient(params: Params, *arguments: Any) -> tuple[Params, Any, Metrics]:
    values, pull, rest = jax.vjp(
      lambda params: terms(params, *arguments), params, has_aux=True
    )
    one = {name: jnp.ones_like(value) for name, value in values.items()}
    none = {name: jnp.zeros_like(value) for name, value in values.items()}
    parts = {name: pull({**none, name: one[name]})[0] for name in values}
    total = jax.tree.map(lambda *leaves: sum(leaves), *parts.values())
    tasks = sorted(name for name in parts if name != "auxiliary")
    flat = {
      f"{group}/{name}": _picked(parts[name], picked)
      for group, picked in _groups(params, shared).items()
      for name in tasks
    }
    kept = {f"{_VECTOR}{name}": vector for name, vector in flat.items()}
    return total, rest, {**_cosines(_COSINE, flat), **(kept if vectors else {})}

  return gradient


def _cosines(prefix: str, vectors: Mapping[str, Array]) -> Metrics:
  """Cosines of every pair of tasks, by group; vectors are named `<group>/<task>`."""
  found = {}
  for a, b in itertools.combinations(vectors, 2):
    (group, one), (other, two) = a.rsplit("/", 1), b.rsplit("/", 1)
    if group == other:
      found[f"{prefix}{group}/{one}_{two}"] = cosine(vectors[a], vectors[b])
  return found


def with_epoch_cosines(recipe: Recipe, example: Batch, steps_per_epoch: int) -> Recipe:
  """Adds the cosines of the tasks' mean gradients over an epoch.

  The gradients are summed in a collection. The last step of an epoch has as metric
  `task_cosine_epoch/<group>/<a>_<b>` the cosine times the number of steps, and the
  others zero: their mean, which the log has, is the cosine.

  Args:
    recipe: with the gradients of `gradient_by_task` among its metrics.
    example: a batch of the corpus's shapes.
    steps_per_epoch: batches of an epoch.
  """

  def init(seed: Seed) -> TrainState:
    state = recipe.init(seed)
    _, metrics = jax.eval_shape(recipe.step, state, example, 0)
    sums = {
      name.removeprefix(_VECTOR): jnp.zeros(vector.shape, vector.dtype)
      for name, vector in metrics.items()
      if name.startswith(_VECTOR)
    }
    return state.replace(collections={**state.collections, SUMS: sums})

  def step(state: TrainState, batch: Batch, seed: Seed) -> tuple[TrainState, Metrics]:
    sums, inner = _split(state.collections)
    place = state.step % steps_per_epoch
    state, metrics = recipe.step(state.replace(collections=inner), batch, seed)
    sums = {
      name: jnp.where(place == 0, 0.0, total) + metrics[f"{_VECTOR}{name}"]
      for name, total in sums.items()
    }
    scale = jnp.where(place == steps_per_epoch - 1, float(steps_per_epoch), 0.0)
    added = {name: scale * c for name, c in _cosines(_OF_EPOCH, sums).items()}
    kept = {k: v for k, v in metrics.items() if not k.startswith(_VECTOR)}
    collections = {**state.collections, SUMS: sums}
    return state.replace(collections=collections), {**kept, **added}

  def predict(params: Params, collections: Collections, batch: Batch):
    return recipe.predict(params, _split(collections)[1], batch)

  def start(params: Params, collections: Collections, at: Any) -> TrainState:
    sums, inner = _split(collections)
    state = recipe.start(params, inner, at)
    return state.replace(collections={**state.collections, SUMS: sums})

  return recipe._replace(init=init, step=step, predict=predict, start=start)


def _split(collections: Collections) -> tuple[Mapping[str, Array], Collections]:
  inner = dict(collections)
  return inner.pop(SUMS), inner


def cosine(a: Float[Array, " p"], b: Float[Array, " p"]) -> Float[Array, ""]:
  """Cosine of the angle between two vectors; 0 if one is zero."""
  scale = jnp.linalg.norm(a) * jnp.linalg.norm(b)
  return jnp.where(scale > 0, a @ b / jnp.where(scale > 0, scale, 1.0), 0.0)


def with_shared_check(
  recipe: Recipe, shared: Callable[[tuple[str, ...]], str], model: str
) -> Recipe:
  """Checks at the start that a system names parameters that its tasks share."""

  def init(seed: Seed) -> TrainState:
    state = recipe.init(seed)
    check(state.params, shared, model)
    return state

  return recipe._replace(init=init)


def check(params: Params, shared: Callable[[tuple[str, ...]], str], model: str) -> None:
  """Checks that a system says which of its parameters the tasks share.

  Raises:
    UserError: it has none.
  """
  if not _groups(params, shared):
    raise UserError(
      f"config.train.task_cosine=True or epoch_cosine=True: model {model!r} names no"
      " parameters that its tasks share; set both to False."
    )


def _groups(
  params: Params, shared: Callable[[tuple[str, ...]], str]
) -> dict[str, set[str]]:
  """Group -> key strings of its parameters."""
  groups: dict[str, set[str]] = {}
  for path, _ in jax.tree_util.tree_leaves_with_path(params):
    name = shared(tuple(str(getattr(key, "key", key)) for key in path))
    if name:
      groups.setdefault(name, set()).add(jax.tree_util.keystr(path))
  return groups


def _picked(gradients: Params, keys: set[str]) -> Float[Array, " p"]:
  """Some gradients, laid end to end in float32."""
  leaves = jax.tree_util.tree_leaves_with_path(gradients)
  chosen = [leaf for path, leaf in leaves if jax.tree_util.keystr(path) in keys]
  return jnp.concatenate([leaf.ravel().astype(jnp.float32) for leaf in chosen])
