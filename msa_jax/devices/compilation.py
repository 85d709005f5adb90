"""How programs are compiled: kept between runs, and with bounded memory."""

import ctypes
import functools
import gc
import os
import pathlib
import re
from typing import Any, cast

import jax


def configure_process() -> None:
  """Prepares the process of a command, once its modules are imported."""
  use_cache()
  keep_memory()
  spare_threads()
  # Tracing makes so many objects that the collector walks through those of all imports
  # again and again: a quarter of the time that H-GEM's step takes to trace.
  gc.freeze()


def spare_threads() -> None:
  """Gives the devices of a CPU twice as many threads as they are, if they are several.

  Their programs share a pool of as many threads as there are cores or devices. Where
  all of its threads wait in a program for the other devices, none is left for the loops
  that XLA hands to the pool, and the program waits for ever. To be called before JAX
  has devices; does nothing where `NPROC`, which sets the size of the pool, is set.
  """
  flag = re.search(r"host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
  devices = max(cast(Any, jax.config).jax_num_cpu_devices, int(flag[1]) if flag else 1)
  if devices > 1:
    os.environ.setdefault("NPROC", str(max(devices, os.cpu_count() or 1) + devices))


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


def keep_memory() -> None:
  """Keeps freed memory in the process, where it is used again within a step.

  A program's temporary memory is one allocation per call. glibc hands it back to the
  system each time and has it zeroed page by page at the next call: a tenth of the time
  of a step that fine-tunes a text encoder on a CPU. Elsewhere this does nothing.
  """
  try:
    allocator = ctypes.CDLL(None).mallopt
  except (OSError, TypeError, AttributeError):  # no glibc
    return
  for option, value in _ALLOCATOR.items():
    allocator(option, value)


# mallopt(3): no allocation is a mapping of its own, the heap is not trimmed, there is
# one, and it grows by as much as a program may take.
_ALLOCATOR = {-4: 0, -1: 2**31 - 1, -8: 1, -2: 2**29}


@functools.cache
def options(once: bool = False) -> dict[str, bool | int]:
  """Compiler options for `jax.jit(..., compiler_options=...)`.

  On a CPU, LLVM does little: more than level 1 takes a third longer to compile for
  H-GEM's step, and twice as long for smaller ones, which get at most some percent
  faster. XLA's fusion emitters are turned off where this XLA knows the option: for
  a program of H-GEM's size they more than double the compiler's memory and change
  neither compile time nor speed.

  Args:
    once: the program runs once, as initialisation does: on a CPU, optimising H-GEM's
      takes four times as long as not optimising it, and saves a tenth of a second.
  """
  if jax.default_backend() != "cpu":
    return {}
  none = once or jax.config.read("jax_disable_most_optimizations")
  level = {"xla_backend_optimization_level": 0 if none else 1}
  chosen = {"xla_cpu_use_fusion_emitters": False, **level}
  try:
    jax.jit(lambda: 0, compiler_options=chosen).lower().compile()
  except jax.errors.JaxRuntimeError:
    return level
  return chosen
