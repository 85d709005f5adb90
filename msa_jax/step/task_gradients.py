"""How the tasks' gradients agree on the parameters they share.

The cosine between two tasks' gradients is near one where they ask for the same change,
zero where they do not care about each other, negative where they are in conflict: what
hard sharing is said to suffer from and experts to avoid (MMoLRE, abstract; the measure
is Yu et al. 2020's, Eq. 1).
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from msa_jax.errors import UserError
from msa_jax.step.recipe import Recipe, Seed
from msa_jax.typing import Metrics, Params, TrainState


def gradient_by_task(
  shared: Callable[[tuple[str, ...]], str],
  terms: Callable[..., tuple[Mapping[str, jax.Array], Any]],
) -> Callable[..., tuple[Params, Any, Metrics]]:
  """Differentiates the sum of several terms, and compares the terms' gradients.

  One forward pass, and one backward pass per term.

  Args:
    shared: parameter path -> name of a group of shared parameters; "" = none.
    terms: (params, ...) -> ({name: scalar}, anything).

  Returns:
    Function of the same arguments that gives the gradient of the sum, what came with
    the terms, and `task_cosine/<group>/<a>_<b>` for every pair of terms but
    `auxiliary` (0 where one of the gradients is zero).
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
    cosines = {}
    for group, picked in _groups(params, shared).items():
      vectors = {name: _picked(parts[name], picked) for name in tasks}
      for a, b in itertools.combinations(tasks, 2):
        cosines[f"task_cosine/{group}/{a}_{b}"] = cosine(vectors[a], vectors[b])
    return total, rest, cosines

  return gradient


def cosine(a: list[Array], b: list[Array]) -> Float[Array, ""]:
  """Cosine of the angle between two lists of arrays laid end to end; 0 if one is
  zero."""
  product = sum(jnp.sum(x * y) for x, y in zip(a, b, strict=True))
  norms = [jnp.sqrt(sum(jnp.sum(x**2) for x in each)) for each in (a, b)]
  scale = norms[0] * norms[1]
  return jnp.where(scale > 0, product / jnp.where(scale > 0, scale, 1.0), 0.0)


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
      f"config.train.task_cosine=True: model {model!r} names no parameters that its"
      " tasks share; set it to False."
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


def _picked(gradients: Params, keys: set[str]) -> list[Array]:
  leaves = jax.tree_util.tree_leaves_with_path(gradients)
  return [leaf for path, leaf in leaves if jax.tree_util.keystr(path) in keys]
