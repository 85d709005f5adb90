"""Task-adaptive fusion of MMoLRE: cross-attention shared by the tasks, then gates of
their own. All of it is our resolution; the sources only name the part."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Bool, Float

from msa_jax.layers.activation import exact_gelu
from msa_jax.layers.attention import LAYER_NORM_EPSILON, MultiHeadAttention
from msa_jax.layers.dropout import Dropout
from msa_jax.layers.masking import masked_mean, masked_softmax
from msa_jax.layers.routing import route
from msa_jax.typing import Routing

Values = Mapping[str, Any]  # modality -> [b t d]
Masks = Mapping[str, Any]  # modality -> [b t]


class CrossAttention(nn.Module):
  """One modality reads the others: x + attention(norm x, norm others), + FFN.

  A row whose other modalities are all missing keeps x: the attention's output counts
  only where there is something to attend to.

  Attributes:
    options: `config.model`, frozen.
    deterministic: True = evaluation.
    dtype: compute type.
  """

  options: ml_collections.FrozenConfigDict
  deterministic: bool
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
    options = self.options
    attended = MultiHeadAttention(
      *(options.d, options.n_heads, options.attn_dropout, self.deterministic),
      dtype=self.dtype,
      name="attention",
    )(self._norm("query", values), self._norm("source", source), source_mask)
    some = jnp.any(source_mask, axis=1)[:, None, None]
    attended = Dropout(options.dropout, self.deterministic)(attended)
    values = values + jnp.where(some, attended, 0.0)
    hidden = nn.Dense(options.ffn, dtype=self.dtype, name="ffn_1")(
      self._norm("ffn", values)
    )
    hidden = Dropout(options.dropout, self.deterministic)(exact_gelu(hidden))
    values = values + nn.Dense(options.d, dtype=self.dtype, name="ffn_2")(hidden)
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


class TaskQuery(nn.Module):
  """One learnt query reads all steps of all modalities; beta is each one's share."""

  @nn.compact
  def __call__(
    self,
    values: Float[Array, "b t d"],
    mask: Bool[Array, "b t"],
    steps: tuple[int, ...],
  ) -> tuple[Float[Array, "b d"], Routing]:
    """Reads modalities laid end to end.

    Args:
      values: steps of all modalities; mask: True = real step.
      steps: number of steps of each modality, adding up to t.
    """
    width = values.shape[-1]
    query = self.param("query", nn.initializers.normal(0.02), (width,))
    values = values.astype(jnp.float32)
    logits = jnp.einsum("btd,d->bt", values, query) / jnp.sqrt(float(width))
    weights = masked_softmax(logits, mask)
    fused = jnp.einsum("bt,btd->bd", weights, values)
    parts = jnp.split(weights, _borders(steps), axis=1)
    shares = jnp.stack([part.sum(axis=1) for part in parts], axis=1)  # [b m]
    tiny = jnp.finfo(jnp.float32).tiny
    return fused, Routing(shares, shares, jnp.log(jnp.maximum(shares, tiny)))


def _borders(steps: tuple[int, ...]) -> tuple[int, ...]:
  return tuple(sum(steps[: i + 1]) for i in range(len(steps) - 1))


class TaskFusion(nn.Module):
  """From every task's streams of all modalities to one vector per task.

  Attributes:
    options: `config.model`, frozen; `fusion` is `cross_gate` (cross-attention, gates),
      `gate_only` (no attention), `concat` (cross-attention, concatenated means and a
      linear layer per task) or `query` (cross-attention, one query per task).
    tasks: names of the tasks.
    deterministic: True = evaluation.
    dtype: compute type; gates are float32.
  """

  options: ml_collections.FrozenConfigDict
  tasks: tuple[str, ...]
  deterministic: bool
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
      Task -> [b d], and task -> beta [b m] (nothing with `concat`).
    """
    order = tuple(streams)
    size = len(masks[order[0]])
    # Tasks share the attention: they are stacked on the batch axis.
    stacked = {name: jnp.concatenate(streams[name]) for name in order}
    tiled = {name: jnp.tile(masks[name], (len(self.tasks), 1)) for name in order}
    if self.options.fusion != "gate_only" and len(order) > 1:
      stacked = self._attend(stacked, tiled)
    fused, gates = {}, {}
    for number, task in enumerate(self.tasks):
      rows = slice(number * size, (number + 1) * size)
      own = {name: stacked[name][rows] for name in order}
      fused[task], beta = self._fuse(task, own, masks)
      if beta is not None:
        gates[task] = beta
    return fused, gates

  @nn.nowrap
  def _attend(self, values: Values, masks: Masks) -> dict[str, Array]:
    result = {}
    for name in values:
      others = [other for other in values if other != name]
      layer = CrossAttention(
        self.options, self.deterministic, self.dtype, name=f"cross_{name}"
      )
      result[name] = layer(
        values[name],
        masks[name],
        jnp.concatenate([values[other] for other in others], axis=1),
        jnp.concatenate([masks[other] for other in others], axis=1),
      )
    return result

  @nn.nowrap
  def _fuse(self, task: str, values: Values, masks: Masks):
    if self.options.fusion == "query":
      return TaskQuery(name=f"query_{task}")(
        jnp.concatenate(list(values.values()), axis=1),
        jnp.concatenate([masks[name] for name in values], axis=1),
        tuple(value.shape[1] for value in values.values()),
      )
    pooled = [
      masked_mean(value.astype(jnp.float32), masks[name][..., None], 1)
      for name, value in values.items()
    ]
    if self.options.fusion == "concat":
      layer = nn.Dense(self.options.d, dtype=self.dtype, name=f"concat_{task}")
      return layer(jnp.concatenate(pooled, axis=-1)), None
    available = jnp.stack([jnp.any(masks[name], axis=1) for name in values], axis=1)
    return ModalityGate(name=f"gate_{task}")(jnp.stack(pooled, axis=1), available)
