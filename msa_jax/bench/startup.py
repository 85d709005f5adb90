"""Start-up of a new process: with nothing compiled yet, and from the cache."""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

import ml_collections

from msa_jax import config as config_lib
from msa_jax.bench import shapes

Laps = dict[str, float]


def startup(
  config: ml_collections.ConfigDict, shape: str, rows: int, repeats: int
) -> dict[str, Laps]:
  """Seconds of imports, data, initialisation and the first step.

  Args:
    config, shape, rows: as for `systems.system`.
    repeats: processes that find the cache filled, of which the median is taken.

  Returns:
    "cold" (one process) and "cached" -> part of the start-up -> seconds.
  """
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "config.json"
    path.write_text(config_lib.to_json(shapes.apply(config, shape, rows)))
    environment = {**os.environ, "XDG_CACHE_HOME": folder}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    cold, *cached = [_first_step(path, environment) for _ in range(1 + repeats)]
  medians = {part: statistics.median(laps[part] for laps in cached) for part in cold}
  return {"cold": cold, "cached": medians}


def _first_step(path: pathlib.Path, environment: dict[str, str]) -> Laps:
  done = subprocess.run(
    [sys.executable, "-m", "msa_jax.bench.first_step", str(path)],
    env=environment,
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  return json.loads(done.stdout.splitlines()[-1])
