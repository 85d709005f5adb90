"""`msa-jax COMMAND` (or `python -m msa_jax COMMAND`): one door to every program.

  train     trains a system on a corpus
  evaluate  scores a trained run again, also with modalities missing
  predict   predicts every sample of a file with a trained run
  configs   lists systems and variants, and the options of one
  data      checks, converts and describes data files
  studies   trains and compares what a paper's table does
  tune      searches options' values that do best on validation
  report    draws runs and studies, or compares them in tables
  bench     measures speed and memory (in a checkout)

`msa-jax COMMAND --help` tells the flags of one; with --config=NAME also every option.
"""

import difflib
import importlib
import pathlib
import sys
from collections.abc import Sequence

import msa_jax
from msa_jax import command
from msa_jax.errors import UserError

_PROGRAMS = {
  "studies": "msa_jax.studies.__main__",
  "tune": "msa_jax.studies.__main__",
  "report": "msa_jax.report.__main__",
  "bench": "benchmarks.__main__",
}
_MODES = ("train", "evaluate", "predict")
COMMANDS = (*_MODES, "configs", "data", *_PROGRAMS)


def main(arguments: Sequence[str] | None = None) -> None:
  """Runs a command; ends the process with its exit code."""
  arguments = list(sys.argv[1:] if arguments is None else arguments)
  try:
    if not arguments or arguments[0] in ("--help", "-h", "help"):
      print((__doc__ or "").strip())
      sys.exit(0)
    if arguments[0] == "--version":
      print(msa_jax.__version__)
      sys.exit(0)
    name, rest = _known(arguments[0]), arguments[1:]
    _check_flags(name, rest)
  except UserError as error:
    command.fail(error)
  # Imported by name: each program defines flags of its own, and only one may.
  if name == "configs":
    sys.exit(importlib.import_module("msa_jax.config.listing").main(rest))
  if name == "data":
    program = importlib.import_module("msa_jax.data.__main__")
    with command.one_line():
      sys.exit(program.main(rest, "msa-jax data"))
  if name in _MODES:
    importlib.import_module("msa_jax.main").run_mode(name, rest)
  rest = ["tune", *rest] if name == "tune" else rest  # a study, with a door of its own
  importlib.import_module(_PROGRAMS[name]).run_main(rest)


def _known(name: str) -> str:
  if name in COMMANDS:
    return name
  near = difflib.get_close_matches(name, COMMANDS, n=1)
  hint = f" Did you mean {near[0]}?" if near else ""
  raise UserError(f"{name!r} must be one of {', '.join(COMMANDS)}.{hint}")


def _check_flags(name: str, rest: Sequence[str]) -> None:
  if name in _MODES and any(each.lstrip("-").startswith("mode") for each in rest):
    raise UserError(f"msa-jax {name} takes no --mode: the command says it.")
  if name == "bench":
    root = pathlib.Path(__file__).resolve().parents[1]
    if not (root / "benchmarks" / "systems.py").is_file():
      raise UserError(
        "bench is not part of the installed package: run it in a checkout of the"
        " repository."
      )
    sys.path.insert(0, str(root))


if __name__ == "__main__":
  main()
