"""LF-LSTM: late fusion of one LSTM per modality, by concatenation.

Named in the tables of AWF (Journal of Software 2024, 35(10)) without a public
definition; here: the last valid state of a one-directional LSTM per modality, dropout,
a linear layer per modality, and LF-DNN's head.
"""

import flax.linen as nn
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float

from msa_jax.models.base import System, Target, predicted, shape_predictions
from msa_jax.models.subnets import (
  Features,
  Head,
  Omega,
  RecurrentEncoder,
  check_options,
  encode_each,
  fusion_order,
  modalities_of,
  presence,
  read,
  weigh,
)
from msa_jax.typing import Batch, ModelOutput


def options() -> ml_collections.ConfigDict:
  """Options of the model (`config.model`)."""
  return ml_collections.ConfigDict(
    {
      "name": "lf_lstm",
      "task": "auto",  # the task predicted; auto = sentiment, else emotion
      "hidden": {"text": 128, "audio": 16, "vision": 128},
      "d": 128,  # width of every modality's features
      "post": 128,
      "dropout": {"text": 0.2, "audio": 0.2, "vision": 0.2, "post": 0.2},
    }
  )


class LFLSTM(nn.Module):
  """The network.

  Attributes:
    options: `config.model`, frozen.
    modalities: names in canonical order.
    target: the task predicted.
  """

  options: ml_collections.FrozenConfigDict
  modalities: tuple[str, ...]
  target: Target

  def setup(self):
    options = self.options
    self.encoder = {
      name: RecurrentEncoder(options.hidden[name], options.dropout[name])
      for name in self.modalities
    }
    self.last = {name: nn.Dense(options.d) for name in self.modalities}
    widths = (options.post, options.post)
    self.head = Head(widths, self.target.n_outputs, options.dropout.post)

  def encode(self, batch: Batch, *, train: bool) -> dict[str, Float[Array, "b d"]]:
    """Modality -> input of its last linear layer."""
    return encode_each(self.encoder, read(batch), train)

  def tail(
    self, features: Features, omega: Omega, batch: Batch, *, train: bool
  ) -> ModelOutput:
    """Last linear layers, concatenation, head.

    Args:
      features: from `encode`.
      omega: modality -> fusion weight of its features; None = 1.
      batch: says which modalities are there.
    """
    present = presence(read(batch))
    projected = {
      name: weigh(None, name, present[name], self.last[name](features[name]))
      for name in self.modalities
    }
    fused = jnp.concatenate(
      [
        weigh(omega, name, present[name], projected[name])
        for name in fusion_order(self.modalities)
      ],
      axis=-1,
    )
    values = self.head(fused, train=train)
    predictions = {self.target.name: shape_predictions(self.target, values)}
    return ModelOutput(predictions, {**projected, "fused": fused}, {}, {})

  def __call__(self, batch: Batch, *, train: bool, omega: Omega = None) -> ModelOutput:
    """`tail` of `encode`."""
    return self.tail(self.encode(batch, train=train), omega, batch, train=train)


def build(config: ml_collections.ConfigDict) -> LFLSTM:
  """Builds the network for a corpus.

  Raises:
    UserError: a value out of range, or a modality or task without options.
  """
  model = config.model
  check_options(model, {}, ("hidden", "d", "post"))
  return LFLSTM(
    options=ml_collections.FrozenConfigDict(model),
    modalities=modalities_of(config, model.hidden),
    target=predicted(config),
  )


SYSTEM = System(build=build)
