"""MoMKE's network: projections, expert bank, routers, fusion and heads."""

from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Bool, Float

from msa_jax.layers.dropout import Dropout
from msa_jax.layers.masking import masked_mean
from msa_jax.models.momke.experts import (
  ExpertBank,
  SoftRouters,
  Stack,
  expert_weights,
  own_expert,
  torch_uniform,
)
from msa_jax.typing import Routing

MIXING = ("router", "uniform", "own")


class Mixed(NamedTuple):
  """What stage 2 computes.

  Attributes:
    values: [b t c] outputs of the head ([b c] at level `frame`).
    hidden: [b t m*d] input of the head ([b m*d] at level `frame`).
    streams: [m b t d] each modality's mixture, zero where it is missing.
    routing: of each modality in order; all zero where it is missing, so that such
      rows count in no statistic (logits stay).
  """

  values: Array
  hidden: Array
  streams: Array
  routing: tuple[Routing, ...]


def _linear(fan_in: int, width: int) -> nn.Dense:
  init = torch_uniform(fan_in)
  return nn.Dense(width, kernel_init=init, bias_init=init)


class Network(nn.Module):
  """Experts of one modality each, mixed by soft routers.

  Attributes:
    options: `config.model`, frozen.
    modalities: names in canonical order, [m]; modality and expert i belong together.
    widths: feature width of each.
    num_outputs: units of every head.
    deterministic: True = evaluation.

  Source: MoMKE (ACM MM 2024), the released code's forward pass.
  """

  options: ml_collections.FrozenConfigDict
  modalities: tuple[str, ...]
  widths: tuple[int, ...]
  num_outputs: int
  deterministic: bool = True

  def setup(self):
    options, count = self.options, len(self.modalities)
    self.in_proj = {
      name: _linear(width, options.D)
      for name, width in zip(self.modalities, self.widths, strict=True)
    }
    self.input_drop = {
      name: Dropout(options.drop, self.deterministic) for name in self.modalities
    }
    self.experts = ExpertBank(
      n_experts=count,
      width=options.D,
      depth=options.depth,
      n_heads=options.n_heads,
      mlp_ratio=options.mlp_ratio,
      style=options.expert_style,
      dropout=options.drop,
      attention_dropout=options.attn_drop,
      deterministic=self.deterministic,
    )
    self.routers = SoftRouters(
      n_modalities=count,
      num_outputs=2 if options.router == "two_way" else count,
      dropout=options.drop,
      logit_dropout=options.router_logit_dropout,
      deterministic=self.deterministic,
    )
    self.proj1 = _linear(count * options.D, count * options.D)
    self.fusion_drop = Dropout(options.drop, self.deterministic)
    self.head = _linear(count * options.D, self.num_outputs)
    self.heads = Stack((count,), (options.D, self.num_outputs))

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
      Outputs [m b t c] ([m b c] at level `frame`) and the experts' outputs.
    """
    values = self.experts(projected, mask)
    pooled = masked_mean(values, mask[..., None], 2) if self._frames else values
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
    if self._frames:
      seen = jnp.any(mask, axis=0)  # [b t]
      hidden = masked_mean(hidden, seen[..., None], 1)
    return Mixed(self.head(hidden), hidden, mixed, self._routing(weights, logits, mask))

  def route(
    self, projected: Float[Array, "m b t d"]
  ) -> tuple[Float[Array, "m b t e"], Float[Array, "m b t c"]]:
    """Weights of the experts as used (see `MIXING`), and the routers' logits."""
    logits = self.routers(projected)
    weights = expert_weights(logits, self.options.router == "two_way")
    if self.options.mixing == "uniform":
      weights = jnp.full_like(weights, 1.0 / weights.shape[-1])
    elif self.options.mixing == "own":
      weights = own_expert(weights)
    return weights, logits

  @property
  def _frames(self) -> bool:
    return self.options.level == "frame"

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
    if self._frames:
      weights = masked_mean(weights, mask[..., None], 2)  # [m b e]
      logits = masked_mean(logits, mask[..., None], 2)
    else:
      weights = jnp.where(mask[..., None], weights, 0.0)
    return tuple(map(Routing, weights, weights, logits))
