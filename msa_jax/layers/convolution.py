"""Convolutions over time that never see padding."""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from msa_jax.layers.masking import extents


class MaskedConvolution(nn.Module):
  """1-D convolution over time, stride 1, output as long as the input.

  >>> values, mask = jnp.ones((2, 5, 3)), jnp.ones((2, 5), bool)
  >>> layer = MaskedConvolution(width=8)
  >>> layer.init_with_output(jax.random.key(0), values, mask)[0].shape
  (2, 5, 8)

  Masked steps are zero before the product and zero in the output, so that padding
  never matters. (Sums of shifted products and gathered windows are no faster than
  XLA's convolution, on a CPU either.)

  Attributes:
    width: output channels.
    kernel_size: number of neighbouring steps; the window is centred, with the extra
      step of an even size on the right (XLA's SAME).
    use_bias: whether a bias is added.
    dtype: compute type; parameters are float32.
    kernel_init: how the kernel starts.
  """

  width: int
  kernel_size: int = 3
  use_bias: bool = True
  dtype: Any = jnp.float32
  kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

  @nn.compact
  def __call__(
    self, values: Float[Array, "b t d"], mask: Bool[Array, "b t"]
  ) -> Float[Array, "b t c"]:
    shape = (self.kernel_size, values.shape[-1], self.width)
    kernel = self.param("kernel", self.kernel_init, shape)
    values = jnp.where(mask[..., None], values, 0.0).astype(self.dtype)
    result = lax.conv_general_dilated(
      values,
      kernel.astype(self.dtype),
      window_strides=(1,),
      padding="SAME",
      dimension_numbers=("NTC", "TIO", "NTC"),
    )
    if self.use_bias:
      bias = self.param("bias", nn.initializers.zeros, (self.width,))
      result = result + bias.astype(self.dtype)[None, None]
    return jnp.where(mask[..., None], result, 0.0)


class ValidConvolution(nn.Module):
  """1-D convolution over whole windows of real steps, stride 1, without a bias.

  >>> values, mask = jnp.ones((2, 5, 3)), jnp.ones((2, 5), bool)
  >>> layer = ValidConvolution(width=8, kernel_size=3)
  >>> (result, real), _ = layer.init_with_output(jax.random.key(0), values, mask)
  >>> result.shape, real.shape
  ((2, 3, 8), (2, 3))

  A sequence of l steps has l - kernel_size + 1 windows, whatever padding follows it;
  a shorter one than the kernel has one, filled up with zeros. A window of hidden steps
  alone is masked.

  Attributes:
    width: output channels.
    kernel_size: steps of a window.
    dtype: compute type; parameters are float32.
  """

  width: int
  kernel_size: int = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, values: Float[Array, "b t d"], mask: Bool[Array, "b t"]
  ) -> tuple[Float[Array, "b s c"], Bool[Array, "b s"]]:
    """The windows' values, zero where masked, and which windows are real."""
    size = self.kernel_size
    shape = (size, values.shape[-1], self.width)
    kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
    count = jnp.maximum(extents(mask) - size + 1, 1)[:, None]
    values = jnp.where(mask[..., None], values, 0.0).astype(self.dtype)
    missing = max(size - values.shape[1], 0)
    values = jnp.pad(values, ((0, 0), (0, missing), (0, 0)))
    mask = jnp.pad(mask, ((0, 0), (0, missing)))
    windows = mask.shape[1] - size + 1
    parts = [mask[:, start : start + windows] for start in range(size)]
    real = functools.reduce(jnp.logical_or, parts)
    real = real & (jnp.arange(windows)[None] < count)
    result = lax.conv_general_dilated(
      values,
      kernel.astype(self.dtype),
      window_strides=(1,),
      padding="VALID",
      dimension_numbers=("NTC", "TIO", "NTC"),
    )
    return jnp.where(real[..., None], result, 0.0), real
