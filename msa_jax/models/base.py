"""What a system hands to the trainer."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import ml_collections
from jaxtyping import Array, Float

from msa_jax.typing import Batch, ModelOutput, UserError


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
      (`config.optim.lr_<name>`).
  """

  build: Callable[[ml_collections.ConfigDict], nn.Module]
  auxiliary: Callable[..., Mapping[str, jax.Array]] = no_auxiliary
  partition: Callable[[tuple[str, ...]], str] = one_partition


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


def predicted(config: ml_collections.ConfigDict) -> Target:
  """The task that `config.model.task` names; `auto` = sentiment, else emotion.

  Raises:
    UserError: the corpus has no such task.
  """
  tasks = config.spec.tasks
  name = config.model.task
  if name == "auto":
    name = next(n for n in ("sentiment", "emotion", *sorted(tasks)) if n in tasks)
  if name not in tasks:
    raise UserError(f"model.task={name!r}: the corpus has {sorted(tasks)}, or 'auto'")
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
  target: Target, values: Float[Array, "b c"]
) -> Float[Array, "b ..."]:
  """[b 1] -> [b] for regression, [b c] for classes, [b 2c] -> [b c 2] for questions."""
  if target.kind == "regression":
    return values[:, 0]
  if target.kind == "classes":
    return values
  return values.reshape(len(values), -1, 2)
