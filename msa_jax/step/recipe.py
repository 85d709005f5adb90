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
from msa_jax.errors import UserError
from msa_jax.layers.masking import hide_unavailable
from msa_jax.models import SYSTEMS
from msa_jax.models.system import Stage, one_stage
from msa_jax.step import flatten, rngs, task_gradients
from msa_jax.step import optimizer as optim
from msa_jax.step.objective import objective_terms
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
  """

  init: Callable[[Seed], TrainState]
  step: Callable[[TrainState, Batch, Seed], tuple[TrainState, Metrics]]
  predict: Callable[[Params, Collections, Batch], ModelOutput]
  start: Callable[[Params, Collections, Int[Array, ""]], TrainState]


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
  utterances = spec.get("utterances", 0)
  rows = (size, utterances) if utterances else (size,)
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


def supervised(config: ml_collections.ConfigDict, stage: Stage | None = None) -> Recipe:
  """The default recipe: task loss plus auxiliary losses of one model.

  Args:
    config: a resolved config (`config.spec` filled in).
    stage: what to call the module with and which parameters to train; None = no
      arguments, and all.
  """
  stage = one_stage(config)[0] if stage is None else stage
  system = SYSTEMS[config.model.name]
  model = system.build(config)
  optimizer = optim.build(config, system.partition, stage.trainable, stage.branched)

  def start(params, collections, step) -> TrainState:
    return TrainState(step, params, collections, optimizer.init(params))

  def init(seed: Seed) -> TrainState:
    keys = rngs.streams(seed, ("params",), 0)
    example = example_batch(config.spec)
    variables = model.init(keys, example, train=False, **stage.call)
    collections, params = flax.core.pop(variables, "params")
    if config.train.task_cosine:
      task_gradients.check(params, system.shared, config.model.name)
    return start(params, collections, jnp.zeros((), jnp.int32))

  def terms_and_aux(params, state, batch, seed):
    output, collections = model.apply(
      {"params": params, **state.collections},
      batch,
      train=True,
      rngs=rngs.streams(seed, ("dropout", "noise"), state.step),
      mutable=list(state.collections),
      **stage.call,
    )
    terms, metrics = objective_terms(config, system, output, batch, state.step)
    metrics = {"loss": sum(terms.values(), start=jnp.zeros(())), **metrics}
    return terms, (collections, metrics)

  def loss_and_aux(params, state, batch, seed):
    _, (collections, metrics) = terms_and_aux(params, state, batch, seed)
    return metrics["loss"], (collections, metrics)

  def gradient(*arguments):
    if config.train.task_cosine:
      by_task = task_gradients.gradient_by_task(terms_and_aux, system.shared)
      gradients, (collections, metrics), cosines = by_task(*arguments)
      return gradients, collections, {**metrics, **cosines}
    differentiate = jax.value_and_grad(loss_and_aux, has_aux=True)
    (_, (collections, metrics)), gradients = differentiate(*arguments)
    return gradients, collections, metrics

  def step(state: TrainState, batch: Batch, seed: Seed) -> tuple[TrainState, Metrics]:
    gradients, collections, metrics = gradient(state.params, state, batch, seed)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    state = TrainState(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      collections=collections,
      opt_state=opt_state,
    )
    return state, {**metrics, "gradient_norm": flatten.norm(gradients)}

  def predict(params: Params, collections: Collections, batch: Batch) -> ModelOutput:
    variables = {"params": params, **collections}
    return model.apply(variables, batch, train=False, **stage.call)

  return Recipe(init, step, predict, start)


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
      if task_name(name) in priors:
        shown = content.reshape(*content.shape, *[1] * (value.ndim - content.ndim))
        prior = jnp.asarray(priors[task_name(name)], value.dtype).reshape(
          *[1] * content.ndim, *value.shape[content.ndim :]
        )
        predictions[name] = jnp.where(shown, value, prior)
    return output.replace(predictions=predictions)

  return recipe._replace(predict=predict)


def stages_of(config: ml_collections.ConfigDict) -> tuple[Stage, ...]:
  """The stages of a system's training, every one with at least one track.

  Raises:
    UserError: no stages, two of one name, a stage without epochs, or one that takes
      its collections from a track it has not.
  """
  name = config.model.name
  stages = tuple(
    stage._replace(tracks=dict(stage.tracks) or {"selected": config.train.monitor})
    for stage in SYSTEMS[name].stages(config)
  )
  names = [stage.name for stage in stages]
  if not stages or len(set(names)) != len(names):
    raise UserError(f"{name} has stages {names}: there must be one, names distinct.")
  for stage in stages:
    if stage.epochs < 1:
      raise UserError(f"stage {stage.name!r}: epochs={stage.epochs} must be positive.")
    known = ("", "final", *stage.tracks)
    if stage.collections not in known:
      raise UserError(
        f"stage {stage.name!r}: collections={stage.collections!r} must be one of"
        f" {known}."
      )
  return stages


def build(config: ml_collections.ConfigDict, stage: int = -1) -> Recipe:
  """Builds the recipe that `config` asks for.

  Args:
    config: a resolved config.
    stage: index into `stages_of(config)`; the last one makes the predictions.
  """
  # Imported here: recipes of other modules are made of this one's parts.
  from msa_jax.step import ema
  from msa_jax.step.balance import recipe as balance

  stages = stages_of(config)
  chosen = stages[stage]
  if config.optim.ema_decay and len(stages) > 1:
    raise UserError(
      f"config.optim.ema_decay={config.optim.ema_decay}: must be 0 for"
      f" {config.model.name},"
      " which is trained in stages."
    )
  if chosen.epochs != config.optim.epochs:
    config = config.copy_and_resolve_references()
    with config.unlocked():
      config.optim.epochs = chosen.epochs
    config.lock()
  if not config.balance.enabled:
    made = supervised(config, chosen)
  else:
    made = balance.balanced(config, stage=chosen)
  made = SYSTEMS[config.model.name].recipe(config, chosen, made)
  n_batches = -(-config.spec.train_size // config.optim.batch_size)
  pattern = missing.parse(config.missing.train) if chosen.missing else missing.NONE
  made = with_missing(made, pattern, n_batches)
  made = ema.with_averaging(made, config.optim.ema_decay)
  return with_prior(made, config)
