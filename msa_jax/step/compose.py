"""Puts a recipe together: the one file that knows the order of its behaviours.

Around a network: anchor -> text encoder. Around a step: supervised or balanced -> the
system's own recipe -> pretrained encoder -> hidden content -> missing modalities ->
mean of the parameters -> prior.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import optax

from msa_jax import models
from msa_jax.config.experiment import Experiment
from msa_jax.data import missing
from msa_jax.errors import UserError
from msa_jax.models.outputs import output_specs
from msa_jax.models.system import Stage, System
from msa_jax.models.with_anchor import ANCHOR, HEADS, beside_anchor, with_anchor
from msa_jax.models.with_text_encoder import (
  PARAMETERS,
  in_encoder_or,
  with_encoder,
  with_pretrained,
)
from msa_jax.step import optimizer, task_gradients
from msa_jax.step.accumulation import accumulated
from msa_jax.step.alternating import alternating
from msa_jax.step.balance.recipe import balanced
from msa_jax.step.ema import with_ema
from msa_jax.step.objective import Objective, make_objective
from msa_jax.step.recipe import (
  Recipe,
  Supervised,
  example_batch,
  gradient_of_sum,
  supervised,
  with_hidden,
  with_missing,
  with_prior,
)
from msa_jax.text import finetune


class Networks(NamedTuple):
  """A system's network, `inner`, and what is trained: it, with an anchor and then a
  text encoder around it where the experiment has them."""

  inner: nn.Module
  outer: nn.Module


def networks(config: Experiment) -> Networks:
  """The network of a resolved experiment.

  Raises:
    UserError: options that are out of range or contradict the corpus.
  """
  system, spec = models.get(config.system), config.corpus_spec
  inner = system.build(config.model, spec)
  outer = inner
  if config.anchor.is_on:
    outputs = output_specs(config.model, spec)
    outer = with_anchor(inner, config.anchor, outputs, spec)
  if not config.text.is_tuned:
    return Networks(inner, outer)
  narrow = config.model.get("dtype", "float32") == "bfloat16"
  outer = with_encoder(outer, config.text, spec, narrow, system.sees_dropped)
  return Networks(inner, outer)


def with_anchor_chosen(config: Experiment) -> Experiment:
  """A resolved experiment whose `config.anchor.to` is `text` or `none`, not `auto`."""
  if config.anchor.to != "auto":
    return config
  can = "text" in config.corpus_spec.modalities
  can = can and not models.get(config.system).text_heads
  outputs = output_specs(config.model, config.corpus_spec)
  # What is said of one modality alone must not hear of the text.
  can = can and [output.kind for output in outputs] == ["regression"]
  can = can and not any(stage.branched for stage in stages_of(config))
  return config.replace("anchor", to="text" if can else "none")


def text_head_path(config: Experiment) -> tuple[str, ...]:
  """Where the parameters of linear layers on pooled text lie, by task; () = nowhere."""
  if config.anchor.is_on:
    return (ANCHOR, HEADS)
  return models.get(config.system).text_heads


def stages_of(config: Experiment) -> tuple[Stage, ...]:
  """The stages of a system's training, every one with at least one track.

  Raises:
    UserError: no stages, two of one name, a stage without epochs, or one that takes
      its collections from a track it has not.
  """
  system, monitor = models.get(config.system), config.train.monitor
  stages = tuple(
    stage._replace(tracks=dict(stage.tracks) or {"selected": monitor})
    for stage in system.stages(config.model, config.corpus_spec, config.optim, monitor)
  )
  names = [stage.name for stage in stages]
  if not stages or len(set(names)) != len(names):
    raise UserError(
      f"{config.system} has stages {names}: there must be one, names distinct."
    )
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


def objective_of(config: Experiment, system: System, inner: nn.Module) -> Objective:
  """What an experiment minimises."""
  spec = config.corpus_spec
  steps = optimizer.total_steps(spec, config.optim)
  terms = system.terms(config.loss, spec)
  return make_objective(system, inner, config.loss, spec.tasks, terms, steps)


def build(config: Experiment, stage: int = -1) -> Recipe:
  """Builds the recipe of a resolved experiment.

  Args:
    config: resolved.
    stage: index into `stages_of(config)`; the last one makes the predictions.

  Raises:
    UserError: options that are out of range or contradict each other or the corpus.
  """
  stages = stages_of(config)
  chosen = stages[stage]
  if config.optim.ema_decay and len(stages) > 1:
    raise UserError(
      f"config.optim.ema_decay={config.optim.ema_decay}: must be 0 for"
      f" {config.system}, which is trained in stages."
    )
  if chosen.branched and config.anchor.is_on:
    raise UserError(
      f"config.anchor.to={config.anchor.to!r}: the branches of {config.system} train"
      " side by side and have nothing in common, but there is one anchor; choose 'none'"
      " (of MoMKE, or config.model.stage2_mask='mixed')."
    )
  if chosen.epochs != config.optim.epochs:
    config = config.replace("optim", epochs=chosen.epochs)
  system, spec, text = models.get(config.system), config.corpus_spec, config.text
  made = system.recipe(
    networks(config).inner, chosen, _in_turns(config, system, chosen)
  )
  # Where another run gives the values, `runs.warm_start` reads them.
  if text.is_tuned and text.start == "pretrained" and not config.init.from_run:
    made = with_pretrained(made, text, spec.encoder)
  # An encoder inside sees lost tokens, and hides them from the system itself.
  made = with_hidden(made, keep_lost=system.sees_dropped or text.is_tuned)
  pattern = missing.parse(config.missing.train) if chosen.missing else missing.NONE
  made = with_missing(made, pattern, spec.steps_per_epoch(config.optim.batch_size))
  made = with_ema(made, config.optim.ema_decay)
  return with_prior(made, spec.priors, system.reads(config.model, spec))


def partition_with_rate(
  system: System, rates: Mapping[str, float], path: tuple[str, ...]
) -> str:
  """Partition of a parameter: `new` where its own has no rate and needs none.

  Args:
    system: whose partitions they are.
    rates: partition -> learning rate.
    path: of the parameter.
  """
  name = system.partition(path)
  return "new" if name in system.own_rates and not rates.get(name) else name


def _in_turns(config: Experiment, system: System, stage: Stage) -> Recipe:
  """One model and its optimizers, or several of these in turn."""
  objective = objective_of(config, system, networks(config).inner)
  if not stage.turns:
    return _core(config, system, stage, objective)
  if config.optim.accumulate_steps > 1:
    raise UserError(
      f"config.optim.accumulate_steps={config.optim.accumulate_steps}: {config.system}"
      " has several optimizers, which update with every batch; set it to 1."
    )
  recipes = []
  for turn in stage.turns:
    terms = {
      name: term._replace(weight=turn.task * term.weight)
      for name, term in objective.terms.items()
    }
    weights = {
      name: turn.losses.get(name, turn.others * weight)
      if isinstance(weight, int | float)
      else weight
      for name, weight in objective.weights.items()
    }
    own = stage._replace(trainable=turn.trainable)
    chosen = objective._replace(terms=terms, weights=weights)
    recipes.append(_core(config, system, own, chosen))
  return alternating(recipes)


def _core(
  config: Experiment, system: System, stage: Stage, objective: Objective
) -> Recipe:
  """One model and its optimizers, without any behaviour around them."""
  spec, optim, text = config.corpus_spec, config.optim, config.text
  outer = networks(config).outer
  shared = system.shared
  if config.anchor.is_on:
    shared = beside_anchor(shared, "")
  if text.is_tuned:
    shared = functools.partial(in_encoder_or, shared)
  rule, end_epoch = _optimizer(config, system, stage), None
  if optim.accumulate_steps > 1:
    rule, end_epoch = accumulated(
      rule, optim.accumulate_steps, optim.accumulation, optim.grad_clip_value
    )
  example = example_batch(spec)
  if config.balance is not None and config.is_balanced:
    if stage.call:
      raise UserError(
        f"B-fusion cannot balance {config.system}: its stages call the module with"
        f" {dict(stage.call)}, which encode and tail do not take. Set"
        " config.balance.enabled=False."
      )
    per_epoch = spec.steps_per_epoch(optim.batch_size)
    return balanced(
      outer, example, objective, rule, config.balance, per_epoch, optim.name
    )
  gradient = gradient_of_sum
  if config.train.task_cosine:
    gradient = functools.partial(task_gradients.gradient_by_task, shared)
  made = supervised(Supervised(outer, example, objective, rule, gradient, stage.call))
  made = made._replace(end_epoch=end_epoch)
  if config.train.task_cosine:
    made = task_gradients.with_shared_check(made, system.shared, config.system)
  return made


def _optimizer(
  config: Experiment, system: System, stage: Stage
) -> optax.GradientTransformation:
  """The update rule of a stage, a text encoder's included."""
  spec, optim, text = config.corpus_spec, config.optim, config.text
  rates, frozen = optim.rates, None
  partition = functools.partial(partition_with_rate, system, rates)
  if config.anchor.is_on:
    partition = beside_anchor(partition, "new")
  if text.is_tuned:
    partition = functools.partial(in_encoder_or, partition)
    rates = {**rates, PARAMETERS: text.learning_rate}
    frozen = finetune.is_frozen if finetune.freezes(text, spec.encoder) else None
  return optimizer.build(
    optim,
    optimizer.total_updates(spec, optim),
    partition,
    stage.trainable,
    stage.branched and not config.is_balanced,
    rates,
    frozen,
    text.layer_decay if text.is_tuned else 1.0,
    stage.clip_all,
  )
