"""One page per system: paper, commands, options, losses, variants, studies, results.

All of it is read off the code: the config file's header and variants, the network's
fields and docstrings, the system's tables, the published figures that reports know.
"""

import collections
import dataclasses
import importlib
import sys
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import flax.linen as nn

from docs.generate import docstrings, tables
from docs.generate.tables import code
from msa_jax import models
from msa_jax.config import described
from msa_jax.config.defaults import SECTIONS
from msa_jax.config.described import READ, Group, literal
from msa_jax.config.experiment import Experiment, experiment, flatten, to_tree
from msa_jax.config.options import BalanceConfig
from msa_jax.models.system import System, no_auxiliary
from msa_jax.report import results
from msa_jax.studies.changes import changes_of
from msa_jax.testing.data import spec_for

_CORPORA = {
  "mosi": "CMU-MOSI",
  "mosei": "CMU-MOSEI",
  "sims": "CH-SIMS",
  "simsv2": "CH-SIMS v2",
  "iemocap": "IEMOCAP",
}


class Entry(NamedTuple):
  """A system and where it is told of.

  Attributes:
    key: its name in configs.
    system: the system.
    network: class of its network.
    config: module of its config file.
    home: module that defines the system.
    default: what its config file gives without variants.
  """

  key: str
  system: System
  network: type[nn.Module]
  config: ModuleType
  home: ModuleType
  default: Experiment

  @property
  def header(self) -> list[str]:
    """Paragraphs of the config file's docstring."""
    return docstrings.markdown(self.config.__doc__ or "").split("\n\n")

  @property
  def title(self) -> str:
    """Name of the system, as its paper writes it."""
    return self.header[0].partition(":")[0]

  @property
  def summary(self) -> str:
    """What it is, in one sentence."""
    said = " ".join(self.header[0].partition(":")[2].split())
    return said[:1].upper() + said[1:]

  @property
  def source(self) -> str:
    """The paper, and what else the system was made from.

    Raises:
      ValueError: no docstring says so.
    """
    modules = (self.home, sys.modules[self.network.__module__])
    for text in (each.__doc__ or "" for each in (*modules, self.network)):
      for said in docstrings.paragraphs(text, "Source:"):
        return said[0].upper() + said[1:]
    raise ValueError(f"{self.key}: no docstring has a paragraph `Source:`")


def entry(key: str) -> Entry:
  """What there is to say of a system of the library."""
  system = models.SYSTEMS[key]
  config = importlib.import_module(f"configs.{key}")
  default = experiment(config.get_config())
  spec = spec_for(default.data)
  network = described.network_of(system, default.model, spec)
  home = described.home_of(system, network)
  return Entry(key, system, network, config, home, default)


def page(key: str) -> str:
  """The page of a system, as Markdown.

  Raises:
    ValueError: an option, or the source, that no docstring tells of.
  """
  made = entry(key)
  parts = (
    f"# {made.title}",
    made.summary,
    f"**Source:** {made.source}",
    *(each for each in made.header[1:] if each.rstrip(".") not in made.source),
    *_notes(made),
    *_network(made),
    *_options(made),
    *_losses(made),
    *_changed(made),
    *_variants(made),
    *_studies(made),
    *_published(made),
  )
  return "\n\n".join(part for part in parts if part) + "\n"


def index() -> str:
  """The page that lists the systems."""
  rows = [
    (f"[{made.title}]({made.key}.md)", code(made.key), f"{made.summary} {made.source}")
    for made in map(entry, models.SYSTEMS)
  ]
  parts = (
    "# Systems",
    "Each is trained by its name, `msa-jax train --config=NAME`, and its network is a"
    " plain Flax module, `msa_jax.models.HGEM()`. Where a paper is silent or"
    " contradicts itself, its page says what was chosen and which option changes it.",
    tables.table(("system", "name", "what it is, and its source"), rows),
  )
  return "\n\n".join(parts) + "\n"


def _notes(made: Entry) -> Iterator[str]:
  """What the system's module says beyond its first line and its source."""
  first, *paragraphs = docstrings.markdown(made.home.__doc__ or "").split("\n\n")
  del first
  paragraphs = [each for each in paragraphs if not each.startswith("Source:")]
  if paragraphs:
    yield "## Notes"
    yield from paragraphs


def _network(made: Entry) -> Iterator[str]:
  network = made.network
  file = network.__module__.replace(".", "/")
  yield "## Network"
  yield f"`msa_jax.models.{network.__name__}`, in `{file}.py`."
  for paragraph in docstrings.prose(network.__doc__ or "").split("\n\n"):
    if not paragraph.startswith("Source:"):
      yield paragraph
  yield "### `__call__`"
  yield docstrings.text(network.__call__.__doc__ or "")


def groups(made: Entry) -> list[Group]:
  """The options of `config.model`, each with its meaning.

  Raises:
    ValueError: an option that no docstring tells of.
  """
  names = [name for name in made.default.model if name != "name"]
  owners = described.owners(made.network, made.home)
  found = [group for owner in owners for group in described.groups(owner, names)]
  told = {each.key.partition(".")[0] for group in found for each in group.options}
  unknown = [name for name in names if name not in {*told, *READ}]
  if unknown:
    raise ValueError(f"{made.key}: no docstring tells of the option {unknown[0]}")
  read = tuple(READ[name] for name in names if name not in told)
  first, *rest = found
  return [first._replace(options=(*read, *first.options)), *rest]


def _options(made: Entry) -> Iterator[str]:
  yield "## Options"
  yield (
    f"Flags `--config.model.OPTION`, fields of `{made.network.__name__}`. The defaults"
    " are the network's; what the config file sets in their place is told below."
  )
  first, *rest = groups(made)
  yield tables.of_options(first.options)
  for group in rest:
    if group.key:
      yield f"### {code(group.key)}"
    yield group.summary
    yield tables.of_options(group.options)


def _losses(made: Entry) -> Iterator[str]:
  yield "## Losses"
  yield (
    "Flags `--config.loss.OPTION`: the loss of each task (`default` = `l1` of a"
    " regression, cross-entropy of classes), weights of auxiliary losses, and"
    " `aux_warmup_fraction`, the share of all steps over which these weights rise."
  )
  rows = [(code(key), code(literal(value))) for key, value in made.default.loss.items()]
  yield tables.table(("option", "in the config file"), rows)
  if hasattr(made.home, "losses"):
    yield docstrings.text(made.home.losses.__doc__ or "")
  if made.system.auxiliary is not no_auxiliary:
    yield docstrings.text(made.system.auxiliary.__doc__ or "")


def _plain(made: Entry) -> dict[str, Any]:
  """Dotted key -> default of the network, or of the shared section."""
  shared = {name: dataclasses.asdict(section()) for name, section in SECTIONS.items()}
  shared["balance"] = dataclasses.asdict(BalanceConfig())
  own = {f"model.{o.key}": o.default for group in groups(made) for o in group.options}
  return {**flatten(shared), **flatten(own)}


def _flat(config: Experiment) -> dict[str, Any]:
  tree = to_tree(config)
  del tree["model"]["name"]
  return flatten(tree)


def _changed(made: Entry) -> Iterator[str]:
  """What the config file sets otherwise than the network and the shared sections."""
  plain, own = _plain(made), _flat(made.default)
  rows = [
    (code(key), code(literal(own[key])), code(literal(plain[key])))
    for key in own
    if key in plain and own[key] != plain[key]
  ]
  if rows:
    yield f"## What `--config={made.key}` sets"
    yield "In place of the defaults above and of the [shared ones](../options.md):"
    yield tables.table(("option", "value", "default"), rows)


def changes(made: Entry, variant: str) -> dict[str, Any]:
  """Dotted key -> value, of what a variant sets against its config's default."""
  before = _flat(made.default)
  after = _flat(experiment(made.config.get_config(variant)))
  return {key: after[key] for key in after if before.get(key, ...) != after[key]}


def _variants(made: Entry) -> Iterator[str]:
  rows = [(code(name), _told(changes(made, name))) for name in made.config.VARIANTS]
  yield "## Variants"
  yield (
    f"`--config={made.key}:VARIANT`, several with commas. Each sets, against"
    f" `--config={made.key}`:"
  )
  yield tables.table(("variant", "sets"), rows)


def _told(values: Mapping[str, Any]) -> str:
  lines = [code(f"{key}={literal(value)}") for key, value in values.items()]
  return "<br>".join(lines) or "no change"


def _studies(made: Entry) -> Iterator[str]:
  start, system = f"msa-jax studies {{}} --config={made.key}", made.system
  found = [
    (f"{start.format('ablation')} --table={name}", rows)
    for name, rows in system.ablations.items()
  ]
  if system.router_variants:
    found.append((start.format("router_compare"), system.router_variants))
  if system.robustness:
    found.append((start.format("missing"), {"whole": {}, **system.robustness}))
  if not found:
    return
  yield "## Studies"
  for command, rows in found:
    yield f"```bash\n{command}\n```"
    lines = [
      (code(name), _told(changes_of(made.default, row))) for name, row in rows.items()
    ]
    yield tables.table(("run", "sets"), lines)


def _published(made: Entry) -> Iterator[str]:
  """Figures of the literature, by corpus and source."""
  wanted = _plainly(made.title)
  grouped: dict[tuple[str, str, str], dict[str, str]] = collections.defaultdict(dict)
  for row in results.published():
    if _plainly(row.model) == wanted:
      key = (row.corpus, row.setting, row.source)
      grouped[key][row.metric] = f"{row.value:.3f}"
  if not grouped:
    return
  yield "## Published figures"
  yield (
    "As their sources print them, with how each was measured; what a metric's name"
    " means is told in [metrics](../metrics.md)."
  )
  for corpus in dict.fromkeys(corpus for corpus, _, _ in grouped):
    own = {key[1:]: cells for key, cells in grouped.items() if key[0] == corpus}
    names = results.columns([results.Row("", cells, "") for cells in own.values()])
    rows = [
      (*(cells.get(name, "") for name in names), _where(setting, source))
      for (setting, source), cells in own.items()
    ]
    yield f"### {_CORPORA.get(corpus, corpus)}"
    yield tables.table((*map(code, names), "of"), rows)


def _where(setting: str, source: str) -> str:
  said = (setting, source, results.protocol_of(source))
  return "; ".join(each for each in said if each)


def _plainly(name: str) -> str:
  return "".join(each for each in name.lower() if each.isalnum())
