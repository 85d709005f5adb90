"""Frames averaged in windows, one for each step of another sequence."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from msa_jax.layers.masking import extents


def window_mean(
  values: Float[Array, "b t d"],
  mask: Bool[Array, "b t"],
  anchor: Bool[Array, "b s"],
  repeat_last: bool = False,
) -> tuple[Float[Array, "b s d"], Bool[Array, "b s"]]:
  """Mean of equal windows of valid frames, as many as the anchor has steps.

  A sample of l frames and n anchor steps has windows of ceil(l / n) frames; what is
  masked does not count. Windows that begin after the last frame repeat it. Without
  an anchor step there is one window. Only steps up to the last valid one matter, so
  that padding of either sequence changes nothing.

  >>> frames = jnp.arange(5.0)[None, :, None]
  >>> means, _ = window_mean(frames, jnp.ones((1, 5), bool), jnp.ones((1, 3), bool))
  >>> means[0, :, 0].tolist()
  [0.5, 2.5, 4.0]

  Args:
    values, mask: frames, and which are valid.
    anchor: valid steps of the sequence that gives the windows.
    repeat_last: the last frame also fills up a window that begins before it, as in
      MMSA; False = such a window is the mean of its own frames.

  Returns:
    The means, zero where a window has no valid frame, and which ones have.

  Source: MMSA (thuiar/MMSA, subNets/AlignNets.py), average pooling.
  """
  frames, steps = extents(mask)[:, None], extents(anchor)[:, None]  # [b 1]
  steps = jnp.maximum(steps, 1)
  size = jnp.maximum(-(-frames // steps), 1)
  window = jnp.arange(anchor.shape[1])[None]  # [1 s]
  place = jnp.arange(values.shape[1])[None]  # [1 t]
  inside = (place // size)[:, None] == window[..., None]  # [b s t]
  inside = inside & mask[:, None]
  if repeat_last:
    beyond = jnp.clip((window + 1) * size - frames, 0, size)
  else:
    beyond = (window * size >= frames).astype(jnp.int32)
  last = (place == frames - 1)[:, None]  # [b 1 t]
  weights = inside + beyond[..., None] * last
  weights = jnp.where((window < steps)[..., None], weights, 0).astype(values.dtype)
  total = jnp.sum(weights, axis=-1, keepdims=True)
  values = jnp.where(mask[..., None], values, 0.0)
  means = jnp.einsum("bst,btd->bsd", weights / jnp.maximum(total, 1.0), values)
  return means, total[..., 0] > 0
