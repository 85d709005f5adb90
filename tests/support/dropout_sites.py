"""Dropout of a network, site by site: what vanishes when a site drops everything.

A site is what one rate does in one kind of place. Its oracle is the same network whose
reader of the dropped units has zero weights: had the site another place, another rate
or none at all, the two would differ.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from msa_jax.layers.dropout import Dropout

Zero = Callable[[jax.Array], jax.Array]


class Site(NamedTuple):
  """One site.

  Attributes:
    option: dotted option of the rate.
    silent: pattern of the parameters that read what is dropped, or pairs of a pattern
      and what silences it.
    where: pattern of the paths of its `Dropout` modules; "" = any of this rate.
  """

  option: str
  silent: str | tuple[tuple[str, Zero], ...]
  where: str = ""


def rates(options: Sequence[str]) -> dict[str, float]:
  """A rate for each option, no two alike, by which its modules are recognised."""
  return {name: 0.01 * number for number, name in enumerate(sorted(options), 1)}


def switched(
  model: nn.Module, sites: Sequence[Site], **call: Any
) -> Callable[[Any, Any, jax.Array], Any]:
  """The network in training, dropout replaced by a factor for each site.

  Args:
    model: whose rates are those of `rates`.
    sites: all of it; a `Dropout` that belongs to none is an error.
    call: of the module.

  Returns:
    (variables, batch, factors [sites]) -> output, to be compiled once.
  """
  marks = rates({site.option for site in sites})

  def run(variables, batch, factors):
    def replace(following, args, kwargs, context):
      module = context.module
      if not isinstance(module, Dropout) or context.method_name != "__call__":
        return following(*args, **kwargs)
      if module.deterministic or module.rate == 0.0:
        return args[0]
      path = "/".join(module.path)
      for site, factor in zip(sites, factors, strict=True):
        if module.rate == marks[site.option] and re.search(site.where, path):
          return args[0] * factor.astype(args[0].dtype)
      raise AssertionError(f"{path}, rate {module.rate}, belongs to no site")

    key = jax.random.key(0)
    with nn.intercept_methods(replace):
      output, _ = model.apply(
        variables,
        batch,
        train=True,
        rngs={"dropout": key, "noise": key},
        mutable=["batch_stats"],
        **call,
      )
    return output

  return jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})


def silenced(variables: Any, site: Site) -> Any:
  """The variables with zeros for the readers of a site's units."""
  rules = site.silent
  if isinstance(rules, str):
    rules = ((rules, jnp.zeros_like),)
  found = set()

  def edit(path, leaf):
    name = "/".join(str(key.key) for key in path)
    for pattern, zero in rules:
      if re.search(pattern, name):
        found.add(pattern)
        return zero(leaf)
    return leaf

  params = jax.tree_util.tree_map_with_path(edit, variables["params"])
  assert found == {pattern for pattern, _ in rules}, "a pattern fits no parameter"
  return {**variables, "params": params}
