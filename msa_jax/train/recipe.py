"""How a system trains: three pure functions that survive `jit` and `vmap`.

The default supervises one model. Behaviours (missing modalities, priors) wrap a
recipe and keep its signature; they are not flags inside the step.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array, Bool, Int

from msa_jax.data import missing
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


def with_missing(recipe: Recipe, pattern: missing.Pattern, n_batches: int) -> Recipe:
  """Hides modalities during training, drawn anew at every step.

  Args:
    recipe: the recipe to wrap.
    pattern: what goes missing; lost steps are a matter of the data, not of the step.
    n_batches: steps per epoch.
  """
  if pattern.protocol == "none" or pattern.stepwise:
    return recipe

  def step(state: TrainState, batch: Batch, seed: Seed) -> tuple[TrainState, Metrics]:
    key, of_batch = jax.random.split(rngs.stream(seed, "missing", state.step))
    shape = batch.available.shape
    keep = missing.keep(
      pattern,
      batch.order,
      jax.random.uniform(key, (*shape, 2)),
      batch.available,
      jnp.broadcast_to(jax.random.uniform(of_batch, shape[-1:]), shape),
      jnp.broadcast_to(state.step % n_batches, shape[:-1]),
      n_batches,
    )
    hidden = hide_unavailable(batch.replace(available=keep), keep_lost=True)
    return recipe.step(state, hidden, seed)

  return recipe._replace(step=step)


def has_content(batch: Batch) -> Bool[Array, "b *t"]:
  """Which samples, or utterances of dialogues, have any visible step at all."""
  visible = [m.mask for m in hide_unavailable(batch).modalities.values()]
  if batch.available.ndim == 3:
    return functools.reduce(jnp.logical_or, visible)
  return functools.reduce(jnp.logical_or, [jnp.any(mask, axis=1) for mask in visible])


def with_prior(recipe: Recipe, config: ml_collections.ConfigDict) -> Recipe:
  """Predicts the training prior where a sample has no content (of `has_content`).

  Args:
    recipe: the recipe to wrap.
    config: resolved; `spec.priors` has the best constant of each task.
  """
  # A spec written by hand, or of an older run, may know no priors.
  priors = config.spec.get("priors", {})

  def predict(params: Params, collections: Collections, batch: Batch) -> ModelOutput:
    output = recipe.predict(params, collections, batch)
    content = has_content(batch)
    predictions = dict(output.predictions)
    for name, value in predictions.items():
      if name in priors:
        shown = content.reshape(*content.shape, *[1] * (value.ndim - content.ndim))
        prior = jnp.asarray(priors[name], value.dtype).reshape(
          *[1] * content.ndim, *value.shape[content.ndim :]
        )
        predictions[name] = jnp.where(shown, value, prior)
    return output.replace(predictions=predictions)

  return recipe._replace(predict=predict)


def build(config: ml_collections.ConfigDict) -> Recipe:
  """Builds the recipe that `config` asks for."""
  # Imported here: recipes of other modules are made of this one's parts.
  from msa_jax.train import averaging, balance

  make = balance.balanced if config.balance.enabled else supervised
  n_batches = -(-config.spec.train_size // config.optim.batch)
  pattern = missing.parse(config.missing.train)
  system = with_missing(make(config), pattern, n_batches)
  averaged = averaging.with_averaging(system, config.optim.average)
  return with_prior(averaged, config)
