"""The experts of H-GEM's three layers."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from msa_jax.layers.activation import exact_gelu
from msa_jax.layers.attention import LAYER_NORM_EPSILON, TransformerBlock
from msa_jax.layers.convolution import MaskedConvolution
from msa_jax.layers.dropout import Dropout
from msa_jax.layers.masking import masked_softmax
from msa_jax.layers.recurrent import LSTM


class TextExpert(nn.Module):
  """Transformer blocks. Attributes: those of `TransformerBlock`, and `layers`."""

  layers: int
  ffn: int
  n_heads: int
  attention_dropout: float
  ffn_dropout: float
  deterministic: bool
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, values: Float[Array, "b t d"], mask: Bool[Array, "b t"]
  ) -> Float[Array, "b t d"]:
    for layer in range(self.layers):
      values = TransformerBlock(
        self.ffn,
        self.n_heads,
        self.attention_dropout,
        self.ffn_dropout,
        self.deterministic,
        dtype=self.dtype,
        name=f"block_{layer}",
      )(values, mask)
    return values


class VisionExpert(nn.Module):
  """Residual convolution, learned positions, then transformer blocks.

  Attributes:
    n_steps: rows of the table of positions; sequences may be shorter.
    kernel_size: of the convolution.
    positions: False = none.
    layers and the rest: those of `TextExpert`.
  """

  n_steps: int
  kernel_size: int
  positions: bool
  layers: int
  ffn: int
  n_heads: int
  attention_dropout: float
  ffn_dropout: float
  deterministic: bool
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, values: Float[Array, "b t d"], mask: Bool[Array, "b t"]
  ) -> Float[Array, "b t d"]:
    width = values.shape[-1]
    convolution = MaskedConvolution(
      width, self.kernel_size, dtype=self.dtype, name="convolution"
    )
    values = values + exact_gelu(convolution(values, mask))
    if self.positions:
      table = self.param(
        "positions", nn.initializers.normal(0.02), (self.n_steps, width)
      )
      values = values + table[None, : values.shape[1]].astype(self.dtype)
    return TextExpert(
      self.layers,
      self.ffn,
      self.n_heads,
      self.attention_dropout,
      self.ffn_dropout,
      self.deterministic,
      self.dtype,
      name="transformer",
    )(values, mask)


class AudioExpert(nn.Module):
  """Bidirectional LSTM, then convolutional temporal attention.

  y_t = c_t (1 + length * alpha_t), with c = gelu(conv(states)) and alpha the softmax
  over real steps of a score of c_t; uniform attention doubles every step.

  Attributes:
    hidden: LSTM width per direction.
    kernel_size: of the convolution.
    dropout: rate on the LSTM's states.
  """

  hidden: int
  kernel_size: int
  dropout: float
  deterministic: bool
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, values: Float[Array, "b t d"], mask: Bool[Array, "b t"]
  ) -> Float[Array, "b t c"]:
    states, _ = LSTM(self.hidden, bidirectional=True, dtype=self.dtype, name="lstm")(
      values, mask
    )
    states = Dropout(self.dropout, self.deterministic)(states)
    convolution = MaskedConvolution(
      2 * self.hidden, self.kernel_size, dtype=self.dtype, name="convolution"
    )
    content = exact_gelu(convolution(states, mask))
    scores = nn.Dense(1, dtype=self.dtype, name="attention")(content)  # [b t 1]
    weights = masked_softmax(scores, mask[..., None], axis=1)
    length = jnp.sum(mask, axis=1).astype(jnp.float32)
    gain = 1.0 + length[:, None, None] * weights
    return jnp.where(mask[..., None], content * gain.astype(self.dtype), 0.0)


class PolarityExpert(nn.Module):
  """Layer norm, hidden GELU layers, linear output of the input's width."""

  hidden: int
  layers: int
  dropout: float
  deterministic: bool
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, values: Float[Array, "b d"]) -> Float[Array, "b d"]:
    width = values.shape[-1]
    values = nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, dtype=self.dtype, name="norm")(
      values
    )
    for layer in range(self.layers):
      dense = nn.Dense(self.hidden, dtype=self.dtype, name=f"hidden_{layer}")
      values = exact_gelu(dense(values))
      values = Dropout(self.dropout, self.deterministic)(values)
    return nn.Dense(width, dtype=self.dtype, name="out")(values)
