"""H-GEM's head."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from msa_jax.layers.dropout import Dropout
from msa_jax.models.outputs import REGRESSION, OutputSpec, shape_predictions


class Head(nn.Module):
  """Hidden ReLU layer and output layer.

  Attributes:
    output: the task predicted.
    hidden_dim: width of the hidden layer.
    dropout, deterministic: dropout of the hidden layer.
    dropout_name: name of the dropout module, which seeds it.
    dtype: compute type; predictions are float32.
  """

  output: OutputSpec = REGRESSION
  hidden_dim: int = 32
  dropout: float = 0.0
  deterministic: bool = True
  dropout_name: str = "Dropout_0"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, fused: Float[Array, "b d"]) -> Float[Array, "b ..."]:
    hidden = nn.relu(nn.Dense(self.hidden_dim, dtype=self.dtype, name="head_1")(fused))
    hidden = Dropout(self.dropout, self.deterministic, name=self.dropout_name)(hidden)
    last = nn.Dense(self.output.num_outputs, dtype=self.dtype, name="head_2")
    return shape_predictions(self.output, last(hidden).astype(jnp.float32))
