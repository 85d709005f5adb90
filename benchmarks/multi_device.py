"""A step over several devices, in a process that has them; a script of its own.

`python -m benchmarks.multi_device CONFIG.json SHAPE ROWS DEVICES REPEATS` prints its
seconds.
"""

import json
import pathlib
import sys

import jax

from benchmarks import systems
from msa_jax.config.experiment import from_json
from msa_jax.devices import compilation


def main(path: str, shape: str, rows: str, devices: str, repeats: str) -> None:
  """Measures it; a CPU becomes as many devices."""
  jax.config.update("jax_num_cpu_devices", int(devices))
  compilation.configure_process()
  config = from_json(pathlib.Path(path).read_text())
  seconds = systems.step_seconds(config, shape, int(rows), int(devices), int(repeats))
  print(json.dumps(seconds))


if __name__ == "__main__":
  main(*sys.argv[1:])
