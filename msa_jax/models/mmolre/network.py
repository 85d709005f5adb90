"""The network of MMoLRE."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float

from msa_jax.layers.activation import exact_gelu
from msa_jax.layers.dropout import Dropout
from msa_jax.layers.masking import hide_unavailable
from msa_jax.models.mmolre.fusion import TaskFusion
from msa_jax.models.mmolre.unitse import UniTSE
from msa_jax.models.outputs import OutputSpec
from msa_jax.typing import Batch, ModelOutput


class TaskHead(nn.Module):
  """Dense, GELU, dropout, dense: one task's output layer.

  Yes/no questions have one unit each, the logit of yes; that of no is zero, so that
  two-way cross-entropy is binary cross-entropy.

  Attributes:
    target: the task.
    hidden: width of the hidden layer.
    dropout: rate on it.
    deterministic: True = evaluation.
    dtype: compute type; predictions are float32.
  """

  target: OutputSpec
  hidden: int
  dropout: float
  deterministic: bool
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, fused: Float[Array, "b d"]) -> Float[Array, "b ..."]:
    """[b] for a regression, [b c] logits for classes, [b c 2] for questions."""
    hidden = nn.Dense(self.hidden, dtype=self.dtype, name="hidden")(fused)
    hidden = Dropout(self.dropout, self.deterministic)(exact_gelu(hidden))
    num_outputs = len(self.target.classes) or 1
    values = nn.Dense(num_outputs, dtype=self.dtype, name="out")(hidden)
    values = values.astype(jnp.float32)
    if self.target.kind == "regression":
      return values[:, 0]
    if self.target.kind == "binary":
      return jnp.stack([jnp.zeros_like(values), values], axis=-1)
    return values


class MMoLRE(nn.Module):
  """Sentiment and emotion together, by shared and task-specific low-rank experts.

  Attributes:
    options: `config.model`, frozen.
    modalities: those used, in canonical order; others of the batch are ignored.
    targets: the tasks predicted.
    uncertainty: whether to learn a log variance per task (Kendall et al. 2018),
      returned as `losses["log_variance/<task>"]`.
    dtype: compute type; parameters, routers, norm statistics, softmax and predictions
      are float32.
  """

  options: ml_collections.FrozenConfigDict
  modalities: tuple[str, ...]
  targets: tuple[OutputSpec, ...]
  uncertainty: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, batch: Batch, *, train: bool) -> ModelOutput:
    """Predicts every task.

    Returns:
      `features`: `fused_<task>` [b d]. `routing`: `router_<modality>_<block>_<task>`
      over the shared experts and then the task's own (one gate `..._shared` with hard
      sharing), `beta_<task>` over the modalities.
    """
    options = self.options
    batch = hide_unavailable(batch)
    tasks = tuple(target.name for target in self.targets)
    streams, masks, routing = {}, {}, {}
    for name in self.modalities:
      modality = batch.modalities[name]
      masks[name] = modality.mask
      encoder = UniTSE(options, tasks, not train, self.dtype, name=f"unitse_{name}")
      streams[name], blocks = encoder(modality.features, modality.mask)
      for number, gates in enumerate(blocks):
        for stream, gate in gates.items():
          routing[f"router_{name}_{number}_{stream}"] = gate
    fusion = TaskFusion(options, tasks, not train, self.dtype, name="fusion")
    fused, betas = fusion(streams, masks)
    routing |= {f"beta_{task}": beta for task, beta in betas.items()}
    predictions = {}
    for target in self.targets:
      head = TaskHead(
        *(target, options.head_hidden, options.dropout, not train, self.dtype),
        name=f"head_{target.name}",
      )
      predictions[target.name] = head(fused[target.name])
    return ModelOutput(
      predictions=predictions,
      features={f"fused_{task}": values for task, values in fused.items()},
      routing=routing,
      losses=self._log_variances(),
    )

  @nn.nowrap
  def _log_variances(self) -> dict[str, jax.Array]:
    if not self.uncertainty:
      return {}
    return {
      f"log_variance/{target.name}": self.param(
        f"log_variance_{target.name}", nn.initializers.zeros, ()
      )
      for target in self.targets
    }
