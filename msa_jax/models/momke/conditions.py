"""Conditions of missing modalities: their names, and branches by them."""

import itertools
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from msa_jax.errors import UserError
from msa_jax.typing import MODALITIES


def conditions(modalities: Sequence[str]) -> dict[str, tuple[bool, ...]]:
  """Every non-empty subset of the modalities: name -> kept, in their order.

  A name is made of initials in alphabetical order; small subsets come first:
  a, t, v, at, av, tv, atv.
  """
  initials = {name[0]: name for name in modalities}
  if len(initials) != len(modalities):
    raise UserError(
      f"modalities {tuple(modalities)}: their first letters must differ, as they name"
      " the conditions of missing modalities"
    )
  return {
    "".join(subset): tuple(name[0] in subset for name in modalities)
    for size in range(1, len(modalities) + 1)
    for subset in itertools.combinations(sorted(initials), size)
  }


def kept_by(condition: str, modalities: Sequence[str]) -> tuple[bool, ...]:
  """Which modalities a condition keeps, in their order; letters in any order.

  Letters of the field's modalities that the corpus lacks are ignored.

  Raises:
    UserError: another letter, or nothing is left.
  """
  table = conditions(modalities)
  letters = {name[0] for name in (*MODALITIES, *modalities)}
  here = {name[0] for name in modalities} & set(condition)
  if not set(condition) <= letters or not here:
    raise UserError(
      f"model.condition={condition!r} must be one of {', '.join(table)}, or all"
    )
  return table["".join(sorted(here))]


def own_branch(
  values: Float[Array, "n b ..."],
  seen: Bool[Array, "m b ..."],
  kept: Bool[Array, "n m"],
) -> Float[Array, "b ..."]:
  """Selects, for each row, the branch trained for its available modalities.

  Rows with nothing take the last branch, that of all modalities.
  """
  fits = jnp.all(seen[None] == kept.reshape(*kept.shape, *[1] * (seen.ndim - 1)), 1)
  branch = jnp.where(jnp.any(fits, axis=0), jnp.argmax(fits, axis=0), len(kept) - 1)
  branch = branch.reshape(1, *branch.shape, *[1] * (values.ndim - 1 - branch.ndim))
  return jnp.take_along_axis(values, branch, axis=0)[0]
