"""Positions of steps, added to their features."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from msa_jax.errors import UserError


def sinusoids(n_steps: int, width: int) -> Float[np.ndarray, "t d"]:
  """Fixed sinusoids: sin at even, cos at odd columns, positions from 0.

  Columns 2i and 2i + 1 have the angle position / 10000^(2i / width).

  Args:
    n_steps: number of positions t.
    width: feature width d, even.

  Raises:
    UserError: odd width.

  Source: Vaswani et al. 2017, section 3.5.
  """
  if width % 2:
    raise UserError(f"sinusoid positions of width {width}: the width must be even")
  frequency = 10000.0 ** (-np.arange(0, width, 2) / width)  # [d/2]
  angle = np.arange(n_steps)[:, None] * frequency[None, :]
  return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(n_steps, width)


class LearnedPositions(nn.Module):
  """A table of learned vectors, one per position.

  >>> table = LearnedPositions(n_steps=50, width=8)
  >>> table.init_with_output(jax.random.key(0), 5)[0].shape
  (5, 8)

  Attributes:
    n_steps: positions in the table.
    width: feature width.
  """

  n_steps: int
  width: int

  @nn.compact
  def __call__(self, n_steps: int) -> Float[Array, "t d"]:
    """The first `n_steps` positions.

    Raises:
      UserError: the table has fewer.
    """
    table = self.param(
      "table", nn.initializers.normal(0.02), (self.n_steps, self.width)
    )
    if n_steps > self.n_steps:
      raise UserError(
        f"a sequence has {n_steps} steps; learned positions end at {self.n_steps}:"
        " shorten it (config.data.max_steps) or use sinusoids"
      )
    return jnp.asarray(table)[:n_steps]
