"""Parameters of a dense layer without the layer."""

import flax.linen as nn
from jaxtyping import Array, Float


class Affine(nn.Module):
  """Kernel and bias of a dense layer, for products that are put together elsewhere.

  >>> (kernel, bias), _ = Affine((3, 4)).init_with_output(jax.random.key(0))
  >>> kernel.shape, bias.shape
  ((3, 4), (4,))

  Attributes:
    shape: [in out].
    kernel_init: how the kernel starts; the bias starts at zero.
  """

  shape: tuple[int, int]
  kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

  @nn.compact
  def __call__(self) -> tuple[Float[Array, "d c"], Float[Array, " c"]]:
    kernel = self.param("kernel", self.kernel_init, self.shape)
    return kernel, self.param("bias", nn.initializers.zeros, self.shape[1:])
