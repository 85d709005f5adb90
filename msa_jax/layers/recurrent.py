"""Long short-term memory over padded sequences."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from msa_jax.layers.kernels.recurrence import lstm_recurrence


def _per_gate_orthogonal(key: jax.Array, shape: tuple[int, ...], dtype: Any):
  """An orthogonal [hidden hidden] block per direction and gate."""
  n_directions, hidden, _ = shape
  orthogonal = nn.initializers.orthogonal()
  keys = jax.random.split(key, n_directions * 4)
  blocks = jax.vmap(lambda each: orthogonal(each, (hidden, hidden), dtype))(keys)
  blocks = blocks.reshape(n_directions, 4, hidden, hidden)
  return blocks.transpose(0, 2, 1, 3).reshape(shape)


class LSTM(nn.Module):
  """One LSTM layer, in one or both directions, in one scan over time.

  >>> values, mask = jnp.ones((2, 5, 3)), jnp.ones((2, 5), bool)
  >>> (states, last), _ = LSTM(hidden=4).init_with_output(
  ...   jax.random.key(0), values, mask
  ... )
  >>> states.shape, last.shape
  ((2, 5, 4), (2, 4))

  Masked steps leave the state unchanged and give zero output, so the reverse direction
  starts at the last real step. Gate order is i, f, g, o (that of PyTorch) with one
  bias per gate; parameters `input_kernel` [directions, d, 4*hidden],
  `recurrent_kernel` [directions, hidden, 4*hidden] and `bias` [directions, 4*hidden].
  Source: Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000.

  Attributes:
    hidden: width of the state of one direction.
    bidirectional: False = forward only.
    dtype: compute type of the products; the cell's state is float32.
  """

  hidden: int
  bidirectional: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, values: Float[Array, "b t d"], mask: Bool[Array, "b t"]
  ) -> tuple[Float[Array, "b t c"], Float[Array, "b c"]]:
    """Returns all states [b t c] and the last valid state [b c].

    c is `hidden` per direction, forward first; the backward direction's last state is
    the one at the first real step. A row without a real step gives zeros.
    """
    n_directions = 2 if self.bidirectional else 1
    n_batch, _, n_in = values.shape
    input_kernel = self.param(
      "input_kernel",
      nn.initializers.lecun_normal(batch_axis=0),
      (n_directions, n_in, 4 * self.hidden),
    ).astype(self.dtype)
    recurrent_kernel = self.param(
      "recurrent_kernel",
      _per_gate_orthogonal,
      (n_directions, self.hidden, 4 * self.hidden),
      jnp.float32,
    ).astype(self.dtype)
    bias = self.param("bias", nn.initializers.zeros, (n_directions, 4 * self.hidden))

    values = jnp.where(mask[..., None], values, 0.0).astype(self.dtype)
    # Steps first, and as rows of one product: any other way XLA's CPU backend copies
    # the gates, which are wider than the values, to turn them.
    rows = values.transpose(1, 0, 2).reshape(-1, n_in)  # [t*b d]
    columns = input_kernel.transpose(1, 0, 2).reshape(n_in, -1)  # [d r*4h]
    inputs = (rows @ columns).astype(jnp.float32) + bias.reshape(1, -1)
    inputs = inputs.reshape(-1, n_batch, *bias.shape)  # [t b r 4h]
    inputs = inputs.transpose(0, 2, 1, 3)  # [t r b 4h]
    steps = jnp.broadcast_to(mask.T[:, None, :, None], (*inputs.shape[:3], 1))
    if self.bidirectional:
      inputs = _flip_second(inputs)
      steps = _flip_second(steps)

    states = lstm_recurrence(inputs, recurrent_kernel, steps)
    last = states[-1]
    if self.bidirectional:
      states = _flip_second(states)
    states = jnp.concatenate(list(states.transpose(1, 2, 0, 3)), axis=-1)  # [b t c]
    states = jnp.where(mask[..., None], states, 0.0)
    return states.astype(self.dtype), jnp.concatenate(list(last), axis=-1)


def _flip_second(sequence: jax.Array) -> jax.Array:
  """Reverses the time (axis 0) of the second direction (axis 1)."""
  return jnp.stack([sequence[:, 0], sequence[::-1, 1]], axis=1)
