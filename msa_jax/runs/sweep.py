"""Sweeps: the settings to try, their directories, and how they rank on validation."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from msa_jax import config as config_lib
from msa_jax.config import validate
from msa_jax.errors import UserError
from msa_jax.metrics import better
from msa_jax.models import SYSTEMS
from msa_jax.train.loop import TrainResult
from msa_jax.train.run_directory import RunDirectory
from msa_jax.train.selection import Criterion

Setting = Mapping[str, float]


def settings(config: ml_collections.ConfigDict, validated: bool) -> list[Setting]:
  """Every combination of the swept values; one empty setting where nothing is swept.

  Args:
    config: resolved config.
    validated: whether the corpus has a validation split.

  Raises:
    UserError: a setting that is not allowed, or nothing to rank settings by.
  """
  swept = config_lib.sweep(config)
  if swept and not validated:
    raise UserError(
      f"config.replicas.sweep.{next(iter(swept))}: settings are ranked on validation,"
      " and the corpus has no split 'valid'."
    )
  found = [
    dict(zip(swept, values, strict=True))
    for values in itertools.product(*swept.values())
  ]
  for setting in found:
    validate.validate(bound(config, setting), SYSTEMS)
  return found


def bound(
  config: ml_collections.ConfigDict, setting: Setting
) -> ml_collections.ConfigDict:
  """The config of one setting, itself without a sweep."""
  if not setting:
    return config
  nothing = {f"replicas.sweep.{key}": () for key in setting}
  return config_lib.bind(config, {**setting, **nothing})


def name(setting: Setting) -> str:
  """Name of a setting, and of its folder: `optim.learning_rate=0.001,loss.mi=0.1`."""
  return ",".join(f"{key}={value!r}" for key, value in setting.items())


def directory(root: RunDirectory, setting: Setting) -> RunDirectory:
  """Run directory of one setting; without a sweep, the run's."""
  return root.setting(name(setting)) if setting else root


def ranked(
  found: Sequence[Setting],
  trained: Sequence[Sequence[TrainResult]],
  criterion: Criterion,
) -> list[dict[str, Any]]:
  """Settings from best to worst by their mean validation figure over seeds.

  Args:
    found: the settings.
    trained: per setting, what came of each seed.
    criterion: what the figure is.

  Returns:
    Per setting `name`, `values`, `valid` (mean, None where a seed diverged), `std` and
    `seeds` (the figure of each).

  Raises:
    UserError: every setting diverged.
  """
  # A single figure is shown as it is, not turned round for the comparison.
  terms = criterion.terms
  sign = -1.0 if len(terms) == 1 and better(terms[0][2]) == "min" else 1.0
  rows = []
  for setting, seeds in zip(found, trained, strict=True):
    figures = [None if t.value is None else sign * t.value for t in seeds]
    known = None not in figures and bool(np.all(np.isfinite(figures)))
    rows.append(
      {
        "name": name(setting),
        "values": dict(setting),
        "valid": float(np.mean(figures)) if known else None,
        "std": float(np.std(figures, ddof=1)) if known and len(figures) > 1 else None,
        "seeds": figures,
      }
    )

  def order(row):
    return -np.inf if row["valid"] is None else sign * row["valid"]

  rows.sort(key=order, reverse=True)
  if rows[0]["valid"] is None:
    raise UserError(
      f"config.replicas.sweep: the loss became infinite or NaN in every setting"
      f" ({', '.join(row['name'] for row in rows)})."
    )
  return rows
