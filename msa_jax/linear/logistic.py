"""Logistic regression with an L2 penalty: one class of several (softmax), or several
yes/no questions (a sigmoid each).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Num
from scipy import optimize, special

from msa_jax.linear import ridge

# Inverse penalties (C of scikit-learn) that are tried, from strong to weak.
STRENGTHS = tuple(float(10.0**power) for power in np.arange(-4.0, 0.51, 0.5))
_STEPS = 1000
# A further weakening of the penalty is not tried after as many without a gain.
_PATIENCE = 1


class Logistic(NamedTuple):
  """A fitted model: logits are `x @ weights + bias`.

  Attributes:
    weights: [d c].
    bias: [c].
    strength: inverse penalty.
  """

  weights: np.ndarray
  bias: np.ndarray
  strength: float


class _Loss(NamedTuple):
  """A loss of logits [n c], summed over rows, and its gradient."""

  value: Callable[[np.ndarray], float]
  gradient: Callable[[np.ndarray], np.ndarray]


def fit(
  x: Float[np.ndarray, "n d"],
  y: Num[np.ndarray, "n *c"],
  classes: int,
  held_out: tuple[np.ndarray, np.ndarray] | None = None,
  strengths: tuple[float, ...] = STRENGTHS,
  tolerance: float = 1e-3,
) -> Logistic:
  """Minimises C * (sum of cross-entropies) + |w|^2 / 2 for several C; keeps the best.

  Args:
    x: features to fit.
    y: index of the class [n], or answers 0/1 to several questions [n c].
    classes: number of classes or questions.
    held_out: (x, y) of which the mean cross-entropy picks C; None = every fifth row of
      those to fit is held out, and all are fitted with the C found.
    strengths: C to choose from.
    tolerance: norm of the gradient to reach, as a share of that at w = 0.
  """
  if held_out is None and len(strengths) > 1:
    fifth = np.arange(len(x)) % 5 == 4
    if fifth.all() or not fifth.any():
      return fit(x, y, classes, (x, y), (min(strengths),), tolerance)
    aside = (x[fifth], y[fifth])
    found = fit(x[~fifth], y[~fifth], classes, aside, strengths, tolerance)
    return fit(x, y, classes, aside, (found.strength,), tolerance)
  # In the features' principal directions second derivatives are nearly diagonal.
  center = x.mean(axis=0)
  squares, right = ridge.directions(x - center)
  z, loss = (x - center) @ right, _loss_of(y, classes)
  start = np.zeros((z.shape[1] + 1, classes))
  best, worse = np.inf, 0
  found = Logistic(np.zeros((x.shape[1], classes)), np.zeros(classes), min(strengths))
  for strength in sorted(strengths):
    start = _minimise(z, squares, loss, start, strength, tolerance)
    weights = right @ start[:-1]
    model = Logistic(weights, start[-1] - center @ weights, strength)
    error = 0.0 if held_out is None else cross_entropy(model, *held_out)
    worse = 0 if error < best else worse + 1
    if error < best:
      best, found = error, model
    if worse == _PATIENCE:
      break
  return found


def logits(model: Logistic, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n c"]:
  """Logits of rows: of classes, or of a yes to each question."""
  return x @ model.weights + model.bias


def cross_entropy(model: Logistic, x: np.ndarray, y: np.ndarray) -> float:
  """Mean over rows (and questions)."""
  found = logits(model, x)
  value = _loss_of(y, found.shape[1]).value(found)
  return value / max(1, y.size)


def _loss_of(y: np.ndarray, classes: int) -> _Loss:
  if y.ndim == 2:
    return _sigmoid_loss(y.astype(float))
  return _softmax_loss(np.eye(classes)[y.astype(int)])


def _softmax_loss(answers: Float[np.ndarray, "n c"]) -> _Loss:
  def value(z):
    return float(np.sum(special.logsumexp(z, axis=1)) - np.sum(z * answers))

  return _Loss(value, lambda z: special.softmax(z, axis=1) - answers)


def _sigmoid_loss(answers: Float[np.ndarray, "n c"]) -> _Loss:
  def value(z):
    return float(np.sum(np.logaddexp(0.0, z) - z * answers))

  return _Loss(value, lambda z: special.expit(z) - answers)


def _minimise(
  x: Float[np.ndarray, "n r"],
  squares: Float[np.ndarray, " r"],
  loss: _Loss,
  parameters: Float[np.ndarray, "q c"],
  strength: float,
  tolerance: float,
) -> Float[np.ndarray, "q c"]:
  """The parameters at which the gradient is small.

  Args:
    x: features along orthogonal directions, without mean.
    squares: of their lengths.
    loss: of the logits.
    parameters: where to start: weights, and the bias (not penalised) as the last row.
    strength: inverse penalty.
    tolerance: see `fit`.
  """
  penalised = np.ones((len(squares) + 1, 1))
  penalised[-1] = 0.0
  # In units in which second derivatives are about one, as if every answer were as
  # uncertain as it can be.
  lengths = np.append(squares, len(x))[:, None]
  unit = 1.0 / np.sqrt(0.25 * strength * lengths + penalised)

  def value_and_gradient(flat):
    p = flat.reshape(parameters.shape) * unit
    z = x @ p[:-1] + p[-1]
    value = strength * loss.value(z) + 0.5 * float(np.sum(penalised * p * p))
    slopes = loss.gradient(z)
    along = np.concatenate([x.T @ slopes, slopes.sum(axis=0, keepdims=True)])
    return value, (unit * (strength * along + penalised * p)).ravel()

  # Before anything is learned: what the tolerance is a share of.
  first = np.abs(value_and_gradient(np.zeros(parameters.size))[1]).max(initial=0.0)
  found = optimize.minimize(
    value_and_gradient,
    (parameters / unit).ravel(),
    jac=True,
    method="L-BFGS-B",
    options={"gtol": tolerance * first, "ftol": 0.0, "maxiter": _STEPS},
  )
  return found.x.reshape(parameters.shape) * unit
