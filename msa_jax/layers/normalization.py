"""Batch normalisation whose statistics know which steps are real."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float


class MaskedBatchNorm(nn.Module):
  """Normalises every channel over the real entries of the whole batch.

  >>> values = jnp.asarray([[[1.0], [3.0], [9.0]]])
  >>> mask = jnp.asarray([[True, True, False]])
  >>> layer = MaskedBatchNorm(use_running_average=False)
  >>> layer.init_with_output(jax.random.key(0), values, mask)[0].round(2).tolist()
  [[[-1.0], [1.0], [0.0]]]

  Masked entries neither enter the statistics nor come out as anything but zero. A
  batch without a real entry leaves the running statistics unchanged. Statistics are
  float32, the variance is the biased one and is taken around the mean in a second
  pass. Running statistics (`mean`, `var`) are in the collection `batch_stats`.

  Under `jit` with arrays sharded over devices the statistics are those of the global
  batch without further ado. Inside `shard_map` or a `vmap` with a named axis give
  `axis_name`: sums and counts are then added over it, so that shards may hold
  different numbers of real entries.

  Attributes:
    use_running_average: True = evaluation, the running statistics normalise.
    momentum: weight of the old running statistics in their update.
    epsilon: added to the variance.
    axis_name: named axis over which the batch is spread; None = not spread.
    dtype: type of the output; scale, bias and statistics are float32.

  Source: Ioffe & Szegedy 2015, algorithm 1.
  """

  use_running_average: bool
  momentum: float = 0.9
  epsilon: float = 1e-5
  axis_name: str | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, values: Float[Array, "*n d"], mask: Bool[Array, "*n"]
  ) -> Float[Array, "*n d"]:
    width = values.shape[-1]
    running_mean = self.variable("batch_stats", "mean", jnp.zeros, (width,))
    running_var = self.variable("batch_stats", "var", jnp.ones, (width,))
    scale = self.param("scale", nn.initializers.ones, (width,))
    bias = self.param("bias", nn.initializers.zeros, (width,))
    shape = (1,) * mask.ndim + (width,)
    real = mask[..., None]
    values = jnp.where(real, values, 0.0).astype(jnp.float32)
    if self.use_running_average:
      mean, variance = running_mean.value, running_var.value
    else:
      axes = tuple(range(mask.ndim))
      count = self._total(jnp.sum(mask).astype(jnp.float32))
      divisor = jnp.maximum(count, 1.0)
      mean = self._total(jnp.sum(values, axis=axes)) / divisor
      centred = jnp.where(real, values - mean.reshape(shape), 0.0)
      variance = self._total(jnp.sum(centred**2, axis=axes)) / divisor
      if not self.is_initializing():
        keep = jnp.where(count > 0, self.momentum, 1.0)
        running_mean.value = keep * running_mean.value + (1.0 - keep) * mean
        running_var.value = keep * running_var.value + (1.0 - keep) * variance
    factor = scale * lax.rsqrt(variance + self.epsilon)
    result = (values - mean.reshape(shape)) * factor.reshape(shape)
    result = (result + bias.reshape(shape)).astype(self.dtype)
    return jnp.where(real, result, 0.0)

  @nn.nowrap
  def _total(self, amount: Array) -> Array:
    return amount if self.axis_name is None else lax.psum(amount, self.axis_name)


class StepBatchNorm(nn.Module):
  """Normalises every step of a sequence over the batch and the features.

  That is PyTorch's `BatchNorm1d` of [b t d] with the steps as channels. Hidden entries
  neither enter the statistics nor come out as anything but zero; a step without a real
  entry leaves its running statistics unchanged. Steps beyond the last that has
  parameters share those of that one. Parameters and running statistics (`mean`, `var`,
  in `batch_stats`) are [n_steps].

  >>> values = jnp.asarray([[[1.0, 3.0], [5.0, 5.0]]])
  >>> layer = StepBatchNorm(use_running_average=False, n_steps=2)
  >>> result, _ = layer.init_with_output(jax.random.key(0), values, values > 0)
  >>> result.round(2).tolist()
  [[[-1.0, 1.0], [0.0, 0.0]]]

  Attributes:
    use_running_average: True = evaluation, the running statistics normalise.
    n_steps: steps with parameters of their own.
    momentum: weight of the old running statistics in their update.
    epsilon: added to the variance.
  """

  use_running_average: bool
  n_steps: int
  momentum: float = 0.9
  epsilon: float = 1e-5

  @nn.compact
  def __call__(
    self, values: Float[Array, "b t d"], mask: Bool[Array, "b t d"]
  ) -> Float[Array, "b t d"]:
    shape = (self.n_steps,)
    running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
    running_var = self.variable("batch_stats", "var", jnp.ones, shape)
    scale = self.param("scale", nn.initializers.ones, shape)
    bias = self.param("bias", nn.initializers.zeros, shape)
    values = jnp.where(mask, values, 0.0).astype(jnp.float32)
    steps = jnp.minimum(jnp.arange(values.shape[1]), self.n_steps - 1)
    if self.use_running_average:
      mean, variance = running_mean.value[steps], running_var.value[steps]
    else:
      count = jnp.sum(mask, axis=(0, 2)).astype(jnp.float32)  # [t]
      divisor = jnp.maximum(count, 1.0)
      mean = jnp.sum(values, axis=(0, 2)) / divisor
      centred = jnp.where(mask, values - mean[None, :, None], 0.0)
      variance = jnp.sum(centred**2, axis=(0, 2)) / divisor
      if not self.is_initializing():
        known = min(self.n_steps, values.shape[1])
        keep = jnp.where(count[:known] > 0, self.momentum, 1.0)
        for running, now in ((running_mean, mean), (running_var, variance)):
          moved = keep * running.value[:known] + (1.0 - keep) * now[:known]
          running.value = running.value.at[:known].set(moved)
    factor = scale[steps] * lax.rsqrt(variance + self.epsilon)
    result = (values - mean[None, :, None]) * factor[None, :, None]
    return jnp.where(mask, result + bias[steps][None, :, None], 0.0)
