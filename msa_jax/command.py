"""What the command lines share: wrong input is one line and exit code 2."""

import functools
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from absl import app, flags

from msa_jax.errors import UserError

_OURS = f"{UserError.__module__}.{UserError.__name__}: "


def fail(error: Exception) -> NoReturn:
  """Ends the program with the error as one line."""
  # KeyError and its kin quote their message when printed; args[0] is the plain one.
  message = error.args[0] if isinstance(error, LookupError) and error.args else error
  known = isinstance(error, UserError | flags.Error | LookupError | AttributeError)
  kind = "" if known else f"{type(error).__name__}: "
  if "Traceback (most recent call last)" in str(message):
    # What a config file raised comes inside the message; its last line says it.
    message = str(message).strip().splitlines()[-1].removeprefix(_OURS)
  print(f"error: {kind}{' '.join(str(message).split())}", file=sys.stderr)
  sys.exit(2)


def _parse(config: flags.FlagHolder | None, arguments: list[str]) -> list[str]:
  """Parses flags. The config file runs here; whatever is wrong is one line."""
  try:
    rest = flags.FLAGS(arguments)
    if config is not None and config.value is not None:
      config.value.keys()  # a file that cannot be read is reported at first use
    return rest
  except Exception as error:  # noqa: BLE001
    fail(error)


def run(
  main: Callable[[list[str]], Any], config: flags.FlagHolder | None = None
) -> NoReturn:
  """Runs a program of absl's flags.

  Args:
    main: gets the arguments that are no flags.
    config: the flag of a config file, if there is one.
  """
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  app.run(main, flags_parser=functools.partial(_parse, config))
