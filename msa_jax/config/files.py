"""Finds and reads config files: what `--config` and `msa_jax.get_config` take.

hgem, hgem:mosi        a config that the library ships, with variants
mine                   a registered system, or one of an installed package
my_config.py:small     a file
"""

import pathlib
import runpy
from typing import Any, NamedTuple

from msa_jax.errors import UserError
from msa_jax.names import split_names

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
# Installed, the configs are a package of the library; a checkout has them beside it.
_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
_REGISTERED = pathlib.Path(__file__).resolve().with_name("registered.py")


class Located(NamedTuple):
  """A config file, and the text that its `get_config` takes."""

  path: pathlib.Path
  variants: str

  @property
  def flag(self) -> str:
    """The same as the value of `--config`."""
    return f"{self.path}:{self.variants}" if self.variants else str(self.path)


def shipped() -> dict[str, pathlib.Path]:
  """Name -> file of every config that the library ships."""
  folder = next((each for each in _FOLDERS if each.is_dir()), _FOLDERS[0])
  files = sorted(path for path in folder.glob("*.py") if path.stem != "__init__")
  return {path.stem: path for path in files}


def locate(text: str) -> Located:
  """The file of a config's name or path, `<name or path>[:variants]`.

  A word that is neither a file nor a shipped config is taken for a registered system.

  Raises:
    UserError: a path where there is no file.
  """
  name, _, variants = text.partition(":")
  path = pathlib.Path(name).expanduser()
  if path.is_file():
    return Located(path, variants)
  if name in shipped():
    return Located(shipped()[name], variants)
  if path.suffix == ".py" or len(path.parts) != 1:
    raise UserError(
      f"--config={text}: there is no file {name}; give the path of one, or one of"
      f" {', '.join(shipped())}."
    )
  if variants:
    raise UserError(
      f"--config={text}: {name} has no variants; the configs that have some are"
      f" {', '.join(shipped())}."
    )
  return Located(_REGISTERED, name)


def name_of(flag: str) -> str:
  """The inverse of `Located.flag`: a shipped or registered config's name, with its
  variants; of any other file the absolute path.

  Args:
    flag: as `--config` has it once its file was found.
  """
  text, _, variants = flag.partition(":")
  path = pathlib.Path(text).expanduser().resolve()
  if path == _REGISTERED:
    return variants
  names = {file.resolve(): name for name, file in shipped().items()}
  name = names.get(path, str(path))
  return f"{name}:{variants}" if variants else name


OWN = "own"  # variant of configs that have a recipe for data of one's own


def for_own_data(text: str) -> str:
  """A config's name for data of one's own: its variant `own` where none is of a data
  set, as the recipe of the synthetic corpus is for that corpus alone.

  Args:
    text: `<name or path>[:variants]`.

  Raises:
    UserError: no such config, or a file that cannot be run.
  """
  located, found = locate(text), contents(text)
  sets, chosen = found.get("DATA_SETS", ()), set(split_names((located.variants,)))
  if OWN not in sets or chosen & set(sets):
    return text
  return f"{text.partition(':')[0]}:{','.join(filter(None, (located.variants, OWN)))}"


def get_config(text: str) -> Any:
  """The config of `<name or path>[:variants]`, as `--config` reads it.

  >>> msa_jax.get_config("hgem:mosi").optim.learning_rate

  Returns:
    A locked `ConfigDict`; `with config.unlocked():` changes it.

  Raises:
    UserError: no such config, a file that cannot be run, or an unknown variant.
  """
  located, found = locate(text), contents(text)
  if "get_config" not in found:
    raise UserError(
      f"--config={text}: {located.path} has no get_config; give a config file."
    )
  return found["get_config"](*([located.variants] if located.variants else []))


def contents(text: str) -> dict[str, Any]:
  """What the file of a config defines: `get_config`, `VARIANTS`, ...

  Args:
    text: `<name or path>[:variants]`.

  Raises:
    UserError: no such config, or a file that cannot be run.
  """
  located = locate(text)
  try:
    return runpy.run_path(str(located.path))
  except Exception as error:  # noqa: BLE001  Whatever a file of the user's raises.
    raise UserError(
      f"--config={text}: {located.path} cannot be run ({type(error).__name__}:"
      f" {error})."
    ) from error
