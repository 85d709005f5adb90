"""One run's options, resolved and typed: what a run directory's config.json holds."""

import dataclasses
import difflib
import json
from collections.abc import Mapping
from typing import Any

import ml_collections

from msa_jax.config import values as sections
from msa_jax.config.aliases import FORMAT, upgrade
from msa_jax.config.defaults import SECTIONS
from msa_jax.config.options import (
  AnchorConfig,
  BalanceConfig,
  DataConfig,
  InitConfig,
  MissingConfig,
  OptimConfig,
  ReplicasConfig,
  ShardingConfig,
  TextConfig,
  TrainConfig,
)
from msa_jax.data.synthetic.generator import SyntheticOptions, read_options
from msa_jax.errors import UserError
from msa_jax.text.bert import EncoderConfig
from msa_jax.typing import Spec, Task


@dataclasses.dataclass(frozen=True)
class Experiment:
  """The options of a run.

  Attributes:
    system: name of the system.
    model: its options, nested.
    loss: options of its objective: losses by task, weights of auxiliary losses.
    optim, data, train, missing, text, init, anchor, replicas, sharding: the shared
      options.
    balance: B-fusion; None = the system cannot be balanced.
    spec: what the corpus is; None = not resolved against one yet.
  """

  system: str
  model: Mapping[str, Any]
  loss: Mapping[str, Any]
  optim: OptimConfig = OptimConfig()
  data: DataConfig = DataConfig()
  train: TrainConfig = TrainConfig()
  missing: MissingConfig = MissingConfig()
  text: TextConfig = TextConfig()
  init: InitConfig = InitConfig()
  anchor: AnchorConfig = AnchorConfig()
  replicas: ReplicasConfig = ReplicasConfig()
  sharding: ShardingConfig = ShardingConfig()
  balance: BalanceConfig | None = None
  spec: Spec | None = None

  @property
  def corpus_spec(self) -> Spec:
    """`spec` of a resolved experiment.

    Raises:
      UserError: it was not resolved against a corpus.
    """
    if self.spec is None:
      raise UserError(
        "the config is not resolved against a corpus yet: call train_state.prepare"
        " first."
      )
    return self.spec

  @property
  def is_balanced(self) -> bool:
    """Whether B-fusion trains the fusion weights."""
    return self.balance is not None and self.balance.enabled

  def replace(self, section: str | None = None, **changes: Any) -> "Experiment":
    """A copy with other fields, or with other options in one section."""
    if section is not None:
      changes = {section: dataclasses.replace(getattr(self, section), **changes)}
    return dataclasses.replace(self, **changes)


def experiment(config: "ml_collections.ConfigDict | Experiment") -> Experiment:
  """The typed options of a config; an `Experiment` is returned unchanged.

  Raises:
    UserError: a section or a key that does not exist, or a value of another type.
  """
  if isinstance(config, Experiment):
    return config
  return from_tree(config.to_dict())


def with_options(config: Experiment, options: Mapping[str, Any]) -> Experiment:
  """A copy with other values of dotted keys, `{"optim.epochs": 2}`.

  Raises:
    UserError: there is no such key, or its value is of another type.
  """
  tree: dict[str, Any] = to_tree(config)
  for path, value in options.items():
    *sections, key = path.split(".")
    node = tree
    for section in sections:
      below = node.get(section)
      node = below if isinstance(below, dict) else {}
    choices = sorted(node)
    if key not in choices:
      near = difflib.get_close_matches(key, choices, n=3, cutoff=0.5)
      hint = f" did you mean {' or '.join(near)}?" if near else ""
      raise UserError(
        f"{path}: {config.system} has no such option;{hint} The choices are"
        f" {', '.join(choices) or ', '.join(sorted(tree))}."
      )
    node[key] = value
  return from_tree(tree)


def from_tree(tree: Mapping[str, Any]) -> Experiment:
  """An experiment from nested plain mappings, as config.json and configs have them.

  Sections and keys that are absent have their defaults.

  Raises:
    UserError: a section or a key that does not exist, or a value of another type.
  """
  tree = {key: tree[key] for key in tree if key not in ("format", "provided_by")}
  known = {"model", "loss", "balance", "spec", *SECTIONS}
  unknown = sorted(set(tree) - known)
  if unknown:
    raise UserError(f"config.{unknown[0]}: no such section; choose of {sorted(known)}.")
  model = tree.get("model")
  if not isinstance(model, Mapping) or not isinstance(model.get("name"), str):
    raise UserError("config.model needs a name, that of a system.")
  model = dict(model)
  for name in ("tasks", "modalities"):
    if name in model:
      kind = tuple[str, ...]
      model[name] = sections.checked(kind, model[name], f"model.{name}")
  if not isinstance(tree.get("loss", {}), Mapping):
    raise UserError(f"config.loss={tree['loss']!r} must be a section of options.")
  made = {
    name: _section(cls, tree.get(name, {}), name) for name, cls in SECTIONS.items()
  }
  balance = tree.get("balance")
  spec = tree.get("spec")
  return Experiment(
    system=model.pop("name"),
    model=_tuples(model),
    loss=_tuples(tree.get("loss", {})),
    balance=None if balance is None else _section(BalanceConfig, balance, "balance"),
    spec=read_spec(spec) if spec else None,
    **made,
  )


def _section(cls: type, values: Any, path: str) -> Any:
  made = sections.section(cls, values, path)
  if isinstance(made.get("synthetic"), Mapping):
    made["synthetic"] = _synthetic(made["synthetic"], f"{path}.synthetic")
  return cls(**made)


def _synthetic(values: Mapping[str, Any], path: str) -> SyntheticOptions:
  preset = {"preset": values["preset"]} if "preset" in values else {}
  rest = {name: value for name, value in values.items() if name != "preset"}
  found = {**preset, **sections.section(SyntheticOptions, rest, path)}
  try:
    return read_options(found.items())
  except UserError as error:
    raise UserError(f"config.{path}: {error}") from None


def _tuples(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {key: _tuples(entry) for key, entry in value.items()}
  return tuple(_tuples(entry) for entry in value) if isinstance(value, list) else value


def read_spec(tree: Mapping[str, Any]) -> Spec:
  """A `Spec` from nested plain mappings."""
  tree = _tuples(tree)
  tasks = {name: Task(**task) for name, task in tree["tasks"].items()}
  encoder = tree.get("encoder")
  return Spec(
    **{
      **tree,
      "tasks": tasks,
      "encoder": EncoderConfig(**encoder) if encoder else None,
    }
  )


def to_tree(made: Experiment) -> dict[str, Any]:
  """The inverse of `from_tree`."""
  tree = dataclasses.asdict(made)
  tree["model"] = {"name": tree.pop("system"), **tree["model"]}
  return {key: value for key, value in tree.items() if value is not None}


def to_json(made: Experiment, provided_by: str = "") -> str:
  """Serialises an experiment; `from_json` gives an equal one back.

  Args:
    made: the experiment.
    provided_by: package that the system comes from, for whoever reads the file.
  """
  about = {"format": FORMAT, **({"provided_by": provided_by} if provided_by else {})}
  return json.dumps({**about, **to_tree(made)}, indent=2, sort_keys=True)


def from_json(text: str) -> Experiment:
  """Reads what `to_json`, or an earlier version of it, has written.

  Raises:
    UserError: the text is no such config.
  """
  try:
    return from_tree(upgrade(json.loads(text)))
  except UserError as error:
    raise UserError(f"config.json is damaged: {error}") from error
  except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
    raise UserError(f"config.json is damaged: {error}.") from error


def differences(
  ours: Experiment, theirs: Experiment, ignore: tuple[str, ...] = ()
) -> list[str]:
  """Lists the dotted keys whose values differ, as `key: a here, b there`."""
  flat_ours, flat_theirs = flatten(to_tree(ours)), flatten(to_tree(theirs))
  lines = []
  for key in sorted(flat_ours.keys() | flat_theirs.keys()):
    a, b = flat_ours.get(key, "absent"), flat_theirs.get(key, "absent")
    if a != b and key not in ignore:
      lines.append(f"{key}: {a} here, {b} there")
  return lines


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Dotted key -> value, tuples as lists."""
  flat = {}
  for key, value in tree.items():
    if isinstance(value, Mapping) and value:
      flat.update(flatten(value, f"{prefix}{key}."))
    else:
      flat[prefix + key] = list(value) if isinstance(value, tuple) else value
  return flat
