"""Long short-term memory over padded sequences."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float


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

  Masked steps leave the state as it is and give zero output, so the reverse direction
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
    inputs = jnp.einsum("btd,rdg->trbg", values, input_kernel)
    inputs = inputs.astype(jnp.float32) + bias[None, :, None]  # [t r b 4h]
    steps = jnp.broadcast_to(mask.T[:, None, :, None], (*inputs.shape[:3], 1))
    if self.bidirectional:
      inputs = _flip_second(inputs)
      steps = _flip_second(steps)

    def advance(state, step):
      cell, output = state
      gates, real = step
      recurrent = jnp.einsum(
        "rbh,rhg->rbg", output.astype(self.dtype), recurrent_kernel
      )
      gates = gates + recurrent.astype(jnp.float32)
      admit, forget, candidate, emit = jnp.split(gates, 4, axis=-1)
      new_cell = nn.sigmoid(forget) * cell + nn.sigmoid(admit) * jnp.tanh(candidate)
      new_output = nn.sigmoid(emit) * jnp.tanh(new_cell)
      cell = jnp.where(real, new_cell, cell)
      output = jnp.where(real, new_output, output)
      return (cell, output), output

    zeros = jnp.zeros((n_directions, n_batch, self.hidden), jnp.float32)
    (_, last), states = lax.scan(advance, (zeros, zeros), (inputs, steps))
    if self.bidirectional:
      states = _flip_second(states)
    states = jnp.concatenate(list(states.transpose(1, 2, 0, 3)), axis=-1)  # [b t c]
    states = jnp.where(mask[..., None], states, 0.0)
    return states.astype(self.dtype), jnp.concatenate(list(last), axis=-1)


def _flip_second(sequence: jax.Array) -> jax.Array:
  """Reverses the time (axis 0) of the second direction (axis 1)."""
  return jnp.stack([sequence[:, 0], sequence[::-1, 1]], axis=1)
