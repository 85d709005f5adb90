"""H-GEM's second layer: the sparse, the dense and the robust fusion expert.

These are functions that create their modules in the scope of the calling compact
method, so that parameter names stay flat (`L2_sparse_0`, `L2_den_1`, ...).
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Bool, Float

from msa_jax.layers.activation import exact_gelu
from msa_jax.layers.attention import TransformerBlock
from msa_jax.layers.dropout import Dropout, happens, normal, stream_words
from msa_jax.layers.masking import masked_mean

FUSION_EXPERTS = ("sparse", "dense", "robust")

Options = ml_collections.ConfigDict


class Context(NamedTuple):
  """What every expert needs beside its input.

  Attributes:
    options: `config.model`, frozen.
    deterministic: True = evaluation.
    dtype: compute type.
    copy: which expert of its family is being built (`experts_per_family`).
  """

  options: Options
  deterministic: bool
  dtype: Any
  copy: int = 0

  def copied(self, copy: int) -> "Context":
    return self._replace(copy=copy)

  def name(self, base: str) -> str:
    """Parameter name: that of the paper's network for the first of a family."""
    return base if self.copy == 0 else f"{base}_copy_{self.copy}"

  def dense(self, width: int, name: str) -> nn.Dense:
    return nn.Dense(width, dtype=self.dtype, name=self.name(name))

  def dropout(self, site: str) -> Dropout:
    return Dropout(self.options.dropout[site], self.deterministic)


class SparseOutput(NamedTuple):
  """Attributes: pooled [b d]; summaries [b m d], the mean per modality."""

  pooled: jax.Array
  summaries: jax.Array


class RobustOutput(NamedTuple):
  """Attributes: pooled [b d]; denoising [], the loss L_den."""

  pooled: jax.Array
  denoising: jax.Array


def sparse_top_k(options: Options, n_modalities: int) -> int:
  """Keys each query keeps (Eq. 4), from the configured lengths.

  The nominal length `T` counts, not that of a batch, so that shorter buckets select
  the same keys.
  """
  if options.sparse.k_basis == "features":
    return math.ceil(options.sparse.r * (options.D // options.n_heads))
  return math.ceil(options.sparse.r * options.T * n_modalities)


def sparse_expert(
  context: Context, tokens: Float[Array, "b t m d"], mask: Bool[Array, "b t m"]
) -> SparseOutput:
  """Top-k sparse attention over the tokens of all modalities (Eq. 3-4)."""
  options = context.options
  n_batch, n_steps, n_modalities, width = tokens.shape
  states = tokens.reshape(n_batch, n_steps * n_modalities, width)
  for layer in range(options.sparse.layers):
    states = TransformerBlock(
      options.sparse.ffn,
      options.n_heads,
      options.dropout.attn,
      options.dropout.ffn,
      context.deterministic,
      sparse_top_k(options, n_modalities),
      options.sparse.renorm,
      dtype=context.dtype,
      name=context.name(f"L2_sparse_{layer}"),
    )(states, mask.reshape(n_batch, -1))
  states = states.reshape(tokens.shape)
  # The mean commutes with the linear output layer, which then acts on few rows.
  per_modality = masked_mean(states, mask[..., None], axis=1)  # [b m d]
  everything = masked_mean(states, mask[..., None], axis=(1, 2))[:, None]  # [b 1 d]
  means = jnp.concatenate([per_modality, everything], axis=1)
  valid = jnp.any(mask, axis=1)  # [b m]
  valid = jnp.concatenate([valid, jnp.any(valid, axis=1, keepdims=True)], axis=1)
  means = context.dense(options.d, "L2_sparse_out")(means)
  means = jnp.where(valid[..., None], means, 0.0)
  return SparseOutput(pooled=means[:, -1], summaries=means[:, :-1])


def dense_expert(
  context: Context, tokens: Float[Array, "b t m d"], mask: Bool[Array, "b t m"]
) -> Float[Array, "b c"]:
  """Two dense layers on the concatenated modalities, mean over time (Eq. 5-6)."""
  options = context.options
  hidden = context.dense(options.dense.hidden, "L2_dense_1")(concatenate(tokens))
  hidden = context.dropout("expert")(exact_gelu(hidden))
  result = context.dense(options.d, "L2_dense_2")(hidden)
  activation = exact_gelu if options.dense.out_act == "gelu" else nn.sigmoid
  return masked_mean(activation(result), jnp.any(mask, axis=2)[..., None], axis=1)


def robust_expert(
  module: nn.Module,
  context: Context,
  tokens: Float[Array, "b t m d"],
  mask: Bool[Array, "b t m"],
) -> RobustOutput:
  """Noise, denoiser and a learned confidence between the two (Eq. 7-8).

  A slot (modality, step) without content is taken wholly from the denoiser. The
  denoising loss trains the denoiser alone: neither its input nor its target carries
  a gradient.

  Args:
    module: the module whose compact method calls, owner of `L2_C` and of the noise.
    context, tokens, mask: see the other experts.
  """
  options = context.options.robust
  n_batch, _, n_modalities, width = tokens.shape
  slots = mask[..., None]
  corrupted, denoiser_input = tokens, tokens
  if not context.deterministic and (options.sigma > 0 or options.p_slot > 0):
    words = stream_words(module, "noise")
    if options.sigma > 0:
      noise = (options.sigma * normal(words, tokens.shape)).astype(tokens.dtype)
      corrupted = tokens + jnp.where(slots, noise, 0.0)
    denoiser_input = corrupted
    if options.p_slot > 0:
      lost = happens(~words, (n_batch, n_modalities), options.p_slot)
      denoiser_input = jnp.where(lost[:, None, :, None], 0.0, corrupted)

  first = context.dense(options.denoiser, "L2_den_1")
  second = context.dense(n_modalities * width, "L2_den_2")

  def denoise(inputs):
    restored = second(exact_gelu(first(concatenate(inputs))))
    return restored.reshape(tokens.shape)  # [b t m d]

  restored = denoise(denoiser_input)
  trained = denoise(jax.lax.stop_gradient(denoiser_input))
  error = trained.astype(jnp.float32) - jax.lax.stop_gradient(tokens)
  content = jnp.broadcast_to(slots, error.shape)
  denoising = masked_mean(error**2, content, axis=(0, 1, 2, 3))

  initial = nn.initializers.constant(options.C_init)
  confidence = nn.sigmoid(
    module.param(context.name("L2_C"), initial, (n_modalities, width))
  )
  confidence = jnp.where(slots, confidence[None, None], 0.0).astype(tokens.dtype)
  content = tokens if options.blend == "clean" else corrupted
  blended = confidence * content + (1.0 - confidence) * restored
  hidden = context.dense(options.hidden, "L2_rob_1")(concatenate(blended))
  hidden = context.dropout("expert")(exact_gelu(hidden))
  result = context.dense(context.options.d, "L2_rob_2")(hidden)
  pooled = masked_mean(result, jnp.any(mask, axis=2)[..., None], axis=1)
  return RobustOutput(pooled, denoising)


def concatenate(tokens: Float[Array, "b t m d"]) -> Float[Array, "b t c"]:
  """Puts the modalities of a step side by side."""
  return tokens.reshape(*tokens.shape[:2], -1)
