"""Stopwatch, ceilings of the device, and what a program costs on paper."""

import functools
import os
import pathlib
import platform
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache


class Ceilings(NamedTuple):
  """What the device reaches at its best, measured here and now.

  Attributes:
    matmul: floating-point operations per second of a large matrix product.
    memory: bytes per second, read and written, of a large elementwise operation.
  """

  matmul: float
  memory: float


def median_seconds(call: Callable[[], Any], repeats: int, inner: int = 1) -> float:
  """Median time of one call, waiting for its result, after one that is not counted.

  Args:
    call: returns arrays.
    repeats: timings, of which the median is taken.
    inner: calls per timing; the host waits once for all of them.
  """
  jax.block_until_ready(call())
  seconds = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready([call() for _ in range(inner)])
    seconds.append((time.perf_counter() - start) / inner)
  return statistics.median(seconds)


def calls_per_timing() -> int:
  """Steps to start before the host waits; a CPU's take long enough one by one."""
  return 1 if jax.default_backend() == "cpu" else 20


def repeated(step: Callable, state: Any, *inputs: Any) -> Callable[[], Any]:
  """A function that runs a step from where the last call has left the state.

  Args:
    step: (state, *inputs) -> (state, arrays to wait for); may donate the state.
    state, inputs: its arguments; the state is copied.
  """
  # In one program, and done with: small ones over the devices of a CPU, one after the
  # other, can wait for each other for ever.
  copy = jax.jit(functools.partial(jax.tree.map, jnp.copy))
  state = jax.block_until_ready(state)
  kept = [jax.block_until_ready(copy(state))]

  def call() -> Any:
    kept[0], others = step(kept[0], *inputs)
    return others

  return call


def uncached(compile_: Callable[[], Any]) -> Any:
  """Result of a function that compiles, without the cache between processes."""
  enabled = jax.config.jax_enable_compilation_cache
  jax.config.update("jax_enable_compilation_cache", False)
  compilation_cache.reset_cache()  # Whether to use it is decided once.
  try:
    return compile_()
  finally:
    jax.config.update("jax_enable_compilation_cache", enabled)
    compilation_cache.reset_cache()


def ceilings(dtype: Any = jnp.float32, repeats: int = 5) -> Ceilings:
  """Measures the device; shares of these are shares of what it can do today."""
  small = jax.default_backend() == "cpu"
  side, size = (1024, 2**25) if small else (8192, 2**29)
  key = jax.random.key(0)
  matrix = jax.random.normal(key, (side, side), dtype)
  product = jax.jit(lambda a: a @ a)
  seconds = median_seconds(lambda: product(matrix), repeats)
  # In place, as optimizers update: new memory would be measured as well.
  add = jax.jit(lambda a: (a + 1.0, a[0]), donate_argnums=0)
  moved = median_seconds(repeated(add, jnp.ones(size, jnp.float32)), repeats)
  return Ceilings(2 * side**3 / seconds, 8 * size / moved)


def program_cost(compiled: Any) -> dict[str, float | None]:
  """What the compiler says of a program: flops, bytes moved, peak bytes.

  Loop bodies count once in the first two; None where the backend does not say.
  """
  cost = compiled.cost_analysis() or {}
  cost = cost[0] if isinstance(cost, list) else cost
  memory = compiled.memory_analysis()
  peak = None
  if memory is not None:
    parts = ("argument", "output", "temp", "generated_code")
    peak = float(sum(getattr(memory, f"{p}_size_in_bytes") for p in parts))
    peak -= memory.alias_size_in_bytes  # donated arguments are outputs as well
  flops, moved = cost.get("flops"), cost.get("bytes accessed")
  return {
    "xla_flops": None if flops is None else float(flops),
    "xla_bytes": None if moved is None else float(moved),
    "peak_bytes": peak,
  }


def process_peak_bytes() -> float:
  """Most memory this process has held at once: of the device, or of the host."""
  statistics_ = jax.local_devices()[0].memory_stats() or {}
  if "peak_bytes_in_use" in statistics_:
    return float(statistics_["peak_bytes_in_use"])
  unit = 1 if platform.system() == "Darwin" else 1024
  return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def machine() -> dict[str, Any]:
  """What was measured on."""
  info = pathlib.Path("/proc/cpuinfo")
  names = [line.partition(":")[2].strip() for line in _lines(info, "model name")]
  cores = (
    len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
  )
  return {
    "device": jax.devices()[0].device_kind,
    "backend": jax.default_backend(),
    "devices": jax.device_count(),
    "processor": names[0] if names else platform.processor() or platform.machine(),
    "cores": cores,
    "load": round(os.getloadavg()[0], 2),
    "system": platform.platform(),
    "python": platform.python_version(),
    "jax": jax.__version__,
  }


def _lines(path: pathlib.Path, start: str) -> list[str]:
  if not path.exists():
    return []
  return [line for line in path.read_text().splitlines() if line.startswith(start)]
