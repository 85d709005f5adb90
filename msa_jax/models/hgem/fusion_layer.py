"""H-GEM's second layer: fusion experts, weighted by Gate 1."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from msa_jax.layers.attention import LAYER_NORM_EPSILON
from msa_jax.models.hgem.embedding import pool, share_scope, short_name
from msa_jax.models.hgem.fusion import DenseExpert, RobustExpert, SparseExpert
from msa_jax.models.hgem.gates import Gate
from msa_jax.models.hgem.options import (
  FUSION_EXPERTS,
  DenseExpertConfig,
  DropoutRates,
  RobustExpertConfig,
  SparseExpertConfig,
)
from msa_jax.typing import Routing


class FusionLayerOutput(NamedTuple):
  """What the second layer returns.

  Attributes:
    fused: [b c] z_fused, the experts' weighted outputs (float32).
    summaries: [b m c] the sparse expert's mean per modality; None without it.
    routing: of Gate 1.
    denoising: [] the robust expert's loss; zero without it.
  """

  fused: jax.Array
  summaries: jax.Array | None
  routing: Routing
  denoising: jax.Array


class FusionLayer(nn.Module):
  """Tokens of all modalities -> one vector per sample.

  Attributes:
    modalities: names, in order.
    width: of the tokens.
    output_dim: of the result.
    max_steps: nominal length, from which the sparse expert may count its keys.
    num_heads: attention heads.
    sparse, dense, robust: sizes of the experts.
    norm_summaries: whether the sparse expert's summaries are of normalised states.
    disabled: names of experts left out.
    gate_dim: hidden width of Gate 1's units.
    routes_tokens: Gate 1 reads the adapted tokens; False = what comes before them.
    top_k: experts that Gate 1 keeps per sample.
    rates: dropout rates.
    first_dropout: number of the first dropout module; its name seeds it.
    deterministic: True = evaluation.
    dtype: compute type.
  """

  modalities: tuple[str, ...]
  width: int
  output_dim: int
  max_steps: int
  num_heads: int = 2
  sparse: SparseExpertConfig = SparseExpertConfig()
  dense: DenseExpertConfig = DenseExpertConfig()
  robust: RobustExpertConfig = RobustExpertConfig()
  norm_summaries: bool = True
  disabled: tuple[str, ...] = ()
  gate_dim: int = 32
  routes_tokens: bool = True
  top_k: int = 2
  rates: DropoutRates = DropoutRates()
  first_dropout: int = 0
  deterministic: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    hidden: Sequence[Float[Array, "b t d"]],
    mask: Bool[Array, "b t m"],
    scale: Float[Array, "b m"] | None = None,
  ) -> FusionLayerOutput:
    """Fuses the modalities.

    Args:
      hidden: tokens of each modality.
      mask: True = real step.
      scale: factor of each modality, after the norms, where nothing erases it; also of
        Gate 1's views.
    """
    tokens = self._adapt(hidden, mask)
    views = hidden
    if self.routes_tokens:
      views = [tokens[:, :, slot] for slot in range(len(self.modalities))]
    routing = self._route(views, mask, scale)
    if scale is not None:
      tokens = tokens * scale[:, None, :, None]
    results, summaries, denoising = {}, None, jnp.zeros(())
    number = self.first_dropout
    if "sparse" not in self.disabled:
      results["sparse"], summaries = self._sparse()(tokens, mask)
    if "dense" not in self.disabled:
      results["dense"] = self._dense(number)(tokens, mask)
      number += 1
    if "robust" not in self.disabled:
      results["robust"], denoising = self._robust(number)(tokens, mask)
    fused = jnp.zeros((len(mask), self.output_dim))
    for index, name in enumerate(FUSION_EXPERTS):
      if name in results:
        norm = nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, name=f"l2_oln_{index}")
        weight = routing.combine[:, index, None]
        fused = fused + weight * norm(results[name].astype(jnp.float32))
    return FusionLayerOutput(fused, summaries, routing, denoising)

  @nn.nowrap
  def _route(self, views, mask, scale) -> Routing:
    """Gate 1."""
    gate = Gate(
      self.gate_dim,
      len(self.modalities),
      FUSION_EXPERTS,
      self.top_k,
      self.rates.gate,
      self.deterministic,
      name="gate1",
    )
    used = jnp.array([name not in self.disabled for name in FUSION_EXPERTS])
    available = jnp.broadcast_to(used[None], (len(mask), len(used)))
    return gate(pool(views, mask), jnp.any(mask, axis=1), available, scale)

  @nn.nowrap
  def _adapt(self, hidden, mask) -> Float[Array, "b t m d"]:
    """Layer norm per modality, one dense layer for all."""
    tokens = []
    for name, values in zip(self.modalities, hidden, strict=True):
      norm = nn.LayerNorm(
        epsilon=LAYER_NORM_EPSILON, dtype=self.dtype, name=f"l2ln_{short_name(name)}"
      )
      tokens.append(norm(values))
    adapter = nn.Dense(self.width, dtype=self.dtype, name="l2_adapter")
    return jnp.where(mask[..., None], adapter(jnp.stack(tokens, axis=2)), 0.0)

  @nn.nowrap
  def _sparse(self) -> SparseExpert:
    expert = SparseExpert(
      self.output_dim,
      self.max_steps,
      self.num_heads,
      self.sparse.ffn_dim,
      self.sparse.num_layers,
      self.sparse.keep_fraction,
      self.sparse.keep_share_of,
      self.norm_summaries,
      self.rates.attention,
      self.rates.ffn,
      self.deterministic,
      self.dtype,
    )
    return share_scope(self, expert)

  @nn.nowrap
  def _dense(self, number: int) -> DenseExpert:
    expert = DenseExpert(
      self.output_dim,
      self.dense.hidden_dim,
      self.rates.expert,
      self.deterministic,
      f"Dropout_{number}",
      self.dtype,
    )
    return share_scope(self, expert)

  @nn.nowrap
  def _robust(self, number: int) -> RobustExpert:
    expert = RobustExpert(
      self.output_dim,
      self.robust.hidden_dim,
      self.robust.denoiser_dim,
      self.robust.noise_std,
      self.robust.slot_dropout,
      self.rates.expert,
      self.deterministic,
      f"Dropout_{number}",
      self.dtype,
    )
    return share_scope(self, expert)
