"""What Self-MM and TETFN share: a head per branch, and what trains the branches."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from msa_jax.errors import UserError
from msa_jax.layers.dropout import Dropout
from msa_jax.layers.masking import masked_mean
from msa_jax.models.outputs import OutputSpec
from msa_jax.models.self_mm.tables import (
  COLLECTION,
  FUSION,
  Rules,
  Seen,
  empty,
  labels_of,
  updated,
)
from msa_jax.typing import Batch

# Weights of what `PseudoLabels` gives.
LOSSES = {"unimodal_text": 1.0, "unimodal_audio": 1.0, "unimodal_vision": 1.0}


class BranchHead(nn.Module):
  """Dropout, a ReLU layer that gives the branch's features, a ReLU layer, an output.

  Attributes:
    width: of both layers.
    num_outputs: units of the output.
    dropout: rate on the input.
  """

  width: int
  num_outputs: int
  dropout: float

  @nn.compact
  def __call__(
    self, values: Float[Array, "b d"], *, train: bool
  ) -> tuple[Float[Array, "b c"], Float[Array, "b k"]]:
    """The output and the features."""
    values = Dropout(self.dropout, not train)(values)
    features = nn.relu(nn.Dense(self.width, name="layer_1")(values))
    hidden = nn.relu(nn.Dense(self.width, name="layer_2")(features))
    return nn.Dense(self.num_outputs, name="layer_3")(hidden), features


def check_regression(output: OutputSpec, model: str) -> None:
  """Raises UserError where labels cannot be moved by degrees."""
  if output.kind != "regression":
    raise UserError(
      f"config.model.task={output.name!r} is of kind {output.kind!r}: {model} makes"
      " labels by moving numbers; choose a task of kind 'regression'."
    )


class PseudoLabels(nn.Module):
  """Losses of the modalities' heads against labels of their own, which move on.

  The losses are those before the batch: mean of w |prediction - y|, w = tanh |y -
  truth| (Eq. 12-14). In a training step the tables then take the batch in.

  Attributes:
    size: rows of the training split.
    rules: how labels move.
  """

  size: int
  rules: Rules

  @nn.compact
  def __call__(
    self,
    batch: Batch,
    task: str,
    predictions: Mapping[str, Float[Array, " b"]],
    features: Mapping[str, jax.Array],
    present: Mapping[str, Bool[Array, " b"]],
    *,
    train: bool,
  ) -> dict[str, Float[Array, ""]]:
    """`unimodal_<modality>` -> loss; nothing in evaluation.

    Args:
      batch: has labels of the task where it trains.
      task: whose labels are the true ones.
      predictions: modality -> what its head says.
      features: branch -> of its head, `fusion` among them.
      present: modality -> which samples have it.
      train: whether the step is one of training.
    """
    widths = {name: values.shape[-1] for name, values in features.items()}
    if not (self.is_initializing() or self.has_variable(COLLECTION, "tables")):
      return {}  # a network by itself, without a memory
    held = self.variable(COLLECTION, "tables", empty, self.size, widths)
    if not train or self.is_initializing():
      return {}
    label = batch.labels[task]
    known = label.mask & batch.sample_mask
    seen = Seen(
      index=jnp.maximum(batch.index, 0),
      truth=jnp.where(known, label.value, 0.0).astype(jnp.float32),
      known=known,
      features={
        name: lax.stop_gradient(values).astype(jnp.float32)
        for name, values in features.items()
      },
      present=present,
    )
    losses = {}
    for name, prediction in predictions.items():
      target = labels_of(held.value, seen, name)
      weight = jnp.tanh(jnp.abs(target - seen.truth))
      error = weight * jnp.abs(prediction.astype(jnp.float32) - target)
      # The mean is over all samples, as that of the fusion: who lacks a modality adds
      # nothing.
      counted = jnp.where(present[name], error, 0.0)
      losses[f"unimodal_{name}"] = masked_mean(counted, known, 0)
    if self.is_mutable_collection(COLLECTION):
      held.value = updated(held.value, seen, self.rules)
    return losses


def branches(modalities: tuple[str, ...]) -> tuple[str, ...]:
  """Names of all branches."""
  return (FUSION, *modalities)
