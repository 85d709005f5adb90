"""Networks that late-fusion systems are made of: one per modality, and the head."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from msa_jax.layers.dropout import Dropout
from msa_jax.layers.masking import masked_mean, pool_steps
from msa_jax.layers.normalization import MaskedBatchNorm
from msa_jax.layers.recurrent import LSTM

TEXT_ENCODERS = ("lstm", "mean", "first")  # of MMSA's systems
# Of the torch modules that MMSA's are made of.
BATCH_NORM_EPSILON = 1e-5
BATCH_NORM_MOMENTUM = 0.9


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
    return Dropout(self.dropout, not train)(pool_steps(values, mask, self.pool))


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
    num_outputs: units of the linear layer.
    dropout: rate on the input.
  """

  widths: tuple[int, ...]
  num_outputs: int
  dropout: float

  @nn.compact
  def __call__(
    self, values: Float[Array, "b d"], *, train: bool
  ) -> Float[Array, "b c"]:
    values = Dropout(self.dropout, not train)(values)
    for index, width in enumerate(self.widths):
      values = nn.relu(nn.Dense(width, name=f"hidden_{index}")(values))
    return nn.Dense(self.num_outputs, name="out")(values)


def mmsa_networks(
  modalities: tuple[str, ...],
  hidden_dims: Mapping[str, int],
  dropout: Mapping[str, float],
  text_dim: int,
  text_encoder: str = "lstm",
) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
  """Unimodal networks of MMSA's TFN and LF-DNN: encoders and last linears.

  Text goes through an LSTM and a linear layer, every other modality through the mean
  over time and dense layers.

  Args:
    modalities: names in canonical order.
    hidden_dims: modality -> units of its encoder.
    dropout: modality -> rate.
    text_dim: units of the text's last linear; others have those of their encoder.
    text_encoder: of `TEXT_ENCODERS`; pooled text has no units but its own.
  """
  encoders, last = {}, {}
  for name in modalities:
    if name == "text" and text_encoder != "lstm":
      encoders[name] = StepEncoder(text_encoder, dropout[name])
    else:
      kind = RecurrentEncoder if name == "text" else DenseEncoder
      encoders[name] = kind(hidden_dims[name], dropout[name])
    last[name] = nn.Dense(text_dim if name == "text" else hidden_dims[name])
  return encoders, last


def mmsa_head(width: int, num_outputs: int, dropout: float) -> Head:
  """The head of MMSA's late-fusion systems: two ReLU layers of `width` units."""
  return Head((width, width), num_outputs, dropout)


def rectify(projected: Mapping[str, jax.Array]) -> dict[str, Float[Array, "b d"]]:
  """ReLU after the last linear of every modality but text, as in MMSA."""
  return {
    name: values if name == "text" else nn.relu(values)
    for name, values in projected.items()
  }
