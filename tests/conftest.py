"""A strict session: four CPU devices, no silent rank promotion, shapes checked.

Warnings raised from our own files are errors; those of dependencies are not.
"""

import os
import tempfile
from importlib import metadata

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile far more than they compute: optimising tiny programs doubles the time
# of the session. Set in the environment, so that subprocesses have it too.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# The newer way to emit loops takes three times as long to compile tiny programs. XLA
# ends a process at a flag that it does not know, as that of JAX 0.12 does this one.
if tuple(map(int, metadata.version("jaxlib").split(".")[:2])) == (0, 10):
  _QUICK = "--xla_cpu_use_fusion_emitters=false"
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_QUICK}".strip()

import jax
import jax.numpy as jnp
import pytest

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Tests that build the same small program again read it back instead of compiling it, in
# whichever worker or subprocess of the session: they inherit the environment.
if "MSA_JAX_TEST_CACHE" not in os.environ:
  _CACHE = tempfile.TemporaryDirectory(prefix="msa_jax_test_cache_")
  os.environ["MSA_JAX_TEST_CACHE"] = _CACHE.name
jax.config.update("jax_compilation_cache_dir", os.environ["MSA_JAX_TEST_CACHE"])
# Text features that runs make of frozen encoders are kept with them, not with the user.
os.environ["XDG_CACHE_HOME"] = os.environ["MSA_JAX_TEST_CACHE"]
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def pytest_configure(config):
  config.addinivalue_line("filterwarnings", "error:::msa_jax")
  config.addinivalue_line("filterwarnings", "error:::tests")


@pytest.fixture(autouse=True, scope="module")
def fresh_programs():
  """Drops the programs of a file after it: kept, they grow to gigabytes."""
  yield
  jax.clear_caches()


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
