"""Ridge regression for many penalties at once.

Source: Hoerl and Kennard 1970; generalised cross-validation: Golub, Heath and Wahba
1979, Eq. 2.3.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

# Penalties that are tried; features are standardised, so they are of one scale.
ALPHAS = tuple(float(10.0**power) for power in np.arange(-1.0, 5.01, 0.5))


class Ridge(NamedTuple):
  """A fitted model: predictions are `x @ weights + bias`.

  Attributes:
    weights: [d].
    bias: [].
    alpha: penalty.
  """

  weights: np.ndarray
  bias: float
  alpha: float


def directions(
  a: Float[np.ndarray, "n d"],
) -> tuple[Float[np.ndarray, " r"], Float[np.ndarray, "d r"]]:
  """Squared singular values of a matrix u s v', and v, without those of no size."""
  wide = a.shape[1] > a.shape[0]
  squares, vectors = np.linalg.eigh(a @ a.T if wide else a.T @ a)
  squares = np.maximum(squares, 0.0)
  keep = squares > squares.max(initial=0.0) * 1e-12
  squares, vectors = squares[keep], vectors[:, keep]
  return squares, a.T @ vectors / np.sqrt(squares) if wide else vectors


def fit(
  x: Float[np.ndarray, "n d"],
  y: Float[np.ndarray, " n"],
  held_out: tuple[np.ndarray, np.ndarray] | None = None,
  alphas: tuple[float, ...] = ALPHAS,
) -> Ridge:
  """Minimises |y - x w - b|^2 + alpha |w|^2 for every alpha, and keeps the best.

  Args:
    x, y: to fit, at least one row.
    held_out: (x, y) of which the mean absolute error picks alpha; None = by
      generalised cross-validation on the rows that are fitted.
    alphas: to choose from.

  Returns:
    The model. Of equal alphas the greatest.
  """
  center, middle = x.mean(axis=0), float(y.mean())
  a, b = x - center, y - middle
  # Weights of every alpha are sums over the same directions.
  squares, right = directions(a)
  along = right.T @ (a.T @ b)  # [r]
  best, found = np.inf, Ridge(np.zeros(x.shape[1]), middle, max(alphas))
  for alpha in sorted(alphas, reverse=True):
    weights = right @ (along / (squares + alpha))
    model = Ridge(weights, middle - float(center @ weights), alpha)
    if held_out is None:
      freedom = float(np.sum(squares / (squares + alpha))) + 1.0
      left = max(1e-12, 1.0 - freedom / len(x))
      error = float(np.mean((b - a @ weights) ** 2)) / left**2
    else:
      error = float(np.mean(np.abs(predict(model, held_out[0]) - held_out[1])))
    if error < best:
      best, found = error, model
  return found


def predict(model: Ridge, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
  """Predictions of rows."""
  return x @ model.weights + model.bias
