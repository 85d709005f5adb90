"""The training objective: the one place where losses are reduced, weighted, added."""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from msa_jax.losses.task import masked_average, task_loss
from msa_jax.models.system import Options, System, TaskTerm
from msa_jax.typing import Batch, Metrics, ModelOutput, Task, task_name


class Objective(NamedTuple):
  """What a step minimises.

  Attributes:
    tasks: task name -> `Task`.
    terms: task name -> how it enters.
    auxiliary: (output, batch, progress) -> raw auxiliary losses by name.
    weights: name of an auxiliary loss -> its weight.
    total_steps: optimizer updates of the whole run.
    ramp_steps: updates over which auxiliary losses rise linearly to their weights.
  """

  tasks: Mapping[str, Task]
  terms: Mapping[str, TaskTerm]
  auxiliary: Callable[[ModelOutput, Batch, Float[Array, ""]], Mapping[str, jax.Array]]
  weights: Mapping[str, float]
  total_steps: int
  ramp_steps: float = 0.0


def make_objective(
  system: System,
  model: nn.Module,
  loss: Options,
  tasks: Mapping[str, Task],
  terms: Mapping[str, TaskTerm],
  total_steps: int,
) -> Objective:
  """The objective of a system.

  Args:
    system, model: whose auxiliary losses count.
    loss: options of the objective, with the weights of the auxiliary losses and
      `aux_warmup_fraction`.
    tasks, terms, total_steps: see `Objective`.
  """
  return Objective(
    tasks=tasks,
    terms=terms,
    auxiliary=functools.partial(system.auxiliary, model),
    weights={**system.losses, **loss},
    total_steps=total_steps,
    ramp_steps=loss.get("aux_warmup_fraction", 0.0) * total_steps,
  )


def auxiliary_ramp(objective: Objective, step: Int[Array, ""]) -> Float[Array, ""]:
  """Weight of auxiliary losses in [0, 1], linear over the first `ramp_steps`."""
  if objective.ramp_steps < 1:
    return jnp.ones(())
  return jnp.minimum(1.0, (step + 1) / objective.ramp_steps).astype(jnp.float32)


def task_losses(
  tasks: Mapping[str, Task],
  terms: Mapping[str, TaskTerm],
  output: ModelOutput,
  batch: Batch,
) -> dict[str, jax.Array]:
  """Prediction name -> mean loss over the real samples that carry its task's label.

  Args:
    tasks, terms: by task name; see `Objective`.
    output, batch: predictions and labels.
  """
  losses = {}
  for name, prediction in output.predictions.items():
    task = task_name(name)
    label, term = batch.labels[task], terms[task]
    per_example = task_loss(
      tasks[task].kind, term.loss, prediction, label, term.positive_weight
    )
    losses[name] = masked_average(per_example, _owners(batch, name))
  return losses


def _owners(batch: Batch, name: str) -> Bool[Array, "b ..."]:
  """Real samples that carry the label."""
  mask, rows = batch.labels[task_name(name)].mask, batch.sample_mask
  return mask & rows.reshape(*rows.shape, *[1] * (mask.ndim - 1))


def weighted_tasks(
  tasks: Mapping[str, Task],
  terms: Mapping[str, TaskTerm],
  output: ModelOutput,
  batch: Batch,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
  """Prediction name -> what it adds to the objective.

  That is weight * L, or weight * (exp(-s) L + s) for a model that learns the log
  variance s of the task's error (`losses["log_variance/<task>"]`; Kendall et al.
  2018), where L is the mean over the samples that own the label. A batch without any
  adds exactly zero, s included.

  Returns:
    The terms, and metrics: `loss/<task>` (L) and, with several tasks,
    `weighted/<task>`; `log_variance/<task>` where it is learned.
  """
  raw = task_losses(tasks, terms, output, batch)
  weighted, metrics = {}, {f"loss/{name}": value for name, value in raw.items()}
  for name, value in raw.items():
    log_variance = output.losses.get(f"log_variance/{name}")
    if log_variance is not None:
      metrics[f"log_variance/{name}"] = log_variance
      balanced = jnp.exp(-log_variance) * value + log_variance
      value = jnp.where(jnp.any(_owners(batch, name)), balanced, 0.0)
    weighted[name] = terms[task_name(name)].weight * value
  if len(raw) > 1:
    metrics |= {f"weighted/{name}": value for name, value in weighted.items()}
  return weighted, metrics


def objective_terms(
  objective: Objective,
  output: ModelOutput,
  batch: Batch,
  step: Int[Array, ""],
) -> tuple[dict[str, jax.Array], Metrics]:
  """What adds up to the objective: one term per task, and `auxiliary` if there is any.

  Args:
    objective: see `Objective`.
    output, batch: predictions and labels.
    step: optimizer updates done.

  Returns:
    The terms, and metrics: `loss`, their sum; those of `weighted_tasks`; and
    `aux/<name>` (raw) and `weighted/<name>` of each auxiliary loss.
  """
  terms, metrics = weighted_tasks(objective.tasks, objective.terms, output, batch)
  ramp = auxiliary_ramp(objective, step)
  progress = jnp.minimum(1.0, step / objective.total_steps).astype(jnp.float32)
  for name, raw in objective.auxiliary(output, batch, progress).items():
    weighted = ramp * objective.weights[name] * raw
    terms["auxiliary"] = terms.get("auxiliary", 0.0) + weighted
    metrics[f"aux/{name}"] = raw
    metrics[f"weighted/{name}"] = weighted
  return terms, {"loss": sum(terms.values(), start=jnp.zeros(())), **metrics}
