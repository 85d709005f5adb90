"""MoMKE's network: projections, expert bank, routers, fusion and heads."""

from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from msa_jax.layers.dropout import Dropout
from msa_jax.layers.masking import masked_mean
from msa_jax.models.momke.experts import (
  ExpertBank,
  SoftRouters,
  Stack,
  TorchDense,
  own_expert,
  without_others,
)
from msa_jax.typing import Routing

MIXING = ("router", "uniform", "own")
# `own+<modality>`: a modality's own expert and that of one other.
WITH_ONE = "own+"


class Mixed(NamedTuple):
  """What stage 2 computes.

  Attributes:
    values: [b t c] outputs of the head ([b c] of frames).
    hidden: [b t m*d] input of the head ([b m*d] of frames).
    streams: [m b t d] each modality's mixture, zero where it is missing.
    routing: of each modality in order; all zero where it is missing, so that such
      rows count in no statistic (logits stay).
  """

  values: Array
  hidden: Array
  streams: Array
  routing: tuple[Routing, ...]


class Network(nn.Module):
  """Experts of one modality each, mixed by soft routers.

  Attributes:
    modalities: names in canonical order, [m]; modality and expert i belong together.
    num_outputs: units of every head.
    hidden_dim, num_layers, num_heads: sizes of the experts.
    dropout: rate after the projections, in the experts, routers and after fusion.
    attention_dropout: rate on the experts' attention probabilities.
    router_logit_dropout: rate on the routers' logits.
    mixing: one of `MIXING`, or `own+<modality>`.
    pools: whether steps are frames, whose mean the heads read.
    deterministic: True = evaluation.

  Source: MoMKE (ACM MM 2024), the released code's forward pass.
  """

  modalities: tuple[str, ...]
  num_outputs: int
  hidden_dim: int
  num_layers: int
  num_heads: int
  dropout: float
  attention_dropout: float
  router_logit_dropout: float
  mixing: str
  pools: bool
  deterministic: bool = True

  def setup(self):
    count, width = len(self.modalities), self.hidden_dim
    self.in_proj = {name: TorchDense(width) for name in self.modalities}
    self.input_drop = {
      name: Dropout(self.dropout, self.deterministic) for name in self.modalities
    }
    self.experts = ExpertBank(
      num_experts=count,
      width=width,
      num_layers=self.num_layers,
      num_heads=self.num_heads,
      dropout=self.dropout,
      attention_dropout=self.attention_dropout,
      deterministic=self.deterministic,
    )
    self.routers = SoftRouters(
      num_modalities=count,
      dropout=self.dropout,
      logit_dropout=self.router_logit_dropout,
      deterministic=self.deterministic,
    )
    self.proj1 = TorchDense(count * width)
    self.fusion_drop = Dropout(self.dropout, self.deterministic)
    self.head = TorchDense(self.num_outputs)
    self.heads = Stack((count,), (width, self.num_outputs))

  def __call__(
    self, features: Mapping[str, Float[Array, "b t _"]], mask: Bool[Array, "m b t"]
  ) -> Mixed:
    """Stage 2: `mix` of `project`."""
    return self.mix(self.project(features), mask)

  def project(
    self, features: Mapping[str, Float[Array, "b t _"]]
  ) -> Float[Array, "m b t d"]:
    """Input projections p_m = dropout(X_m W_m + b_m), stacked in order."""
    return jnp.stack(
      [
        self.input_drop[name](self.in_proj[name](features[name]))
        for name in self.modalities
      ]
    )

  def unimodal(
    self, projected: Float[Array, "m b t d"], mask: Bool[Array, "m b t"]
  ) -> tuple[Array, Float[Array, "m b t d"]]:
    """Stage 1: every modality through its own expert and head.

    Args:
      projected: from `project`.
      mask: True = there is something to see.

    Returns:
      Outputs [m b t c] ([m b c] of frames) and the experts' outputs.
    """
    values = self.experts(projected, mask)
    pooled = masked_mean(values, mask[..., None], 2) if self.pools else values
    kernel, bias = self.heads()
    bias = bias.reshape(len(bias), *[1] * (pooled.ndim - 2), -1)
    return jnp.einsum("m...d,mdc->m...c", pooled, kernel) + bias, values

  def mix(
    self, projected: Float[Array, "m b t d"], mask: Bool[Array, "m b t"]
  ) -> Mixed:
    """Stage 2: every modality through every expert, mixed by its router, fused.

    Args:
      projected: from `project`.
      mask: as for `unimodal`.
    """
    weights, logits = self.route(projected)
    streams = self._all_experts(projected, mask)  # [e m b t d]
    mixed = jnp.einsum("mbte,embtd->mbtd", weights.astype(streams.dtype), streams)
    mixed = jnp.where(mask[..., None], mixed, 0.0)
    fused = jnp.concatenate(list(mixed), axis=-1)  # [b t m*d]
    hidden = fused + self.fusion_drop(nn.relu(self.proj1(fused)))
    if self.pools:
      seen = jnp.any(mask, axis=0)  # [b t]
      hidden = masked_mean(hidden, seen[..., None], 1)
    return Mixed(self.head(hidden), hidden, mixed, self._routing(weights, logits, mask))

  def route(
    self, projected: Float[Array, "m b t d"]
  ) -> tuple[Float[Array, "m b t e"], Float[Array, "m b t e"]]:
    """Weights of the experts as used (see `MIXING`), float32 with each row's sum 1, and
    the routers' logits."""
    logits = compared = self.routers(projected)
    if self.mixing.startswith(WITH_ONE):
      other = self.modalities.index(self.mixing.removeprefix(WITH_ONE))
      compared = without_others(logits, other)
    weights = jax.nn.softmax(compared.astype(jnp.float32), axis=-1)
    if self.mixing == "uniform":
      weights = jnp.full_like(weights, 1.0 / weights.shape[-1])
    elif self.mixing == "own":
      weights = own_expert(weights)
    return weights, logits

  @nn.nowrap
  def _all_experts(self, projected, mask):
    count, b, t, d = projected.shape
    rows = jnp.broadcast_to(
      projected.reshape(1, count * b, t, d), (count, count * b, t, d)
    )
    keys = jnp.broadcast_to(mask.reshape(1, count * b, t), (count, count * b, t))
    return self.experts(rows, keys).reshape(count, count, b, t, d)

  @nn.nowrap
  def _routing(self, weights, logits, mask):
    if self.pools:
      weights = masked_mean(weights, mask[..., None], 2)  # [m b e]
      logits = masked_mean(logits, mask[..., None], 2)
    else:
      weights = jnp.where(mask[..., None], weights, 0.0)
    return tuple(
      Routing(*gate, experts=self.modalities)
      for gate in zip(weights, weights, logits, strict=True)
    )
