"""How a system trains: pure functions that survive `jit` and `vmap`.

The default supervises one model. Behaviours (missing modalities, priors) wrap a
recipe and keep its signature; they are not flags inside the step. `step.compose` puts
them together.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from msa_jax.data import missing
from msa_jax.layers.masking import has_content, hide_unavailable
from msa_jax.step import flatten, rngs
from msa_jax.step.objective import Objective, objective_terms
from msa_jax.typing import (
  Batch,
  Collections,
  Label,
  Metrics,
  Modality,
  ModelOutput,
  Params,
  Spec,
  TrainState,
  task_name,
)

Seed = Int[Array, ""] | int


class Recipe(NamedTuple):
  """How one system trains.

  Attributes:
    init: seed -> `TrainState`.
    step: (state, batch, seed) -> (state, metrics); one optimizer update.
    predict: (params, collections, batch) -> `ModelOutput`, without dropout.
    start: (params, collections, step) -> `TrainState` that goes on from there with a
      fresh optimizer; how a stage starts from what the one before it left.
    end_epoch: state -> state, after the last step of an epoch: class centres, phases
      of several optimizers; None = nothing happens.
    reads: modalities that predictions are made from; () = all of a batch.
  """

  init: Callable[[Seed], TrainState]
  step: Callable[[TrainState, Batch, Seed], tuple[TrainState, Metrics]]
  predict: Callable[[Params, Collections, Batch], ModelOutput]
  start: Callable[[Params, Collections, Int[Array, ""]], TrainState]
  end_epoch: Callable[[TrainState], TrainState] | None = None
  reads: tuple[str, ...] = ()


def example_batch(spec: Spec, size: int = 2) -> Batch:
  """A batch of zeros with the corpus's shapes, for shape inference and init.

  Args:
    spec: of a corpus.
    size: rows.
  """
  order = spec.modalities
  rows = (size, spec.utterances) if spec.utterances else (size,)
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
  for name, task in spec.tasks.items():
    shape = (*rows, len(task.classes)) if task.kind == "binary" else rows
    dtype = jnp.float32 if task.kind == "regression" else jnp.int32
    labels[name] = Label(jnp.zeros(shape, dtype), jnp.ones(rows, bool))
  return Batch(
    modalities=modalities,
    available=jnp.ones((*rows, len(order)), bool),
    labels=labels,
    index=jnp.arange(size, dtype=jnp.int32),
    sample_mask=jnp.ones((size,), bool),
  )


class Supervised(NamedTuple):
  """What the default recipe is made of.

  Attributes:
    model: Flax module.
    example: a batch of the corpus's shapes.
    objective: what is minimised.
    optimizer: of the parameters.
    gradient: (terms and their metrics of params and more arguments) -> function of the
      same arguments that gives the gradient of the terms' sum, what came with the
      terms, and further metrics.
    call: keyword arguments of the module.
  """

  model: nn.Module
  example: Batch
  objective: Objective
  optimizer: optax.GradientTransformation
  gradient: Callable[..., Any]
  call: Mapping[str, Any]


def gradient_of_sum(terms: Callable[..., tuple[Mapping[str, jax.Array], Any]]) -> Any:
  """Differentiates the sum of several terms, which `terms` gives as metric `loss`."""

  def total(params, *arguments):
    _, (collections, metrics) = terms(params, *arguments)
    return metrics["loss"], (collections, metrics)

  def gradient(*arguments):
    differentiate = jax.value_and_grad(total, has_aux=True)
    (_, rest), gradients = differentiate(*arguments)
    return gradients, rest, {}

  return gradient


def supervised(parts: Supervised) -> Recipe:
  """The default recipe: task loss plus auxiliary losses of one model."""
  return Recipe(
    init=functools.partial(_init, parts),
    step=functools.partial(_step, parts),
    predict=functools.partial(_predict, parts),
    start=functools.partial(_start, parts),
  )


def _start(parts: Supervised, params, collections, step) -> TrainState:
  return TrainState(step, params, collections, parts.optimizer.init(params))


def _init(parts: Supervised, seed: Seed) -> TrainState:
  keys = rngs.streams(seed, ("params",), 0)
  variables = parts.model.init(keys, parts.example, train=False, **parts.call)
  collections, params = flax.core.pop(variables, "params")
  return _start(parts, params, collections, jnp.zeros((), jnp.int32))


def _terms(parts: Supervised, params, state, batch, seed):
  output, collections = parts.model.apply(
    {"params": params, **state.collections},
    batch,
    train=True,
    rngs=rngs.streams(seed, ("dropout", "noise"), state.step),
    mutable=list(state.collections),
    **parts.call,
  )
  terms, metrics = objective_terms(parts.objective, output, batch, state.step)
  return terms, (collections, metrics)


def _step(
  parts: Supervised, state: TrainState, batch: Batch, seed: Seed
) -> tuple[TrainState, Metrics]:
  differentiate = parts.gradient(functools.partial(_terms, parts))
  gradients, rest, more = differentiate(state.params, state, batch, seed)
  collections, metrics = rest
  updates, opt_state = parts.optimizer.update(gradients, state.opt_state, state.params)
  state = TrainState(
    step=state.step + 1,
    params=optax.apply_updates(state.params, updates),
    collections=collections,
    opt_state=opt_state,
  )
  return state, {**metrics, **more, "gradient_norm": flatten.norm(gradients)}


def _predict(
  parts: Supervised, params: Params, collections: Collections, batch: Batch
) -> ModelOutput:
  variables = {"params": params, **collections}
  output = parts.model.apply(variables, batch, train=False, **parts.call)
  return cast(ModelOutput, output)  # no collections beside it: none is mutable


def with_hidden(recipe: Recipe, keep_lost: bool) -> Recipe:
  """Makes absent content absent, once, before the model reads a batch.

  Args:
    recipe: the recipe to wrap.
    keep_lost: whether lost steps stay valid steps, for models that embed them.
  """

  def step(state: TrainState, batch: Batch, seed: Seed) -> tuple[TrainState, Metrics]:
    return recipe.step(state, hide_unavailable(batch, keep_lost), seed)

  def predict(params: Params, collections: Collections, batch: Batch) -> ModelOutput:
    return recipe.predict(params, collections, hide_unavailable(batch, keep_lost))

  return recipe._replace(step=step, predict=predict)


def with_missing(
  recipe: Recipe, pattern: missing.Pattern, steps_per_epoch: int
) -> Recipe:
  """Hides modalities during training, drawn anew at every step.

  Args:
    recipe: the recipe to wrap.
    pattern: what goes missing; lost steps are a matter of the data, not of the step.
    steps_per_epoch: batches of an epoch.
  """
  if pattern.protocol == "none" or pattern.stepwise:
    return recipe

  def step(state: TrainState, batch: Batch, seed: Seed) -> tuple[TrainState, Metrics]:
    key, of_batch = jax.random.split(rngs.stream(seed, "missing", state.step))
    shape = batch.available.shape
    epoch = rngs.stream(seed, "missing batches", state.step // steps_per_epoch)
    keep = missing.keep(
      pattern,
      batch.order,
      jax.random.uniform(key, (*shape, 2)),
      batch.available,
      jnp.broadcast_to(jax.random.uniform(of_batch, shape[-1:]), shape),
      jnp.broadcast_to(state.step % steps_per_epoch, shape[:-1]),
      steps_per_epoch,
      jax.random.uniform(epoch),
    )
    hidden = hide_unavailable(batch.replace(available=keep), keep_lost=True)
    return recipe.step(state, hidden, seed)

  return recipe._replace(step=step)


def with_prior(
  recipe: Recipe,
  priors: Mapping[str, tuple[float, ...]],
  reads: tuple[str, ...] = (),
) -> Recipe:
  """Predicts the training prior where a sample has no content (of `has_content`).

  Args:
    recipe: the recipe to wrap.
    priors: task -> its best constant; tasks that are not there keep their prediction.
    reads: modalities that the model reads; () = all.
  """

  def predict(params: Params, collections: Collections, batch: Batch) -> ModelOutput:
    output = recipe.predict(params, collections, batch)
    content = has_content(batch, reads)
    predictions = dict(output.predictions)
    for name, value in predictions.items():
      if task_name(name) in priors:
        shown = content.reshape(*content.shape, *[1] * (value.ndim - content.ndim))
        prior = jnp.asarray(priors[task_name(name)], value.dtype).reshape(
          *[1] * content.ndim, *value.shape[content.ndim :]
        )
        predictions[name] = jnp.where(shown, value, prior)
    return output.replace(predictions=predictions)

  return recipe._replace(predict=predict, reads=reads)
