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
import ml_collections
from jaxtyping import Array, Bool, Float

from msa_jax.errors import UserError
from msa_jax.layers.masking import hide_unavailable
from msa_jax.models.outputs import OutputSpec, primary_output, shape_predictions
from msa_jax.models.system import Options
from msa_jax.typing import Batch, ModelOutput, Spec, modality_order

Features = Mapping[str, jax.Array]
Omega = Mapping[str, jax.Array] | None
COMPAT = {"compat": ("none", "mmsa")}


class LateFusion(nn.Module):
  """Encoders, last linear layers, fusion and head; abstract.

  A system makes `encoder` and `last` (by modality) and `head` in its `setup` and
  replaces what differs from plain concatenation: `project`, `fuse`, `finish`.

  Attributes:
    options: `config.model`, frozen; `compat` (if it has one) `mmsa` = every step of a
      sample counts, padding too, as MMSA reads.
    modalities: names in canonical order.
    target: the task predicted.
  """

  options: ml_collections.FrozenConfigDict
  modalities: tuple[str, ...]
  target: OutputSpec

  @nn.nowrap
  def read(self, batch: Batch) -> Batch:
    """What the system may see of a batch."""
    return read(batch, self.options.get("compat", "none") == "mmsa")

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

  def encode(self, batch: Batch, *, train: bool) -> dict[str, Float[Array, "b d"]]:
    """Modality -> input of its last linear layer."""
    modalities = self.read(batch).modalities
    return {
      name: encoder(modalities[name].features, modalities[name].mask, train=train)
      for name, encoder in self.encoder.items()
    }

  def tail(
    self, features: Features, omega: Omega, batch: Batch, *, train: bool
  ) -> ModelOutput:
    """Last linear layers, fusion, head.

    Args:
      features: from `encode`.
      omega: modality -> fusion weight of its features; None = 1.
      batch: says which modalities are there.

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
    predictions = {self.target.name: shape_predictions(self.target, values)}
    return ModelOutput(predictions, {**projected, **reported}, {}, {})

  def __call__(self, batch: Batch, *, train: bool, omega: Omega = None) -> ModelOutput:
    """`tail` of `encode`."""
    return self.tail(self.encode(batch, train=train), omega, batch, train=train)


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


def fusion_order(modalities: tuple[str, ...]) -> tuple[str, ...]:
  """MMSA's order in concatenations and products: text comes last."""
  text = tuple(name for name in modalities if name == "text")
  return tuple(name for name in modalities if name != "text") + text


def in_fusion_order(features: Features) -> list[jax.Array]:
  """Values of a mapping by modality, in `fusion_order`."""
  return [features[name] for name in fusion_order(modality_order(features))]


def build(
  network: type[LateFusion],
  options: Options,
  spec: Spec,
  choices: Mapping[str, tuple],
  positive: tuple[str, ...],
) -> Any:
  """Builds a late-fusion network for a corpus.

  Args:
    network: its class.
    options: of the system; `hidden`, if there, must name every modality.
    spec: of the corpus.
    choices, positive: see `check_options`.

  Raises:
    UserError: a value out of range, or a modality or task without options.
  """
  model = ml_collections.FrozenConfigDict(options)
  check_options(model, choices, positive)
  modalities = spec.modalities
  unknown = [name for name in modalities if name not in model.get("hidden", modalities)]
  if unknown:
    raise UserError(
      f"config.model.hidden has no width for modality {unknown[0]!r} (it has"
      f" {', '.join(sorted(model.hidden))}); choose with config.data.modalities."
    )
  return network(
    options=model,
    modalities=modalities,
    target=primary_output(options, spec),
  )


def check_options(
  model: ml_collections.FrozenConfigDict,
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


def _named(model: ml_collections.FrozenConfigDict, key: str):
  value = model[key]
  if isinstance(value, ml_collections.FrozenConfigDict):
    return [(f"{key}.{name}", entry) for name, entry in value.items()]
  return [(key, value)]
