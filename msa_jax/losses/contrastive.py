"""Contrastive losses: what belongs together is to be more alike than what does not.

Rows whose mask is False are neither anchors nor candidates. A batch without rows that
count gives zero, with zero gradient.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from msa_jax.layers.masking import masked_mean

_FLOOR = 1e-24  # below the root of a squared norm, whose gradient at 0 is infinite


def unit_rows(values: Float[Array, "... d"]) -> Float[Array, "... d"]:
  """Rows divided by their norms; zero rows stay zero."""
  square = jnp.sum(values**2, axis=-1, keepdims=True)
  there = square > _FLOOR
  return jnp.where(there, values / jnp.sqrt(jnp.where(there, square, 1.0)), 0.0)


def predictive_coding(
  targets: Float[Array, "b d"], predicted: Float[Array, "b d"], mask: Bool[Array, " b"]
) -> Float[Array, ""]:
  """InfoNCE of unit vectors: every target is to be told by its own prediction.

  mean_i [ log sum_j exp <x_i, p_j> - <x_i, p_i> ], in nats, without a temperature.

  Args:
    targets: x, normalised here.
    predicted: p, normalised here.
    mask: rows that count.

  Source: CPC (van den Oord et al., 2018), Eq. 4, in the form of MMIM (Han et al., EMNLP
  2021), Eq. 9.
  """
  rows = mask[:, None]
  targets = unit_rows(jnp.where(rows, targets, 0.0))
  predicted = unit_rows(jnp.where(rows, predicted, 0.0))
  scores = targets @ predicted.T  # [b b]
  # No candidate at all would be minus infinity, and NaN in the gradient.
  candidates = mask[None] | ~rows
  total = jax.nn.logsumexp(jnp.where(candidates, scores, -jnp.inf), axis=1)
  return masked_mean(total - jnp.diagonal(scores), mask, 0)


def supervised_contrastive(
  views: Float[Array, "v b d"],
  classes: Int[Array, " b"],
  mask: Bool[Array, " b"],
  temperature: float = 0.07,
) -> Float[Array, ""]:
  """Supervised contrastive loss of unit vectors, several views of each sample.

  Anchors are all v * b vectors; with lp_ij = s_ij / tau - log sum_{k != i} exp(s_ik /
  tau), an anchor's loss is minus the sum of lp_ij over its positives (other vectors of
  its class), divided by their number plus one. Without labels (SimCLR) give every
  sample a class of its own.

  Args:
    views: unit vectors, or such that are to be compared as they are.
    classes: any integers; equal = same class.
    mask: samples that count.
    temperature: tau.

  Source: Khosla et al., NeurIPS 2020, Eq. 2, with the denominator of HGraph-CL (Lin et
  al., COLING 2022), which an anchor without positives needs.
  """
  n_views, n_batch, width = views.shape
  real = jnp.tile(mask, n_views)
  flat = jnp.where(real[:, None], views.reshape(-1, width), 0.0)
  kinds = jnp.tile(classes, n_views)
  scores = (flat @ flat.T) / temperature
  same = kinds[:, None] == kinds[None]
  others = ~jnp.eye(n_views * n_batch, dtype=bool) & real[:, None] & real[None]
  # An anchor that is alone has no candidate: its own score stands in, and counts not.
  candidates = others | ~jnp.any(others, axis=1, keepdims=True)
  total = jax.nn.logsumexp(jnp.where(candidates, scores, -jnp.inf), axis=1)
  positive = same & others
  logs = jnp.where(positive, scores - total[:, None], 0.0)
  each = -jnp.sum(logs, axis=1) / (jnp.sum(positive, axis=1) + 1)
  return masked_mean(each, real, 0)
