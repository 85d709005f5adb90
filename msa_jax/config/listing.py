"""`msa-jax configs`: the systems and their variants; with a name, every option.

msa-jax configs              systems, variants
msa-jax configs hgem         options of H-GEM: type, default, meaning
msa-jax configs hgem:mosi    the same with the values of a variant
"""

import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msa_jax import command
from msa_jax.config import files
from msa_jax.errors import UserError

_WIDTH = 88


def main(arguments: Sequence[str]) -> int:
  """Prints the list, or one config; the exit code."""
  with command.one_line():
    if any(each in ("-h", "--help") for each in arguments):
      print((__doc__ or "").strip())
      return 0
    if len(arguments) > 1 or any(each.startswith("-") for each in arguments):
      raise UserError("configs takes the name of one config, e.g. hgem:mosi, or none.")
    print("\n".join(options(arguments[0]) if arguments else systems()))
  return 0


def systems() -> Iterator[str]:
  """A paragraph per shipped config: what it is, and its variants."""
  for name in files.shipped():
    found = files.contents(name)
    first = (found["__doc__"] or "").strip().splitlines()[0]
    yield f"{name:<12} {first}"
    yield from _folded(
      f"variants: {', '.join(found.get('VARIANTS', ())) or 'none'}", 13
    )


def options(name: str) -> Iterator[str]:
  """A line per option of a config, `--config.KEY=VALUE`, with type and meaning.

  Args:
    name: `<name or path>[:variants]`.

  Raises:
    UserError: no such config.
  """
  from msa_jax.config.described import literal
  from msa_jax.config.experiment import experiment, flatten, to_tree

  made = experiment(files.get_config(name))
  told = {"model.name": ("str", "name of the system"), **_meanings(made)}
  tree: dict[str, Any] = to_tree(made)
  for section, values in tree.items():
    if not isinstance(values, Mapping):
      continue
    yield f"{section}:"
    for key, value in flatten(values, f"{section}.").items():
      kind, meaning = _of(key, told)
      yield f"  --config.{key}={literal(value)}" + (f"  ({kind})" if kind else "")
      yield from _folded(meaning, 6)


def _of(key: str, told: Mapping[str, tuple[str, str]]) -> tuple[str, str]:
  """Type and meaning of an option; those of a mapping are its entries'."""
  while key:
    if key in told:
      return told[key]
    key = key.rpartition(".")[0]
  return "", ""


def _meanings(made: Any) -> dict[str, tuple[str, str]]:
  """Dotted key -> type and meaning, as far as docstrings tell of them."""
  from msa_jax import models
  from msa_jax.config import described
  from msa_jax.config.defaults import SECTIONS
  from msa_jax.config.options import BalanceConfig
  from msa_jax.testing.data import spec_for

  system = models.get(made.system)
  network = described.network_of(system, made.model, spec_for(made.data))
  home = described.home_of(system, network)
  found = {
    f"model.{each.key}": (each.type, each.meaning) for each in described.READ.values()
  }
  owners = [("model", owner) for owner in described.owners(network, home)]
  owners += [*SECTIONS.items(), ("balance", BalanceConfig)]
  for prefix, owner in owners:
    names = None if prefix != "model" else set(made.model)
    for group in described.groups(owner, names):
      for each in group.options:
        found[f"{prefix}.{each.key}"] = (each.type, each.meaning)
  return found


def _folded(text: str, indent: int) -> list[str]:
  space = " " * indent
  return textwrap.wrap(text, _WIDTH, initial_indent=space, subsequent_indent=space)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
