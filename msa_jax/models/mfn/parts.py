"""What both networks have: LSTMs in lock-step, a gated memory, a head over both."""

from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from msa_jax.layers.affine import Affine
from msa_jax.layers.dropout import Dropout
from msa_jax.layers.recurrent import LSTMCells
from msa_jax.models.aligned import Aligned


class Lockstep(NamedTuple):
  """LSTMs of all modalities after every step, steps first.

  Attributes:
    outputs, cells: modality -> [t b h]; a step at which the modality is hidden repeats
      the one before.
    real: [t b] steps at which any modality is visible.
  """

  outputs: Mapping[str, Float[Array, "t b h"]]
  cells: Mapping[str, Float[Array, "t b h"]]
  real: Bool[Array, "t b"]

  def last(self) -> Float[Array, "b c"]:
    """Last valid outputs of all modalities, side by side."""
    return jnp.concatenate([each[-1] for each in self.outputs.values()], axis=-1)


def before(states: Float[Array, "t b h"]) -> Float[Array, "t b h"]:
  """The states one step earlier; zero before the first."""
  return jnp.concatenate([jnp.zeros_like(states[:1]), states[:-1]])


def lockstep(streams: Aligned, hidden_dims: Mapping[str, int]) -> Lockstep:
  """One LSTM per modality, `lstm_<modality>`; called within a compact module."""
  outputs, cells = {}, {}
  for name, values in streams.features.items():
    layer = LSTMCells(hidden_dims[name], name=f"lstm_{name}")
    outputs[name], cells[name] = layer(values, streams.masks[name])
  return Lockstep(outputs, cells, streams.real.T)


class Mlp(nn.Module):
  """Linear, ReLU, dropout, linear.

  Attributes:
    hidden, width: units.
    dropout: rate on the hidden ones.
    deterministic: True = evaluation.
  """

  hidden: int
  width: int
  dropout: float
  deterministic: bool

  @nn.compact
  def __call__(self, values: Float[Array, "... d"]) -> Float[Array, "... c"]:
    hidden = nn.relu(nn.Dense(self.hidden, name="hidden")(values))
    hidden = Dropout(self.dropout, self.deterministic)(hidden)
    return nn.Dense(self.width, name="out")(hidden)


class GatedMemory(nn.Module):
  """memory = retain * memory + update * candidate, step after step.

  Both gates are sigmoids of MLPs on what is seen and on the memory. All that does not
  depend on the memory is computed for all steps at once.

  Attributes:
    width: of the memory.
    hidden_dims: units of the gates `retain` and `update`.
    dropout: rates on these units.
    deterministic: True = evaluation.

  Source: Zadeh et al., AAAI 2018 (arXiv:1802.00927), Eq. 6-7 (multi-view gated memory).
  """

  width: int
  hidden_dims: Mapping[str, int]
  dropout: Mapping[str, float]
  deterministic: bool

  @nn.compact
  def __call__(
    self,
    seen: Float[Array, "t b d"],
    candidates: Float[Array, "t b m"],
    real: Bool[Array, "t b"],
  ) -> Float[Array, "b m"]:
    """The memory after the last real step; it starts at zero, others leave it."""
    n_seen, gates, shares, keeps = seen.shape[-1], {}, {}, {}
    sizes = {"retain": self.hidden_dims["retain"], "update": self.hidden_dims["update"]}
    rates = {"retain": self.dropout["retain"], "update": self.dropout["update"]}
    for name, units in sizes.items():
      kernel, bias = Affine((n_seen + self.width, units), name=f"{name}_hidden")()
      shares[name] = seen @ kernel[:n_seen] + bias[None, None]
      drop = Dropout(rates[name], self.deterministic, name=f"drop_{name}")
      keeps[name] = drop(jnp.ones(shares[name].shape, seen.dtype))
      out = Affine((units, self.width), name=f"{name}_out")()
      gates[name] = (kernel[n_seen:], *out)

    def advance(memory, step):
      shares, keeps, candidate, here = step

      def gate(name):
        of_memory, kernel, bias = gates[name]
        hidden = nn.relu(shares[name] + memory @ of_memory) * keeps[name]
        return nn.sigmoid(hidden @ kernel + bias[None])

      new = gate("retain") * memory + gate("update") * candidate
      return jnp.where(here[:, None], new, memory), None

    start = jnp.zeros(candidates.shape[1:], candidates.dtype)
    return lax.scan(advance, start, (shares, keeps, candidates, real))[0]
