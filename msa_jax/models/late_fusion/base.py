"""Late fusion: what AWF, LF-DNN, LF-LSTM and TFN have in common.

A late-fusion system is split in two, so that fusion weights can be trained around it
(`step.balance.recipe`): `encode` gives the input of each modality's last linear layer,
`tail` everything after. By convention the last linear of modality m is the submodule
`last_<m>` and the rest of its network `encoder_<m>`.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from msa_jax.errors import UserError
from msa_jax.models.outputs import REGRESSION, OutputSpec, shape_predictions
from msa_jax.typing import MODALITIES, Batch, ModelOutput, modality_order

Features = Mapping[str, jax.Array]
Omega = Mapping[str, jax.Array] | None
COMPAT = ("none", "mmsa")
# What the study `tune` searches of systems with a rate for each modality.
DROPOUTS = {
  **{f"model.dropout.{name}": "0..0.6" for name in MODALITIES},
  "model.post_dropout": "0..0.6",
}


class LateFusion(nn.Module):
  """Encoders, last linear layers, fusion and head; abstract.

  A system makes `encoder` and `last` (by modality) and `head` in its `setup` and
  replaces what differs from plain concatenation: `read`, `project`, `fuse`, `finish`.

  Attributes:
    output: the task predicted.
    modalities: names in canonical order; every batch must have them.
  """

  output: OutputSpec = REGRESSION
  modalities: tuple[str, ...] = MODALITIES

  @nn.nowrap
  def read(self, batch: Batch) -> Batch:
    """The batch with the steps that count."""
    return batch

  def project(self, features: Features) -> dict[str, Float[Array, "b d"]]:
    """Last linear layer of each modality."""
    return {name: self.last[name](features[name]) for name in self.modalities}

  def fuse(
    self,
    weighted: Features,
    projected: Features,
    present: Mapping[str, Bool[Array, " b"]],
  ) -> tuple[Float[Array, "b d"], dict[str, Array]]:
    """The head's input, and further features to report.

    Args:
      weighted: modality -> its features under its fusion weight; zero where absent.
      projected: the same without the weight.
      present: modality -> which samples have it.
    """
    del projected, present
    fused = jnp.concatenate(in_fusion_order(weighted), axis=-1)
    return fused, {"fused": fused}

  @nn.nowrap
  def finish(self, values: Float[Array, "b c"]) -> Float[Array, "b c"]:
    """The prediction from the head's output."""
    return values

  def encode(
    self, batch: Batch, *, train: bool = False
  ) -> dict[str, Float[Array, "b d"]]:
    """Modality -> input of its last linear layer.

    Raises:
      UserError: the batch lacks a modality.
    """
    check_present(self.modalities, batch)
    modalities = self.read(batch).modalities
    return {
      name: encoder(modalities[name].features, modalities[name].mask, train=train)
      for name, encoder in self.encoder.items()
    }

  def tail(
    self, features: Features, omega: Omega, batch: Batch, *, train: bool = False
  ) -> ModelOutput:
    """Last linear layers, fusion, head.

    Args:
      features: from `encode`.
      omega: modality -> fusion weight of its features; None = 1.
      batch: its masks say which modalities a sample has.
      train: whether dropout happens.

    Returns:
      `features`: each modality's [b d], and what `fuse` reports.
    """
    present = presence(self.read(batch))
    projected = {
      name: jnp.where(present[name][:, None], values, 0.0)
      for name, values in self.project(features).items()
    }
    weighted = projected
    if omega is not None:
      weighted = {name: omega[name] * values for name, values in projected.items()}
    fused, reported = self.fuse(weighted, projected, present)
    values = self.finish(self.head(fused, train=train))
    predictions = {self.output.name: shape_predictions(self.output, values)}
    return ModelOutput(predictions, {**projected, **reported})

  def __call__(
    self, batch: Batch, *, train: bool = False, omega: Omega = None
  ) -> ModelOutput:
    """Predicts one task: `tail` of `encode`.

    Args:
      batch: has every modality of the network; what is absent is hidden.
      train: whether dropout is used.
      omega: modality -> its fusion weight, as B-fusion trains them; None = all one.

    Raises:
      UserError: the batch lacks a modality.
    """
    return self.tail(self.encode(batch, train=train), omega, batch, train=train)


def check_present(modalities: tuple[str, ...], batch: Batch) -> None:
  """Raises UserError where a batch lacks a modality that a network reads."""
  lacking = [name for name in modalities if name not in batch.modalities]
  if lacking:
    raise UserError(
      f"the batch has no {lacking[0]}, only {', '.join(batch.order)}: make the model"
      " with modalities=(...) that the batches have."
    )


def check_by_modality(network: Any, *names: str, but: tuple[str, ...] = ()) -> None:
  """Checks fields that hold one entry per modality.

  Args:
    network: with the fields, and `modalities`.
    names: of the fields.
    but: modalities that need none.

  Raises:
    UserError: a modality without an entry.
  """
  for name in names:
    entries = getattr(network, name)
    needed = [each for each in network.modalities if each not in but]
    lacking = [each for each in needed if each not in entries]
    if lacking:
      raise UserError(
        f"model.{name} has no entry for modality {lacking[0]!r} (it has"
        f" {', '.join(sorted(entries))}); choose with config.data.modalities."
      )


def with_padding(batch: Batch) -> Batch:
  """The batch as MMSA reads it: every step of a real sample counts.

  Padding, and modalities that are unavailable, are then sequences of zeros.
  """
  real = batch.sample_mask[:, None]
  modalities = {
    name: each.replace(mask=jnp.broadcast_to(real, each.mask.shape))
    for name, each in batch.modalities.items()
  }
  return batch.replace(modalities=modalities)


def presence(batch: Batch) -> dict[str, Bool[Array, " b"]]:
  """Modality -> which samples have a step of it that counts."""
  return {name: jnp.any(each.mask, axis=1) for name, each in batch.modalities.items()}


def fusion_order(modalities: tuple[str, ...]) -> tuple[str, ...]:
  """MMSA's order in concatenations and products: text comes last."""
  text = tuple(name for name in modalities if name == "text")
  return tuple(name for name in modalities if name != "text") + text


def in_fusion_order(features: Features) -> list[jax.Array]:
  """Values of a mapping by modality, in `fusion_order`."""
  return [features[name] for name in fusion_order(modality_order(features))]
