"""Reusable parts of networks: plain Flax modules and functions, masks everywhere.

They know nothing of systems, configs or data sets. `import jax`, `jax.numpy as jnp`
and `flax.linen as nn` go before the examples in the docstrings.
"""

from msa_jax.layers import lowrank
from msa_jax.layers.activation import ACTIVATIONS
from msa_jax.layers.attention import (
  LAYER_NORM_EPSILON,
  MultiHeadAttention,
  TransformerBlock,
  attention_weights,
)
from msa_jax.layers.convolution import MaskedConvolution, ValidConvolution
from msa_jax.layers.crossmodal import CrossmodalEncoder, CrossmodalLayer, not_future
from msa_jax.layers.dropout import Dropout
from msa_jax.layers.kernels.gelu import exact_gelu
from msa_jax.layers.kernels.selection import keep_largest
from msa_jax.layers.lowrank import LowRankExperts
from msa_jax.layers.masking import (
  extents,
  has_content,
  hide_unavailable,
  last_step,
  masked_mean,
  masked_softmax,
)
from msa_jax.layers.moe import (
  ExpertBank,
  MixtureOfExperts,
  MixtureOutput,
  Plan,
  capacity_of,
  combine_capacity,
  combine_dense,
  dispatch_capacity,
  plan_capacity,
  reweigh_capacity,
  scatter_capacity,
)
from msa_jax.layers.normalization import MaskedBatchNorm
from msa_jax.layers.positions import LearnedPositions, half_sinusoids, sinusoids
from msa_jax.layers.recurrent import GRU, LSTM, LSTMCells, RecurrentStack
from msa_jax.layers.routing import Router, route, select_top_k
from msa_jax.layers.transformer import EncoderStack, StackedWeights
from msa_jax.layers.windows import window_mean

__all__ = [
  "ACTIVATIONS",
  "GRU",
  "LAYER_NORM_EPSILON",
  "LSTM",
  "CrossmodalEncoder",
  "CrossmodalLayer",
  "Dropout",
  "EncoderStack",
  "ExpertBank",
  "LSTMCells",
  "LearnedPositions",
  "LowRankExperts",
  "MaskedBatchNorm",
  "MaskedConvolution",
  "MixtureOfExperts",
  "MixtureOutput",
  "MultiHeadAttention",
  "Plan",
  "RecurrentStack",
  "Router",
  "StackedWeights",
  "TransformerBlock",
  "ValidConvolution",
  "attention_weights",
  "capacity_of",
  "combine_capacity",
  "combine_dense",
  "dispatch_capacity",
  "exact_gelu",
  "extents",
  "half_sinusoids",
  "has_content",
  "hide_unavailable",
  "keep_largest",
  "last_step",
  "lowrank",
  "masked_mean",
  "masked_softmax",
  "not_future",
  "plan_capacity",
  "reweigh_capacity",
  "route",
  "scatter_capacity",
  "select_top_k",
  "sinusoids",
  "window_mean",
]
