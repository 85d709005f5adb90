"""What a system hands to the trainer."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import ml_collections
from jaxtyping import Array, Float

from msa_jax.errors import UserError
from msa_jax.typing import Batch, ModelOutput, Params


def no_auxiliary(
  config: ml_collections.ConfigDict,
  output: ModelOutput,
  batch: Batch,
  progress: Float[Array, ""],
) -> Mapping[str, jax.Array]:
  """Auxiliary losses of a system that has none beyond `output.losses`."""
  del config, batch, progress
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


def one_stage(config: ml_collections.ConfigDict) -> tuple[Stage, ...]:
  """The whole training in one stage, by `config.optim` and `config.train.monitor`."""
  return (Stage("train", config.optim.epochs, config.optim.patience),)


def default_recipe(config: ml_collections.ConfigDict, stage: Stage, recipe: Any) -> Any:
  """A stage that trains as every other."""
  del config, stage
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


def one_loss(config: ml_collections.ConfigDict) -> Mapping[str, TaskTerm]:
  """Every task has the loss that `config.loss.task` names, with weight one."""
  return {name: TaskTerm(config.loss.task) for name in config.spec.tasks}


def nothing_shared(path: tuple[str, ...]) -> str:
  """No parameter is watched for what the tasks ask of it."""
  del path
  return ""


class System(NamedTuple):
  """One row of the table in `models/__init__.py`.

  Attributes:
    build: config -> Flax module with `__call__(batch, *, train) -> ModelOutput`.
      Reads `config.model` (its own options) and `config.spec` (widths, lengths and
      tasks of the corpus).
    auxiliary: (config, output, batch, progress) -> raw auxiliary losses by name,
      scalars averaged over the batch's real samples; weights are applied by the
      trainer (`config.loss.<name>`). `progress` is the share of all steps done, for
      schedules.
    partition: parameter path -> name of its optimizer partition
      (`config.optim.learning_rate` for `new`, `learning_rate_<name>` for others).
    stages: config -> stages of the training, in order.
    recipe: (config, stage, default recipe) -> `step.recipe.Recipe` of a stage, for a
      system that trains in a way of its own. The config is that of the stage.
    terms: config -> how each task enters the objective.
    shared: parameter path -> name of a group of parameters that the tasks share, for
      `config.train.task_cosine`; "" = none.
    units: what one sample may be, of `utterance` and `dialogue` (`data.sample_unit`).
  """

  build: Callable[[ml_collections.ConfigDict], nn.Module]
  auxiliary: Callable[..., Mapping[str, jax.Array]] = no_auxiliary
  partition: Callable[[tuple[str, ...]], str] = one_partition
  stages: Callable[[ml_collections.ConfigDict], tuple[Stage, ...]] = one_stage
  recipe: Callable[[ml_collections.ConfigDict, Stage, Any], Any] = default_recipe
  terms: Callable[[ml_collections.ConfigDict], Mapping[str, TaskTerm]] = one_loss
  shared: Callable[[tuple[str, ...]], str] = nothing_shared
  units: tuple[str, ...] = ("utterance",)


class Target(NamedTuple):
  """The task a system predicts.

  Attributes:
    name: of the task.
    kind: `regression`, `classes` or `binary`.
    n_outputs: units of the last layer.
    low, high: range of a regression label.
    classes: names of the classes or questions.
  """

  name: str
  kind: str
  n_outputs: int
  low: float
  high: float
  classes: tuple[str, ...]


USUAL_TASKS = ("sentiment", "emotion")


def targets(config: ml_collections.ConfigDict) -> tuple[Target, ...]:
  """The tasks a system predicts, the one it is named after first.

  A system of several tasks has `config.model.tasks`: names, or () for those of
  sentiment and emotion that the corpus has. Any other has `config.model.task`.

  Raises:
    UserError: the corpus has no such task.
  """
  if "tasks" not in config.model:
    return (predicted(config),)
  # `--config.model.tasks=sentiment,emotion` arrives as one string.
  names = [name for entry in config.model.tasks for name in entry.split(",")]
  names = names or [name for name in USUAL_TASKS if name in config.spec.tasks]
  if len(set(names)) != len(names) or not names:
    raise UserError(
      f"model.tasks={tuple(names)}: name each task once, at least one of those of the"
      f" corpus, {sorted(config.spec.tasks)}"
    )
  return tuple(_target(config, name, "tasks") for name in names)


def predicted(config: ml_collections.ConfigDict) -> Target:
  """The task that `config.model.task` names; `auto` = sentiment, else emotion.

  Of a system of several tasks, the first.

  Raises:
    UserError: the corpus has no such task.
  """
  if "tasks" in config.model:
    return targets(config)[0]
  tasks = config.spec.tasks
  name = config.model.task
  if name == "auto":
    name = next(n for n in (*USUAL_TASKS, *sorted(tasks)) if n in tasks)
  return _target(config, name, "task")


def _target(config: ml_collections.ConfigDict, name: str, option: str) -> Target:
  tasks = config.spec.tasks
  if name not in tasks:
    auto = "'auto'" if option == "task" else "() for the usual ones"
    raise UserError(
      f"model.{option}={name!r}: the corpus has {sorted(tasks)}, or {auto}"
    )
  task = tasks[name]
  units = {"regression": 1, "classes": len(task.classes)}
  return Target(
    name=name,
    kind=task.kind,
    n_outputs=units.get(task.kind, 2 * len(task.classes)),
    low=float(task.low),
    high=float(task.high),
    classes=tuple(task.classes),
  )


def shape_predictions(
  target: Target, values: Float[Array, "... c"]
) -> Float[Array, "..."]:
  """[b 1] -> [b] for regression, [b c] for classes, [b 2c] -> [b c 2] for questions.

  With any leading axes, e.g. [b t] of dialogues.
  """
  if target.kind == "regression":
    return values[..., 0]
  if target.kind == "classes":
    return values
  return values.reshape(*values.shape[:-1], -1, 2)
