"""What a system hands to the trainer."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from flax.core import FrozenDict
from jaxtyping import Array, Float

from msa_jax.config.options import OptimConfig
from msa_jax.models.options import construct, defaults
from msa_jax.models.outputs import output_specs, primary_output
from msa_jax.typing import Batch, ModelOutput, Params, Spec

# Options of a system (`config.model` without its name) or of its objective: plain,
# nested mappings.
Options = Mapping[str, Any]
# Dotted key of a config -> another value, e.g. {"model.dropout": 0.0}.
Changes = Mapping[str, Any]
# Name of a run -> its changes.
Variants = Mapping[str, Changes]


def no_auxiliary(
  model: nn.Module,
  output: ModelOutput,
  batch: Batch,
  progress: Float[Array, ""],
) -> Mapping[str, jax.Array]:
  """Auxiliary losses of a system that has none beyond `output.losses`."""
  del model, batch, progress
  return output.losses


def one_partition(path: tuple[str, ...]) -> str:
  """Every parameter trains with the learning rate of the new modules."""
  del path
  return "new"


def everything(path: tuple[str, ...]) -> bool:
  """Every parameter is trained."""
  del path
  return True


def all_of(track: str, params: Params) -> Params:
  """A snapshot keeps every parameter."""
  del track
  return params


def first_track(snapshots: Mapping[str, Params], final: Params) -> Params:
  """The parameters that the stage's first track selected."""
  del final
  return next(iter(snapshots.values()))


class Turn(NamedTuple):
  """What trains for one epoch of a stage, before another has its turn.

  Attributes:
    trainable: parameter path -> whether the turn trains it.
    task: factor of the tasks' losses.
    losses: name of an auxiliary loss -> its weight in this turn.
    others: factor of the weights of all other auxiliary losses.
  """

  trainable: Callable[[tuple[str, ...]], bool]
  task: float = 1.0
  losses: Mapping[str, float] = MappingProxyType({})
  others: float = 1.0


class Stage(NamedTuple):
  """A part of the training with a graph, an optimizer and a selection of its own.

  Attributes:
    name: for metrics.jsonl and messages, unique within the run.
    epochs: most epochs of the stage; the schedule runs over these.
    patience: the stage ends when none of its tracks has improved for as many epochs;
      0 = never.
    call: keyword arguments of the module, e.g. `{"stage": 2}`. A module creates all
      its parameters whatever the stage when it is initialised.
    tracks: track name -> validation figure, `<prediction>/<metric>` as
      `config.train.monitor` has it. Each track keeps a snapshot of its own best epoch.
      Empty = one track, `selected`, by `config.train.monitor`.
    trainable: parameter path -> whether the stage trains it. Others get neither
      updates nor weight decay.
    keep: (track, params) -> what the track's snapshot keeps of them.
    compose: (snapshots by track, final params) -> params that the next stage starts
      from, or, of the last stage, that the run has selected. The structure may
      change. Traced, so made of JAX operations alone.
    collections: track whose snapshot the other collections (batch statistics, ...)
      are taken from, or `final`; "" = the first track.
    missing: whether `config.missing.train` takes modalities away in this stage; False
      where the method trains on complete data first.
    carry_opt_state: goes on with the optimizer state (and place in the schedule) of
      the stage before, in place of a fresh one.
    branched: the first axis of all trained parameters is that of branches, which train
      side by side and are clipped each for itself.
    turns: objectives and optimizers that train in turn, an epoch each; () = one.
    clip_all: gradients of what is not trained count in the clipping too.
  """

  name: str
  epochs: int
  patience: int = 0
  call: Mapping[str, Any] = MappingProxyType({})
  tracks: Mapping[str, str] = MappingProxyType({})
  trainable: Callable[[tuple[str, ...]], bool] = everything
  keep: Callable[[str, Params], Params] = all_of
  compose: Callable[[Mapping[str, Params], Params], Params] = first_track
  collections: str = ""
  missing: bool = True
  carry_opt_state: bool = False
  branched: bool = False
  turns: tuple[Turn, ...] = ()
  clip_all: bool = False


def one_stage(
  options: Options, spec: Spec, optim: OptimConfig, monitor: str
) -> tuple[Stage, ...]:
  """The whole training in one stage, by `config.optim` and `config.train.monitor`."""
  del options, spec, monitor
  return (Stage("train", optim.epochs, optim.patience),)


def default_recipe(model: nn.Module, stage: Stage, recipe: Any) -> Any:
  """A stage that trains as every other."""
  del model, stage
  return recipe


class TaskTerm(NamedTuple):
  """How one task enters the objective.

  Attributes:
    loss: key of `losses.task.LOSSES` for the task's kind, or `default`.
    weight: factor of the mean loss.
    positive_weight: factors of the loss of questions answered with yes, one per
      question or one for all; () = none.
  """

  loss: str = "default"
  weight: float = 1.0
  positive_weight: tuple[float, ...] = ()


def one_loss(loss: Options, spec: Spec) -> Mapping[str, TaskTerm]:
  """Every task has the loss that `config.loss.task` names, with weight one."""
  return {name: TaskTerm(loss.get("task", "default")) for name in spec.tasks}


def nothing_shared(path: tuple[str, ...]) -> str:
  """No parameter is watched for what the tasks ask of it."""
  del path
  return ""


def every_modality(options: Options, spec: Spec) -> tuple[str, ...]:
  """All modalities of the corpus are read."""
  del options
  return spec.modalities


def no_attention(options: Options) -> str:
  """No attention selects its keys."""
  del options
  return ""


class System(NamedTuple):
  """A system: how its network is built, and what of its training is special.

  Attributes:
    build: (options, spec) -> Flax module with `__call__(batch, *, train=False) ->
      ModelOutput`. Options are those of `config.model`, nested; the spec has widths,
      lengths and tasks of the corpus.
    auxiliary: (model, output, batch, progress) -> raw auxiliary losses by name,
      scalars averaged over the batch's real samples; the objective multiplies them
      with `config.loss.<name>`. `progress` is the share of all steps done, for
      schedules.
    partition: parameter path -> name of its optimizer partition: `new`
      (`config.optim.learning_rate`) or a key of `config.optim.learning_rates`.
    own_rates: partitions that train with the rate of `new` where
      `config.optim.learning_rates` does not name them, or says 0.
    stages: (options, spec, optim, monitor) -> stages of the training, in order.
    recipe: (model, stage, default recipe) -> `step.recipe.Recipe` of a stage, for a
      system that trains differently.
    terms: (loss options, spec) -> how each task enters the objective.
    shared: parameter path -> name of a group of parameters that the tasks share, for
      `config.train.task_cosine`; "" = none.
    units: what one sample may be, of `utterance` and `dialogue` (`data.sample_unit`).
    reads: (options, spec) -> modalities that the network reads; a sample that has none
      of them is predicted by the training prior.
    sees_dropped: whether the network reads steps whose content was lost; other systems
      get batches in which such steps are hidden.
    ablations: table -> its runs, for the study `ablation`.
    router_variants: ways to combine experts, for the study `router_compare`; empty =
      the system itself.
    robustness: runs that leave out what a method has against missing modalities, which
      the study `missing` trains beside the whole system. A run's folder is named
      `<system>_<data>_<name>`.
    attention: options -> a name in the path of the modules whose attention keeps the
      top k of its keys, for the report's figure of one sample; "" = none. Its tokens
      are all real steps, the modalities of a step side by side in canonical order.
    text_heads: path of linear layers by task that read the pooled text, of a system
      that reads nothing else; () = it has none.
    search_space: options that the study `tune` searches beside those of every system
      (`studies/spaces.py`), dotted key -> values as `--space` takes them.
    options: defaults of `config.model`, where no config file gives them.
    losses: the same of `config.loss`: weights of the auxiliary losses, which count also
      where a config does not have them.
  """

  build: Callable[[Options, Spec], nn.Module]
  auxiliary: Callable[..., Mapping[str, jax.Array]] = no_auxiliary
  partition: Callable[[tuple[str, ...]], str] = one_partition
  own_rates: tuple[str, ...] = ()
  stages: Callable[[Options, Spec, OptimConfig, str], tuple[Stage, ...]] = one_stage
  recipe: Callable[[nn.Module, Stage, Any], Any] = default_recipe
  terms: Callable[[Options, Spec], Mapping[str, TaskTerm]] = one_loss
  shared: Callable[[tuple[str, ...]], str] = nothing_shared
  units: tuple[str, ...] = ("utterance",)
  reads: Callable[[Options, Spec], tuple[str, ...]] = every_modality
  sees_dropped: bool = False
  ablations: Mapping[str, Variants] = MappingProxyType({})
  router_variants: Variants = MappingProxyType({})
  robustness: Variants = MappingProxyType({})
  attention: Callable[[Options], str] = no_attention
  text_heads: tuple[str, ...] = ()
  search_space: Mapping[str, str] = MappingProxyType({})
  options: Options = MappingProxyType({})
  losses: Options = MappingProxyType({})


def system_of(network: type[nn.Module], **parts: Any) -> System:
  """A system whose options are the fields of its network.

  Fields `output` (the task predicted), `outputs` (several), `modalities` (names),
  `lengths` (modality -> steps of the longest sequence) and `train_size` (rows of the
  training split) are filled in from the corpus; every other field needs a default.

  >>> models.register("mine", models.system_of(Mine))

  Args:
    network: class of a Flax module with `__call__(batch, *, train=False) ->
      ModelOutput`.
    parts: further fields of `System`.
  """
  made = {"build": functools.partial(_build, network), "options": defaults(network)}
  return System(**{**made, **parts})


def _build(network: type[nn.Module], options: Options, spec: Spec) -> nn.Module:
  of_corpus = {
    "output": lambda: primary_output(options, spec),
    "outputs": lambda: output_specs(options, spec),
    "modalities": lambda: spec.modalities,
    "lengths": lambda: FrozenDict(spec.lengths),
    "train_size": lambda: max(1, sum(spec.sources) or spec.train_size),
  }
  known = {field.name for field in dataclasses.fields(network)}
  fixed = {name: value() for name, value in of_corpus.items() if name in known}
  return construct(network, options, **fixed)
