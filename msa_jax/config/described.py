"""What each option means: read off fields and docstrings, by `msa-jax configs` and the
documentation."""

import dataclasses
import inspect
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import flax.linen as nn

_ENTRY = re.compile(r"(\w+(?:, \w+)*): *(.*)")


class Option(NamedTuple):
  """A field of a dataclass, or of a group in it.

  Attributes:
    key: dotted, e.g. `gates.hidden_dims`.
    type: its annotation, as in the source.
    default: of the field.
    meaning: what the docstring says.
  """

  key: str
  type: str
  default: Any
  meaning: str


class Group(NamedTuple):
  """The options of one dataclass.

  Attributes:
    key: of the group within its owner; "" = the owner.
    summary: first paragraph of its docstring.
    options: in the order of the source.
  """

  key: str
  summary: str
  options: tuple[Option, ...]


# Options that are read against the corpus, before there is a network.
READ = {
  "task": Option(
    "task", "str", "auto", "the task predicted; `auto` = sentiment, else emotion."
  ),
  "tasks": Option(
    "tasks",
    "tuple[str, ...]",
    (),
    "the tasks predicted; () = sentiment and emotion, as the corpus has.",
  ),
}


def groups(owner: type, only: Collection[str] | None = None) -> list[Group]:
  """The options of a dataclass, then those of each dataclass in its fields.

  Args:
    owner: every field has a default and is told of in the docstring's `Attributes`.
    only: fields that are options; None = all.

  Raises:
    ValueError: a field that the docstring does not tell of.
  """
  told = attributes(owner.__doc__ or "")
  own: list[Option] = []
  nested: list[Group] = []
  for field in dataclasses.fields(owner):
    if only is not None and field.name not in only:
      continue
    default = _default(field)
    if dataclasses.is_dataclass(default):
      nested += [_within(field.name, group) for group in groups(type(default))]
      continue
    if field.name not in told:
      raise ValueError(f"{owner.__qualname__}: its docstring omits {field.name}")
    own.append(Option(field.name, _annotation(field.type), default, told[field.name]))
  summary = inspect.cleandoc(owner.__doc__ or "").split("\n\n")[0]
  return [Group("", " ".join(summary.split()), tuple(own)), *nested]


def _within(name: str, group: Group) -> Group:
  options = tuple(each._replace(key=f"{name}.{each.key}") for each in group.options)
  return group._replace(key=f"{name}.{group.key}".rstrip("."), options=options)


def _default(field: dataclasses.Field) -> Any:
  if field.default is not dataclasses.MISSING:
    return field.default
  if field.default_factory is not dataclasses.MISSING:
    return field.default_factory()
  raise ValueError(f"{field.name} has no default")


def _annotation(given: Any) -> str:
  text = str(given) if hasattr(given, "__args__") else getattr(given, "__name__", given)
  return str(text).replace("collections.abc.", "").replace("typing.", "")


def literal(value: Any) -> str:
  """A value as a flag takes it; mappings as their entries."""
  if isinstance(value, Mapping):
    return ", ".join(f"{key}={literal(entry)}" for key, entry in value.items())
  if isinstance(value, tuple | list):
    return ",".join(map(literal, value)) or "()"
  if isinstance(value, float):
    return f"{value:g}"
  return str(value) if value != "" else '""'


def attributes(text: str) -> dict[str, str]:
  """Name -> description, of the attributes that a docstring lists.

  An entry of several names, `a, b: what they are`, is one of each.
  """
  lines = inspect.cleandoc(text).splitlines()
  if "Attributes:" not in lines:
    return {}
  found: dict[str, list[str]] = {}
  names: list[str] = []
  for line in lines[lines.index("Attributes:") + 1 :]:
    if line and not line.startswith("  "):
      break
    entry = _ENTRY.match(line[2:])
    if entry:
      names = entry[1].split(", ")
      found |= {name: [entry[2]] for name in names}
    else:
      for name in names:
        found[name].append(line.strip())
  return {name: " ".join(" ".join(said).split()) for name, said in found.items()}


def network_of(system: Any, options: Mapping[str, Any], spec: Any) -> type[nn.Module]:
  """Class of the network that a system builds."""
  return type(system.build(options, spec))


def home_of(system: Any, network: type) -> ModuleType:
  """The module that defines a system."""
  own = getattr(system.build, "__module__", None)  # a partial has none
  return sys.modules[own or network.__module__]


def owners(network: type[nn.Module], home: ModuleType) -> Iterator[type]:
  """The network, then the dataclasses of options that lie beside those of it."""
  yield network
  for each in vars(home).values():
    if (
      isinstance(each, type)
      and dataclasses.is_dataclass(each)
      and each.__module__ == home.__name__
      and not issubclass(each, nn.Module)
    ):
      yield each
