"""The masked convolution and the exact GELU."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msa_jax.layers.activation import exact_gelu
from msa_jax.layers.convolution import MaskedConvolution


@pytest.mark.parametrize("kernel_size", [1, 2, 3, 5])
def test_convolution_equals_a_loop_over_neighbours(kernel_size, getkey):
  lengths, n_steps = [6, 3, 0], 6
  values = jax.random.normal(getkey(), (3, n_steps, 4))
  mask = jnp.arange(n_steps)[None] < jnp.array(lengths)[:, None]
  layer = MaskedConvolution(5, kernel_size)
  params = layer.init(getkey(), values, mask)["params"]
  params = {**params, "bias": jax.random.normal(getkey(), (5,))}
  result = layer.apply({"params": params}, values, mask)
  kernel, bias = np.float64(params["kernel"]), np.float64(params["bias"])
  left = (kernel_size - 1) // 2
  for row, length in enumerate(lengths):
    for step in range(n_steps):
      expected = np.zeros(5)
      if step < length:
        expected = bias.copy()
        for tap in range(kernel_size):
          source = step + tap - left
          if 0 <= source < length:
            expected += np.float64(values[row, source]) @ kernel[tap]
      np.testing.assert_allclose(result[row, step], expected, atol=1e-5)


def test_nan_in_padding_reaches_neither_value_nor_gradient(getkey):
  values = jax.random.normal(getkey(), (2, 4, 3))
  mask = jnp.arange(4)[None] < jnp.array([2, 3])[:, None]
  values = jnp.where(mask[..., None], values, jnp.nan)
  layer = MaskedConvolution(2)
  variables = layer.init(getkey(), values, mask)
  gradients = jax.grad(lambda v: jnp.sum(layer.apply(v, values, mask) ** 2))(variables)
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))


def test_parameter_count_is_that_of_a_plain_convolution():
  # 3 * 74 * 768 + 768 = 171,264.
  shapes = jax.eval_shape(
    MaskedConvolution(768).init,
    jax.random.key(0),
    jnp.zeros((1, 4, 74)),
    jnp.ones((1, 4), bool),
  )
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 171_264


def test_exact_gelu_is_x_times_the_normal_distribution_function():
  points = np.linspace(-6.0, 6.0, 41)
  expected = [x * 0.5 * (1.0 + math.erf(x / math.sqrt(2.0))) for x in points]
  result = exact_gelu(jnp.asarray(points, jnp.float32))
  np.testing.assert_allclose(result, expected, atol=1e-6)
  # Derivative Phi(x) + x phi(x).
  slope = jax.vmap(jax.grad(exact_gelu))(jnp.asarray(points, jnp.float32))
  normal = np.exp(-(points**2) / 2.0) / math.sqrt(2.0 * math.pi)
  phi = np.array([0.5 * (1.0 + math.erf(x / math.sqrt(2.0))) for x in points])
  np.testing.assert_allclose(slope, phi + points * normal, atol=1e-6)
