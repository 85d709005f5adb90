"""Convolution over time that never sees padding."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float


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
