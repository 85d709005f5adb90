"""The exact Gaussian error linear unit."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtr

from msa_jax.layers.kernels.gelu import exact_gelu, gelu_plain

VALUES = np.linspace(-12.0, 12.0, 4801).astype(np.float32)


def test_gelu_is_x_times_the_normal_distribution_function():
  expected = np.float64(VALUES) * ndtr(np.float64(VALUES))
  np.testing.assert_allclose(exact_gelu(jnp.asarray(VALUES)), expected, atol=1e-6)


def test_values_and_derivatives_are_those_of_the_plain_form():
  for order in (lambda f: f, jax.grad, lambda f: jax.grad(jax.grad(f))):
    ours, plain = (jax.jit(jax.vmap(order(f))) for f in (exact_gelu, gelu_plain))
    np.testing.assert_allclose(ours(VALUES), plain(VALUES), atol=2e-6)
