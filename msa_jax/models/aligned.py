"""Modalities step by step, as networks read them whose steps are words."""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from msa_jax.errors import UserError
from msa_jax.layers.windows import window_mean
from msa_jax.models.late_fusion.base import check_present, with_padding
from msa_jax.typing import Batch, Modality, Spec


class Aligned(NamedTuple):
  """Sequences of one common length.

  Attributes:
    features: modality -> [b t d], zero where hidden.
    masks: modality -> [b t], True = visible.
  """

  features: Mapping[str, Float[Array, "b t d"]]
  masks: Mapping[str, Bool[Array, "b t"]]

  @property
  def real(self) -> Bool[Array, "b t"]:
    """Steps at which any modality is visible."""
    return jnp.any(jnp.stack(list(self.masks.values())), axis=0)


def check_aligned(system: str, compat: str, spec: Spec) -> None:
  """Checks that a corpus has its modalities at the steps of its text.

  Args:
    system: its name, for the message.
    compat: of the system; `mmsa` averages frames in windows by itself.
    spec: of the corpus.

  Raises:
    UserError: a modality has more steps than the text, or modalities without text have
      different numbers of them.
  """
  steps = {name: spec.lengths[name] for name in spec.modalities}
  most = steps.get("text", min(steps.values()))
  if compat == "mmsa" or max(steps.values()) <= most:
    return
  found = ", ".join(f"{name} {number}" for name, number in steps.items())
  advice = "set --config.data.align=pool"
  if "text" not in steps:
    advice = "choose --config.data.modalities with text and --config.data.align=pool"
  raise UserError(
    f"{system} reads modalities step by step, but these have different steps ({found}):"
    f" {advice}."
  )


def aligned(batch: Batch, modalities: tuple[str, ...], compat: str) -> Aligned:
  """Modalities of a batch at common steps.

  Args:
    batch: what is absent is hidden.
    modalities: names in canonical order.
    compat: `none`: step i of one belongs to step i of the others, shorter ones are
      padded. `mmsa`: padding counts as steps, and frames are averaged in windows, one
      for each step of the text's padded sequence, if there are not as many already.

  Raises:
    UserError: the batch lacks a modality.
  """
  check_present(modalities, batch)
  if compat == "mmsa":
    batch = with_padding(batch)
  found = {name: batch.modalities[name] for name in modalities}
  steps = max(each.mask.shape[1] for each in found.values())
  if compat == "mmsa" and "text" in found:
    text = found["text"].mask
    made = {name: _windows(each, text) for name, each in found.items()}
  else:
    made = {name: _padded(each, steps) for name, each in found.items()}
  return Aligned(
    {name: values for name, (values, _) in made.items()},
    {name: mask for name, (_, mask) in made.items()},
  )


def _windows(modality: Modality, text: Array) -> tuple[Array, Array]:
  if modality.mask.shape == text.shape:
    return modality.features, modality.mask
  return window_mean(modality.features, modality.mask, text, repeat_last=True)


def _padded(modality: Modality, steps: int) -> tuple[Array, Array]:
  mask, more = modality.mask, steps - modality.mask.shape[1]
  values = jnp.where(mask[..., None], modality.features, 0.0)
  values = jnp.pad(values, ((0, 0), (0, more), (0, 0)))
  return values, jnp.pad(mask, ((0, 0), (0, more)))
