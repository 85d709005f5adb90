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


def half_sinusoids(n_steps: int, width: int) -> Float[np.ndarray, "t d"]:
  """Fixed sinusoids of tensor2tensor and MulT: all sines, then all cosines.

  Column j of each half has the angle position * 10000^(-j / (half - 1)), positions from
  1; an odd width ends with a column of zeros.

  >>> half_sinusoids(2, 4).round(2).tolist()
  [[0.84, 0.0, 0.54, 1.0], [0.91, 0.0, -0.42, 1.0]]

  Args:
    n_steps: number of positions t.
    width: feature width d, at least 2.

  Source: MulT (Tsai et al. 2019), its code's position embedding.
  """
  half = width // 2
  frequency = 10000.0 ** (-np.arange(half) / max(half - 1, 1))  # [d/2]
  angle = np.arange(1, n_steps + 1)[:, None] * frequency[None, :]
  table = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
  return np.pad(table, ((0, 0), (0, width % 2)))


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
