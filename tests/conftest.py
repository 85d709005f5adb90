"""A strict session: four CPU devices, no silent rank promotion, shapes checked.

Warnings raised from our own files are errors; those of dependencies are not.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import pytest

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config):
  config.addinivalue_line("filterwarnings", "error:::msa_jax")
  config.addinivalue_line("filterwarnings", "error:::tests")


@pytest.fixture
def getkey():
  """Returns a function that gives a fresh random key at each call."""
  state = {"key": jax.random.key(2026)}

  def fresh():
    state["key"], key = jax.random.split(state["key"])
    return key

  return fresh


@pytest.fixture
def float64():
  """Turns on float64 for one test (numerical oracles, finite differences)."""
  with jax.enable_x64(True):
    yield jnp.float64
