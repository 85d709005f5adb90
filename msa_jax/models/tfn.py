"""TFN: tensor fusion network, the outer product of the modalities' features.

Source: Zadeh et al., EMNLP 2017 (arXiv:1707.07250), with the sub-networks of MMSA
(thuiar/MMSA, singleTask/TFN.py).
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

# MMSA squashes every corpus's predictions into this range.
_COMPAT_RANGE = (-3.0, 3.0)


def options() -> ml_collections.ConfigDict:
  """Options of the model (`config.model`), as in MMSA for MOSI."""
  return ml_collections.ConfigDict(
    {
      "name": "tfn",
      "task": "auto",  # the task predicted; auto = sentiment, else emotion
      # mmsa: means and last states over all steps, padding too, and predictions in
      # [-3, 3] whatever the corpus, as in MMSA.
      "compat": "none",
      "hidden": {"text": 128, "audio": 32, "vision": 128},
      "text_out": 32,
      "post": 64,
      "dropout": {"text": 0.3, "audio": 0.3, "vision": 0.3, "post": 0.5},
    }
  )


def outer_product(parts: list[Float[Array, "b _"]]) -> Float[Array, "b c"]:
  """Flattened outer product of [1; h] over `parts`; the last one varies fastest.

  Args:
    parts: [b d_i] each.

  Returns:
    [b c] with c the product of d_i + 1.
  """
  fused = jnp.ones((len(parts[0]), 1), parts[0].dtype)
  for part in parts:
    extended = jnp.concatenate([jnp.ones_like(part[:, :1]), part], axis=-1)
    fused = jnp.einsum("bi,bj->bij", fused, extended).reshape(len(part), -1)
  return fused


class TFN(nn.Module):
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
    """Last linear layers, outer product, head.

    Regression is squashed into the task's range by a sigmoid.

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
    fused = outer_product(
      [
        weigh(omega, name, present[name], projected[name])
        for name in fusion_order(self.modalities)
      ]
    )
    values = self.head(fused, train=train)
    if self.target.kind == "regression":
      low, high = (
        _COMPAT_RANGE
        if self.options.compat == "mmsa"
        else (self.target.low, self.target.high)
      )
      values = low + (high - low) * nn.sigmoid(values)
    predictions = {self.target.name: shape_predictions(self.target, values)}
    return ModelOutput(predictions, dict(projected), {}, {})

  def __call__(self, batch: Batch, *, train: bool, omega: Omega = None) -> ModelOutput:
    """`tail` of `encode`."""
    return self.tail(self.encode(batch, train=train), omega, batch, train=train)


def build(config: ml_collections.ConfigDict) -> TFN:
  """Builds the network for a corpus.

  Raises:
    UserError: a value out of range, or a modality or task without options.
  """
  model = config.model
  check_options(model, {"compat": ("none", "mmsa")}, ("hidden", "text_out", "post"))
  return TFN(
    options=ml_collections.FrozenConfigDict(model),
    modalities=modalities_of(config, model.hidden),
    target=predicted(config),
  )


SYSTEM = System(build=build)
