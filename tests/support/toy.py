"""A linear system and a tiny corpus: what the trainer's tests train."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from changes import change

from msa_jax import config as config_lib
from msa_jax.layers.masking import masked_mean
from msa_jax.layers.moe import MixtureOfExperts
from msa_jax.layers.normalization import MaskedBatchNorm
from msa_jax.layers.routing import route
from msa_jax.models.system import System
from msa_jax.typing import Corpus, ModelOutput, Sequences, Split, Task


class LinearModel(nn.Module):
  """Masked means, concatenated, dropout, one linear unit; a gate for show."""

  dropout: float

  @nn.compact
  def __call__(self, batch, *, train=False):
    pooled = [
      masked_mean(
        batch.modalities[name].features, batch.modalities[name].mask[..., None], 1
      )
      for name in batch.order
    ]
    features = jnp.concatenate(pooled, axis=-1)
    features = nn.Dropout(self.dropout, deterministic=not train)(features)
    prediction = nn.Dense(1)(features)[:, 0]
    gate = route(nn.Dense(3, name="gate")(features))
    seen = self.variable("statistics", "batches", lambda: jnp.zeros((), jnp.int32))
    if train:
      seen.value = seen.value + 1
    return ModelOutput(
      predictions={"sentiment": prediction},
      features={"pooled": features},
      routing={"gate": gate},
      losses={"size": jnp.mean(prediction**2)},
    )


class MixedModel(nn.Module):
  """Statistics and routing over the batch, experts in a bank."""

  @nn.compact
  def __call__(self, batch, *, train=False):
    text = batch.modalities["text"]
    pooled = masked_mean(text.features, text.mask[..., None], 1)
    pooled = MaskedBatchNorm(not train, 0.9, 1e-5)(pooled, batch.sample_mask)
    pooled = nn.Dropout(0.1, deterministic=not train)(pooled)
    mixture = MixtureOfExperts(
      nn.Dense(6), 4, k=2, dispatch="capacity", capacity_factor=2.0
    )
    mixed = mixture(pooled, mask=batch.sample_mask)
    prediction = nn.Dense(1)(nn.tanh(mixed.outputs))[:, 0]
    probs = mixed.routing.probs
    load = jnp.sum(jnp.mean(probs, axis=0) ** 2)
    return ModelOutput(
      {"sentiment": prediction}, {}, {"gate": mixed.routing}, {"size": load}
    )


SYSTEM = System(
  build=lambda options, spec: LinearModel(options["dropout"]),
  partition=lambda path: "gate" if path[0] == "gate" else "new",
)


def config(**optim):
  """An experiment of the toy system; keywords override `config.optim`."""
  made = config_lib.base({"name": "toy", "dropout": 0.1})
  made.loss.size = 0.01
  options = {"learning_rate": 0.05, "learning_rates": {"gate": 0.01}, "epochs": 4}
  return change(made, optim={**options, "batch_size": 8, **optim})


def corpus(sizes=(37, 11, 13), seed=0, labelled=True):
  """Two modalities whose means add up to the sentiment, plus noise."""
  random = np.random.default_rng(seed)
  splits = {}
  for name, size in zip(("train", "valid", "test"), sizes, strict=True):
    sentiment = random.uniform(-3, 3, size)
    modalities = {}
    for modality, width, steps in (("text", 4, 6), ("audio", 3, 5)):
      lengths = random.integers(1, steps + 1, size).astype(np.int32)
      features = random.normal(size=(size, steps, width)) * 0.3
      features[..., 0] += sentiment[:, None] / 2
      features[np.arange(steps)[None] >= lengths[:, None]] = 0.0
      modalities[modality] = Sequences(features.astype(np.float32), lengths)
    splits[name] = Split(
      ids=np.asarray([f"v{i // 3}$_${name}{i}" for i in range(size)]),
      modalities=modalities,
      labels={"sentiment": sentiment.astype(np.float32)} if labelled else {},
    )
  tasks = {"sentiment": Task("regression", -3.0, 3.0, protocol="mosi")}
  return Corpus("toy", splits, tasks if labelled else {})
