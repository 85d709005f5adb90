"""The page of the options that all systems share."""

from docs.generate import tables
from msa_jax.config import described
from msa_jax.config.defaults import SECTIONS
from msa_jax.config.options import BalanceConfig

_START = """# Options

Every option is a flag, `--config.SECTION.OPTION=VALUE`, an entry of
`msa_jax.train(..., options={"SECTION.OPTION": value})`, and a line of the run's
`config.json`. An unknown name is an error that names the choices; `msa-jax train
--config=hgem --help` lists all options of a system with their values. Sections `model`
and `loss` are the systems' own: see [their pages](systems/index.md), which also tell
what a config file sets in place of the defaults below.
"""


def page() -> str:
  """The page, as Markdown."""
  parts = [_START]
  for name, section in {**SECTIONS, "balance": BalanceConfig}.items():
    for group in described.groups(section):
      key = f"{name}.{group.key}".rstrip(".")
      parts.append(f"{'###' if group.key else '##'} `{key}`")
      parts.append(group.summary)
      parts.append(tables.of_options(group.options))
  return "\n\n".join(parts) + "\n"
