"""Activations by the names that checkpoints give them."""

import functools
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax

from msa_jax.layers.kernels.gelu import exact_gelu

_tanh_gelu = functools.partial(nn.gelu, approximate=True)

ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
  "gelu": exact_gelu,
  "gelu_new": _tanh_gelu,
  "gelu_pytorch_tanh": _tanh_gelu,
  "relu": nn.relu,
  "silu": nn.silu,
}
