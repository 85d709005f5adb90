"""Masked arithmetic: a masked entry has exactly zero influence, and a row without a
valid entry gives zeros, never NaN, in the value and in the gradient."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from msa_jax.typing import Batch


def masked_softmax(
  logits: Float[Array, "..."], mask: Bool[Array, "..."], axis: int = -1
) -> Float[Array, "..."]:
  """Softmax over the valid entries, in float32.

  >>> masked_softmax(jnp.zeros(3), jnp.asarray([True, True, False])).tolist()
  [0.5, 0.5, 0.0]

  Args:
    logits: scores of any shape.
    mask: True = valid; broadcasts to `logits` (same rank).
    axis: axis to normalise over.

  Returns:
    float32 probabilities, exactly zero where masked; a row without a valid entry
    is all zeros.
  """
  logits = jnp.where(mask, logits.astype(jnp.float32), -1e9)
  # jax.nn.softmax defines its derivative, which is cheaper than that of its steps.
  return jnp.where(mask, jax.nn.softmax(logits, axis=axis), 0.0)


def masked_mean(
  values: Float[Array, "..."], mask: Bool[Array, "..."], axis: int | tuple[int, ...]
) -> Float[Array, "..."]:
  """Mean over the valid entries of `axis`; zero where there is none.

  >>> mask = jnp.asarray([True, True, False])
  >>> float(masked_mean(jnp.asarray([1.0, 3.0, 99.0]), mask, axis=0))
  2.0

  Args:
    values: any shape.
    mask: True = valid; same rank as `values`, broadcasting to it.
    axis: axis or axes to average over. `mask` must have full size along it.
  """
  total = jnp.sum(jnp.where(mask, values, 0.0), axis=axis)
  count = jnp.sum(mask, axis=axis).astype(values.dtype)
  return total / jnp.maximum(count, 1.0)


def extents(mask: Bool[Array, "b t"]) -> Int[Array, " b"]:
  """Steps up to the last valid one, holes included; 0 = there is none.

  >>> extents(jnp.asarray([[True, False, True, False], [False] * 4])).tolist()
  [3, 0]
  """
  return jnp.max(jnp.where(mask, jnp.arange(1, mask.shape[1] + 1)[None], 0), axis=1)


def last_step(
  values: Float[Array, "b t d"], mask: Bool[Array, "b t"]
) -> Float[Array, "b d"]:
  """The last valid step; zero for a row without one.

  >>> values = jnp.asarray([[[1.0], [2.0], [9.0]]])
  >>> last_step(values, jnp.asarray([[True, True, False]])).tolist()
  [[2.0]]
  """
  end = extents(mask)
  last = jnp.maximum(end - 1, 0)[:, None, None]
  found = jnp.take_along_axis(values, last, axis=1)[:, 0]
  return jnp.where((end > 0)[:, None], found, 0.0)


POOLS = ("mean", "first")


def pool_steps(
  values: Float[Array, "b t d"], mask: Bool[Array, "b t"], pool: str
) -> Float[Array, "b d"]:
  """One vector of a sequence; zero for a row without a valid step.

  Args:
    values: of every step.
    mask: True = valid.
    pool: of `POOLS`: the mean over the valid steps, or the first of them.
  """
  if pool == "first":
    mask = mask & (jnp.cumsum(mask, axis=1) == 1)
  return masked_mean(values, mask[..., None], 1)


def hide_unavailable(batch: Batch, keep_lost: bool = False) -> Batch:
  """Makes absent content absent, once: the step calls it before the model.

  Unavailable modalities and filler rows lose all their steps, lost steps their
  content, and features at masked steps become zero, whatever they held (NaN
  included). Whoever applies a model without the step calls this first, on batches that
  `Batch.from_arrays` did not make.

  Args:
    batch: any batch of utterances ([b m] availability) or dialogues ([b t m]).
    keep_lost: True = lost steps stay valid steps with zero content, for models that
      embed them; False = they are masked like padding.
  """
  modalities = {}
  for column, name in enumerate(batch.order):
    modality = batch.modalities[name]
    present = batch.available[..., column]  # [b] or [b t]
    present = present.reshape(*present.shape, *[1] * (2 - present.ndim))
    mask = modality.mask & present & batch.sample_mask[:, None]  # [b t]
    lost = modality.lost & mask
    visible = mask & ~lost
    modalities[name] = modality.replace(
      features=jnp.where(visible[..., None], modality.features, 0.0),
      mask=mask if keep_lost else visible,
      lost=lost if keep_lost else jnp.zeros_like(lost),
    )
  return batch.replace(modalities=modalities)


def has_content(batch: Batch, reads: Sequence[str] = ()) -> Bool[Array, "b *t"]:
  """Which samples, or utterances of dialogues, have any visible step at all.

  Args:
    batch: any batch.
    reads: modalities that count; () = all.
  """
  hidden = hide_unavailable(batch).modalities
  visible = [hidden[name].mask for name in reads or batch.order]
  if batch.available.ndim == 3:
    return functools.reduce(jnp.logical_or, visible)
  return functools.reduce(jnp.logical_or, [jnp.any(mask, axis=1) for mask in visible])
