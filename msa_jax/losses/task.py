"""Losses of a task against its label: one value per example, float32.

Reduction happens in one place, `masked_average`.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from msa_jax.errors import UserError
from msa_jax.typing import Label


def l1(prediction: Float[Array, "*n"], label: Num[Array, "*n"]) -> Float[Array, "*n"]:
  """Absolute error |p - y|, in the label's unit."""
  return jnp.abs(_float(prediction) - _float(label))


def squared(
  prediction: Float[Array, "*n"], label: Num[Array, "*n"]
) -> Float[Array, "*n"]:
  """Squared error (p - y)^2, without a factor of one half."""
  return (_float(prediction) - _float(label)) ** 2


def huber(
  prediction: Float[Array, "*n"], label: Num[Array, "*n"], delta: float = 1.0
) -> Float[Array, "*n"]:
  """Huber's loss: r^2 / 2 where |r| <= delta, else delta * (|r| - delta / 2)."""
  error = jnp.abs(_float(prediction) - _float(label))
  near = jnp.minimum(error, delta)
  return 0.5 * near**2 + delta * (error - near)


def cross_entropy(
  logits: Float[Array, "*n c"], label: Int[Array, "*n"]
) -> Float[Array, "*n"]:
  """Cross-entropy in nats of logits against a class index in [0, c)."""
  log_probs = jax.nn.log_softmax(_float(logits), axis=-1)
  return -jnp.take_along_axis(log_probs, label[..., None], axis=-1)[..., 0]


def questions(
  logits: Float[Array, "*n c 2"], label: Int[Array, "*n c"]
) -> Float[Array, "*n"]:
  """Two-way cross-entropy in nats, averaged over the c yes/no questions.

  Equal to binary cross-entropy on the difference of the two logits, summed over the
  questions and divided by c.

  Args:
    logits: last axis (no, yes).
    label: 1 = yes, 0 = no.
  """
  return jnp.mean(cross_entropy(logits, label), axis=-1)


def binary_cross_entropy(
  logits: Float[Array, "*n c"],
  label: Int[Array, "*n c"],
  positive_weight: Float[Array, " c"] | None = None,
) -> Float[Array, "*n"]:
  """Multi-label binary cross-entropy in nats, summed over classes and divided by c.

  Args:
    logits: one logit per class; positive = present.
    label: 1 = present, 0 = absent.
    positive_weight: factor of the loss of present classes; None = 1.
  """
  logits, label = _float(logits), _float(label)
  present = label * jax.nn.softplus(-logits)
  if positive_weight is not None:
    weight = positive_weight.reshape(*[1] * (logits.ndim - 1), -1)
    present = weight * present
  return jnp.mean(present + (1.0 - label) * jax.nn.softplus(logits), axis=-1)


LOSSES: Mapping[str, Mapping[str, Callable[..., jax.Array]]] = {
  "regression": {"l1": l1, "mse": squared, "huber": huber},
  "classes": {"cross_entropy": cross_entropy},
  "binary": {"cross_entropy": questions, "bce": questions},
}
DEFAULTS: Mapping[str, str] = {
  "regression": "l1",
  "classes": "cross_entropy",
  "binary": "cross_entropy",
}


def task_loss(
  kind: str,
  name: str | None,
  prediction: Float[Array, "n ..."],
  label: Label,
  positive_weight: Sequence[float] = (),
) -> Float[Array, "n ..."]:
  """Loss of each example by the name in the config.

  Args:
    kind: `regression`, `classes` or `binary`; see `typing.Task`.
    name: key of `LOSSES[kind]`; None or `default` = `DEFAULTS[kind]`.
    prediction: the model's prediction for the task; [n] (regression), [n c]
      (classes) or [n c 2] (binary); utterance-level with [b t] in place of [n].
    label: the task's label. Values and predictions under a False mask have no
      influence, whatever they are (NaN included).
    positive_weight: binary only: factor of the loss of questions answered with yes,
      one per question or one for all; () = none.

  Returns:
    One value per example, zero where `label.mask` is False; average with
    `masked_average(values, label.mask & sample_mask)`.

  Raises:
    UserError: unknown kind or name, or positive weights that do not fit.
  """
  loss = _choose(kind, name)
  if positive_weight:
    loss = _weighted_questions(kind, positive_weight, prediction.shape[-2:])
  # Both sides are cleaned before the loss: 0 * NaN in its gradient would be NaN.
  value, prediction = _keep(label.mask, label.value), _keep(label.mask, prediction)
  return jnp.where(label.mask, loss(prediction, value), 0.0)


def _weighted_questions(
  kind: str, weights: Sequence[float], shape: tuple[int, ...]
) -> Callable[..., jax.Array]:
  if kind != "binary" or len(weights) not in (1, shape[0]):
    raise UserError(
      f"positive weights {tuple(weights)} for a task of kind {kind!r}: they go with"
      " yes/no questions (binary), one weight for all or one for each"
    )
  factor = jnp.broadcast_to(jnp.asarray(weights, jnp.float32), shape[:1])
  return lambda logits, label: binary_cross_entropy(
    logits[..., 1] - logits[..., 0], label, factor
  )


def masked_average(
  values: Float[Array, "*n"], mask: Bool[Array, "*n"]
) -> Float[Array, ""]:
  """Mean of the values where `mask`; zero, with zero gradient, if there is none.

  Values under a False mask have no influence, even if they are not finite.
  """
  total = jnp.sum(jnp.where(mask, _float(values), 0.0))
  return total / jnp.maximum(jnp.sum(mask), 1).astype(jnp.float32)


def _choose(kind: str, name: str | None) -> Callable[..., jax.Array]:
  if kind not in LOSSES:
    raise UserError(f"task kind {kind!r}: choose one of {', '.join(LOSSES)}")
  table = LOSSES[kind]
  name = DEFAULTS[kind] if name in (None, "default") else name
  if name not in table:
    raise UserError(
      f"task loss {name!r} for a task of kind {kind!r}: choose one of "
      f"{', '.join(('default', *table))}"
    )
  return table[name]


def _keep(mask: Bool[Array, "*n"], values: Array) -> Array:
  """Zeroes the examples where `mask` is False; `values` may have trailing axes."""
  mask = mask.reshape(*mask.shape, *[1] * (values.ndim - mask.ndim))
  return jnp.where(mask, values, jnp.zeros((), values.dtype))


def _float(values: Array) -> Float[Array, "..."]:
  """float32, or float64 where that is switched on and used."""
  return values.astype(jnp.promote_types(jnp.float32, values.dtype))
