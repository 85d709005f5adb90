"""What config files are made with: shared defaults around the options of one system.

A config is a locked `ConfigDict` made by plain Python (`configs/*.py`). It is how a
user writes one; `config.experiment` turns it into the typed options that the library
takes.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import ml_collections

from msa_jax.config.config_dict import ConfigDict
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
from msa_jax.errors import UserError
from msa_jax.names import split_names

SECTIONS = {
  "optim": OptimConfig,
  "data": DataConfig,
  "train": TrainConfig,
  "missing": MissingConfig,
  "text": TextConfig,
  "init": InitConfig,
  "anchor": AnchorConfig,
  "replicas": ReplicasConfig,
  "sharding": ShardingConfig,
}
# task: l1, mse, huber for regression; default = l1, or cross-entropy for classes
LOSS = {"task": "default"}


def base(
  model: Mapping[str, Any] | ml_collections.ConfigDict,
  loss: Mapping[str, Any] | None = None,
  balance: bool = False,
) -> ConfigDict:
  """Returns the shared defaults around the options of one system.

  Args:
    model: options of the system, with its `name`.
    loss: options of its objective; None = `LOSS`. `aux_warmup_fraction`, the share of
      all steps over which auxiliary losses rise to their weights, is added.
    balance: whether the system can be balanced by B-fusion.

  Returns:
    Unlocked config; `finish` locks it.
  """
  config = ConfigDict()
  config.model = ConfigDict(model)
  config.loss = {**(LOSS if loss is None else loss), "aux_warmup_fraction": 0.0}
  for name, section in SECTIONS.items():
    config[name] = ml_collections.ConfigDict(dataclasses.asdict(section()))
  if balance:
    config.balance = ml_collections.ConfigDict(dataclasses.asdict(BalanceConfig()))
  return config


def finish(config: ConfigDict) -> ConfigDict:
  """Locks a config, so that unknown keys are errors from here on."""
  return config.lock()


def parse_variants(
  text: str, known: Mapping[str, Any], data_sets: Collection[str] = ()
) -> tuple[str, ...]:
  """Splits the part of `--config=file.py:a,b` after the colon.

  Args:
    text: names with commas, in any order.
    known: the file's variants, in the order in which they are applied.
    data_sets: those that are settings of a data set; a config is of one at most.

  Returns:
    The names in the order of `known`, so that `a,b` and `b,a` are one experiment.

  Raises:
    UserError: a name that the config file does not know, or two data sets.
  """
  chosen = set(split_names((text,)))
  unknown = sorted(chosen - set(known))
  if unknown:
    raise UserError(
      f"--config variant {unknown[0]!r} must be one of {', '.join(sorted(known))}."
    )
  several = sorted(chosen & set(data_sets))
  if len(several) > 1:
    raise UserError(
      f"--config variants {' and '.join(map(repr, several))} are settings of several"
      f" data sets; choose one of {', '.join(sorted(data_sets))}."
    )
  return tuple(name for name in known if name in chosen)
