"""The config that a search has chosen, as a file that `--config` takes."""

import pathlib
import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

from msa_jax.config import files
from msa_jax.config.experiment import Experiment, experiment, flatten, to_tree
from msa_jax.errors import UserError
from msa_jax.safe_io import durable
from msa_jax.studies.search import Search


class Choice(NamedTuple):
  """What a search has chosen.

  Attributes:
    name: of the config that it builds on, as `--config` has it.
    config: chosen, unresolved.
    about: lines on how it was chosen.
  """

  name: str
  config: Experiment
  about: Sequence[str]


def overrides(name: str, config: Experiment) -> dict[str, Any]:
  """Options in which a config differs from the one of a name.

  Args:
    name: as `--config` has it.
    config: unresolved.

  Returns:
    Dotted key -> value, to be set in this order: some options follow others
    (`config/regimes.py`) until they are set.
  """
  wanted, found = _flat(config), {}
  for _ in range(3):
    made = files.get_config(name)
    with made.unlocked():
      for path, value in found.items():
        _set(made, path, value)
    there = _flat(experiment(made))
    changes = {
      path: value for path, value in wanted.items() if there.get(path) != value
    }
    if not changes:
      return found
    found |= changes
  raise UserError(f"--config={name} cannot be given the options {sorted(changes)}.")


def _flat(config: Experiment) -> dict[str, Any]:
  flat = flatten(to_tree(config))
  return {k: tuple(v) if isinstance(v, list) else v for k, v in flat.items()}


def _set(config: Any, path: str, value: Any) -> None:
  *sections, key = path.split(".")
  for section in sections:
    config = config[section]
  config[key] = value


def command_of(search: Search, config: Experiment, trials: int) -> str:
  """The command line of a search.

  Args:
    search: what was asked for.
    config: unresolved.
    trials: that there have been.
  """
  words = ["msa-jax", "tune", f"--config={search.name}"]
  for path, value in overrides(search.name, config).items():
    if path == "data.path":
      # Where it lies on this machine is nobody else's business.
      words.append(f"--data={pathlib.Path(value).name}")
      continue
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    words.append(f"--config.{path}={text}")
  words += [f"--space={entry}" for entry in search.spaces]
  words += [f"--trials={trials}", f"--halving={search.halving}"]
  return shlex.join(words)


def write_config(path: pathlib.Path, choice: Choice) -> None:
  """Writes a config file: the named config, and what was chosen.

  Args:
    path: of the file.
    choice: what to write.

  Raises:
    UserError: the file would not give the chosen config.
  """
  about = [" ".join(line.split()) for line in choice.about]
  lines = [
    *(f"# {line}" for line in about),
    "",
    "import msa_jax",
    "",
    "",
    "def get_config():",
    f"  config = msa_jax.get_config({choice.name!r})",
  ]
  changes = overrides(choice.name, choice.config)
  lines += ["  with config.unlocked():"] if changes else []
  for key, value in changes.items():
    lines.append(f"    config{_item(key)} = {value!r}")
  lines.append("  return config")
  with durable.replacing(path) as partial:
    partial.write_text("\n".join(lines) + "\n")
  if _flat(experiment(files.get_config(str(path)))) != _flat(choice.config):
    raise UserError(f"{path} does not give the chosen config: {choice.name} changed.")


def _item(path: str) -> str:
  parts = path.split(".")
  if all(part.isidentifier() for part in parts):
    return "".join(f".{part}" for part in parts)
  return "".join(f"[{part!r}]" for part in parts)
