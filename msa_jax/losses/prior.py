"""The best prediction for a sample of which nothing is known (NumPy, host side)."""

import numpy as np
from jaxtyping import Bool, Num

_FLOOR = 1e-6  # probability of a class that the training labels lack


def best_constant(
  kind: str,
  loss: str,
  labels: Num[np.ndarray, "*n"],
  mask: Bool[np.ndarray, "*m"],
  n_classes: int = 0,
) -> tuple[float, ...]:
  """The constant of least loss on the training labels, as a model would predict it.

  Args:
    kind: `regression`, `classes` or `binary`; see `typing.Task`.
    loss: name of the regression loss, a key of `losses.task.LOSSES`; `default` is l1.
    labels: [n] or [n t] values or class indices; [n c] or [n t c] answers 0/1.
    mask: [n] or [n t], True = has a label.
    n_classes: of `classes`.

  Returns:
    Regression: the one value, median (l1), mean (mse) or the minimiser of Huber's
    loss; 0 without labels. Classes: c log-probabilities. Binary: 2 c of them, no and
    yes of each question in turn.
  """
  values = np.asarray(labels)[mask].astype(np.float64)
  if kind == "regression":
    return (_location(values, loss),)
  if kind == "classes":
    counts = np.bincount(values.astype(np.int64), minlength=n_classes)
    return _logs(counts / max(len(values), 1))
  yes = values.mean(axis=0) if len(values) else np.full(labels.shape[-1], 0.5)
  return _logs(np.stack([1.0 - yes, yes], axis=-1).ravel())


def _logs(shares: np.ndarray) -> tuple[float, ...]:
  return tuple(np.log(np.maximum(shares, _FLOOR)).tolist())


def _location(values: np.ndarray, loss: str) -> float:
  if not len(values):
    return 0.0
  if loss == "mse":
    return float(values.mean())
  if loss != "huber":
    return float(np.median(values))
  # The derivative sum(clip(c - y, -1, 1)) grows with c: halve the interval.
  low, high = float(values.min()), float(values.max())
  for _ in range(60):
    middle = (low + high) / 2
    if np.clip(middle - values, -1.0, 1.0).sum() < 0:
      low = middle
    else:
      high = middle
  return (low + high) / 2
