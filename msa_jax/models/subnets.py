"""What late-fusion systems share: unimodal networks, the head, the task's form.

A late-fusion system is split in two, so that fusion weights can be trained around it
(`train.balance`): `encode` gives the input of each modality's last linear layer,
`tail` everything after. By convention the last linear of modality m is the submodule
`last_<m>` and the rest of its network `encoder_<m>`.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Bool, Float

from msa_jax.layers.dropout import Dropout
from msa_jax.layers.masking import hide_unavailable, masked_mean
from msa_jax.layers.normalization import MaskedBatchNorm
from msa_jax.layers.recurrent import LSTM
from msa_jax.typing import Batch, UserError, modality_order

# Of the torch modules that MMSA's are made of.
BATCH_NORM_EPSILON = 1e-5
BATCH_NORM_MOMENTUM = 0.9

Features = Mapping[str, jax.Array]
Omega = Mapping[str, jax.Array] | None


def check_options(
  model: ml_collections.ConfigDict,
  choices: Mapping[str, tuple],
  positive: tuple[str, ...],
) -> None:
  """Checks options that every late-fusion system has, and those named.

  Args:
    model: `config.model`; its `dropout` is one rate or rates by name.
    choices: option -> allowed values.
    positive: options that must be at least 1; widths by modality are checked each.

  Raises:
    UserError: a value that is not allowed.
  """
  for key, allowed in choices.items():
    if model[key] not in allowed:
      raise UserError(f"model.{key}={model[key]!r}: choose one of {allowed}")
  for key in positive:
    for label, value in _named(model, key):
      if value < 1:
        raise UserError(f"model.{label}={value}: must be at least 1")
  for label, rate in _named(model, "dropout"):
    if not 0.0 <= rate < 1.0:
      raise UserError(f"model.{label}={rate}: must be in [0, 1)")


def _named(model: ml_collections.ConfigDict, key: str):
  value = model[key]
  if isinstance(value, ml_collections.ConfigDict):
    return [(f"{key}.{name}", entry) for name, entry in value.items()]
  return [(key, value)]


def modalities_of(
  config: ml_collections.ConfigDict, options: ml_collections.ConfigDict
) -> tuple[str, ...]:
  """The corpus's modalities in order, each of which `options` must name.

  Raises:
    UserError: a modality without an entry.
  """
  names = modality_order(config.spec.widths)
  unknown = [name for name in names if name not in options]
  if unknown:
    raise UserError(
      f"config.model.hidden has no width for modality {unknown[0]!r} (it has"
      f" {', '.join(sorted(options))}); choose with config.data.modalities."
    )
  return names


def read(batch: Batch, compat: bool = False) -> Batch:
  """What a late-fusion system may see of a batch.

  Args:
    batch: any batch of utterances.
    compat: True = as MMSA reads: every step of a real sample counts, padding too, and
      an unavailable modality is a sequence of zeros.
  """
  real = batch.sample_mask[:, None]
  batch = hide_unavailable(batch)
  if not compat:
    return batch
  modalities = {
    name: each.replace(mask=jnp.broadcast_to(real, each.mask.shape))
    for name, each in batch.modalities.items()
  }
  return batch.replace(modalities=modalities)


def presence(batch: Batch) -> dict[str, Bool[Array, " b"]]:
  """Modality -> which samples have a visible step of it; `batch` is from `read`."""
  return {name: jnp.any(each.mask, axis=1) for name, each in batch.modalities.items()}


def weigh(
  omega: Omega, name: str, present: Bool[Array, " b"], values: Float[Array, "b d"]
) -> Float[Array, "b d"]:
  """A modality's features under its fusion weight; zero where it is absent."""
  values = jnp.where(present[:, None], values, 0.0)
  return values if omega is None else omega[name] * values


class StepEncoder(nn.Module):
  """One vector of a sequence without a recurrent network, then dropout.

  Attributes:
    pool: `mean` over the visible steps, or `first` (a sentence token such as BERT's).
    dropout: rate on the vector.
  """

  pool: str
  dropout: float

  @nn.compact
  def __call__(
    self, values: Float[Array, "b t d"], mask: Bool[Array, "b t"], *, train: bool
  ) -> Float[Array, "b c"]:
    """Zero for a row without a visible step."""
    if self.pool == "first":
      mask = mask & (jnp.cumsum(mask, axis=1) == 1)
    values = masked_mean(values, mask[..., None], 1)
    return Dropout(self.dropout, not train)(values)


class RecurrentEncoder(nn.Module):
  """Last valid state of a one-directional LSTM, then dropout.

  Attributes:
    hidden: width of the state.
    dropout: rate on the state.
  """

  hidden: int
  dropout: float

  @nn.compact
  def __call__(
    self, values: Float[Array, "b t d"], mask: Bool[Array, "b t"], *, train: bool
  ) -> Float[Array, "b c"]:
    """Zero for a row without a visible step."""
    _, last = LSTM(self.hidden, name="lstm")(values, mask)
    return Dropout(self.dropout, not train)(last)


class DenseEncoder(nn.Module):
  """Mean over time, batch norm, dropout and two of MMSA's three ReLU layers.

  Attributes:
    hidden: width of the layers.
    dropout: rate after the norm.
  """

  hidden: int
  dropout: float

  @nn.compact
  def __call__(
    self, values: Float[Array, "b t d"], mask: Bool[Array, "b t"], *, train: bool
  ) -> Float[Array, "b c"]:
    """Rows without a visible step do not enter the statistics."""
    pooled = masked_mean(values, mask[..., None], 1)
    norm = MaskedBatchNorm(
      not train, BATCH_NORM_MOMENTUM, BATCH_NORM_EPSILON, name="norm"
    )
    pooled = norm(pooled, jnp.any(mask, axis=1))
    hidden = Dropout(self.dropout, not train)(pooled)
    for index in (1, 2):
      hidden = nn.relu(nn.Dense(self.hidden, name=f"linear_{index}")(hidden))
    return hidden


class Head(nn.Module):
  """Dropout, ReLU layers, a linear layer.

  Attributes:
    widths: of the ReLU layers; () = the linear layer alone.
    n_outputs: units of the linear layer.
    dropout: rate on the input.
  """

  widths: tuple[int, ...]
  n_outputs: int
  dropout: float

  @nn.compact
  def __call__(
    self, values: Float[Array, "b d"], *, train: bool
  ) -> Float[Array, "b c"]:
    values = Dropout(self.dropout, not train)(values)
    for index, width in enumerate(self.widths):
      values = nn.relu(nn.Dense(width, name=f"hidden_{index}")(values))
    return nn.Dense(self.n_outputs, name="out")(values)


def encode_each(
  encoders: Mapping[str, nn.Module], batch: Batch, train: bool
) -> dict[str, Float[Array, "b d"]]:
  """Runs every modality's encoder; `batch` is from `read`."""
  return {
    name: encoder(
      batch.modalities[name].features, batch.modalities[name].mask, train=train
    )
    for name, encoder in encoders.items()
  }


def fusion_order(modalities: tuple[str, ...]) -> tuple[str, ...]:
  """MMSA's order in concatenations and products: text comes last."""
  text = tuple(name for name in modalities if name == "text")
  return tuple(name for name in modalities if name != "text") + text


def mmsa_networks(
  options: ml_collections.FrozenConfigDict, modalities: tuple[str, ...]
) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
  """Unimodal networks of MMSA's TFN and LF-DNN: encoders and last linears.

  Text goes through an LSTM and a linear layer, every other modality through the mean
  over time and dense layers.

  Args:
    options: `hidden` and `dropout` by modality, `text_out`.
    modalities: names in canonical order.
  """
  encoders, last = {}, {}
  for name in modalities:
    kind = RecurrentEncoder if name == "text" else DenseEncoder
    encoders[name] = kind(options.hidden[name], options.dropout[name])
    width = options.text_out if name == "text" else options.hidden[name]
    last[name] = nn.Dense(width)
  return encoders, last


def mmsa_project(
  last: Mapping[str, nn.Module], features: Features
) -> dict[str, Float[Array, "b d"]]:
  """Last linear of each modality; ReLU after it for all but text."""
  projected = {name: last[name](values) for name, values in features.items()}
  return {
    name: values if name == "text" else nn.relu(values)
    for name, values in projected.items()
  }
