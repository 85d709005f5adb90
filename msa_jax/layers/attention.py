"""Multi-head attention, plain and top-k sparse, and the pre-norm transformer block."""

import fractions
import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from msa_jax.layers.dropout import Dropout
from msa_jax.layers.kernels.gelu import exact_gelu
from msa_jax.layers.kernels.selection import keep_largest
from msa_jax.layers.masking import masked_softmax

LAYER_NORM_EPSILON = 1e-5


def attention_weights(
  logits: Float[Array, "b h t s"],
  key_mask: Bool[Array, "b s"],
  top_k: int | None = None,
  renormalise: bool = False,
  top_fraction: float | None = None,
  pair_mask: Bool[Array, "b t s"] | None = None,
) -> Float[Array, "b h t s"]:
  """Attention probabilities in float32, of all valid keys or the top k of them.

  Args:
    logits: scaled query-key products.
    key_mask: True = valid key; a row without one gives zeros.
    top_k: keys to keep per query and head (None = all); exactly
      min(top_k, valid keys) of them, ties going to the lower index.
    renormalise: False keeps the probabilities of the full softmax, so a row sums to
      less than one and unselected logits still receive gradient through the
      normaliser; True is the softmax over the selected logits.
    top_fraction: the share of a row's valid keys to keep, in (0, 1], in place of
      `top_k`.
    pair_mask: True = the query may attend to the key, if that is valid; None = to any.

  Source: H-GEM (2026), Eq. 3-4.
  """
  mask = key_mask[:, None, None, :]
  if pair_mask is not None:
    mask = mask & pair_mask[:, None]
  number = logits.shape[-1] if top_k is None else top_k
  if top_fraction is not None and top_fraction < 1.0:
    counts = [share_of(top_fraction, valid) for valid in range(logits.shape[-1] + 1)]
    number = jnp.asarray(np.array(counts))[jnp.sum(key_mask, axis=-1)]  # [b]
    number = jnp.broadcast_to(number[:, None, None], logits.shape[:-1])
  elif number >= logits.shape[-1]:
    return masked_softmax(logits, mask)
  selected = keep_largest(logits, number, jnp.broadcast_to(mask, logits.shape))
  if renormalise:
    return masked_softmax(logits, selected)
  return jnp.where(selected, masked_softmax(logits, mask), 0.0)


def share_of(fraction: float, number: int) -> int:
  """The least integer that is not below `fraction * number`.

  The fraction counts as the decimal number that it was written as.

  >>> share_of(0.14, 150), math.ceil(0.14 * 150)
  (21, 22)
  """
  return math.ceil(fractions.Fraction(str(float(fraction))) * number)


class _Affine(nn.Module):
  """Kernel and bias of a dense layer, without the layer."""

  shape: tuple[int, int]
  kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

  @nn.compact
  def __call__(self) -> tuple[Float[Array, "d c"], Float[Array, " c"]]:
    kernel = self.param("kernel", self.kernel_init, self.shape)
    return kernel, self.param("bias", nn.initializers.zeros, self.shape[1:])


class MultiHeadAttention(nn.Module):
  """Scaled dot-product attention with separate query, key, value, output products.

  >>> query, source = jnp.ones((2, 5, 8)), jnp.ones((2, 7, 3))
  >>> mask = jnp.ones((2, 7), bool)
  >>> layer = MultiHeadAttention(width=8, n_heads=2, top_k=4)
  >>> layer.init_with_output(jax.random.key(0), query, source, mask)[0].shape
  (2, 5, 8)

  The weights of a call are sown as `weights_all` and `weights` (before and after the
  selection of keys and before dropout) into the collection `intermediates`, which
  costs nothing unless that collection is mutable.

  Attributes:
    width: output width, and inner width over all heads.
    n_heads: heads; divides `width`.
    dropout: rate on the attention probabilities.
    deterministic: True = evaluation.
    top_k, renormalise, top_fraction: see `attention_weights`.
    scale: factor of the query-key products (None = 1 / sqrt(head width)).
    dtype: compute type; probabilities are float32.
    kernel_init: how each of the four matrices starts.

  Source: Vaswani et al. 2017, Eq. 1.
  """

  width: int
  n_heads: int
  dropout: float = 0.0
  deterministic: bool = True
  top_k: int | None = None
  renormalise: bool = False
  scale: float | None = None
  dtype: Any = jnp.float32
  kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
  top_fraction: float | None = None

  @nn.compact
  def __call__(
    self,
    query: Float[Array, "b t d"],
    source: Float[Array, "b s k"],
    key_mask: Bool[Array, "b s"],
    query_mask: Bool[Array, "b t"] | None = None,
    pair_mask: Bool[Array, "b t s"] | None = None,
  ) -> Float[Array, "b t c"]:
    """Attends from `query` to `source`; zeros where `query_mask` is False.

    A row without any valid key that `pair_mask` lets it see gets the output layer's
    bias.
    """
    head_width = self.width // self.n_heads
    scale = 1.0 / math.sqrt(head_width) if self.scale is None else self.scale

    names = ("query", "key", "value")
    if source is query:
      # One product in place of three: fewer, larger operations.
      projected = self._project(names, query)
    else:
      projected = self._project(names[:1], query) + self._project(names[1:], source)
    # [b h t k]: matrix products want their batch axes first.
    queries, keys, values = (
      each.reshape(*each.shape[:2], self.n_heads, head_width).transpose(0, 2, 1, 3)
      for each in projected
    )
    logits = jnp.einsum(
      "bhtk,bhsk->bhts",
      queries * jnp.asarray(scale, self.dtype),
      keys,
      preferred_element_type=jnp.float32,
    )
    weights = attention_weights(
      logits, key_mask, self.top_k, self.renormalise, self.top_fraction, pair_mask
    )
    if self.is_mutable_collection("intermediates"):
      everything = attention_weights(logits, key_mask, pair_mask=pair_mask)
      self.sow("intermediates", "weights_all", everything)
      self.sow("intermediates", "weights", weights)
    weights = Dropout(self.dropout, self.deterministic)(weights)
    mixed = jnp.einsum("bhts,bhsk->bhtk", weights.astype(self.dtype), values)
    mixed = mixed.transpose(0, 2, 1, 3).reshape(*query.shape[:2], self.width)  # [b t c]
    output = nn.Dense(
      self.width, dtype=self.dtype, kernel_init=self.kernel_init, name="out"
    )(mixed)
    if query_mask is None:
      return output
    return jnp.where(query_mask[..., None], output, 0.0)

  @nn.nowrap
  def _project(self, names: tuple[str, ...], values: Array) -> list[Array]:
    """Dense layers of these names on the same input, as one product."""
    shape = (values.shape[-1], self.width)
    layers = [_Affine(shape, self.kernel_init, name=name)() for name in names]
    kernel = jnp.concatenate([kernel for kernel, _ in layers], axis=1)
    bias = jnp.concatenate([bias for _, bias in layers])
    result = values.astype(self.dtype) @ kernel.astype(self.dtype)
    result = result + bias.astype(self.dtype)[None, None]
    return jnp.split(result, len(names), axis=-1)


class TransformerBlock(nn.Module):
  """Pre-norm block: x + attention(norm(x)), then x + feed-forward(norm(x)).

  >>> values, mask = jnp.ones((2, 5, 8)), jnp.ones((2, 5), bool)
  >>> layer = TransformerBlock(ffn=16, n_heads=2)
  >>> layer.init_with_output(jax.random.key(0), values, mask)[0].shape
  (2, 5, 8)

  With a `source`, keys and values come from it, normalised by the same layer norm as
  the queries (MulT's cross-modal block).

  Attributes:
    ffn: hidden width of the feed-forward part (exact GELU).
    n_heads, top_k, renormalise, scale, dtype, top_fraction: see
      `MultiHeadAttention`.
    attention_dropout, ffn_dropout: rates on the attention probabilities and on the
      feed-forward hidden layer.
    deterministic: True = evaluation.
  """

  ffn: int
  n_heads: int
  attention_dropout: float = 0.0
  ffn_dropout: float = 0.0
  deterministic: bool = True
  top_k: int | None = None
  renormalise: bool = False
  scale: float | None = None
  dtype: Any = jnp.float32
  top_fraction: float | None = None

  @nn.compact
  def __call__(
    self,
    values: Float[Array, "b t d"],
    mask: Bool[Array, "b t"],
    source: Float[Array, "b s d"] | None = None,
    source_mask: Bool[Array, "b s"] | None = None,
  ) -> Float[Array, "b t d"]:
    """Masked steps are never attended to and come out as zeros."""
    width = values.shape[-1]
    norm = nn.LayerNorm(
      epsilon=LAYER_NORM_EPSILON, dtype=self.dtype, name="norm_attention"
    )
    normalised = norm(values)
    attention = MultiHeadAttention(
      width,
      self.n_heads,
      self.attention_dropout,
      self.deterministic,
      self.top_k,
      self.renormalise,
      self.scale,
      self.dtype,
      top_fraction=self.top_fraction,
      name="attention",
    )
    if source is None:
      values = values + attention(normalised, normalised, mask)
    else:
      key_mask = mask if source_mask is None else source_mask
      values = values + attention(normalised, norm(source), key_mask)
    hidden = nn.LayerNorm(
      epsilon=LAYER_NORM_EPSILON, dtype=self.dtype, name="norm_ffn"
    )(values)
    hidden = nn.Dense(self.ffn, dtype=self.dtype, name="ffn_1")(hidden)
    hidden = Dropout(self.ffn_dropout, self.deterministic)(exact_gelu(hidden))
    values = values + nn.Dense(width, dtype=self.dtype, name="ffn_2")(hidden)
    return jnp.where(mask[..., None], values, 0.0)
