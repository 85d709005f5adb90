"""A system of your own: it trains, evaluates, loads and predicts like the library's."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

import msa_jax
from msa_jax.layers.masking import masked_mean
from msa_jax.models import REGRESSION, OutputSpec, primary_output, shape_predictions
from msa_jax.typing import ModelOutput


class Mine(nn.Module):
  """Means of all modalities, through one hidden layer."""

  width: int = 16
  output: OutputSpec = REGRESSION

  @nn.compact
  def __call__(self, batch, *, train=False):
    read = [batch.modalities[name] for name in batch.order]
    means = [masked_mean(each.features, each.mask[..., None], 1) for each in read]
    hidden = nn.gelu(nn.Dense(self.width)(jnp.concatenate(means, axis=-1)))
    values = nn.Dense(self.output.num_outputs)(hidden)
    return ModelOutput({self.output.name: shape_predictions(self.output, values)})


def build(options, spec):
  return Mine(options.get("width", 16), primary_output(options, spec))


x, y = np.random.default_rng(0).normal(size=(60, 6, 8)), np.linspace(-3, 3, 60)
corpus = msa_jax.Corpus.from_arrays(
  train={"text": x + y[:, None, None]},
  valid={"text": x[::3] + y[::3, None, None]},
  labels={"sentiment": {"train": y, "valid": y[::3]}},
)

msa_jax.models.register("mine", msa_jax.models.System(build=build))
msa_jax.train("mine", corpus, "runs/b", options={"optim.epochs": 5})
print("valid", msa_jax.evaluate("runs/b", corpus)["valid"]["sentiment"]["mae"]["mean"])
print("predicted", msa_jax.Predictor("runs/b")(text=x[:3])["sentiment"])
