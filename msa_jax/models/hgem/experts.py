"""The experts of H-GEM's first and third layer."""

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
  """Transformer blocks.

  Attributes:
    num_layers: number of blocks.
    num_heads, ffn_dim: sizes of a block.
    attention_dropout, ffn_dropout, deterministic: dropout of the blocks.
    dtype: compute type.
  """

  num_layers: int = 1
  num_heads: int = 2
  ffn_dim: int = 256
  attention_dropout: float = 0.0
  ffn_dropout: float = 0.0
  deterministic: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, values: Float[Array, "b t d"], mask: Bool[Array, "b t"]
  ) -> Float[Array, "b t d"]:
    for layer in range(self.num_layers):
      values = TransformerBlock(
        self.ffn_dim,
        self.num_heads,
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
    max_steps: rows of the table of positions; sequences may be shorter.
    kernel_size: of the convolution.
    num_layers and the rest: those of `TextExpert`.
  """

  max_steps: int
  kernel_size: int = 3
  num_layers: int = 1
  num_heads: int = 2
  ffn_dim: int = 256
  attention_dropout: float = 0.0
  ffn_dropout: float = 0.0
  deterministic: bool = True
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
    normal = nn.initializers.normal(0.02)
    table = self.param("positions", normal, (self.max_steps, width))
    values = values + table[None, : values.shape[1]].astype(self.dtype)
    return TextExpert(
      self.num_layers,
      self.num_heads,
      self.ffn_dim,
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
    lstm_dim: LSTM width per direction.
    kernel_size: of the convolution.
    dropout, deterministic: dropout of the LSTM's states.
    dtype: compute type.
  """

  lstm_dim: int = 32
  kernel_size: int = 3
  dropout: float = 0.0
  deterministic: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, values: Float[Array, "b t d"], mask: Bool[Array, "b t"]
  ) -> Float[Array, "b t c"]:
    states, _ = LSTM(self.lstm_dim, bidirectional=True, dtype=self.dtype, name="lstm")(
      values, mask
    )
    states = Dropout(self.dropout, self.deterministic)(states)
    convolution = MaskedConvolution(
      2 * self.lstm_dim, self.kernel_size, dtype=self.dtype, name="convolution"
    )
    content = exact_gelu(convolution(states, mask))
    scores = nn.Dense(1, dtype=self.dtype, name="attention")(content)  # [b t 1]
    weights = masked_softmax(scores, mask[..., None], axis=1)
    length = jnp.sum(mask, axis=1).astype(jnp.float32)
    gain = 1.0 + length[:, None, None] * weights
    return jnp.where(mask[..., None], content * gain.astype(self.dtype), 0.0)


class PolarityExpert(nn.Module):
  """Layer norm, hidden GELU layers, linear output of the input's width.

  Attributes:
    hidden_dim: width of the hidden layers.
    num_layers: number of hidden layers.
    dropout, deterministic: dropout of each.
    dtype: compute type.
  """

  hidden_dim: int = 128
  num_layers: int = 2
  dropout: float = 0.0
  deterministic: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, values: Float[Array, "b d"]) -> Float[Array, "b d"]:
    width = values.shape[-1]
    values = nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, dtype=self.dtype, name="norm")(
      values
    )
    for layer in range(self.num_layers):
      dense = nn.Dense(self.hidden_dim, dtype=self.dtype, name=f"hidden_{layer}")
      values = exact_gelu(dense(values))
      values = Dropout(self.dropout, self.deterministic)(values)
    return nn.Dense(width, dtype=self.dtype, name="out")(values)
