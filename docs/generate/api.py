"""Pages of the API: public names, which mkdocstrings then shows."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

from docs.generate import docstrings


class Page(NamedTuple):
  """A page of the API.

  Attributes:
    key: of its address, `api/<key>`.
    package: whose public names it shows, with those of its modules where it names
      none of them itself.
  """

  key: str
  package: str


PAGES = (
  Page("face", "msa_jax"),
  Page("typing", "msa_jax.typing"),
  Page("models", "msa_jax.models"),
  Page("layers", "msa_jax.layers"),
  Page("losses", "msa_jax.losses"),
  Page("metrics", "msa_jax.metrics"),
  Page("train_state", "msa_jax.train_state"),
  Page("testing", "msa_jax.testing"),
)


def page(wanted: Page) -> str:
  """A page, as Markdown."""
  package = importlib.import_module(wanted.package)
  parts = [f"# {wanted.package}", _about(package), *_shown(package, "##")]
  if not hasattr(package, "__all__"):
    for each in pkgutil.iter_modules(package.__path__):
      module = importlib.import_module(f"{wanted.package}.{each.name}")
      if own := list(_shown(module, "###")):
        parts += [f"## `{wanted.key}.{each.name}`", _about(module), *own]
  return "\n\n".join(part for part in parts if part) + "\n"


def _about(module: ModuleType) -> str:
  return docstrings.markdown(module.__doc__ or "")


def names(module: ModuleType) -> list[str]:
  """Public names: those of `__all__`, else functions and classes of the module."""
  if hasattr(module, "__all__"):
    listed = [name for name in module.__all__ if not name.startswith("__")]
    return [n for n in listed if not inspect.ismodule(getattr(module, n))]
  return [name for name, value in vars(module).items() if _is_own(module, name, value)]


def _is_own(module: ModuleType, name: str, value: Any) -> bool:
  return (
    not name.startswith("_")
    and (inspect.isfunction(value) or inspect.isclass(value))
    and value.__module__ == module.__name__
  )


def _shown(module: ModuleType, heading: str) -> Iterator[str]:
  for name in names(module):
    yield (
      f"::: {module.__name__}.{name}\n    options:\n      heading_level: {len(heading)}"
    )
