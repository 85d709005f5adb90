"""The network of MMoLRE."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from msa_jax.errors import UserError
from msa_jax.layers.activation import exact_gelu
from msa_jax.layers.dropout import Dropout
from msa_jax.layers.lowrank import SECOND_INITS
from msa_jax.models.mmolre.fusion import TaskFusion
from msa_jax.models.mmolre.unitse import UniTSE
from msa_jax.models.options import check
from msa_jax.models.outputs import REGRESSION, OutputSpec
from msa_jax.typing import Batch, ModelOutput, modality_order

HARD = "shared"  # name of the only stream when tasks share everything


class TaskHead(nn.Module):
  """Dense, GELU, dropout, dense: one task's output layer.

  Yes/no questions have one unit each, the logit of yes; that of no is zero, so that
  two-way cross-entropy is binary cross-entropy.

  Attributes:
    output: the task.
    hidden_dim: width of the hidden layer.
    dropout: rate on it.
    deterministic: True = evaluation.
    dtype: compute type; predictions are float32.
  """

  output: OutputSpec = REGRESSION
  hidden_dim: int = 256
  dropout: float = 0.0
  deterministic: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, fused: Float[Array, "b d"]) -> Float[Array, "b ..."]:
    """[b] for a regression, [b c] logits for classes, [b c 2] for questions."""
    hidden = nn.Dense(self.hidden_dim, dtype=self.dtype, name="hidden")(fused)
    hidden = Dropout(self.dropout, self.deterministic)(exact_gelu(hidden))
    num_outputs = len(self.output.classes) or 1
    values = nn.Dense(num_outputs, dtype=self.dtype, name="out")(hidden)
    values = values.astype(jnp.float32)
    if self.output.kind == "regression":
      return values[:, 0]
    if self.output.kind == "binary":
      return jnp.stack([jnp.zeros_like(values), values], axis=-1)
    return values


class MMoLRE(nn.Module):
  """Sentiment and emotion together, by shared and task-specific low-rank experts.

  The ablations are `sharing`, `full_rank`, `shared_ranks` of any number and size, and
  `num_blocks=1`.

  Attributes:
    outputs: the tasks predicted.
    modalities: those used, others of the batch are ignored; () = all of the batch.
    hidden_dim: width d of all streams, a multiple of `num_heads`.
    num_blocks: UniTSE blocks per modality.
    shared_ranks: ranks of the experts that the tasks share in each block.
    task_rank: rank of each task's own expert.
    full_rank: every rank is `hidden_dim` instead.
    sharing: `mixed`; `hard`, one stream and one router for all tasks and no own
      experts; `specific`, own experts only.
    kernel_size: steps that an expert's first kernel sees.
    second_init: of an expert's second kernel, `zeros` (a block starts as the identity)
      or `lecun`.
    num_heads, ffn_dim: of the fusion's cross-attention.
    head_hidden_dim: hidden width of the output layers.
    dropout: rate on what experts and attention add and on hidden layers.
    attention_dropout: rate on attention probabilities.
    task_weights: `fixed`; or `uncertainty`, a log variance s per task (Kendall et al.
      2018) is learned and returned as `losses["log_variance/<task>"]`, for the loss
      exp(-s) L + s.
    dtype: compute type, `float32` or `bfloat16`; parameters, routers, norm statistics,
      softmax and predictions are float32.

  Raises:
    UserError: a value out of range.

  Source: arXiv 2505.14143 (abstract) and public summaries; `mmolre.system` says what is
  theirs.
  """

  outputs: tuple[OutputSpec, ...] = (REGRESSION,)
  modalities: tuple[str, ...] = ("text", "audio")
  hidden_dim: int = 768
  num_blocks: int = 2
  shared_ranks: tuple[int, ...] = (16, 32, 64, 128)
  task_rank: int = 64
  full_rank: bool = False
  sharing: str = "mixed"
  kernel_size: int = 3
  second_init: str = "zeros"
  num_heads: int = 8
  ffn_dim: int = 1024
  head_hidden_dim: int = 256
  dropout: float = 0.1
  attention_dropout: float = 0.1
  task_weights: str = "fixed"
  dtype: str = "float32"

  def __post_init__(self):
    check(
      self,
      choices={
        "sharing": ("mixed", "hard", "specific"),
        "second_init": SECOND_INITS,
        "task_weights": ("fixed", "uncertainty"),
        "dtype": ("float32", "bfloat16"),
      },
      positive=("hidden_dim", "num_blocks", "task_rank", "kernel_size", "num_heads")
      + ("ffn_dim", "head_hidden_dim"),
      rates=("dropout", "attention_dropout"),
    )
    if min(self.shared_ranks, default=0) < 1 and self.sharing != "specific":
      raise UserError(
        f"model.shared_ranks={self.shared_ranks}: give at least one shared expert, of"
        " rank 1 or more, or choose model.sharing='specific'"
      )
    if self.hidden_dim % self.num_heads:
      raise UserError(
        f"model.num_heads={self.num_heads} must divide"
        f" model.hidden_dim={self.hidden_dim}"
      )
    super().__post_init__()

  @nn.compact
  def __call__(self, batch: Batch, *, train: bool = False) -> ModelOutput:
    """Predicts every task.

    Args:
      batch: utterances, absent content hidden (`hide_unavailable`).
      train: whether dropout is used.

    Returns:
      `features`: `fused_<task>` [b d]. `routing`: `router_<modality>_<block>_<task>`
      over the shared experts and then the task's own (one gate `..._shared` with hard
      sharing), `beta_<task>` over the modalities.

    Raises:
      UserError: the batch lacks one of `modalities`.
    """
    names = modality_order(self.modalities or batch.modalities)
    lacking = [name for name in names if name not in batch.modalities]
    if lacking:
      raise UserError(f"model.modalities={names}: {lacking[0]} is not in {batch.order}")
    dtype = jnp.dtype(self.dtype)
    tasks = tuple(output.name for output in self.outputs)
    streams, masks, routing = {}, {}, {}
    for name in names:
      modality = batch.modalities[name]
      masks[name] = modality.mask
      encoder = self._encoder(name, tasks, train)
      features, blocks = encoder(modality.features, modality.mask)
      streams[name] = features * (len(tasks) // len(features))
      for number, gates in enumerate(blocks):
        for stream, gate in gates.items():
          routing[f"router_{name}_{number}_{stream}"] = gate
    fusion = TaskFusion(
      *(tasks, self.num_heads, self.ffn_dim, self.dropout, self.attention_dropout),
      *(not train, dtype),
      name="fusion",
    )
    fused, betas = fusion(streams, masks)
    routing |= {f"beta_{task}": beta for task, beta in betas.items()}
    predictions = {}
    for output in self.outputs:
      head = TaskHead(
        *(output, self.head_hidden_dim, self.dropout, not train, dtype),
        name=f"head_{output.name}",
      )
      predictions[output.name] = head(fused[output.name])
    return ModelOutput(
      predictions=predictions,
      features={f"fused_{task}": values for task, values in fused.items()},
      routing=routing,
      losses=self._log_variances(),
    )

  @nn.nowrap
  def _encoder(self, name: str, tasks: tuple[str, ...], train: bool) -> UniTSE:
    shared, own = self.shared_ranks, (self.task_rank,)
    if self.full_rank:
      shared, own = (self.hidden_dim,) * len(shared), (self.hidden_dim,)
    hard = self.sharing == "hard"
    return UniTSE(
      streams=(HARD,) if hard else tasks,
      hidden_dim=self.hidden_dim,
      num_blocks=self.num_blocks,
      shared_ranks=() if self.sharing == "specific" else shared,
      own_ranks=() if hard else own,
      kernel_size=self.kernel_size,
      second_init=self.second_init,
      dropout=self.dropout,
      deterministic=not train,
      dtype=jnp.dtype(self.dtype),
      name=f"unitse_{name}",
    )

  @nn.nowrap
  def _log_variances(self) -> dict[str, jax.Array]:
    if self.task_weights == "fixed":
      return {}
    return {
      f"log_variance/{output.name}": self.param(
        f"log_variance_{output.name}", nn.initializers.zeros, ()
      )
      for output in self.outputs
    }
