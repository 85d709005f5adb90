"""How a system trains: three pure functions that survive `jit` and `vmap`.

The default supervises one model. Behaviours (modality dropout, later accumulation)
wrap a recipe and keep its signature; they are not flags inside the step.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array, Int

from msa_jax.layers.masking import hide_unavailable
from msa_jax.models import SYSTEMS
from msa_jax.train import optim, rngs
from msa_jax.train.objective import objective
from msa_jax.typing import (
  Batch,
  Collections,
  Label,
  Metrics,
  Modality,
  ModelOutput,
  Params,
  Task,
  TrainState,
  modality_order,
)

Seed = Int[Array, ""] | int


class Recipe(NamedTuple):
  """How one system trains.

  Attributes:
    init: seed -> `TrainState`.
    step: (state, batch, seed) -> (state, metrics); one optimizer update.
    predict: (params, collections, batch) -> `ModelOutput`, without dropout.
  """

  init: Callable[[Seed], TrainState]
  step: Callable[[TrainState, Batch, Seed], tuple[TrainState, Metrics]]
  predict: Callable[[Params, Collections, Batch], ModelOutput]


def task_of(options: ml_collections.ConfigDict) -> Task:
  """Turns one entry of `config.spec.tasks` back into a `Task`."""
  return Task(**{**options.to_dict(), "classes": tuple(options.classes)})


def example_batch(spec: ml_collections.ConfigDict, size: int = 2) -> Batch:
  """A batch of zeros with the corpus's shapes, for shape inference and init.

  Args:
    spec: `config.spec` of a resolved config.
    size: rows.
  """
  order = modality_order(spec.widths)
  modalities = {}
  for name in order:
    length = spec.lengths[name]
    modalities[name] = Modality(
      features=jnp.zeros((size, length, spec.widths[name])),
      mask=jnp.ones((size, length), bool),
      lost=jnp.zeros((size, length), bool),
      ids={key: jnp.zeros((size, length), jnp.int32) for key in spec.ids.get(name, ())},
    )
  labels = {}
  for name, options in spec.tasks.items():
    task = task_of(options)
    shape = (size, len(task.classes)) if task.kind == "binary" else (size,)
    dtype = jnp.float32 if task.kind == "regression" else jnp.int32
    labels[name] = Label(jnp.zeros(shape, dtype), jnp.ones((size,), bool))
  return Batch(
    modalities=modalities,
    available=jnp.ones((size, len(order)), bool),
    labels=labels,
    index=jnp.arange(size, dtype=jnp.int32),
    sample_mask=jnp.ones((size,), bool),
  )


def supervised(config: ml_collections.ConfigDict) -> Recipe:
  """The default recipe: task loss plus auxiliary losses of one model.

  Args:
    config: a resolved config (`config.spec` filled in).
  """
  system = SYSTEMS[config.model.name]
  model = system.build(config)
  optimizer = optim.build(config, system.partition)

  def init(seed: Seed) -> TrainState:
    keys = rngs.streams(seed, ("params",), 0)
    variables = model.init(keys, example_batch(config.spec), train=False)
    collections, params = flax.core.pop(variables, "params")
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      collections=collections,
      opt_state=optimizer.init(params),
    )

  def loss_and_aux(params, state, batch, seed):
    output, collections = model.apply(
      {"params": params, **state.collections},
      batch,
      train=True,
      rngs=rngs.streams(seed, ("dropout", "noise"), state.step),
      mutable=list(state.collections),
    )
    loss, metrics = objective(config, system, output, batch, state.step)
    return loss, (collections, metrics)

  def step(state: TrainState, batch: Batch, seed: Seed) -> tuple[TrainState, Metrics]:
    (_, (collections, metrics)), gradients = jax.value_and_grad(
      loss_and_aux, has_aux=True
    )(state.params, state, batch, seed)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    state = TrainState(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      collections=collections,
      opt_state=opt_state,
    )
    return state, {**metrics, "gradient_norm": optax.tree.norm(gradients)}

  def predict(params: Params, collections: Collections, batch: Batch) -> ModelOutput:
    return model.apply({"params": params, **collections}, batch, train=False)

  return Recipe(init, step, predict)


def with_modality_dropout(recipe: Recipe, rate: float) -> Recipe:
  """Hides whole modalities at random during training.

  Each available modality of each sample is dropped with probability `rate`, never
  the last one a sample has.

  Args:
    recipe: the recipe to wrap.
    rate: probability per sample and modality.
  """
  if rate == 0.0:
    return recipe

  def step(state: TrainState, batch: Batch, seed: Seed) -> tuple[TrainState, Metrics]:
    key = rngs.stream(seed, "modality_dropout", state.step)
    keep = batch.available & ~jax.random.bernoulli(key, rate, batch.available.shape)
    nothing_left = ~jnp.any(keep, axis=-1, keepdims=True)
    keep = jnp.where(nothing_left, batch.available, keep)
    hidden = hide_unavailable(batch.replace(available=keep), keep_lost=True)
    return recipe.step(state, hidden, seed)

  return recipe._replace(step=step)


def build(config: ml_collections.ConfigDict) -> Recipe:
  """Builds the recipe that `config` asks for."""
  # Imported here: recipes of other modules are made of this one's parts.
  from msa_jax.train import averaging, balance

  make = balance.balanced if config.balance.enabled else supervised
  system = with_modality_dropout(make(config), config.train.modality_dropout)
  return averaging.with_averaging(system, config.optim.average)
