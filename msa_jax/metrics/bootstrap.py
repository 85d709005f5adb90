"""Bootstrap intervals: over seeds for one system, over samples for two.

NumPy, float64, on the host; every draw comes from the given seed.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Num

from msa_jax.errors import UserError


class Interval(NamedTuple):
  """An estimate and its percentile interval."""

  estimate: float
  low: float
  high: float


class Comparison(NamedTuple):
  """Difference of two systems, its interval, and how surely it is not zero.

  Attributes:
    difference: metric of the first system minus that of the second.
    p_value: two-sided share of resamples on the other side of zero, at least
      2 / (draws + 1), at most 1.
  """

  difference: Interval
  p_value: float


def mean_interval(
  values: Num[np.ndarray, " n"], level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> Interval:
  """Percentile bootstrap interval of the mean, e.g. of one metric over seeds.

  Args:
    values: one per seed; at least 1 (a single value gives an interval of length 0).
    level: coverage aimed at, in (0, 1). With few seeds the interval is too short;
      with n = 5 that of level .95 covers some .83 of the time.
    draws: resamples.
    seed: of the resampling.

  Raises:
    UserError: no values, a value that is not finite, or a level outside (0, 1).
  """
  _check_level(level)
  if not len(values) or not np.all(np.isfinite(values)):
    raise UserError(f"bootstrap of {len(values)} values: need at least 1, all finite")
  values = values.astype(float)
  generator = np.random.default_rng(seed)
  index = generator.integers(len(values), size=(draws, len(values)))
  return _interval(float(np.mean(values)), np.mean(values[index], axis=1), level)


def paired(
  metric: Callable[[np.ndarray, np.ndarray], float],
  first: Num[np.ndarray, "..."],
  second: Num[np.ndarray, "..."],
  labels: Num[np.ndarray, "..."],
  level: float = 0.95,
  draws: int = 1000,
  seed: int = 0,
) -> Comparison:
  """Paired bootstrap over samples (Efron and Tibshirani 1993, chapter 16).

  Both systems are evaluated on the same resampled rows, so what makes a row hard
  for both cancels. Resamples where a metric is undefined (NaN) are left out.

  Args:
    metric: (predictions, labels) -> value, e.g. `regression.mae`.
    first, second: [n ...], the two systems' predictions for the same rows.
    labels: [n ...], the rows' labels.
    level: coverage aimed at, in (0, 1).
    draws: resamples.
    seed: of the resampling.

  Raises:
    UserError: rows that do not correspond, no rows, or a level outside (0, 1).
  """
  _check_level(level)
  rows = len(labels)
  if not rows or len(first) != rows or len(second) != rows:
    raise UserError(
      f"paired bootstrap of {len(first)} and {len(second)} predictions for {rows} "
      "labels: need as many of each, at least 1"
    )
  generator = np.random.default_rng(seed)
  drawn = np.empty(draws)
  for i in range(draws):
    index = generator.integers(rows, size=rows)
    truth = labels[index]
    drawn[i] = metric(first[index], truth) - metric(second[index], truth)
  known = drawn[~np.isnan(drawn)]
  difference = float(metric(first, labels) - metric(second, labels))
  below = (np.sum(known <= 0) + 1) / (len(known) + 1)
  above = (np.sum(known >= 0) + 1) / (len(known) + 1)
  p_value = float(min(1.0, 2.0 * min(below, above)))
  return Comparison(_interval(difference, known, level), p_value)


def _interval(estimate: float, drawn: np.ndarray, level: float) -> Interval:
  if not len(drawn):
    return Interval(estimate, float("nan"), float("nan"))
  tail = (1.0 - level) / 2.0
  low, high = np.quantile(drawn, [tail, 1.0 - tail])
  return Interval(estimate, float(low), float(high))


def _check_level(level: float) -> None:
  if not 0.0 < level < 1.0:
    raise UserError(f"confidence level {level}: must be between 0 and 1, e.g. 0.95")
