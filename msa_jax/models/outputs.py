"""What a model predicts: the shape of its last layer and of its predictions."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxtyping import Array, Float

from msa_jax.errors import UserError
from msa_jax.names import split_names
from msa_jax.typing import Spec, Task

USUAL_TASKS = ("sentiment", "emotion")


class OutputSpec(NamedTuple):
  """A task that a model predicts.

  Attributes:
    name: of the task.
    kind: `regression`, `classes` or `binary`.
    num_outputs: units of the last layer.
    low, high: range of a regression label.
    classes: names of the classes or questions.
  """

  name: str = "sentiment"
  kind: str = "regression"
  num_outputs: int = 1
  low: float = -3.0
  high: float = 3.0
  classes: tuple[str, ...] = ()


REGRESSION = OutputSpec()


def output_spec(name: str, task: Task) -> OutputSpec:
  """The output that a task needs: one unit, one per class, or two per question."""
  units = {"regression": 1, "classes": len(task.classes)}
  return OutputSpec(
    name=name,
    kind=task.kind,
    num_outputs=units.get(task.kind, 2 * len(task.classes)),
    low=float(task.low),
    high=float(task.high),
    classes=tuple(task.classes),
  )


def output_specs(options: Mapping[str, Any], spec: Spec) -> tuple[OutputSpec, ...]:
  """The tasks that a system predicts, the one it is named after first.

  A system of several tasks has an option `tasks`: names, or () for those of sentiment
  and emotion that the corpus has. Any other may have an option `task`: a name, or
  `auto` for sentiment, else emotion.

  Raises:
    UserError: the corpus has no such task.
  """
  if "tasks" not in options:
    return (_named(spec, _default(options.get("task", "auto"), spec), "task"),)
  names = _distinct(options["tasks"], spec)
  return tuple(_named(spec, name, "tasks") for name in names)


def primary_output(options: Mapping[str, Any], spec: Spec) -> OutputSpec:
  """The first of `output_specs`."""
  return output_specs(options, spec)[0]


def _default(name: str, spec: Spec) -> str:
  if name != "auto":
    return name
  return next(n for n in (*USUAL_TASKS, *sorted(spec.tasks)) if n in spec.tasks)


def _distinct(entries: Sequence[str], spec: Spec) -> list[str]:
  usual = [name for name in USUAL_TASKS if name in spec.tasks]
  names = list(split_names(entries)) or usual
  if len(set(names)) != len(names) or not names:
    raise UserError(
      f"model.tasks={tuple(names)}: name each task once, at least one of those of the"
      f" corpus, {sorted(spec.tasks)}"
    )
  return names


def _named(spec: Spec, name: str, option: str) -> OutputSpec:
  if name not in spec.tasks:
    auto = "'auto'" if option == "task" else "() for the usual ones"
    raise UserError(
      f"model.{option}={name!r}: the corpus has {sorted(spec.tasks)}, or {auto}"
    )
  return output_spec(name, spec.tasks[name])


def shape_predictions(
  output: OutputSpec, values: Float[Array, "... c"]
) -> Float[Array, "..."]:
  """[b 1] -> [b] for regression, [b c] for classes, [b 2c] -> [b c 2] for questions.

  With any leading axes, e.g. [b t] of dialogues.
  """
  if output.kind == "regression":
    return values[..., 0]
  if output.kind == "classes":
    return values
  return values.reshape(*values.shape[:-1], -1, 2)
