"""The table of systems, and the ways into it: `register` and entry points.

A package offers a system to every program of the library by an entry point of the
group `msa_jax.systems`, whose name is that of the system and whose object is a
`System` or a network:

  [project.entry-points."msa_jax.systems"]
  mine = "my_package.model:SYSTEM"
"""

import functools
import inspect
from importlib import metadata
from typing import Any

import flax.linen as nn

from msa_jax.errors import UserError
from msa_jax.models import (
  almt,
  cenet,
  derl,
  ef_lstm,
  hgem,
  mag_bert,
  misa,
  mmim,
  mmolre,
  momke,
  mult,
  self_mm,
  tetfn,
  text_only,
)
from msa_jax.models.late_fusion import awf, lf_dnn, lf_lstm, lmf, multitask, tfn
from msa_jax.models.mfn import graph_mfn, mfn
from msa_jax.models.system import System, system_of

GROUP = "msa_jax.systems"

SYSTEMS: dict[str, System] = {
  "almt": almt.SYSTEM,
  "awf": awf.SYSTEM,
  "cenet": cenet.SYSTEM,
  "derl": derl.SYSTEM,
  "ef_lstm": ef_lstm.SYSTEM,
  "graph_mfn": graph_mfn.SYSTEM,
  "hgem": hgem.SYSTEM,
  "lf_dnn": lf_dnn.SYSTEM,
  "lf_lstm": lf_lstm.SYSTEM,
  "lmf": lmf.SYSTEM,
  "mag_bert": mag_bert.SYSTEM,
  "mfn": mfn.SYSTEM,
  "misa": misa.SYSTEM,
  "mlf_dnn": multitask.MLF_DNN_SYSTEM,
  "mlmf": multitask.MLMF_SYSTEM,
  "mmim": mmim.SYSTEM,
  "mmolre": mmolre.SYSTEM,
  "momke": momke.SYSTEM,
  "mtfn": multitask.MTFN_SYSTEM,
  "mult": mult.SYSTEM,
  "self_mm": self_mm.SYSTEM,
  "tetfn": tetfn.SYSTEM,
  "text_only": text_only.SYSTEM,
  "tfn": tfn.SYSTEM,
}
_PROVIDERS: dict[str, str] = {}  # system -> package of the entry point it came by


def register(name: str, system: Any, *, replace: bool = False) -> System:
  """Enters a system into the table, where every program finds it by its name.

  The same definition may come again (a config file or a notebook cell that runs
  twice) and takes the place of the earlier one.

  Args:
    name: of the system, `config.model.name`.
    system: a `System`, or the class of a network (see `system_of`).
    replace: whether to take the place of another system of this name.

  Returns:
    The system.

  Raises:
    UserError: another system has the name, or `system` is none.
  """
  if isinstance(system, type) and issubclass(system, nn.Module):
    system = system_of(system)
  if not isinstance(system, System):
    raise UserError(
      f"models.register({name!r}, ...) takes a System or a network class, not"
      f" {type(system).__name__}."
    )
  known = SYSTEMS.get(name)
  if known is not None and not (replace or _same_definition(known, system)):
    raise UserError(
      f"there is a system {name!r} already, of {_definition(known)[1]}: choose another"
      " name, or pass replace=True."
    )
  SYSTEMS[name] = system
  _PROVIDERS.pop(name, None)
  return system


def _same_definition(one: System, other: System) -> bool:
  ours, theirs = _definition(one), _definition(other)
  # A file that is run by several loaders is a module of several names.
  return ours[0] == theirs[0] and (ours[1] == theirs[1] or ours[2] == theirs[2] != "")


def _definition(system: System) -> tuple[str, str, str]:
  """Where a system is defined: name (of a lambda with its line), module, file."""
  build: Any = system.build
  if isinstance(build, functools.partial):
    build = build.args[0] if build.args else build.func
  function = build.__call__ if isinstance(build, type) else build
  code = getattr(inspect.unwrap(function), "__code__", None)
  name = getattr(build, "__qualname__", repr(build))
  if code is not None and "<lambda>" in name:
    name = f"{name} in line {code.co_firstlineno}"
  file = "" if code is None else code.co_filename
  return name, getattr(build, "__module__", ""), file


def get(name: str) -> System:
  """The system of a name: of the table, or of an installed package's entry point.

  Raises:
    UserError: there is none, or its package cannot be imported.
  """
  if name not in SYSTEMS and not _load(name):
    raise UserError(
      f"config.model.name={name!r} must be one of {names()}; if it is a system of"
      " yours, pass the --config file that registers it (in Python, import it), or"
      " install the package that provides it."
    )
  return SYSTEMS[name]


def names() -> list[str]:
  """All systems, those of installed packages included (without importing them)."""
  return sorted({*SYSTEMS, *(point.name for point in _points())})


def provider(name: str) -> str:
  """`package version (entry point)` of a system that came by one, else ""."""
  return _PROVIDERS.get(name, "")


def _points() -> metadata.EntryPoints:
  return metadata.entry_points(group=GROUP)


def _load(name: str) -> bool:
  """Loads a package's system; returns whether there is one of this name."""
  found = [point for point in _points() if point.name == name]
  if not found:
    return False
  point = found[0]
  try:
    loaded = point.load()
  except Exception as error:  # noqa: BLE001  Whatever another package raises.
    raise UserError(
      f"system {name!r}: its entry point {point.value} cannot be imported"
      f" ({type(error).__name__}: {error})."
    ) from error
  register(name, loaded)
  package = "" if point.dist is None else f"{point.dist.name} {point.dist.version} "
  _PROVIDERS[name] = f"{package}({point.value})"
  return True
