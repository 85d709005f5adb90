"""The training objective: the one place where losses are reduced, weighted, added."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Bool, Float, Int

from msa_jax.losses.task import masked_average, task_loss
from msa_jax.models.system import System, TaskTerm, one_loss
from msa_jax.step import optimizer
from msa_jax.typing import Batch, Metrics, ModelOutput, task_name


def auxiliary_ramp(
  config: ml_collections.ConfigDict, step: Int[Array, ""]
) -> Float[Array, ""]:
  """Weight of auxiliary losses in [0, 1]: linear over the first
  `loss.aux_warmup_fraction` share of all steps."""
  ramp_steps = config.loss.aux_warmup_fraction * optimizer.total_steps(config)
  if ramp_steps < 1:
    return jnp.ones(())
  return jnp.minimum(1.0, (step + 1) / ramp_steps).astype(jnp.float32)


def task_losses(
  config: ml_collections.ConfigDict,
  output: ModelOutput,
  batch: Batch,
  terms: Mapping[str, TaskTerm] | None = None,
) -> dict[str, jax.Array]:
  """Prediction name -> mean loss over the real samples that carry its task's label.

  Args:
    config: resolved config.
    output, batch: predictions and labels.
    terms: the system's `terms(config)`; None = `config.loss.task` for every task.
  """
  terms = one_loss(config) if terms is None else terms
  losses = {}
  for name, prediction in output.predictions.items():
    task = task_name(name)
    label, term = batch.labels[task], terms[task]
    per_example = task_loss(
      config.spec.tasks[task].kind,
      term.loss,
      prediction,
      label,
      term.positive_weight,
    )
    losses[name] = masked_average(per_example, _owners(batch, name))
  return losses


def _owners(batch: Batch, name: str) -> Bool[Array, "b ..."]:
  """Real samples that carry the label."""
  mask, rows = batch.labels[task_name(name)].mask, batch.sample_mask
  return mask & rows.reshape(*rows.shape, *[1] * (mask.ndim - 1))


def weighted_tasks(
  config: ml_collections.ConfigDict,
  system: System,
  output: ModelOutput,
  batch: Batch,
) -> tuple[dict[str, jax.Array], Metrics]:
  """Prediction name -> what it adds to the objective.

  That is weight * L, or weight * (exp(-s) L + s) for a model that learns the log
  variance s of the task's error (`losses["log_variance/<task>"]`; Kendall et al.
  2018), where L is the mean over the samples that own the label. A batch without any
  adds exactly zero, s included.

  Returns:
    The terms, and metrics: `loss/<task>` (L) and, with several tasks,
    `weighted/<task>`; `log_variance/<task>` where it is learned.
  """
  terms = system.terms(config)
  raw = task_losses(config, output, batch, terms)
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
  config: ml_collections.ConfigDict,
  system: System,
  output: ModelOutput,
  batch: Batch,
  step: Int[Array, ""],
) -> tuple[dict[str, jax.Array], Metrics]:
  """What adds up to the objective: one term per task, and `auxiliary` if there is any.

  See `objective` for arguments and metrics (all but `loss`).
  """
  terms, metrics = weighted_tasks(config, system, output, batch)
  ramp = auxiliary_ramp(config, step)
  progress = jnp.minimum(1.0, step / optimizer.total_steps(config)).astype(jnp.float32)
  for name, raw in system.auxiliary(config, output, batch, progress).items():
    weighted = ramp * config.loss[name] * raw
    terms["auxiliary"] = terms.get("auxiliary", 0.0) + weighted
    metrics[f"aux/{name}"] = raw
    metrics[f"weighted/{name}"] = weighted
  return terms, metrics


def objective(
  config: ml_collections.ConfigDict,
  system: System,
  output: ModelOutput,
  batch: Batch,
  step: Int[Array, ""],
) -> tuple[Float[Array, ""], Metrics]:
  """Adds task losses and weighted auxiliary losses.

  Args:
    config: `loss.task` names the regression loss, `loss.<name>` weighs the auxiliary
      loss `<name>`, `loss.aux_warmup_fraction` its ramp.
    system: gives the raw auxiliary losses and says how tasks enter.
    output, batch: predictions and labels.
    step: optimizer step, for the ramp and for schedules of auxiliary losses.

  Returns:
    The scalar to differentiate, and metrics: `loss`, `loss/<task>`, raw `aux/<name>`
    and weighted `weighted/<name>` (comparable across runs and to the total).
  """
  terms, metrics = objective_terms(config, system, output, batch, step)
  total = sum(terms.values(), start=jnp.zeros(()))
  return total, {"loss": total, **metrics}
