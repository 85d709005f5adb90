"""UniTSE: task-specific features of one modality from shared and own low-rank experts.

Source: the parts (stacked blocks, shared and task-specific low-rank experts, one router
per task) are those of public summaries of MMoLRE (arXiv 2505.14143); norms, residual,
the router's form and all sizes are ours.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from msa_jax.layers.attention import LAYER_NORM_EPSILON
from msa_jax.layers.dropout import Dropout
from msa_jax.layers.lowrank import LowRankExperts, join, mix
from msa_jax.layers.masking import masked_mean
from msa_jax.layers.routing import Router
from msa_jax.typing import Routing

Streams = tuple[Any, ...]  # one [b t d] per stream


class UniTSEBlock(nn.Module):
  """x <- x + sum_n g_n expert_n(norm(x)) for every task, g by the task's router.

  The shared experts are the same for all tasks; norms, routers and the last expert are
  the task's own, so that nothing of a task's own receives gradient from another.

  Attributes:
    streams: names of the task streams.
    own_ranks: ranks of each task's own experts; () = none.
    kernel_size: steps that an expert's first kernel sees.
    second_init: initialiser of an expert's second kernel, see `LowRankExperts`.
    dropout: rate on what the experts add.
    deterministic: True = evaluation.
    dtype: compute type; routers and norm statistics are float32.
  """

  streams: tuple[str, ...]
  own_ranks: tuple[int, ...] = (64,)
  kernel_size: int = 3
  second_init: str = "zeros"
  dropout: float = 0.0
  deterministic: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    inputs: Streams,
    mask: Bool[Array, "b t"],
    shared: LowRankExperts | None,
  ) -> tuple[Streams, Mapping[str, Routing]]:
    """One block.

    Args:
      inputs: one [b t d] per stream.
      mask: True = real step.
      shared: the experts that all streams use; None = none.

    Returns:
      The new streams (zero at masked steps), and each stream's routing [b e] over the
      shared experts and then its own.
    """
    banks = [] if shared is None else [shared()]
    outputs, routings = [], {}
    for name, values in zip(self.streams, inputs, strict=True):
      norm = nn.LayerNorm(LAYER_NORM_EPSILON, dtype=self.dtype, name=f"norm_{name}")
      normalised = jnp.where(mask[..., None], norm(values), 0.0)
      candidates = list(banks)
      if self.own_ranks:
        own = LowRankExperts(
          *(self.own_ranks, values.shape[-1], self.kernel_size, self.second_init),
          name=f"expert_{name}",
        )
        candidates.append(own())
      bank = join(candidates)
      routing = self._route(name, normalised, mask, len(bank.ranks))
      mixed = mix(bank, normalised, mask, routing.combine)
      outputs.append(values + Dropout(self.dropout, self.deterministic)(mixed))
      routings[name] = routing
    return tuple(outputs), routings

  @nn.nowrap
  def _route(
    self,
    name: str,
    values: Float[Array, "b t d"],
    mask: Bool[Array, "b t"],
    num_experts: int,
  ) -> Routing:
    """Routes a sample by the mean of its steps; one without any to no expert."""
    router = Router(
      num_experts,
      use_bias=True,
      kernel_init=nn.initializers.zeros,
      name=f"router_{name}",
    )
    pooled = masked_mean(values.astype(jnp.float32), mask[..., None], 1)
    real = jnp.any(mask, axis=1)[:, None]
    routing = router(pooled, jnp.broadcast_to(real, (len(mask), num_experts)))
    num_own = len(self.own_ranks)
    shared = (f"shared {index}" for index in range(num_experts - num_own))
    return routing.replace(experts=(*shared, *["own"] * num_own))


class UniTSE(nn.Module):
  """Stacked blocks of one modality, after an input adapter where widths differ.

  Attributes:
    streams: names of the task streams.
    hidden_dim: width d of the streams.
    num_blocks: blocks.
    shared_ranks: ranks of each block's shared experts; () = none.
    own_ranks, kernel_size, second_init, dropout, deterministic, dtype: see
      `UniTSEBlock`.
  """

  streams: tuple[str, ...]
  hidden_dim: int = 768
  num_blocks: int = 2
  shared_ranks: tuple[int, ...] = (16, 32, 64, 128)
  own_ranks: tuple[int, ...] = (64,)
  kernel_size: int = 3
  second_init: str = "zeros"
  dropout: float = 0.0
  deterministic: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, values: Float[Array, "b t k"], mask: Bool[Array, "b t"]
  ) -> tuple[Streams, list[Mapping[str, Routing]]]:
    """Every stream [b t d] (zero at masked steps), and the routings of each block."""
    values = values.astype(self.dtype)
    if values.shape[-1] != self.hidden_dim:
      values = nn.Dense(self.hidden_dim, dtype=self.dtype, name="adapter")(values)
      norm = nn.LayerNorm(LAYER_NORM_EPSILON, dtype=self.dtype, name="adapter_norm")
      values = norm(values)
    values = jnp.where(mask[..., None], values, 0.0)
    outputs: Streams = (values,) * len(self.streams)
    routings = []
    for number in range(self.num_blocks):
      shared = None
      if self.shared_ranks:
        shared = LowRankExperts(
          *(self.shared_ranks, self.hidden_dim, self.kernel_size, self.second_init),
          name=f"shared_{number}",
        )
      block = UniTSEBlock(
        *(self.streams, self.own_ranks, self.kernel_size, self.second_init),
        *(self.dropout, self.deterministic, self.dtype),
        name=f"block_{number}",
      )
      outputs, routing = block(outputs, mask, shared)
      routings.append(routing)
    return outputs, routings
