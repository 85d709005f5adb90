"""Tables of options: name and type, default, meaning."""

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from docs.generate import docstrings


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


def groups(owner: type, only: Collection[str] | None = None) -> list[Group]:
  """The options of a dataclass, then those of each dataclass in its fields.

  Args:
    owner: every field has a default and is told of in the docstring's `Attributes`.
    only: fields that are options; None = all.

  Raises:
    ValueError: a field that the docstring does not tell of.
  """
  told = docstrings.entries(owner.__doc__ or "")
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
  summary = docstrings.prose(owner.__doc__ or "").split("\n\n")[0]
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


def code(text: str) -> str:
  """Text in the typeface of code, safe within a table."""
  return f"`{text}`".replace("|", "\\|")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """A Markdown table."""
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def of_options(options: Iterable[Option]) -> str:
  """A table of options: name, type and default beside the meaning.

  Two columns, for narrow screens; the group's heading says what goes before the names.
  """
  rows = []
  for each in options:
    name, default = code(each.key.rpartition(".")[2]), _default_of(each)
    meaning = each.meaning.replace("|", "\\|")
    rows.append((f"{name}<br>{each.type}, {default}", meaning))
  return table(("option, type, default", "meaning"), rows)


def _default_of(option: Option) -> str:
  if not isinstance(option.default, Mapping):
    return code(literal(option.default))
  entries = option.default.items()
  return ", ".join(code(f"{key}={literal(value)}") for key, value in entries) or "none"
