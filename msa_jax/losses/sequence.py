"""Losses of predicted sequences: translations and reconstructions of a modality."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from msa_jax.errors import UserError
from msa_jax.layers.masking import masked_mean

DISTANCES = ("mse", "l1")


def sequence_error(
  prediction: Float[Array, "b t d"],
  target: Float[Array, "b t d"],
  mask: Bool[Array, "b t"],
  distance: str = "mse",
) -> Float[Array, " b"]:
  """Mean error of each sample over its real steps and their features.

  The targets of systems that translate or reconstruct a modality (MCTN, MFM) are the
  batch's own sequences, `batch.modalities[name]`; such a system returns the
  prediction in `ModelOutput.features` and this error, averaged, among its auxiliary
  losses.

  Args:
    prediction, target: sequences of one length.
    mask: True = real step of the target; the others have no influence.
    distance: one of `DISTANCES`.

  Returns:
    Per-example errors; zero where a sample has no real step.

  Raises:
    UserError: unknown distance.
  """
  if distance not in DISTANCES:
    raise UserError(f"distance={distance!r} must be one of {DISTANCES}.")
  steps = mask[..., None]
  difference = jnp.where(steps, prediction - target, 0.0).astype(jnp.float32)
  error = difference**2 if distance == "mse" else jnp.abs(difference)
  return masked_mean(jnp.mean(error, axis=-1), mask, axis=1)
