"""No option is dead: each is read by name somewhere in the library.

Found in the source, without types but for annotations: an option of a section, of a
network or of a group of a network's options counts as read where its name is an
attribute of something that is annotated with, or called as, its owner.
"""

import ast
import dataclasses
import importlib
import re
from collections.abc import Iterator, Mapping

import pytest
from paths import ROOT
from small_spec import with_spec

from msa_jax.config.defaults import SECTIONS
from msa_jax.config.options import BalanceConfig
from msa_jax.models import SYSTEMS
from msa_jax.step import compose
from msa_jax.typing import MODALITIES

PACKAGE = ROOT / "msa_jax"
TREES = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
NODES = [node for tree in TREES.values() for node in ast.walk(tree)]
# Options whose name is a variable where they are read (`getattr`).
BY_VARIABLE = {"missing": ["eval", "train"], "sharding": ["data", "expert", "replica"]}


def _last(node: ast.AST) -> str:
  """The last name of `a.b.c`."""
  return getattr(node, "attr", getattr(node, "id", ""))


# (owner, option) of every attribute that is read: ("optim", "epochs") of
# `config.optim.epochs`.
ATTRIBUTES = {
  (_last(node.value), node.attr)
  for node in NODES
  if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
}


def _constants() -> Iterator[str]:
  """Keys of `x["key"]`, `x.get("key")` and `"key" in x`."""
  for node in NODES:
    found = None
    if isinstance(node, ast.Subscript):
      found = node.slice
    elif isinstance(node, ast.Call) and _last(node.func) == "get" and node.args:
      found = node.args[0]
    elif isinstance(node, ast.Compare):
      found = node.left
    if isinstance(found, ast.Constant) and isinstance(found.value, str):
      yield found.value


KEYS = set(_constants())
STRINGS = {
  node.value
  for node in NODES
  if isinstance(node, ast.Constant) and isinstance(node.value, str)
}

# Names that are put together, f"information_{gate}"; a few letters would match all.
BUILT = [
  re.compile("".join(re.escape(part) if part else r"\w+" for part in parts))
  for node in NODES
  if isinstance(node, ast.JoinedStr)
  and (parts := [getattr(each, "value", None) for each in node.values])
  and (parts := [part if isinstance(part, str) else "" for part in parts])
  and max(map(len, parts)) > 8
]


def _annotated(name: str) -> set[str]:
  """Names of fields, variables and arguments that are annotated with a class."""
  found = set()
  for node in NODES:
    annotation = getattr(node, "annotation", None)
    if annotation is not None and name in ast.unparse(annotation):
      target = node.target if isinstance(node, ast.AnnAssign) else node
      found.add(getattr(target, "arg", "") or _last(target))
  return found - {""}


def _aliases(names: set[str]) -> set[str]:
  """Variables that are set to something of one of these names."""
  found = set()
  for node in NODES:
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
      value = node.value
      parts = (value.body, value.orelse) if isinstance(value, ast.IfExp) else (value,)
      if any(_last(part) in names for part in parts):
        found.add(node.targets[0].id)
  return found


def _own_reads(cls: type) -> set[str]:
  """What methods of a class read of `self`, checks left out."""
  classes = {(c.__module__, c.__name__) for c in cls.__mro__}
  found = set()
  for path, tree in TREES.items():
    parts = path.relative_to(ROOT).with_suffix("").parts
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    for node in ast.walk(tree):
      if isinstance(node, ast.ClassDef) and (module, node.name) in classes:
        methods = [m for m in node.body if getattr(m, "name", "") != "__post_init__"]
        for inner in (n for method in methods for n in ast.walk(method)):
          if isinstance(inner, ast.Attribute) and _last(inner.value) == "self":
            found.add(inner.attr)
  return found


def dead(owner: object, names: tuple[str, ...] = ()) -> list[str]:
  """Options of a dataclass, and of groups and mappings in it, that nothing reads.

  Args:
    owner: an instance.
    names: of the owner, beside those that annotations tell.
  """
  cls = type(owner)
  ours = [c.__name__ for c in cls.__mro__ if c.__module__.startswith("msa_jax.")]
  owners = set(names).union(*map(_annotated, ours))
  owners |= _aliases(owners - {"self"})
  own, unread = _own_reads(cls), []
  for field in dataclasses.fields(cls):
    name, value = field.name, getattr(owner, field.name, None)
    if name in ("parent", "name") and hasattr(owner, "apply"):
      continue  # Linen's own
    if name not in own and not any((one, name) in ATTRIBUTES for one in owners):
      unread.append(name)
    elif dataclasses.is_dataclass(value) and not hasattr(value, "apply"):
      unread += [f"{name}.{key}" for key in dead(value, (name,))]
    elif isinstance(value, Mapping):
      keys = [key for key in value if key not in (*MODALITIES, *KEYS)]
      unread += [f"{name}.{key}" for key in keys]
  return unread


@pytest.mark.parametrize("section", [*SECTIONS, "balance"])
def test_every_option_of_a_section_is_read(section):
  options = {**SECTIONS, "balance": BalanceConfig}[section]()
  unread = set(dead(options, (section, "options")))
  assert unread <= STRINGS.intersection(BY_VARIABLE.get(section, ()))


@pytest.mark.parametrize("system", sorted(SYSTEMS))
def test_every_option_of_a_system_is_read(system):
  config = with_spec(importlib.import_module(f"configs.{system}").get_config(), "")
  network = compose.networks(config).inner
  assert dead(network) == []
  fields = {field.name for field in dataclasses.fields(network)}
  # Of the options themselves: `task`, `tasks`; of a plan: those of a system's stages.
  others = set(config.model) - fields - KEYS
  owners = ("options", "plan")
  assert all(any((one, key) in ATTRIBUTES for one in owners) for key in others)
  unread = set(config.loss) - STRINGS
  assert not [key for key in unread if not any(made.fullmatch(key) for made in BUILT)]


def test_an_option_that_nothing_reads_is_found():
  @dataclasses.dataclass(frozen=True)
  class Group:
    epochs: int = 1
    learning_rat: float = 1.0

  @dataclasses.dataclass(frozen=True)
  class Options:
    optim: Group = Group()
    moon: int = 2
    hidden_dims: Mapping[str, int] = dataclasses.field(
      default_factory=lambda: {"text": 1, "sun": 2}
    )

  assert dead(Options(), ("config", "self")) == [
    "optim.learning_rat",
    "moon",
    "hidden_dims.sun",
  ]
