"""H-GEM's ablations without experts: constant weights of the modalities (table 3)."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from msa_jax.typing import Routing

# Ablation `fixed`: weight of each modality before renormalisation.
_FIXED_WEIGHTS = {"text": 0.5}
_OTHER_FIXED_WEIGHT = 0.25


class ConstantFusionOutput(NamedTuple):
  """Attributes: fused [b c]; routing, the weights in place of Gate 0's."""

  fused: jax.Array
  routing: Routing


class ConstantFusion(nn.Module):
  """Weighted mean of the modalities that a sample has, then a dense layer.

  Attributes:
    modalities: names, in order.
    output_dim: width of the result.
    kind: `average`, or `fixed` weights of 1/2 for text and 1/4 for any other.
    dtype: compute type.
  """

  modalities: tuple[str, ...]
  output_dim: int
  kind: str = "average"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, pooled: Float[Array, "b m d"], seen: Bool[Array, "b m"]
  ) -> ConstantFusionOutput:
    weights = [1.0] * len(self.modalities)
    if self.kind == "fixed":
      weights = [_FIXED_WEIGHTS.get(n, _OTHER_FIXED_WEIGHT) for n in self.modalities]
    weights = jnp.where(seen, jnp.array(weights)[None], 0.0)
    weights = weights / jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), 1e-9)
    mean = jnp.einsum("bm,bmd->bd", weights, pooled.astype(jnp.float32))
    dense = nn.Dense(self.output_dim, dtype=self.dtype, name="fusion_dense")
    routing = Routing(weights, weights, jnp.zeros_like(weights), self.modalities)
    return ConstantFusionOutput(dense(mean.astype(self.dtype)), routing)
