"""One update from the gradients of several batches.

`mean` is that of a larger batch: what is left at the end of an epoch is applied. `sum`
is what MMSA's trainers do: losses are not divided, value clipping acts on the running
sum after every batch (so early batches are clipped more than once), and an incomplete
group is dropped when the next epoch begins.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from msa_jax.typing import TrainState

MODES = ("mean", "sum")


class Accumulated(NamedTuple):
  """State of an accumulating optimizer.

  Attributes:
    total: sum of the gradients since the last update.
    count: how many they are.
    inner: state of the optimizer that makes the updates.
  """

  total: Any
  count: Any
  inner: Any


class Accumulation(NamedTuple):
  """An optimizer that waits for several gradients.

  Attributes:
    rule: the optimizer; its updates are zero meanwhile.
    end_epoch: state -> state; see `step.recipe.Recipe`.
  """

  rule: optax.GradientTransformation
  end_epoch: Callable[[TrainState], TrainState]


def accumulated(
  inner: optax.GradientTransformation, every: int, mode: str, clip_value: float = 0.0
) -> Accumulation:
  """Makes an update of every `every` gradients.

  Args:
    inner: makes the updates, from the mean or the sum.
    every: batches of an update.
    mode: of `MODES`.
    clip_value: of `sum`: greatest absolute entry of the running sum; 0 = any.
  """
  parts = _Parts(inner, every, mode, clip_value)
  return Accumulation(
    rule=optax.GradientTransformation(
      functools.partial(_init, parts), functools.partial(_update, parts)
    ),
    end_epoch=functools.partial(_end_epoch, parts),
  )


class _Parts(NamedTuple):
  inner: optax.GradientTransformation
  every: int
  mode: str
  clip_value: float


def _nothing(tree: Any, inner: Any) -> Accumulated:
  return Accumulated(
    jax.tree.map(jnp.zeros_like, tree), jnp.zeros((), jnp.int32), inner
  )


def _init(parts: _Parts, params: Any) -> Accumulated:
  return _nothing(params, parts.inner.init(params))


def _applied(parts: _Parts, held: Accumulated, params: Any) -> tuple[Any, Accumulated]:
  """The update that the gradients so far make."""
  given = held.total
  if parts.mode == "mean":
    given = jax.tree.map(lambda leaf: leaf / held.count.astype(leaf.dtype), given)
  updates, inner = parts.inner.update(given, held.inner, params)
  return updates, _nothing(held.total, inner)


def _update(
  parts: _Parts, updates: Any, state: Any, params: Any = None
) -> tuple[Any, Accumulated]:
  total = jax.tree.map(jnp.add, state.total, updates)
  if parts.mode == "sum" and parts.clip_value:
    limit = parts.clip_value
    total = jax.tree.map(lambda leaf: jnp.clip(leaf, -limit, limit), total)
  held = Accumulated(total, state.count + 1, state.inner)

  def wait(held):
    return jax.tree.map(jnp.zeros_like, held.total), held

  def apply(held):
    return _applied(parts, held, params)

  return lax.cond(held.count >= parts.every, apply, wait, held)


def _end_epoch(parts: _Parts, state: TrainState) -> TrainState:
  held = state.opt_state
  if parts.mode == "sum":
    return state.replace(opt_state=_nothing(held.total, held.inner))

  def flush(held):
    updates, held = _applied(parts, held, state.params)
    return optax.apply_updates(state.params, updates), held

  def keep(held):
    return state.params, held

  params, held = lax.cond(held.count > 0, flush, keep, held)
  return state.replace(params=params, opt_state=held)
