"""H-GEM's fusion experts: sparse, dense and robust.

Their parameters have flat names (`L2_sparse_0`, `L2_den_1`, ...), for they share the
scope of the network, where reports group parameters by prefix.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from msa_jax.layers.attention import LAYER_NORM_EPSILON, TransformerBlock, share_of
from msa_jax.layers.dropout import Dropout, happens, normal, stream_words
from msa_jax.layers.kernels.gelu import exact_gelu
from msa_jax.layers.masking import masked_mean

_INITIAL_CONFIDENCE = 2.0  # sigmoid(2) = 0.88: mostly the content itself


class SparseOutput(NamedTuple):
  """Attributes: pooled [b d]; summaries [b m d], the mean per modality."""

  pooled: jax.Array
  summaries: jax.Array


class RobustOutput(NamedTuple):
  """Attributes: pooled [b d]; denoising [], the loss L_den."""

  pooled: jax.Array
  denoising: jax.Array


def sparse_top_k(keep_fraction: float, max_steps: int, num_modalities: int) -> int:
  """Keys each query keeps by the nominal length (Eq. 4), whatever that of a batch."""
  return share_of(keep_fraction, max_steps * num_modalities)


class SparseExpert(nn.Module):
  """Top-k sparse attention over the tokens of all modalities (Eq. 3-4).

  Attributes:
    output_dim: width of the result.
    max_steps: nominal length.
    num_heads, ffn_dim, num_layers: sizes of the transformer blocks.
    keep_fraction: share of the tokens that each query keeps.
    keep_share_of: of the sample's `valid` tokens, or of the `nominal` number.
    norm_summaries: whether the tokens behind `summaries` are normalised.
    attention_dropout, ffn_dropout, deterministic: of the blocks.
    dtype: compute type.
  """

  output_dim: int
  max_steps: int
  num_heads: int = 2
  ffn_dim: int = 256
  num_layers: int = 1
  keep_fraction: float = 0.25
  keep_share_of: str = "valid"
  norm_summaries: bool = True
  attention_dropout: float = 0.0
  ffn_dropout: float = 0.0
  deterministic: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, tokens: Float[Array, "b t m d"], mask: Bool[Array, "b t m"]
  ) -> SparseOutput:
    n_batch, n_steps, n_modalities, width = tokens.shape
    states = tokens.reshape(n_batch, n_steps * n_modalities, width)
    nominal = self.keep_share_of == "nominal"
    for layer in range(self.num_layers):
      states = TransformerBlock(
        self.ffn_dim,
        self.num_heads,
        self.attention_dropout,
        self.ffn_dropout,
        self.deterministic,
        sparse_top_k(self.keep_fraction, self.max_steps, n_modalities)
        if nominal
        else None,
        dtype=self.dtype,
        top_fraction=None if nominal else self.keep_fraction,
        name=f"L2_sparse_{layer}",
      )(states, mask.reshape(n_batch, -1))
    states = states.reshape(tokens.shape)
    output = nn.Dense(self.output_dim, dtype=self.dtype, name="L2_sparse_out")
    if self.norm_summaries:
      projected, real = output(states), mask[..., None]
      norm = nn.LayerNorm(
        epsilon=LAYER_NORM_EPSILON, dtype=self.dtype, name="L2_sparse_norm"
      )
      return SparseOutput(
        pooled=masked_mean(projected, real, axis=(1, 2)),
        summaries=masked_mean(norm(projected), real, axis=1),
      )
    # The mean commutes with the linear output layer, which then acts on few rows.
    per_modality = masked_mean(states, mask[..., None], axis=1)  # [b m d]
    everything = masked_mean(states, mask[..., None], axis=(1, 2))[:, None]  # [b 1 d]
    means = jnp.concatenate([per_modality, everything], axis=1)
    valid = jnp.any(mask, axis=1)  # [b m]
    valid = jnp.concatenate([valid, jnp.any(valid, axis=1, keepdims=True)], axis=1)
    means = jnp.where(valid[..., None], output(means), 0.0)
    return SparseOutput(pooled=means[:, -1], summaries=means[:, :-1])


class DenseExpert(nn.Module):
  """Two dense layers on the modalities side by side, mean over time (Eq. 5-6).

  Attributes:
    output_dim: width of the result.
    hidden_dim: width of the first layer.
    dropout, deterministic: dropout of the hidden layer.
    dropout_name: name of the dropout module, which seeds it.
    dtype: compute type.
  """

  output_dim: int
  hidden_dim: int = 128
  dropout: float = 0.0
  deterministic: bool = True
  dropout_name: str = "Dropout_0"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, tokens: Float[Array, "b t m d"], mask: Bool[Array, "b t m"]
  ) -> Float[Array, "b c"]:
    first = nn.Dense(self.hidden_dim, dtype=self.dtype, name="L2_dense_1")
    dropout = Dropout(self.dropout, self.deterministic, name=self.dropout_name)
    hidden = dropout(exact_gelu(first(concatenate(tokens))))
    result = nn.Dense(self.output_dim, dtype=self.dtype, name="L2_dense_2")(hidden)
    steps = jnp.any(mask, axis=2)[..., None]
    return masked_mean(exact_gelu(result), steps, axis=1)


class RobustExpert(nn.Module):
  """Noise, a denoiser and a learned confidence between content and denoised content.

  A slot (modality, step) without content is taken wholly from the denoiser. The
  denoising loss trains the denoiser alone: neither its input nor its target carries a
  gradient. Source: Eq. 7-8.

  Attributes:
    output_dim: width of the result.
    hidden_dim: width of the hidden layer.
    denoiser_dim: width of the denoiser's hidden layer.
    noise_std: standard deviation of the noise on content, in training.
    slot_dropout: probability, in training, that the denoiser does not see a modality.
    dropout, deterministic: dropout of the hidden layer; deterministic = no noise.
    dropout_name: name of the dropout module, which seeds it.
    dtype: compute type.
  """

  output_dim: int
  hidden_dim: int = 128
  denoiser_dim: int = 128
  noise_std: float = 0.1
  slot_dropout: float = 0.1
  dropout: float = 0.0
  deterministic: bool = True
  dropout_name: str = "Dropout_0"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, tokens: Float[Array, "b t m d"], mask: Bool[Array, "b t m"]
  ) -> RobustOutput:
    n_modalities, width = tokens.shape[2:]
    slots = mask[..., None]
    corrupted, visible = self._corrupt(tokens, slots)
    first = nn.Dense(self.denoiser_dim, dtype=self.dtype, name="L2_den_1")
    second = nn.Dense(n_modalities * width, dtype=self.dtype, name="L2_den_2")

    def denoise(inputs):
      restored = second(exact_gelu(first(concatenate(inputs))))
      return restored.reshape(tokens.shape)  # [b t m d]

    restored = denoise(visible)
    trained = denoise(jax.lax.stop_gradient(visible))
    error = trained.astype(jnp.float32) - jax.lax.stop_gradient(tokens)
    content = jnp.broadcast_to(slots, error.shape)
    denoising = masked_mean(error**2, content, axis=(0, 1, 2, 3))

    initial = nn.initializers.constant(_INITIAL_CONFIDENCE)
    confidence = nn.sigmoid(self.param("L2_C", initial, (n_modalities, width)))
    confidence = jnp.where(slots, confidence[None, None], 0.0).astype(tokens.dtype)
    blended = confidence * corrupted + (1.0 - confidence) * restored
    hidden = nn.Dense(self.hidden_dim, dtype=self.dtype, name="L2_rob_1")
    dropout = Dropout(self.dropout, self.deterministic, name=self.dropout_name)
    values = dropout(exact_gelu(hidden(concatenate(blended))))
    result = nn.Dense(self.output_dim, dtype=self.dtype, name="L2_rob_2")(values)
    pooled = masked_mean(result, jnp.any(mask, axis=2)[..., None], axis=1)
    return RobustOutput(pooled, denoising)

  @nn.nowrap
  def _corrupt(self, tokens: Array, slots: Array) -> tuple[Array, Array]:
    """Noisy tokens (Eq. 7), and what of them the denoiser sees."""
    noisy = self.noise_std > 0 or self.slot_dropout > 0
    if self.deterministic or not noisy:
      return tokens, tokens
    words, corrupted = stream_words(self, "noise"), tokens
    if self.noise_std > 0:
      noise = (self.noise_std * normal(words, tokens.shape)).astype(tokens.dtype)
      corrupted = tokens + jnp.where(slots, noise, 0.0)
    if not self.slot_dropout > 0:
      return corrupted, corrupted
    shape = (tokens.shape[0], tokens.shape[2])
    lost = happens(~words, shape, self.slot_dropout)  # [b m]
    return corrupted, jnp.where(lost[:, None, :, None], 0.0, corrupted)


def concatenate(tokens: Float[Array, "b t m d"]) -> Float[Array, "b t c"]:
  """Puts the modalities of a step side by side."""
  return tokens.reshape(*tokens.shape[:2], -1)
