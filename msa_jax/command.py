"""What command lines share: flags, help, wrong input as one line and exit code 2."""

import difflib
import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

from absl import app, flags
from absl.flags import FlagHolder

from msa_jax.config import files
from msa_jax.errors import MachineError, UserError, of_system

_OURS = f"{UserError.__module__}.{UserError.__name__}: "
_HELP = ("--help", "-help", "-h", "--helpfull", "--helpshort", "-?")


class Program(NamedTuple):
  """A program of absl's flags.

  Attributes:
    main: gets the program's name and the arguments that are no flags.
    usage: what `--help` says before the flags.
    flags: that it takes, of which `--help` tells.
    config: the flag of a config file among them, or None.
  """

  main: Callable[[list[str]], Any]
  usage: str
  flags: Sequence[FlagHolder]
  config: FlagHolder | None = None


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
  sys.exit(getattr(error, "exit_code", 2))


def as_known(error: Exception) -> Exception:
  """A system's error or a lack of memory as an error of ours, any other unchanged.

  A disk that is full, a folder that is read-only: one line, and exit code 1 in place of
  the user's 2.
  """
  if isinstance(error, OSError):
    return of_system(error)
  if isinstance(error, MemoryError):
    return MachineError("there is not enough memory for this")
  return error


@contextmanager
def one_line() -> Iterator[None]:
  """A program that ends with one line where its input or the machine is at fault."""
  try:
    yield
    sys.stdout.flush()  # what is left fails here and not at the end of the process
  except BrokenPipeError:
    # Whoever read what was printed, as `head` does, has gone: no more to say.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)
  except (UserError, OSError, MemoryError) as error:
    fail(as_known(error))


def refuse_strays(arguments: Sequence[str]) -> None:
  """Refuses arguments that are no flags.

  Args:
    arguments: without the program's name.

  Raises:
    UserError: there is one.
  """
  if not arguments:
    return
  stray = arguments[0]
  key = stray.removeprefix("config.")
  hint = f": did you mean --config.{key}?" if "=" in stray else "; flags begin with --"
  raise UserError(f"{stray!r} is no flag{hint}")


def _with_files(arguments: Sequence[str]) -> list[str]:
  """Arguments in which the config is named by its file, as absl reads it, with the
  recipe for data of one's own where some are given."""
  arguments = list(arguments)
  own = any(_value_of(arguments, name) for name in ("config.data.path", "data"))

  def flag(text: str) -> str:
    return files.locate(files.for_own_data(text) if own else text).flag

  for place, argument in enumerate(arguments):
    if argument == "--":
      break
    for dashes in ("--", "-"):
      if argument.startswith(f"{dashes}config="):
        arguments[place] = f"--config={flag(argument.split('=', 1)[1])}"
        break
      if argument == f"{dashes}config" and place + 1 < len(arguments):
        arguments[place + 1] = flag(arguments[place + 1])
  return arguments


def _named_config(arguments: Sequence[str]) -> str:
  """Value of `--config` among the arguments, or ""."""
  return _value_of(arguments, "config")


def _value_of(arguments: Sequence[str], flag: str) -> str:
  """Value of a flag among the arguments, or ""."""
  for place, argument in enumerate(arguments):
    name, equals, value = argument.lstrip("-").partition("=")
    if argument.startswith("-") and name == flag:
      return value if equals else "".join(arguments[place + 1 : place + 2])
  return ""


def _check_keys(arguments: Sequence[str]) -> None:
  """Raises UserError naming the first `--config.<key>` that the config lacks, the
  names next to it and the choices."""
  config = files.get_config(_named_config(arguments))
  for argument in arguments:
    flag = argument.lstrip("-").partition("=")[0]
    if argument.startswith("-") and flag.startswith("config."):
      _check_key(config, flag)


def _check_key(config: Any, flag: str) -> None:
  node, path = config, "config"
  for key in flag.split(".")[1:]:
    choices = sorted(node.keys()) if hasattr(node, "keys") else []
    if not choices:
      return  # below a value: an index or absl's own message
    if key not in choices:
      near = difflib.get_close_matches(key, choices, n=3, cutoff=0.5)
      hint = f" did you mean {' or '.join(near)}?" if near else ""
      raise UserError(
        f"--{flag}: {path} has no {key!r};{hint} The choices are {', '.join(choices)}."
      )
    node, path = node[key], f"{path}.{key}"


def _options(tree: Mapping[str, Any], prefix: str) -> Iterator[str]:
  for key, value in tree.items():
    if isinstance(value, Mapping) and value:
      yield from _options(value, f"{prefix}{key}.")
    else:
      shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
      yield f"  {prefix}{key}={shown}"


def _help(program: Program, arguments: Sequence[str]) -> str:
  """The program's usage, its flags, and the options of the config that is named."""
  lines = [program.usage.strip(), "", "Flags:"]
  for holder in program.flags:
    default = (
      "" if holder.default in (None, "", []) else f" (default: {holder.default})"
    )
    lines.append(f"  --{holder.name:<16} {flags.FLAGS[holder.name].help}{default}")
  if program.config is None:
    return "\n".join(lines)
  name = _named_config(arguments)
  if name:
    config = files.get_config(name).to_dict()
    lines += ["", f"Options of {name}, with their defaults:"]
    lines += _options(config, "--config.")
  else:
    lines += ["", f"Configs: {', '.join(files.shipped())}, or the path of a file."]
    lines += ["With --config=NAME, --help lists every option of that config."]
  return "\n".join(lines)


def _parse(program: Program, arguments: list[str]) -> list[str]:
  """Parses flags. The config file runs here; whatever is wrong is one line."""
  try:
    if any(argument in _HELP for argument in arguments[1:]):
      print(_help(program, arguments))
      sys.exit(0)
    arguments = _with_files(arguments)
    try:
      rest = flags.FLAGS(arguments)
      if program.config is not None and program.config.value is not None:
        program.config.value.keys()  # a file that cannot be read is reported here
    except Exception:
      if program.config is not None and _named_config(arguments):
        _check_keys(arguments)
      raise
    return rest
  except Exception as error:  # noqa: BLE001
    fail(error)


def run(program: Program, arguments: Sequence[str] | None = None) -> NoReturn:
  """Runs a program.

  Args:
    program: which.
    arguments: without the program's name; None = those of the process.
  """
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  argv = sys.argv if arguments is None else [sys.argv[0], *arguments]
  app.run(
    program.main, argv=list(argv), flags_parser=functools.partial(_parse, program)
  )
