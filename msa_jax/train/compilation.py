"""The persistent compilation cache: the second start of a command compiles nothing."""

import os
import pathlib

import jax


def use_cache() -> None:
  """Keeps compiled programs in the user's cache folder.

  `JAX_COMPILATION_CACHE_DIR` moves it; an empty value turns it off.
  """
  if "JAX_COMPILATION_CACHE_DIR" in os.environ:
    return
  root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(root) / "msa_jax"))
  # Small programs add up in start-up time; all of them are worth keeping.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
