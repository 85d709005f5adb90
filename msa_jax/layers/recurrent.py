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

    states = _recurrence(inputs, recurrent_kernel, steps)
    last = states[-1]
    if self.bidirectional:
      states = _flip_second(states)
    states = jnp.concatenate(list(states.transpose(1, 2, 0, 3)), axis=-1)  # [b t c]
    states = jnp.where(mask[..., None], states, 0.0)
    return states.astype(self.dtype), jnp.concatenate(list(last), axis=-1)


@jax.custom_vjp
def _recurrence(
  inputs: Float[Array, "t r b g"],
  kernel: Float[Array, "r h g"],
  real: Bool[Array, "t r b 1"],
) -> Float[Array, "t r b h"]:
  """States of every step from the input's share of the gates, order i, f, g, o.

  The derivative is written out: the recurrent kernel's is one product over all steps
  after the loop, where automatic differentiation has a product and a sum in each step.
  """
  return _recur(inputs, kernel, real)[0]


def _recur(inputs, kernel, real):
  """The states, and what the derivative needs: states, cells, gates, arguments."""

  def advance(state, step):
    cell, output = state
    share, here = step
    product = jnp.einsum("rbh,rhg->rbg", output.astype(kernel.dtype), kernel)
    gates = share + product.astype(jnp.float32)
    admit, forget, candidate, emit = jnp.split(gates, 4, axis=-1)
    admit, forget, emit = nn.sigmoid(admit), nn.sigmoid(forget), nn.sigmoid(emit)
    candidate = jnp.tanh(candidate)
    new_cell = forget * cell + admit * candidate
    cell = jnp.where(here, new_cell, cell)
    output = jnp.where(here, emit * jnp.tanh(new_cell), output)
    gates = jnp.concatenate([admit, forget, candidate, emit], axis=-1)
    return (cell, output), (output, cell, gates)

  zeros = jnp.zeros((*inputs.shape[1:3], kernel.shape[1]), jnp.float32)
  _, (states, cells, gates) = lax.scan(advance, (zeros, zeros), (inputs, real))
  return states, (states, cells, gates, kernel, real)


def _recur_backwards(kept, at_states):
  states, cells, gates, kernel, real = kept
  zeros = jnp.zeros_like(states[0])
  cells_before = jnp.concatenate([zeros[None], cells[:-1]])
  states_before = jnp.concatenate([zeros[None], states[:-1]])

  def retreat(gradients, step):
    at_cell, at_output = gradients
    at_state, gates, cell, cell_before, here = step
    at_output = at_output + at_state
    admit, forget, candidate, emit = jnp.split(gates, 4, axis=-1)
    squashed = jnp.tanh(cell)
    at_new = at_cell + at_output * emit * (1.0 - squashed**2)
    at_gates = [
      at_new * candidate * admit * (1.0 - admit),
      at_new * cell_before * forget * (1.0 - forget),
      at_new * admit * (1.0 - candidate**2),
      at_output * squashed * emit * (1.0 - emit),
    ]
    at_gates = jnp.where(here, jnp.concatenate(at_gates, axis=-1), 0.0)
    product = jnp.einsum("rbg,rhg->rbh", at_gates.astype(kernel.dtype), kernel)
    at_cell = jnp.where(here, at_new * forget, at_cell)
    at_output = product.astype(jnp.float32) + jnp.where(here, 0.0, at_output)
    return (at_cell, at_output), at_gates

  steps = (at_states, gates, cells, cells_before, real)
  _, at_inputs = lax.scan(retreat, (zeros, zeros), steps, reverse=True)
  at_kernel = jnp.einsum(
    "trbh,trbg->rhg",
    states_before.astype(kernel.dtype),
    at_inputs.astype(kernel.dtype),
    preferred_element_type=jnp.float32,
  )
  return at_inputs, at_kernel.astype(kernel.dtype), None


_recurrence.defvjp(_recur, _recur_backwards)


def _flip_second(sequence: jax.Array) -> jax.Array:
  """Reverses the time (axis 0) of the second direction (axis 1)."""
  return jnp.stack([sequence[:, 0], sequence[::-1, 1]], axis=1)
