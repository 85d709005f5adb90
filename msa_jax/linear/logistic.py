"""Logistic regression with an L2 penalty, by Newton's method with conjugate gradients.

One class of several (softmax) or several yes/no questions (a sigmoid each). Second
derivatives are only ever multiplied with a vector, so that memory is that of the data.

Source: Lin, Weng and Keerthi: Trust region Newton method for large-scale logistic
regression, JMLR 9 (2008); with a line search in place of the trust region.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Num

from msa_jax.linear import ridge

# Inverse penalties (C of scikit-learn) that are tried, from strong to weak.
STRENGTHS = tuple(float(10.0**power) for power in np.arange(-4.0, 0.51, 0.5))
_STEPS, _INNER = 50, 200
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
  """A loss of logits [n c]: sums over rows, and what Newton's method needs of it."""

  value: Callable[[np.ndarray], float]
  gradient: Callable[[np.ndarray], np.ndarray]
  curve: Callable[[np.ndarray], Callable[[np.ndarray], np.ndarray]]


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


def _softmax(z: np.ndarray) -> np.ndarray:
  weights = np.exp(z - z.max(axis=1, keepdims=True))
  return weights / weights.sum(axis=1, keepdims=True)


def _softmax_loss(answers: Float[np.ndarray, "n c"]) -> _Loss:
  def value(z):
    top = z.max(axis=1)
    total = top + np.log(np.exp(z - top[:, None]).sum(axis=1))
    return float(np.sum(total) - np.sum(z * answers))

  def curve(z):
    p = _softmax(z)
    return lambda v: p * (v - np.sum(p * v, axis=1, keepdims=True))

  return _Loss(value, lambda z: _softmax(z) - answers, curve)


def _sigmoid_loss(answers: Float[np.ndarray, "n c"]) -> _Loss:
  def value(z):
    return float(np.sum(np.logaddexp(0.0, z) - z * answers))

  def sigmoid(z):
    return 0.5 * (1.0 + np.tanh(0.5 * z))

  def curve(z):
    p = sigmoid(z)
    return lambda v: p * (1.0 - p) * v

  return _Loss(value, lambda z: sigmoid(z) - answers, curve)


def _minimise(
  x: Float[np.ndarray, "n r"],
  squares: Float[np.ndarray, " r"],
  loss: _Loss,
  parameters: Float[np.ndarray, "q c"],
  strength: float,
  tolerance: float,
) -> Float[np.ndarray, "q c"]:
  """Newton's method, until the gradient is small.

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
  narrow = x.astype(np.float32)
  lengths = np.append(squares, len(x))[:, None]

  def forward(p):
    return x @ p[:-1] + p[-1]

  def back(z):
    return np.concatenate([x.T @ z, z.sum(axis=0, keepdims=True)])

  def total(p, z):
    return strength * loss.value(z) + 0.5 * float(np.sum(penalised * p * p))

  z = forward(parameters)
  # Before anything is learned but the bias: what the tolerance is a share of.
  first = strength * float(np.linalg.norm(back(loss.gradient(np.zeros_like(z)))))
  for _ in range(_STEPS):
    gradient = strength * back(loss.gradient(z)) + penalised * parameters
    size = float(np.linalg.norm(gradient))
    if size <= tolerance * first:
      break
    curve = loss.curve(z)
    # As if every row were as uncertain as the mean one.
    certain = float(np.mean(curve(np.eye(z.shape[1])[[0]].repeat(len(z), 0))[:, 0]))
    guess = 1.0 / (strength * max(certain, 1e-3) * lengths + penalised)

    def product(v, curve=curve):
      # In half the precision, which is enough for a direction, and half the time.
      image = (narrow @ v[:-1].astype(np.float32)).astype(float) + v[-1]
      bent = curve(image)
      along = (narrow.T @ bent.astype(np.float32)).astype(float)
      total = np.concatenate([along, bent.sum(axis=0, keepdims=True)])
      return strength * total + (penalised + 1e-12) * v

    step = _conjugate(product, guess, -gradient, 0.2 * size)
    now, slope = total(parameters, z), float(np.sum(gradient * step))
    along, length = forward(step), 1.0
    while total(parameters + length * step, z + length * along) > (
      now + 1e-4 * length * slope
    ):
      length *= 0.5
      if length < 1e-10:
        return parameters
    parameters, z = parameters + length * step, z + length * along
  return parameters


def _conjugate(
  product: Callable, guess: np.ndarray, right: np.ndarray, tolerance: float
) -> np.ndarray:
  """Solves product(v) = right, to a residual of `tolerance`; `guess` is about the
  inverse of product's diagonal."""
  solution, residual = np.zeros_like(right), right.copy()
  direction = guess * residual
  square = float(np.sum(residual * direction))
  for _ in range(_INNER):
    if float(np.linalg.norm(residual)) <= tolerance:
      break
    image = product(direction)
    length = square / float(np.sum(direction * image))
    solution += length * direction
    residual -= length * image
    scaled = guess * residual
    square, before = float(np.sum(residual * scaled)), square
    direction = scaled + (square / before) * direction
  return solution
