"""The training objective: the one place where losses are reduced, weighted, added."""

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float, Int

from msa_jax.losses.task import masked_average, task_loss
from msa_jax.models.base import System
from msa_jax.train import optim
from msa_jax.typing import Batch, Metrics, ModelOutput, task_name


def auxiliary_ramp(
  config: ml_collections.ConfigDict, step: Int[Array, ""]
) -> Float[Array, ""]:
  """Weight of auxiliary losses in [0, 1]: linear over the first
  `loss.aux_warmup` share of all steps."""
  ramp_steps = config.loss.aux_warmup * optim.total_steps(config)
  if ramp_steps < 1:
    return jnp.ones(())
  return jnp.minimum(1.0, (step + 1) / ramp_steps).astype(jnp.float32)


def task_losses(
  config: ml_collections.ConfigDict, output: ModelOutput, batch: Batch
) -> dict[str, jax.Array]:
  """Prediction name -> mean loss over the real samples that carry its task's label."""
  losses = {}
  for name, prediction in output.predictions.items():
    label = batch.labels[task_name(name)]
    rows = batch.sample_mask
    owners = label.mask & rows.reshape(*rows.shape, *[1] * (label.mask.ndim - 1))
    per_example = task_loss(
      config.spec.tasks[task_name(name)].kind, config.loss.task, prediction, label
    )
    losses[name] = masked_average(per_example, owners)
  return losses


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
      loss `<name>`, `loss.aux_warmup` its ramp.
    system: gives the raw auxiliary losses.
    output, batch: predictions and labels.
    step: optimizer step, for the ramp and for schedules of auxiliary losses.

  Returns:
    The scalar to differentiate, and metrics: `loss`, `loss/<task>`, raw `aux/<name>`
    and weighted `weighted/<name>` (comparable across runs and to the total).
  """
  tasks = task_losses(config, output, batch)
  total = sum(tasks.values(), start=jnp.zeros(()))
  metrics = {f"loss/{name}": value for name, value in tasks.items()}
  ramp = auxiliary_ramp(config, step)
  progress = jnp.minimum(1.0, step / optim.total_steps(config)).astype(jnp.float32)
  for name, raw in system.auxiliary(config, output, batch, progress).items():
    weighted = ramp * config.loss[name] * raw
    total = total + weighted
    metrics[f"aux/{name}"] = raw
    metrics[f"weighted/{name}"] = weighted
  return total, {"loss": total, **metrics}
