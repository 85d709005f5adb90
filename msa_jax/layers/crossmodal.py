"""MulT's encoder: a sequence attends to another, or to itself, layer after layer."""

import math
from typing import Any, cast

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from msa_jax.layers.attention import LAYER_NORM_EPSILON, MultiHeadAttention
from msa_jax.layers.dropout import Dropout
from msa_jax.layers.masking import extents
from msa_jax.layers.positions import half_sinusoids


def not_future(
  queries: Bool[Array, "b t"], keys: Bool[Array, "b s"]
) -> Bool[Array, "b t s"]:
  """Which keys are not in a query's future: j - i <= |l_q - l_k|.

  l_q and l_k are the steps up to the last valid one, so that a sample sees the same
  keys alone and in a padded batch.

  >>> not_future(jnp.ones((1, 2), bool), jnp.ones((1, 2), bool)).tolist()
  [[[True, False], [True, True]]]
  """
  offset = jnp.abs(extents(queries) - extents(keys))[:, None, None]
  ahead = jnp.arange(keys.shape[1])[None] - jnp.arange(queries.shape[1])[:, None]
  return ahead[None] <= offset


class CrossmodalLayer(nn.Module):
  """x + attention(norm(x), norm(source)), then x + feed-forward(norm(x)).

  One norm serves queries and source; ReLU, 4 d hidden units.

  >>> text, audio = jnp.ones((2, 5, 8)), jnp.ones((2, 7, 8))
  >>> masks = jnp.ones((2, 5), bool), jnp.ones((2, 7), bool)
  >>> layer = CrossmodalLayer(n_heads=2)
  >>> (values, _), _ = layer.init_with_output(
  ...   jax.random.key(0), text, masks[0], audio, masks[1], None
  ... )
  >>> values.shape
  (2, 5, 8)

  Attributes:
    n_heads: divides the width.
    attention_dropout, relu_dropout, residual_dropout: rates on the attention
      probabilities, the hidden units, and what is added to x.
    deterministic: True = evaluation.
    dtype: compute type.
  """

  n_heads: int
  attention_dropout: float = 0.0
  relu_dropout: float = 0.0
  residual_dropout: float = 0.0
  deterministic: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, values, mask, source, source_mask, allowed):
    """The next x and None, as `nn.scan` wants it; `source` None = x itself."""
    width, initial = values.shape[-1], nn.initializers.xavier_uniform()

    def norm(name):
      return nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, dtype=self.dtype, name=name)

    def dense(units, name):
      return nn.Dense(units, dtype=self.dtype, kernel_init=initial, name=name)

    def drop(rate, name):
      return Dropout(rate, self.deterministic, name=name)

    first = norm("norm_attention")
    queries = first(values)
    mixed = MultiHeadAttention(
      width,
      self.n_heads,
      self.attention_dropout,
      self.deterministic,
      dtype=self.dtype,
      kernel_init=initial,
      name="attention",
    )(
      queries,
      queries if source is None else first(source),
      source_mask,
      pair_mask=allowed,
    )
    values = values + drop(self.residual_dropout, "drop_attention")(mixed)
    hidden = nn.relu(dense(4 * width, "ffn_1")(norm("norm_ffn")(values)))
    hidden = dense(width, "ffn_2")(drop(self.relu_dropout, "drop_relu")(hidden))
    values = values + drop(self.residual_dropout, "drop_ffn")(hidden)
    return jnp.where(mask[..., None], values, 0.0), None


class CrossmodalEncoder(nn.Module):
  """Layers that attend to one and the same source, and a norm; one scan over them.

  >>> text, audio = jnp.ones((2, 5, 8)), jnp.ones((2, 7, 8))
  >>> masks = jnp.ones((2, 5), bool), jnp.ones((2, 7), bool)
  >>> encoder = CrossmodalEncoder(n_layers=3, n_heads=2)
  >>> encoder.init_with_output(
  ...   jax.random.key(0), text, masks[0], audio, masks[1]
  ... )[0].shape
  (2, 5, 8)

  Both sequences are multiplied by the root of their width, may get positions, and are
  dropped out; then come pre-norm layers, whose parameters lie stacked, layers first.

  Attributes:
    n_layers, n_heads: sizes.
    positions: adds `half_sinusoids`.
    future_mask: whether `not_future` bounds what a step may attend to.
    zero_is_padding: a step has a position if its first channel is not zero, as in the
      published code; False = if it is valid.
    embed_dropout: rate on scaled inputs with their positions.
    attention_dropout, relu_dropout, residual_dropout: see `CrossmodalLayer`.
    deterministic: True = evaluation.
    dtype: compute type; probabilities are float32.

  Source: MulT (Tsai et al., ACL 2019, arXiv:1906.00295), Eq. 4-5 and its code.
  """

  n_layers: int
  n_heads: int
  positions: bool = False
  future_mask: bool = True
  zero_is_padding: bool = False
  embed_dropout: float = 0.0
  attention_dropout: float = 0.0
  relu_dropout: float = 0.0
  residual_dropout: float = 0.0
  deterministic: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    values: Float[Array, "b t d"],
    mask: Bool[Array, "b t"],
    source: Float[Array, "b s d"] | None = None,
    source_mask: Bool[Array, "b s"] | None = None,
  ) -> Float[Array, "b t d"]:
    """Masked steps are never attended to and come out as zeros.

    Args:
      values, mask: the sequence that attends.
      source, source_mask: what it attends to; None = itself, as each layer leaves it.
    """
    values = self._embed(values, mask, "drop_embed")
    if source is not None:
      assert source_mask is not None, "a source needs its mask"
      source = self._embed(source, source_mask, "drop_source")
    keys = mask if source_mask is None else source_mask
    layers = nn.scan(
      CrossmodalLayer,
      variable_axes={"params": 0},
      split_rngs={"params": True, "dropout": True},
      in_axes=cast(Any, nn.broadcast),
      length=self.n_layers,
    )(
      self.n_heads,
      self.attention_dropout,
      self.relu_dropout,
      self.residual_dropout,
      self.deterministic,
      self.dtype,
      name="layers",
    )
    allowed = not_future(mask, keys) if self.future_mask else None
    values, _ = layers(values, mask, source, keys, allowed)
    norm = nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, dtype=self.dtype, name="norm")
    return jnp.where(mask[..., None], norm(values), 0.0)

  @nn.nowrap
  def _embed(self, values: Array, mask: Array, name: str) -> Array:
    width = values.shape[-1]
    scaled = values.astype(self.dtype) * jnp.asarray(math.sqrt(width), self.dtype)
    if self.positions:
      table = jnp.asarray(half_sinusoids(values.shape[1], width), self.dtype)
      present = values[..., 0] != 0 if self.zero_is_padding else mask
      scaled = scaled + jnp.where(present[..., None], table[None], 0.0)
    return Dropout(self.embed_dropout, self.deterministic, name=name)(scaled)
