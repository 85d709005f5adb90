"""What a trained router does, from the arrays of a run: NumPy, float64, on the host."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float

from msa_jax.losses.distributions import entropy, entropy_unit, squared_variation
from msa_jax.typing import Routing

Weights = Float[np.ndarray, "n e"]


def selection_frequency(combine: Weights) -> Float[np.ndarray, " e"]:
  """Share of rows that select each expert; sums to k where k are selected."""
  return np.mean(combine > 0, axis=0)


def load(combine: Weights) -> Float[np.ndarray, " e"]:
  """Share of all selections that go to each expert; sums to 1."""
  counts = np.sum(combine > 0, axis=0).astype(float)
  return counts / max(float(np.sum(counts)), 1.0)


def gate_metrics(
  probs: Weights, combine: Weights, mask: Bool[np.ndarray, " n"] | None = None
) -> dict[str, float | list[float]]:
  """Summary of one gate over all rows of a split.

  Args:
    probs: dense router distribution.
    combine: weights after selection.
    mask: True = real row; None = all. Rows without an available expert (all zero)
      count nowhere.

  Returns:
    For `dense` (`probs`) and `sparse` (`combine`, renormalised) routing, each in
    `_nats`, `_bits` and `_normalised` (divided by log e, in [0, 1]):
    `router_entropy_<stage>` (mean of the rows' entropies), `load_entropy_<stage>`
    (entropy of the mean), `information_<stage>` (their difference, the mutual
    information of row and expert).
    Lists over experts: `mean_probs`, `mean_combine`, `selection_frequency`, `load`.
    `load_cv2`: squared coefficient of variation of the load.
    NaN everywhere if no row counts.
  """
  rows = np.any(probs > 0, axis=-1)
  rows = rows if mask is None else rows & mask
  experts = probs.shape[-1]
  probs, combine = probs[rows].astype(float), combine[rows].astype(float)
  if not len(probs):
    return _blank(experts)
  total = np.sum(combine, axis=-1, keepdims=True)
  sparse = combine / np.where(total > 0, total, 1.0)
  result: dict[str, float | list[float]] = {}
  for stage, weights in (("dense", probs), ("sparse", sparse)):
    decided = float(np.mean(entropy(weights, 1.0, np)))
    even = float(entropy(np.mean(weights, axis=0), 1.0, np))
    values = (("router_entropy", decided), ("load_entropy", even))
    for name, nats in (*values, ("information", even - decided)):
      result |= _units(f"{name}_{stage}", nats, experts)
  shares = load(combine)
  result["load_cv2"] = float(squared_variation(shares, np))
  result["mean_probs"] = np.mean(probs, axis=0).tolist()
  result["mean_combine"] = np.mean(combine, axis=0).tolist()
  result["selection_frequency"] = selection_frequency(combine).tolist()
  result["load"] = shares.tolist()
  return result


def routing_metrics(
  gates: Mapping[str, Routing],
  mask: Bool[np.ndarray, " n"] | None = None,
) -> dict[str, dict[str, float | list[float]]]:
  """`gate_metrics` of every gate.

  Args:
    gates: gate name -> `Routing` of arrays on the host.
    mask: True = real row.
  """
  return {
    name: gate_metrics(gate.probs, gate.combine, mask) for name, gate in gates.items()
  }


def _units(name: str, nats: float, experts: int) -> dict[str, float]:
  return {
    f"{name}_nats": nats,
    f"{name}_bits": nats / entropy_unit("bits", False, experts),
    f"{name}_normalised": nats / entropy_unit("nats", True, experts),
  }


def _blank(experts: int) -> dict[str, float | list[float]]:
  """The same keys as for rows that count, all NaN."""
  one = np.full((1, experts), 1.0 / experts)
  return {
    key: [float("nan")] * experts if isinstance(value, list) else float("nan")
    for key, value in gate_metrics(one, one).items()
  }
