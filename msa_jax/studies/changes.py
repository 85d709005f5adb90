"""Changes of a config: dotted keys with other values, and how text becomes a value."""

from collections.abc import Mapping
from typing import Any

from msa_jax.config.experiment import Experiment, from_tree, to_tree
from msa_jax.errors import UserError
from msa_jax.models.system import Changes, Derived, Placed

_TRUTH = {"true": True, "false": False}
_KINDS = {
  bool: "True or False",
  int: "a whole number",
  float: "a number",
  tuple: "a list in brackets, e.g. (a,b)",
}


def changed(config: Experiment, changes: Changes) -> Experiment:
  """A copy of an experiment with dotted keys replaced.

  Raises:
    UserError: it has no such key, or the value is of another type.
  """
  tree = to_tree(config)
  for path, value in changes.items():
    *sections, key = path.split(".")
    node = tree
    for section in sections:
      node = node.get(section, {}) if isinstance(node, Mapping) else {}
    if key not in node:
      raise UserError(
        f"this study changes config.{path}; {config.system} has no such option."
      )
    node[key] = value
  return from_tree(tree)


def changes_of(config: Experiment, row: Changes | Derived | Placed) -> Changes:
  """What a run of an ablation changes in an experiment."""
  made = row.changes if isinstance(row, Placed) else row
  return made(to_tree(config)) if callable(made) else made


def current(config: Experiment, path: str) -> Any:
  """The value of an option.

  Args:
    config: of a run.
    path: its dotted key, e.g. `optim.learning_rate`.

  Raises:
    UserError: there is no such option, or several under that name; with the choices.
  """
  node: Any = to_tree(config)
  parts = path.split(".")
  for depth, part in enumerate(parts):
    above = ".".join(["config", *parts[:depth]])
    if not isinstance(node, Mapping):
      raise UserError(f"{path!r}: {above} is a single option.")
    if part not in node:
      raise UserError(f"{path!r}: {above} has no {part!r}; choose of {sorted(node)}.")
    node = node[part]
  if isinstance(node, Mapping):
    raise UserError(f"{path!r} is a group; add one of {sorted(node)}.")
  return node


def parse_values(config: Experiment, path: str, text: str) -> tuple[Any, ...]:
  """Values of an option from text, each of the option's own type.

  Args:
    config: of a run; tells the type.
    path: dotted key of the option.
    text: values with commas; lists are in brackets: `(8,8),(16,)`.

  Raises:
    UserError: no such option, no value, a value twice, or one of another type.
  """
  present = current(config, path)
  values = tuple(_parse(present, piece, path) for piece in split_values(text))
  if not values:
    raise UserError(f"{path}={text}: give values with commas.")
  twice = [value for place, value in enumerate(values) if value in values[:place]]
  if twice:
    raise UserError(f"{path}={text}: the value {twice[0]!r} is there twice.")
  return values


def split_values(text: str) -> list[str]:
  """Pieces between the commas that are outside of brackets, without outer spaces."""
  pieces, depth = [""], 0
  for letter in text:
    depth += (letter in "([") - (letter in ")]")
    if letter == "," and not depth:
      pieces.append("")
    else:
      pieces[-1] += letter
  stripped = [piece.strip() for piece in pieces]
  return [piece for piece in stripped if piece]


def _parse(present: Any, text: str, path: str) -> Any:
  """One value, of the type of the present one."""
  if isinstance(present, str) or present is None:
    return text
  kind = next(kind for kind in _KINDS if isinstance(present, kind))
  try:
    if kind is bool:
      return _TRUTH[text.lower()]
    if kind is tuple:
      if text[:1] not in "([" or text[-1:] not in ")]":
        raise ValueError
      first = present[0] if present else ""
      return tuple(_parse(first, each, path) for each in split_values(text[1:-1]))
    return kind(text)
  except (ValueError, KeyError):
    raise UserError(f"{path}={text}: {text!r} must be {_KINDS[kind]}.") from None
