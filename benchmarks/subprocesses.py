"""What needs processes of its own: their start, and devices that a CPU is divided into.

To be measured before this process has devices: some can be held by one process only.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from msa_jax.config.experiment import Experiment, to_json
from msa_jax.errors import UserError


def startup(
  config: Experiment, shape: str, rows: int, repeats: int
) -> dict[str, dict[str, float]]:
  """Seconds of imports, data, initialisation and the first step.

  Args:
    config, shape, rows: as for `systems.system`.
    repeats: processes that find the cache filled, of which the median is taken.

  Returns:
    "cold" (one process) and "cached" -> part of the start-up -> seconds.
  """
  with tempfile.TemporaryDirectory() as cache:
    environment = {**os.environ, "XDG_CACHE_HOME": cache}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    cold, *cached = [
      _said("first_step", config, (shape, rows), environment)
      for _ in range(1 + repeats)
    ]
  medians = {part: statistics.median(laps[part] for laps in cached) for part in cold}
  return {"cold": cold, "cached": medians}


def scaling(
  config: Experiment,
  shape: str,
  rows: int,
  counts: Sequence[int],
  repeats: int,
) -> list[dict[str, Any]]:
  """The step with its batch split over some devices, each number in its own process.

  Args:
    config, shape, rows, repeats: as for `systems.system`.
    counts: numbers of devices, each of which divides the batch.

  Returns:
    For each number the seconds of a step, and how many times faster than the first.
  """
  figures: list[dict[str, Any]] = []
  for count in counts:
    arguments = (shape, rows, count, repeats)
    seconds = _said("multi_device", config, arguments, dict(os.environ))
    first = figures[0]["step_seconds"] if figures else seconds
    figures.append(
      {"devices": count, "step_seconds": seconds, "faster": first / seconds}
    )
  return figures


def _said(
  script: str,
  config: Experiment,
  arguments: Sequence[Any],
  environment: dict[str, str],
) -> Any:
  """The JSON that a script of this package prints last.

  Raises:
    UserError: it failed; with its last line.
  """
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "config.json"
    path.write_text(to_json(config))
    command = [sys.executable, "-m", f"benchmarks.{script}", str(path)]
    command += map(str, arguments)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
  if done.returncode:
    reason = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    raise UserError(f"{script} {' '.join(map(str, arguments))}: {reason[-1]}")
  return json.loads(done.stdout.splitlines()[-1])
