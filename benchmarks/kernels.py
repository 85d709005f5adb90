"""Kernels of the layers against their plain twins: does each earn its place?"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import measure
from msa_jax.layers.dropout import happens
from msa_jax.layers.kernels import (
  gelu,
  low_rank,
  position_hash,
  recurrence,
  selection,
)
from msa_jax.layers.lowrank import LowRankExperts


class Case(NamedTuple):
  """One operation at the size that a small model gives it.

  Attributes:
    kernel, plain: the two forms, each taking `arguments`.
    arguments: arrays; the gradient is taken with respect to all of them.
    differentiate: True = forward and backward are timed, False = forward.
  """

  kernel: Callable
  plain: Callable
  arguments: tuple
  differentiate: bool = True


def cases(rows: int = 64, steps: int = 50, width: int = 128) -> dict[str, Case]:
  """All kernels, at `rows` sequences of `steps` steps; `width` is the models'."""
  key = jax.random.key(0)
  values = jax.random.normal(key, (rows, steps, width))
  scores = jax.random.normal(key, (rows, 4, steps, steps))
  keys = jnp.broadcast_to(jnp.arange(steps) < 0.8 * steps, scores.shape)
  gates = jax.random.normal(key, (steps, 1, rows, 4 * width))
  kernel = jax.random.normal(key, (1, width, 4 * width)) / width**0.5
  real = jnp.ones((steps, 1, rows, 1), bool)
  words, top = jax.random.key_data(key), max(1, steps // 4)
  made = LowRankExperts((16, 32, 64, 128), width, second_init="lecun")
  bank, _ = made.init_with_output(key)
  weights = jax.nn.softmax(jax.random.normal(key, (rows, 1, 4)))

  def dropped(mask):
    return lambda values: jnp.where(mask(values.shape), 0.0, values)

  def hashed(function):
    return lambda values: values * function(words, values.shape).astype(jnp.float32)

  def mixed(function):
    return lambda values: function(bank, values, weights, gelu.exact_gelu)

  return {
    "gelu": Case(gelu.exact_gelu, gelu.gelu_plain, (values,)),
    "position_hash": Case(
      hashed(position_hash.position_hash),
      hashed(position_hash.position_hash_plain),
      (values,),
    ),
    "dropout against jax.random": Case(
      dropped(lambda shape: happens(words, shape, 0.1)),
      dropped(lambda shape: jax.random.bernoulli(key, 0.1, shape)),
      (values,),
    ),
    "selection": Case(
      lambda scores: selection.keep_largest(scores, top, keys),
      lambda scores: selection.keep_largest_plain(scores, top, keys),
      (scores,),
      differentiate=False,
    ),
    "lstm_recurrence": Case(
      lambda *pair: recurrence.lstm_recurrence(*pair, real),
      lambda *pair: recurrence.lstm_recurrence_plain(*pair, real),
      (gates, kernel),
    ),
    "low_rank": Case(mixed(low_rank.mix_fused), mixed(low_rank.mix_plain), (values,)),
  }


def _seconds(function: Callable, case: Case, repeats: int) -> float:
  if case.differentiate:
    inputs = tuple(range(len(case.arguments)))
    call = jax.jit(
      jax.value_and_grad(lambda *args: jnp.sum(function(*args) ** 2), inputs)
    )
  else:
    call = jax.jit(function)
  return measure.median_seconds(
    lambda: call(*case.arguments), repeats, measure.calls_per_timing()
  )


def kernels(repeats: int, **sizes: int) -> list[dict[str, Any]]:
  """Seconds of every kernel and its plain twin.

  Args:
    repeats: timings to take the median of.
    **sizes: see `cases`.
  """
  figures = []
  for name, case in cases(**sizes).items():
    ours, plain = (_seconds(f, case, repeats) for f in (case.kernel, case.plain))
    figures.append(
      {
        "kernel": name,
        "seconds": ours,
        "plain_seconds": plain,
        "times_as_fast": plain / ours,
      }
    )
  return figures
