"""Losses and measures of routing: pure functions, filler rows count nowhere.

`mask` is always the real rows, [n] bool, None = all. A row that has no available
expert (its probabilities are all zero) counts nowhere either. Every function gives
zero, with zero gradient, when no row counts.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from msa_jax.layers.masking import masked_mean
from msa_jax.losses import distributions
from msa_jax.typing import Routing


def load_balance(routing: Routing, mask: Bool[Array, " n"] | None = None) -> Array:
  """e * sum_e f_e P_e (Fedus et al. 2021, Eq. 4), with f normalised to sum to 1.

  f_e is the share of all selections that went to expert e (no gradient), P_e the
  mean probability of e. Perfectly uniform routing gives exactly 1 for every k; all
  rows to one expert with probability p give e * p.

  Returns:
    [] float32.
  """
  probs = routing.probs
  rows = _rows(probs, mask)
  selected = ((routing.combine > 0) & rows[:, None]).astype(jnp.float32)  # [n e]
  # e * f_e first: it is exactly 1 for an even load, whatever e.
  load = probs.shape[-1] * jnp.sum(selected, axis=0)
  load = load / jnp.maximum(jnp.sum(selected), 1.0)
  mean = masked_mean(probs, _like(rows, probs), axis=0)  # [e]
  return jnp.sum(jax.lax.stop_gradient(load) * mean)


def router_z(routing: Routing, mask: Bool[Array, " n"] | None = None) -> Array:
  """Mean squared log-sum-exp of the logits (Zoph et al. 2022, ST-MoE, Eq. 5).

  Logits of candidates that are not available have no influence.

  Returns:
    [] float32.
  """
  rows = _rows(routing.probs, mask)
  # Probabilities are exactly zero where a candidate is not available; one that
  # underflows to zero adds nothing to the sum either.
  present = (routing.probs > 0) & rows[:, None]
  log_sum = _masked_logsumexp(routing.logits, present)  # [n]
  return masked_mean(log_sum**2, rows, axis=0)


def importance_cv2(
  probs: Float[Array, "n e"], mask: Bool[Array, " n"] | None = None
) -> Float[Array, ""]:
  """Squared coefficient of variation of the experts' summed probabilities.

  (standard deviation / mean)^2 over experts, population variance (Shazeer et al.
  2017, Eq. 6-7). 0 = even; e - 1 = all on one expert.
  """
  rows = _rows(probs, mask)
  return _cv2(jnp.sum(jnp.where(rows[:, None], probs, 0.0), axis=0))


def load_cv2(routing: Routing, mask: Bool[Array, " n"] | None = None) -> Array:
  """Squared coefficient of variation of how often each expert is selected.

  Counts have no gradient: this is a measure to log, not to train on.

  Returns:
    [] float32; 0 = even, e - 1 = all rows to one expert (k = 1).
  """
  rows = _rows(routing.probs, mask)
  selected = (routing.combine > 0) & rows[:, None]
  return _cv2(jnp.sum(selected, axis=0).astype(jnp.float32))


def entropy(
  probs: Float[Array, "*n e"],
  mask: Bool[Array, "*n"] | None = None,
  base: str = "nats",
  normalised: bool = False,
) -> Float[Array, "*n"]:
  """Entropy of each row, -sum_e p_e log p_e; zero for rows that do not count.

  Args:
    probs: distributions over experts; dense probabilities or combine weights.
    mask: True = real row.
    base: unit, `nats` or `bits`.
    normalised: divide by the greatest possible value, log e; result in [0, 1],
      whatever the unit (0 if there is a single expert).

  Raises:
    UserError: unknown base.
  """
  rows = _rows(probs, mask)
  return jnp.where(rows, _entropy(probs, base, normalised), 0.0)


def router_entropy(
  probs: Float[Array, "n e"],
  mask: Bool[Array, " n"] | None = None,
  base: str = "nats",
  normalised: bool = False,
) -> Float[Array, ""]:
  """Mean of the rows' entropies: how undecided the router is; see `entropy`."""
  rows = _rows(probs, mask)
  return masked_mean(entropy(probs, mask, base, normalised), rows, axis=0)


def load_entropy(
  probs: Float[Array, "n e"],
  mask: Bool[Array, " n"] | None = None,
  base: str = "nats",
  normalised: bool = False,
) -> Float[Array, ""]:
  """Entropy of the rows' mean distribution: how evenly experts are used.

  A collapsed router has both entropies low; one that decides firmly and uses all
  experts has `router_entropy` low and this one high.
  """
  rows = _rows(probs, mask)
  return _entropy(masked_mean(probs, _like(rows, probs), axis=0), base, normalised)


def routing_information(
  probs: Float[Array, "n e"],
  mask: Bool[Array, " n"] | None = None,
  base: str = "nats",
  normalised: bool = False,
) -> Float[Array, ""]:
  """Mutual information of row and expert: `load_entropy` - `router_entropy`, >= 0."""
  load = load_entropy(probs, mask, base, normalised)
  return load - router_entropy(probs, mask, base, normalised)


def discriminative(
  weights: Float[Array, "n e"],
  classes: Int[Array, " n"],
  mask: Bool[Array, " n"] | None = None,
) -> Float[Array, ""]:
  """Route discrimination (H-GEM, Eq. 10): like routes for like labels.

  mean over pairs of one class of |w_i - w_j|^2 minus the mean over pairs of two
  classes. Pairs (i, i) are excluded; an empty set of pairs contributes zero. The
  sums over pairs are taken through the class means (sum over ordered pairs of a
  class = 2 n_c sum_i |w_i - mean_c|^2), so memory is [n n] and [n e], not [n n e].

  Args:
    weights: routing distribution of each row.
    classes: any integers; equal = same class.
    mask: True = real row that has a class.

  Returns:
    Loss in [-2, 2].
  """
  real = jnp.ones(classes.shape, bool) if mask is None else mask
  weights = jnp.where(real[:, None], weights.astype(jnp.float32), 0.0)
  same = (classes[:, None] == classes[None, :]) & real[:, None] & real[None, :]
  same = same.astype(jnp.float32)
  size = jnp.sum(same, axis=1)  # [n], members of the row's class
  total = jnp.sum(real).astype(jnp.float32)
  highest = jax.lax.Precision.HIGHEST
  class_mean = jnp.matmul(same, weights, precision=highest)
  class_mean = class_mean / jnp.maximum(size, 1.0)[:, None]  # [n e]
  mean = jnp.sum(weights, axis=0, keepdims=True) / jnp.maximum(total, 1.0)
  within = jnp.sum((weights - class_mean) ** 2, axis=1)  # [n]
  between = jnp.where(real, jnp.sum((class_mean - mean) ** 2, axis=1), 0.0)
  others = jnp.where(real, total - size, 0.0)
  alike = 2.0 * jnp.sum(size * within)
  apart = 2.0 * jnp.sum(others * within + total * between)
  pairs_alike = jnp.sum(jnp.where(real, size - 1.0, 0.0))
  pairs_apart = jnp.sum(others)
  return _ratio(alike, pairs_alike) - _ratio(apart, pairs_apart)


def vertex_cosine(weights: Float[Array, "n e"]) -> Float[Array, "n e"]:
  """Cosine of each row with each expert's one-hot vector, w_c / |w|.

  The similarity s(w, y) of H-GEM's Eq. 11 when classes and experts correspond. A
  zero row gives zeros.
  """
  weights = weights.astype(jnp.float32)
  square = jnp.sum(weights**2, axis=-1, keepdims=True)
  return jnp.where(square > 0, weights, 0.0) / jnp.sqrt(
    jnp.where(square > 0, square, 1.0)
  )


def info_nce(
  scores: Float[Array, "n c"],
  classes: Int[Array, " n"],
  mask: Bool[Array, " n"] | None = None,
  temperature: float | Float[Array, ""] = 0.12,
  mask_duplicates: bool = False,
) -> Float[Array, ""]:
  """Contrastive bound on the information between routes and labels (H-GEM, Eq. 11).

  mean_n of log sum_m exp(s[n, y_m] / tau) - s[n, y_n] / tau over the real rows m.
  As s depends on m only through its class, the inner sum is one over classes with
  the classes' counts N_c in the batch: cross-entropy with logits s_c / tau + log N_c,
  plus the mean of log N_{y_n}.

  Args:
    scores: similarity of each row with each class.
    classes: class of each row in [0, c); rows outside do not count.
    mask: True = real row that has a class.
    temperature: tau, above 0; may be traced (schedules).
    mask_duplicates: True = the sum leaves out the other rows of the row's own class
      instead of counting them as negatives.

  Returns:
    The loss L_MI = -I_NCE; see `information_estimate`.
  """
  count = scores.shape[-1]
  real = (classes >= 0) & (classes < count)
  real = real if mask is None else real & mask
  own = (classes[:, None] == jnp.arange(count)[None, :]) & real[:, None]  # [n c]
  logits = jnp.where(real[:, None], scores.astype(jnp.float32), 0.0) / temperature
  number = jnp.broadcast_to(jnp.sum(own, axis=0, keepdims=True), own.shape)
  if mask_duplicates:
    number = jnp.where(own, 1, number)
  present = (number > 0) & real[:, None]
  weighted = logits + jnp.log(jnp.maximum(number, 1).astype(jnp.float32))
  positive = jnp.sum(jnp.where(own, logits, 0.0), axis=1)
  return masked_mean(_masked_logsumexp(weighted, present) - positive, real, axis=0)


def information_estimate(
  loss: Float[Array, ""], mask: Bool[Array, " n"]
) -> Float[Array, ""]:
  """Estimate of the mutual information in nats: log(real rows) - `info_nce`."""
  return jnp.log(jnp.maximum(jnp.sum(mask), 1).astype(jnp.float32)) - loss


def _rows(probs, mask) -> Bool[Array, "*n"]:
  """Rows that count: real ones with at least one available expert."""
  routed = jnp.any(probs > 0, axis=-1)
  return routed if mask is None else routed & mask


def _like(rows, values) -> Bool[Array, "n e"]:
  return jnp.broadcast_to(rows[:, None], values.shape)


def _ratio(total, count):
  return total / jnp.maximum(count, 1.0)


def _cv2(amounts: Float[Array, " e"]) -> Float[Array, ""]:
  return distributions.squared_variation(amounts, jnp)


def _entropy(probs, base: str, normalised: bool) -> Array:
  unit = distributions.entropy_unit(base, normalised, probs.shape[-1])
  return distributions.entropy(probs.astype(jnp.float32), unit, jnp)


def _masked_logsumexp(logits, present) -> Array:
  """log sum exp over the last axis where `present`; zero for rows without any."""
  some = jnp.any(present, axis=-1)
  # A row without any takes zeros through a real log-sum-exp, for finite gradients.
  logits = jnp.where(present, logits, jnp.where(some[:, None], -jnp.inf, 0.0))
  return jnp.where(some, jax.nn.logsumexp(logits, axis=-1), 0.0)
