"""Values of options against the types of their fields, checked once for all."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from msa_jax.errors import UserError
from msa_jax.names import split_names

_MOST = 2**53  # integers beyond are not what anyone counts


def checked(kind: Any, value: Any, path: str) -> Any:
  """A value as a field of some type has it.

  Of several names and numbers, `"a,b"` is `("a", "b")` and a single one is itself: so
  flags and Python say the same.

  Args:
    kind: `bool`, `int`, `float`, `str`, `tuple[T, ...]`, `tuple[T, U]` or
      `Mapping[str, T]`.
    value: as a config or config.json has it.
    path: of the option, for messages.

  Raises:
    UserError: a value of another type, a tuple of another length, or no number (NaN).
  """
  origin, parts = typing.get_origin(kind), typing.get_args(kind)
  if origin is tuple:
    return _several(parts, value, path)
  if isinstance(origin, type) and issubclass(origin, Mapping):
    if not isinstance(value, Mapping):
      raise _other(path, value, "a mapping")
    return {str(k): checked(parts[1], v, f"{path}.{k}") for k, v in value.items()}
  return one(kind, value, path)


def one(kind: Any, value: Any, path: str) -> Any:
  """A single boolean, number or string; see `checked`."""
  if kind is str and isinstance(value, bool | int | float):
    # `--config.text.finetune=False` and numbers arrive as what they look like.
    return str(value)
  return exactly(kind, value, path)


def exactly(kind: Any, value: Any, path: str) -> Any:
  """Like `one`, but a string is never made of a number."""
  if kind is float and type(value) is int:
    value = float(value) if abs(value) < _MOST else math.inf
  if type(value) is not kind:
    raise _other(path, value, f"of type {kind.__name__}")
  if kind is float and math.isnan(value):
    raise UserError(f"config.{path}={value} must be a number.")
  if kind is int and abs(value) > _MOST:
    raise UserError(f"config.{path}={str(value)[:40]} must be below 2**53 in size.")
  if kind is str and ("\0" in value or len(value) > 10_000):
    raise UserError(f"config.{path}={value[:40]!r} must be text of no great length.")
  return value


def _several(parts: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
  made: list[Any] = []
  for entry in value if isinstance(value, list | tuple) else (value,):
    if isinstance(entry, str):
      names = split_names([exactly(str, entry, path)])
      made += [_number(parts[0], name, path) for name in names]
    else:
      made.append(exactly(parts[0], entry, path))
  if parts[-1] is not Ellipsis and len(made) != len(parts):
    raise UserError(
      f"config.{path}={str(made)[:60]} must have {len(parts)} entries, not {len(made)}."
    )
  return tuple(made)


def _number(kind: Any, text: str, path: str) -> Any:
  """What a part of `"a,b"` says."""
  if kind is str:
    return text
  try:
    return exactly(kind, kind(text), path)
  except ValueError as error:
    raise _other(path, text, f"of type {kind.__name__}") from error


def _other(path: str, value: Any, rule: str) -> UserError:
  return UserError(f"config.{path}={repr(value)[:60]} must be {rule}.")


def section(cls: type, values: Any, path: str) -> dict[str, Any]:
  """Checked values of the fields of a dataclass; those that are not given are absent.

  Raises:
    UserError: a key that is no field, or a value of another type.
  """
  if not isinstance(values, Mapping):
    raise _other(path, values, "a section of options")
  kinds = hints(cls)
  unknown = sorted(set(values) - set(kinds), key=str)
  if unknown:
    raise UserError(
      f"config.{path}.{unknown[0]}: no such option; choose of {sorted(kinds)}."
    )
  return {
    name: value
    if dataclasses.is_dataclass(kinds[name])
    else checked(kinds[name], value, f"{path}.{name}")
    for name, value in values.items()
  }


def hints(cls: type) -> dict[str, Any]:
  """Field -> type of a dataclass, `T | None` as `T`."""
  found = typing.get_type_hints(cls)
  names = [field.name for field in dataclasses.fields(cls)]
  return {name: _without_none(found[name]) for name in names}


def _without_none(kind: Any) -> Any:
  if typing.get_origin(kind) in (typing.Union, types.UnionType):
    kept = [part for part in typing.get_args(kind) if part is not type(None)]
    return kept[0] if len(kept) == 1 else kind
  return kind


def like(default: Any, value: Any, path: str, kind: Any = None) -> Any:
  """A value of the type that a default has, for options that are fields of networks.

  Args:
    default: of the option; None or of a type that no flag can give = anything.
    value, path: see `checked`.
    kind: type of the field, which says what an empty default may hold.

  Raises:
    UserError: of another type.
  """
  if isinstance(default, bool | int | float | str):
    return exactly(type(default), value, path)
  if not isinstance(default, tuple):
    return value
  parts = typing.get_args(kind) if typing.get_origin(kind) is tuple else ()
  kinds = {type(entry) for entry in default} or set(parts[:1])
  inner = float if kinds == {int, float} else next(iter(kinds), None)
  if inner in (bool, int, float, str) and (len(kinds) == 1 or inner is float):
    return _several((inner, Ellipsis), value, path)
  return tuple(value) if isinstance(value, list | tuple) else (value,)


def kinds_of(owner: Any) -> dict[str, Any]:
  """Field -> type of a dataclass or network; those that cannot be told are absent."""
  try:
    return typing.get_type_hints(owner if isinstance(owner, type) else type(owner))
  except (NameError, TypeError, AttributeError):
    return {}
