"""Task-adaptive fusion of MMoLRE: cross-attention shared by the tasks, then gates of
their own. All of it is our resolution; the sources only name the part."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from msa_jax.layers.activation import exact_gelu
from msa_jax.layers.attention import LAYER_NORM_EPSILON, MultiHeadAttention
from msa_jax.layers.dropout import Dropout
from msa_jax.layers.masking import masked_mean
from msa_jax.layers.routing import route
from msa_jax.typing import Routing

Values = Mapping[str, Any]  # modality -> [b t d]
Masks = Mapping[str, Any]  # modality -> [b t]


class CrossAttention(nn.Module):
  """One modality reads the others: x + attention(norm x, norm others), + FFN.

  A row whose other modalities are all missing keeps x: the attention's output counts
  only where there is something to attend to.

  Attributes:
    num_heads: attention heads; divides d.
    ffn_dim: hidden width of the feed-forward part.
    dropout: rate on what attention adds and on the feed-forward's hidden layer.
    attention_dropout: rate on the attention probabilities.
    deterministic: True = evaluation.
    dtype: compute type.
  """

  num_heads: int = 8
  ffn_dim: int = 1024
  dropout: float = 0.0
  attention_dropout: float = 0.0
  deterministic: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    values: Float[Array, "b t d"],
    mask: Bool[Array, "b t"],
    source: Float[Array, "b s d"],
    source_mask: Bool[Array, "b s"],
  ) -> Float[Array, "b t d"]:
    """Masked steps come out as zeros."""
    width = values.shape[-1]
    attended = MultiHeadAttention(
      *(width, self.num_heads, self.attention_dropout, self.deterministic),
      dtype=self.dtype,
      name="attention",
    )(self._norm("query", values), self._norm("source", source), source_mask)
    some = jnp.any(source_mask, axis=1)[:, None, None]
    attended = Dropout(self.dropout, self.deterministic)(attended)
    values = values + jnp.where(some, attended, 0.0)
    hidden = nn.Dense(self.ffn_dim, dtype=self.dtype, name="ffn_1")(
      self._norm("ffn", values)
    )
    hidden = Dropout(self.dropout, self.deterministic)(exact_gelu(hidden))
    values = values + nn.Dense(width, dtype=self.dtype, name="ffn_2")(hidden)
    return jnp.where(mask[..., None], values, 0.0)

  @nn.nowrap
  def _norm(self, name: str, values: Array) -> Array:
    norm = nn.LayerNorm(LAYER_NORM_EPSILON, dtype=self.dtype, name=f"norm_{name}")
    return norm(values)


class ModalityGate(nn.Module):
  """beta = masked softmax over m of w_m . u_m + b_m; z = sum_m beta_m u_m.

  Starts at zero: the plain mean of the available modalities.
  """

  @nn.compact
  def __call__(
    self, pooled: Float[Array, "b m d"], available: Bool[Array, "b m"]
  ) -> tuple[Float[Array, "b d"], Routing]:
    """The fused vector (zeros where nothing is available), and beta as a routing."""
    zeros = nn.initializers.zeros
    kernel = self.param("kernel", zeros, pooled.shape[1:])
    bias = self.param("bias", zeros, pooled.shape[1:2])
    pooled = pooled.astype(jnp.float32)
    routing = route(
      jnp.einsum("bmd,md->bm", pooled, kernel) + bias[None], None, available
    )
    return jnp.einsum("bm,bmd->bd", routing.combine, pooled), routing


class TaskFusion(nn.Module):
  """From every task's streams of all modalities to one vector per task.

  Attributes:
    tasks: names of the tasks.
    num_heads, ffn_dim, dropout, attention_dropout, deterministic, dtype: see
      `CrossAttention`; gates are float32.
  """

  tasks: tuple[str, ...]
  num_heads: int = 8
  ffn_dim: int = 1024
  dropout: float = 0.0
  attention_dropout: float = 0.0
  deterministic: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, streams: Mapping[str, tuple[Any, ...]], masks: Masks
  ) -> tuple[dict[str, Array], dict[str, Routing]]:
    """Fuses.

    Args:
      streams: modality -> one [b t d] per task, in canonical order of modalities.
      masks: modality -> [b t].

    Returns:
      Task -> [b d], and task -> beta [b m], whose experts are the modalities.
    """
    order = tuple(streams)
    size = len(masks[order[0]])
    # Tasks share the attention: they are stacked on the batch axis.
    stacked = {name: jnp.concatenate(streams[name]) for name in order}
    tiled = {name: jnp.tile(masks[name], (len(self.tasks), 1)) for name in order}
    if len(order) > 1:
      stacked = self._attend(stacked, tiled)
    available = jnp.stack([jnp.any(masks[name], axis=1) for name in order], axis=1)
    fused, gates = {}, {}
    for number, task in enumerate(self.tasks):
      rows = slice(number * size, (number + 1) * size)
      pooled = [
        masked_mean(stacked[name][rows].astype(jnp.float32), masks[name][..., None], 1)
        for name in order
      ]
      gate = ModalityGate(name=f"gate_{task}")
      fused[task], beta = gate(jnp.stack(pooled, axis=1), available)
      gates[task] = beta.replace(experts=order)
    return fused, gates

  @nn.nowrap
  def _attend(self, values: Values, masks: Masks) -> dict[str, Array]:
    result = {}
    for name in values:
      others = [other for other in values if other != name]
      layer = CrossAttention(
        *(self.num_heads, self.ffn_dim, self.dropout, self.attention_dropout),
        *(self.deterministic, self.dtype),
        name=f"cross_{name}",
      )
      result[name] = layer(
        values[name],
        masks[name],
        jnp.concatenate([values[other] for other in others], axis=1),
        jnp.concatenate([masks[other] for other in others], axis=1),
      )
    return result
