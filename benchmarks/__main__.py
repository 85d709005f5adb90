"""`python -m benchmarks`: measures a system, expert banks, kernels, PyTorch's steps.

  python -m benchmarks --config=configs/hgem.py                # MOSI, aligned
  python -m benchmarks --config=configs/lf_dnn.py --shape=mosei --epochs=3
  python -m benchmarks --config=configs/lf_dnn.py --epochs=3 --replicas=1,5,20
  python -m benchmarks --config=configs/lf_dnn.py --devices=1,2,4 --startup
  python -m benchmarks --dispatch --against=torch --torch_python=python3
  python -m benchmarks --kernels                               # and their plain twins

Prints markdown; `--output=report` writes report.md and report.json. A step takes
seconds to measure, epochs as long as training for that many.
"""

import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from absl import flags, logging
from ml_collections import config_flags

from msa_jax import command
from msa_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file("config", None, "System to measure.")
_SHAPE = flags.DEFINE_string(
  "shape", "mosi", "Data shape: mosi, mosi_unaligned, mosi_pooled or mosei."
)
_ROWS = flags.DEFINE_integer("rows", 0, "Most samples per split; 0 = all.")
_EPOCHS = flags.DEFINE_integer("epochs", 0, "Epochs to train and time; 0 = none.")
_REPLICAS = flags.DEFINE_string("replicas", "1", "How many seeds, e.g. 1,5,20.")
_DEVICES = flags.DEFINE_string("devices", "", "Devices to split batches over: 1,2,4.")
_STARTUP = flags.DEFINE_bool("startup", False, "Measure the start of new processes.")
_DISPATCH = flags.DEFINE_bool("dispatch", False, "Measure the expert bank.")
_KERNELS = flags.DEFINE_bool("kernels", False, "Measure the layers' kernels.")
_AGAINST = flags.DEFINE_string("against", "", "torch: the same steps in PyTorch.")
_PYTHON = flags.DEFINE_string(
  "torch_python", sys.executable, "Interpreter with PyTorch and transformers."
)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timings to take the median of.")
_OUTPUT = flags.DEFINE_string("output", "", "Where to write, without the suffix.")


def _counts(flag: flags.FlagHolder) -> list[int]:
  """The numbers of a flag."""
  counts = flag.value.split(",")
  if not all(count.isdecimal() and int(count) > 0 for count in counts):
    raise UserError(f"--{flag.name}={flag.value!r} must be like 1,5,20.")
  return [int(count) for count in counts]


def _check() -> tuple[list[int], list[int]]:
  """Checks the flags; returns the numbers of seeds and of devices."""
  wanted = (_CONFIG.value, _DISPATCH.value, _KERNELS.value, _AGAINST.value)
  if not any(wanted):
    raise UserError(
      "nothing to measure: give --config=configs/<system>.py, --dispatch, --kernels or"
      " --against=torch."
    )
  if _AGAINST.value not in ("", "torch"):
    raise UserError(f"--against={_AGAINST.value!r} must be torch.")
  if _REPEATS.value < 1:
    raise UserError(f"--repeats={_REPEATS.value} must be positive.")
  if _EPOCHS.value == 1 or _EPOCHS.value < 0:
    raise UserError(
      f"--epochs={_EPOCHS.value} must be 0 (none) or at least 2: the first one"
      " compiles and does not count."
    )
  seeds, devices = _counts(_REPLICAS), _counts(_DEVICES) if _DEVICES.value else []
  for flag in (_EPOCHS, _DEVICES, _STARTUP):
    if flag.value and _CONFIG.value is None:
      raise UserError(f"--{flag.name} needs --config, the system to measure.")
  return seeds, devices


def _measure(seeds: list[int], devices: list[int]) -> dict[str, Any]:
  # Imported here: a wrong flag is answered before JAX starts.
  from benchmarks import (
    compare_torch,
    dispatch,
    kernels,
    measure,
    subprocesses,
    systems,
  )
  from msa_jax.config.experiment import experiment
  from msa_jax.devices import compilation

  compilation.configure_process()
  logging.set_verbosity(logging.WARNING)
  figures: dict[str, Any] = {"repeats": _REPEATS.value}
  chosen = None if _CONFIG.value is None else experiment(_CONFIG.value)
  shape = (chosen, _SHAPE.value, _ROWS.value)
  if devices:
    figures["scaling"] = subprocesses.scaling(*shape, devices, _REPEATS.value)
  if _STARTUP.value:
    figures["startup"] = subprocesses.startup(*shape, _REPEATS.value)
  figures["machine"] = measure.machine()
  if _CONFIG.value is not None:
    figures["system"] = systems.system(*shape, _REPEATS.value)
    if _EPOCHS.value:
      figures["system"]["epochs"] = [
        systems.epochs(*shape, tuple(range(count)), _EPOCHS.value) for count in seeds
      ]
  if _DISPATCH.value:
    figures["dispatch"] = dispatch.dispatch(_REPEATS.value)
  if _KERNELS.value:
    figures["kernels"] = kernels.kernels(_REPEATS.value)
  if _AGAINST.value:
    figures["against"] = compare_torch.against_torch(_PYTHON.value, _REPEATS.value)
  return figures


def main(arguments: list[str]) -> None:
  """Measures what the flags ask for; bad flags end with one line and exit code 2."""
  try:
    command.refuse_strays(arguments[1:])
    figures = _measure(*_check())
  except (UserError, OSError, MemoryError):
    with command.one_line():
      raise
  from benchmarks import table

  text = table.report(figures)
  print(text)
  if _OUTPUT.value:
    path = pathlib.Path(_OUTPUT.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".md").write_text(text)
    path.with_suffix(".json").write_text(json.dumps(figures, indent=2) + "\n")


def run_main(arguments: Sequence[str] | None = None) -> NoReturn:
  """`python -m benchmarks` and `msa-jax bench`."""
  taken = (_CONFIG, _SHAPE, _ROWS, _EPOCHS, _REPLICAS, _DEVICES, _STARTUP, _DISPATCH)
  taken = (*taken, _AGAINST, _PYTHON, _REPEATS, _OUTPUT)
  command.run(command.Program(main, __doc__ or "", taken, _CONFIG), arguments)


if __name__ == "__main__":
  run_main()
