"""LF-DNN: late fusion of dense networks and a text LSTM, by concatenation.

Source: MMSA (thuiar/MMSA, singleTask/LF_DNN.py), Yu et al., ACL 2020 (CH-SIMS).
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
  check_options,
  encode_each,
  fusion_order,
  mmsa_networks,
  mmsa_project,
  modalities_of,
  presence,
  read,
  weigh,
)
from msa_jax.typing import Batch, ModelOutput


def options() -> ml_collections.ConfigDict:
  """Options of the model (`config.model`), as in MMSA for MOSI."""
  return ml_collections.ConfigDict(
    {
      "name": "lf_dnn",
      "task": "auto",  # the task predicted; auto = sentiment, else emotion
      # mmsa: means and last states over all steps, padding too, as in MMSA.
      "compat": "none",
      "hidden": {"text": 128, "audio": 16, "vision": 128},
      "text_out": 256,
      "post": 128,
      "dropout": {"text": 0.2, "audio": 0.2, "vision": 0.2, "post": 0.2},
    }
  )


class LFDNN(nn.Module):
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
    self.encoder, self.last = mmsa_networks(options, self.modalities)
    widths = (options.post, options.post)
    self.head = Head(widths, self.target.n_outputs, options.dropout.post)

  @nn.nowrap
  def _read(self, batch: Batch) -> Batch:
    return read(batch, self.options.compat == "mmsa")

  def encode(self, batch: Batch, *, train: bool) -> dict[str, Float[Array, "b d"]]:
    """Modality -> input of its last linear layer."""
    return encode_each(self.encoder, self._read(batch), train)

  def tail(
    self, features: Features, omega: Omega, batch: Batch, *, train: bool
  ) -> ModelOutput:
    """Last linear layers, concatenation, head.

    Args:
      features: from `encode`.
      omega: modality -> fusion weight of its features; None = 1.
      batch: says which modalities are there.
    """
    present = presence(self._read(batch))
    projected = {
      name: weigh(None, name, present[name], values)
      for name, values in mmsa_project(self.last, features).items()
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


def build(config: ml_collections.ConfigDict) -> LFDNN:
  """Builds the network for a corpus.

  Raises:
    UserError: a value out of range, or a modality or task without options.
  """
  model = config.model
  check_options(model, {"compat": ("none", "mmsa")}, ("hidden", "text_out", "post"))
  return LFDNN(
    options=ml_collections.FrozenConfigDict(model),
    modalities=modalities_of(config, model.hidden),
    target=predicted(config),
  )


SYSTEM = System(build=build)
