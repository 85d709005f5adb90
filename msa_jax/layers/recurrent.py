"""LSTM and GRU over padded sequences, one layer or several."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from msa_jax.layers.dropout import Dropout
from msa_jax.layers.kernels.recurrence import (
  gru_recurrence,
  lstm_recurrence,
  lstm_states_and_cells,
)

CELLS = ("lstm", "gru")


def _per_gate_orthogonal(key: jax.Array, shape: tuple[int, ...], dtype: Any):
  """An orthogonal [hidden hidden] block per direction and gate."""
  n_directions, hidden, width = shape
  n_gates = width // hidden
  orthogonal = nn.initializers.orthogonal()
  keys = jax.random.split(key, n_directions * n_gates)
  blocks = jax.vmap(lambda each: orthogonal(each, (hidden, hidden), dtype))(keys)
  blocks = blocks.reshape(n_directions, n_gates, hidden, hidden)
  return blocks.transpose(0, 2, 1, 3).reshape(shape)


class _Layer(nn.Module):
  """What recurrent layers have in common: parameters, products of the input, masks."""

  hidden: int
  bidirectional: bool = False
  dtype: Any = jnp.float32
  two_biases: bool = False

  @nn.nowrap
  def _prepare(self, values: Array, mask: Array, n_gates: int):
    """The input's share of the gates [t r b g], the recurrent kernel [r h g] and which
    steps are real [t r b 1]; the second direction runs backwards."""
    n_directions = 2 if self.bidirectional else 1
    n_batch, _, n_in = values.shape
    width = n_gates * self.hidden
    input_kernel = self.param(
      "input_kernel",
      nn.initializers.lecun_normal(batch_axis=0),
      (n_directions, n_in, width),
    ).astype(self.dtype)
    recurrent_kernel = self.param(
      "recurrent_kernel",
      _per_gate_orthogonal,
      (n_directions, self.hidden, width),
      jnp.float32,
    ).astype(self.dtype)
    bias = self.param("bias", nn.initializers.zeros, (n_directions, width))
    if self.two_biases:
      bias = bias + self.param("recurrent_bias", nn.initializers.zeros, bias.shape)

    values = jnp.where(mask[..., None], values, 0.0).astype(self.dtype)
    # Steps first, and as rows of one product: any other way XLA's CPU backend copies
    # the gates, which are wider than the values, to turn them.
    rows = values.transpose(1, 0, 2).reshape(-1, n_in)  # [t*b d]
    columns = input_kernel.transpose(1, 0, 2).reshape(n_in, -1)  # [d r*g]
    inputs = (rows @ columns).astype(jnp.float32) + bias.reshape(1, -1)
    inputs = inputs.reshape(-1, n_batch, *bias.shape)  # [t b r g]
    inputs = inputs.transpose(0, 2, 1, 3)  # [t r b g]
    steps = jnp.broadcast_to(mask.T[:, None, :, None], (*inputs.shape[:3], 1))
    if self.bidirectional:
      inputs = _flip_second(inputs)
      steps = _flip_second(steps)
    return inputs, recurrent_kernel, steps

  @nn.nowrap
  def _finish(self, states: Array, mask: Array) -> tuple[Array, Array]:
    last = states[-1]
    if self.bidirectional:
      states = _flip_second(states)
    states = jnp.concatenate(list(states.transpose(1, 2, 0, 3)), axis=-1)  # [b t c]
    states = jnp.where(mask[..., None], states, 0.0)
    return states.astype(self.dtype), jnp.concatenate(list(last), axis=-1)


class LSTM(_Layer):
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
    two_biases: a second bias per gate, `recurrent_bias`, as PyTorch has. It computes
      nothing else, but Adam moves their sum twice as fast.
  """

  @nn.compact
  def __call__(
    self, values: Float[Array, "b t d"], mask: Bool[Array, "b t"]
  ) -> tuple[Float[Array, "b t c"], Float[Array, "b c"]]:
    """Returns all states [b t c] and the last valid state [b c].

    c is `hidden` per direction, forward first; the backward direction's last state is
    the one at the first real step. A row without a real step gives zeros.
    """
    return self._finish(lstm_recurrence(*self._prepare(values, mask, 4)), mask)


class LSTMCells(_Layer):
  """An `LSTM` in one direction that shows its cells as well as its outputs.

  >>> values, mask = jnp.ones((2, 5, 3)), jnp.ones((2, 5), bool)
  >>> (states, cells), _ = LSTMCells(hidden=4).init_with_output(
  ...   jax.random.key(0), values, mask
  ... )
  >>> states.shape, cells.shape
  ((5, 2, 4), (5, 2, 4))
  """

  @nn.compact
  def __call__(
    self, values: Float[Array, "b t d"], mask: Bool[Array, "b t"]
  ) -> tuple[Float[Array, "t b c"], Float[Array, "t b c"]]:
    """Outputs and cells after every step, steps first; masked steps repeat them."""
    states, cells = lstm_states_and_cells(*self._prepare(values, mask, 4))
    return states[:, 0], cells[:, 0]


class GRU(_Layer):
  """One GRU layer, in one or both directions; masks and returns as those of `LSTM`.

  >>> values, mask = jnp.ones((2, 5, 3)), jnp.ones((2, 5), bool)
  >>> (states, last), _ = GRU(hidden=4, bidirectional=True).init_with_output(
  ...   jax.random.key(0), values, mask
  ... )
  >>> states.shape, last.shape
  ((2, 5, 8), (2, 8))

  Gate order is r, z, n (that of PyTorch): n = tanh(W x + b + r * (U h + c)). Parameters
  `input_kernel` [directions, d, 3*hidden], `recurrent_kernel` [directions, hidden,
  3*hidden], `bias` [directions, 3*hidden] and `candidate_bias` c [directions, hidden].
  Source: Cho et al. 2014, in the form of cuDNN.
  """

  @nn.compact
  def __call__(
    self, values: Float[Array, "b t d"], mask: Bool[Array, "b t"]
  ) -> tuple[Float[Array, "b t c"], Float[Array, "b c"]]:
    """Returns all states [b t c] and the last valid state [b c]; see `LSTM`."""
    inputs, kernel, steps = self._prepare(values, mask, 3)
    shape = (len(kernel), self.hidden)
    bias = self.param("candidate_bias", nn.initializers.zeros, shape)
    return self._finish(gru_recurrence(inputs, kernel, bias, steps), mask)


class RecurrentStack(nn.Module):
  """Recurrent layers on top of each other, dropout between them, as in PyTorch.

  >>> values, mask = jnp.ones((2, 5, 3)), jnp.ones((2, 5), bool)
  >>> (states, last), _ = RecurrentStack(4, n_layers=3).init_with_output(
  ...   jax.random.key(0), values, mask
  ... )
  >>> states.shape, last.shape
  ((2, 5, 4), (2, 3, 4))

  Attributes:
    hidden: width of the state of one direction.
    n_layers: layers, named `layer_0` and so on.
    bidirectional: False = forward only.
    cell: of `CELLS`.
    dropout: rate on the states of all layers but the last.
    deterministic: True = evaluation.
    dtype: compute type of the products.
  """

  hidden: int
  n_layers: int = 1
  bidirectional: bool = False
  cell: str = "lstm"
  dropout: float = 0.0
  deterministic: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, values: Float[Array, "b t d"], mask: Bool[Array, "b t"]
  ) -> tuple[Float[Array, "b t c"], Float[Array, "b n c"]]:
    """All states of the last layer [b t c], and every layer's last valid state."""
    kind, ends = {"lstm": LSTM, "gru": GRU}[self.cell], []
    for index in range(self.n_layers):
      if index:
        values = Dropout(self.dropout, self.deterministic)(values)
      layer = kind(self.hidden, self.bidirectional, self.dtype, name=f"layer_{index}")
      values, last = layer(values, mask)
      ends.append(last)
    return values, jnp.stack(ends, axis=1)


def _flip_second(sequence: jax.Array) -> jax.Array:
  """Reverses the time (axis 0) of the second direction (axis 1)."""
  return jnp.stack([sequence[:, 0], sequence[::-1, 1]], axis=1)
