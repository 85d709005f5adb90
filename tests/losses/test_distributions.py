"""The core that losses and metrics share: hand values, in JAX and in NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msa_jax.errors import UserError
from msa_jax.losses import distributions

BOTH = pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])


@BOTH
def test_entropy_by_hand_in_every_unit(xp):
  probs = xp.asarray([[0.5, 0.25, 0.25, 0.0], [0.0, 1.0, 0.0, 0.0], [0.25] * 4])
  # 1/2 * 1 + 2 * 1/4 * 2 = 1.5 bits; the greatest entropy of four is 2 bits.
  units = {("bits", False): 1.0, ("nats", False): 1 / math.log(2), ("bits", True): 2.0}
  for (base, normalised), greatest in units.items():
    unit = distributions.entropy_unit(base, normalised, 4)
    got = distributions.entropy(probs, unit, xp)
    np.testing.assert_allclose(got, np.array([1.5, 0, 2]) / greatest, rtol=1e-6)


@BOTH
def test_squared_variation_by_hand(xp):
  # Mean 2, variance (1 + 1 + 0) / 3, over 4.
  got = distributions.squared_variation(xp.asarray([1.0, 3.0, 2.0]), xp)
  np.testing.assert_allclose(got, 1 / 6, rtol=1e-6)
  one = distributions.squared_variation(xp.asarray([0.0, 0.0, 5.0]), xp)
  np.testing.assert_allclose(one, 2.0, rtol=1e-6)
  assert distributions.squared_variation(xp.zeros(3), xp) == 0.0


def test_host_values_are_float64_and_device_values_differentiable():
  probs = np.asarray([0.2, 0.8, 0.0])
  assert distributions.entropy(probs, 1.0, np).dtype == np.float64
  gradient = jax.grad(lambda p: distributions.entropy(p, 1.0, jnp))(jnp.asarray(probs))
  # -log p - 1; the absent entry has a finite derivative.
  np.testing.assert_allclose(gradient[:2], -np.log(probs[:2]) - 1, rtol=1e-5)
  assert np.isfinite(gradient[2])


def test_a_single_entry_has_the_unit_one_and_an_unknown_base_is_refused():
  assert distributions.entropy_unit("bits", True, 1) == 1.0
  with pytest.raises(UserError, match="entropy base 'bans': choose 'nats' or 'bits'"):
    distributions.entropy_unit("bans", False, 3)
