"""A system as somebody else would write it: one network, no `task`, no config file."""

import flax.linen as nn
import jax.numpy as jnp

from msa_jax import models
from msa_jax.layers.masking import masked_mean
from msa_jax.typing import ModelOutput


class Mine(nn.Module):
  """Masked means of all modalities through a hidden layer.

  Attributes:
    width: of the hidden layer.
    output: the task predicted.
    leak: what the model does wrong.
  """

  width: int = 8
  output: models.OutputSpec = models.REGRESSION
  leak: str = ""

  @nn.compact
  def __call__(self, batch, *, train=False):
    means = []
    for name in batch.order:
      modality = batch.modalities[name]
      mask = modality.mask[..., None]
      mean = masked_mean(modality.features, mask, 1)
      if self.leak == "padding":
        mean = jnp.mean(modality.features, axis=1)
      if self.leak == "ids" and "codes" in modality.ids:
        mean = mean + jnp.mean(modality.ids["codes"], axis=1)[:, None]
      means.append(mean)
    hidden = nn.tanh(nn.Dense(self.width)(jnp.concatenate(means, axis=-1)))
    if self.leak == "rows":
      hidden = hidden - jnp.mean(hidden, axis=0, keepdims=True)
    if self.leak == "labels" and "sentiment" in batch.labels:
      hidden = hidden + batch.labels["sentiment"].value[:, None]
    if self.leak == "blind":
      hidden = jnp.zeros_like(hidden)
    if self.leak == "idle":
      self.param("idle", nn.initializers.ones, (2,))
    values = nn.Dense(self.output.num_outputs)(hidden)
    losses = {"size": jnp.mean(values**2)} if self.leak == "filler" else {}
    predictions = models.shape_predictions(self.output, values)
    if self.leak == "infinite":
      predictions = predictions / 0.0
    if self.leak == "shape":
      predictions = values
    return ModelOutput({self.output.name: predictions}, losses=losses)


def build(options, spec):
  """Takes what it knows of the options, as a plain function may."""
  return Mine(options.get("width", 8), models.primary_output(options, spec))


SYSTEM = models.System(build=build)
