"""A system's options are the fields of its network: read off, filled in, checked."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
from flax.core import FrozenDict

from msa_jax.config.values import kinds_of, like
from msa_jax.errors import UserError

# Fields that come from the corpus, or from Linen, and are no options.
_OF_CORPUS = ("output", "outputs", "modalities", "lengths", "train_size")
_NOT_OPTIONS = (*_OF_CORPUS, "parent", "name")


def defaults(network: type[nn.Module], *fixed: str) -> dict[str, Any]:
  """Options of a network at their defaults, nested dataclasses as mappings.

  Args:
    network: its class; every field but those below has a default.
    fixed: fields that the corpus decides, beside those that it always does (see
      `system.system_of`).

  Raises:
    UserError: a field without a default.
  """
  found = {"task": "auto"}
  for field in dataclasses.fields(network):
    if field.name not in (*_NOT_OPTIONS, *fixed):
      found[field.name] = _plain(_default(field))
  return found


def _default(field: dataclasses.Field) -> Any:
  if field.default is not dataclasses.MISSING:
    return field.default
  if field.default_factory is dataclasses.MISSING:
    raise UserError(f"field {field.name!r} of a network needs a default")
  return field.default_factory()


def _plain(value: Any) -> Any:
  if dataclasses.is_dataclass(value):
    names = (field.name for field in dataclasses.fields(value))
    return {name: _plain(getattr(value, name)) for name in names}
  if isinstance(value, Mapping):
    return {key: _plain(entry) for key, entry in value.items()}
  return value


def construct(
  network: type[nn.Module], options: Mapping[str, Any], **fixed: Any
) -> Any:
  """A network from its options, the inverse of `defaults`.

  Args:
    network: its class.
    options: field -> value, nested; `task` and `tasks` are left out.
    fixed: further fields, from the corpus.

  Raises:
    UserError: an option that the network does not have, or a bad value.
  """
  given = {k: v for k, v in options.items() if k not in ("task", "tasks")}
  return network(**_filled(network, given, "model"), **fixed)


def split(group: type, options: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
  """Splits a system's options in those of a group and the others.

  Args:
    group: a frozen dataclass of options that lie beside those of the network, e.g. of
      the stages of its training.
    options: of the system.

  Returns:
    The group, and the options that are not its fields.
  """
  names = {field.name for field in dataclasses.fields(group)}
  own = {name: value for name, value in options.items() if name in names}
  rest = {name: value for name, value in options.items() if name not in names}
  return group(**_filled(group, own, "model")), rest


def _filled(owner: Any, options: Mapping[str, Any], path: str) -> dict[str, Any]:
  fields = {field.name: field for field in dataclasses.fields(owner)}
  unknown = sorted(set(options) - set(fields))
  if unknown:
    known = sorted(set(fields) - {"parent", "name"})
    raise UserError(f"{path}.{unknown[0]}: no such option; choose of {known}")
  kinds = kinds_of(owner)
  return {
    name: _value(_default(fields[name]), value, f"{path}.{name}", kinds.get(name))
    for name, value in options.items()
  }


def _value(default: Any, value: Any, path: str, kind: Any = None) -> Any:
  if isinstance(value, type(default)) and dataclasses.is_dataclass(default):
    return value
  if isinstance(default, Mapping) or dataclasses.is_dataclass(default):
    if not isinstance(value, Mapping):
      raise UserError(f"{path}={value!r} must be a mapping of options")
    if dataclasses.is_dataclass(default):
      return type(default)(**_filled(default, value, path))
    entries = {key: _entry(default, key, one, path) for key, one in value.items()}
    return FrozenDict(entries)
  return like(default, value, path, kind)


def _entry(default: Mapping[str, Any], key: str, value: Any, path: str) -> Any:
  """An entry of a mapping, of the type that the default's entries have."""
  first = next(iter(default.values()), None)
  return like(default.get(key, first), value, f"{path}.{key}")


def check(
  owner: Any,
  path: str = "model",
  choices: Mapping[str, Sequence[Any]] | None = None,
  positive: Sequence[str] = (),
  not_negative: Sequence[str] = (),
  rates: Sequence[str] = (),
  above_zero: Sequence[str] = (),
) -> None:
  """Checks fields of a network or of a group of its options.

  Args:
    owner: an object with the fields; a field that is a mapping is checked entry by
      entry.
    path: how messages call the owner.
    choices: field -> allowed values.
    positive, not_negative: fields that must be at least 1, or 0.
    rates: fields that must be in [0, 1).
    above_zero: fields that must be greater than 0, and finite.

  Raises:
    UserError: naming the value, the rule and the choices.
  """
  for name, allowed in (choices or {}).items():
    for label, value in _entries(owner, name):
      if value not in allowed:
        raise UserError(f"{path}.{label}={value!r} must be one of {tuple(allowed)}")
  for names, fits, rule in (
    (positive, lambda value: value >= 1, "at least 1"),
    (not_negative, lambda value: 0 <= value < math.inf, "0 or more"),
    (above_zero, lambda value: 0 < value < math.inf, "above 0, and finite"),
    (rates, lambda value: 0.0 <= value < 1.0, "in [0, 1)"),
  ):
    for name in names:
      for label, value in _entries(owner, name):
        if not fits(value):
          raise UserError(f"{path}.{label}={value} must be {rule}")
        if value > (most := _most(name)):
          raise UserError(f"{path}.{label}={value} must be {most} at most")


def _most(name: str) -> int:
  """Beyond this, an option is a slip that would take all memory: layers, heads and
  experts are objects of their own, widths are not."""
  return 1024 if name.startswith("num_") and name != "num_codes" else 2**20


def _entries(owner: Any, name: str) -> list[tuple[str, Any]]:
  value = getattr(owner, name)
  if isinstance(value, Mapping):
    return [(f"{name}.{key}", entry) for key, entry in value.items()]
  return [(name, value)]
