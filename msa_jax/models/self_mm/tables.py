"""Self-MM's memory: labels of single modalities that training makes for itself.

For every sample of the training split there are its features and a label per branch
(`fusion` and the modalities), and for every branch the centres of the features of its
positive and its negative samples. All of it is data in the train state, scattered by
the sample's row in the split, so that seeds can be stacked and runs resumed.

Source: Self-MM (Yu et al., AAAI 2021, arXiv:2102.04830), section 3.3 and algorithm 1,
as MMSA's trainer (thuiar/MMSA, multiTask/SELF_MM.py) has it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

FUSION = "fusion"
COLLECTION = "pseudo_labels"
_SMALL = 1e-8  # added to what divides
_NEAR = 1e-3  # below this, the fusion's place between its centres tells nothing

Tables = Mapping[str, Any]


class Rules(NamedTuple):
  """How labels are made.

  Attributes:
    limit: greatest absolute label.
    exclude_zero: whether labels of exactly zero are no positive ones.
    compat: `mmsa` divides by the fusion's place whatever it is, and makes NaN of a
      centre without samples.
  """

  limit: float
  exclude_zero: bool = True
  compat: str = "none"


class Seen(NamedTuple):
  """What a batch shows.

  Attributes:
    index: [b] rows of the training split.
    truth: [b] labels of the samples.
    known: [b] bool; False = filler row, or a sample without label.
    features: branch -> [b d].
    present: modality -> [b] bool; whether the sample has it.
  """

  index: Int[Array, " b"]
  truth: Float[Array, " b"]
  known: Bool[Array, " b"]
  features: Mapping[str, jax.Array]
  present: Mapping[str, jax.Array]


def empty(size: int, widths: Mapping[str, int]) -> dict[str, Any]:
  """Tables of nothing.

  Args:
    size: rows of the training split, n.
    widths: branch -> width of its features; `fusion` is one of them.

  Returns:
    `visits` [n], how often a sample was seen; by branch `labels` [n], `seen` [n]
    (whether there are features), `features` [n d] and `centres` [2 d], positive first.
  """
  return {
    "visits": jnp.zeros((size,), jnp.int32),
    "labels": {name: jnp.zeros((size,)) for name in widths},
    "seen": {name: jnp.zeros((size,), bool) for name in widths},
    "features": {name: jnp.zeros((size, width)) for name, width in widths.items()},
    "centres": {name: jnp.zeros((2, width)) for name, width in widths.items()},
  }


def labels_of(tables: Tables, seen: Seen, name: str) -> Float[Array, " b"]:
  """Labels of a branch before the batch: the true ones of samples never seen."""
  old = tables["labels"][name][seen.index]
  there = tables["seen"][name][seen.index]
  return jnp.where(there, old, seen.truth)


def updated(tables: Tables, seen: Seen, rules: Rules) -> dict[str, Any]:
  """The tables after a batch: labels by the centres of the batch before, then the
  batch's features, then the centres.

  A sample's n-th visit moves its labels by 2 / (n + 1); the first one, which there
  are no centres for, makes them the true ones. Modalities that a sample lacks keep
  what they had.
  """
  size = len(tables["visits"])
  visits = tables["visits"][seen.index] + 1  # [b], this one included
  place = jnp.where(seen.known, seen.index, size)  # beyond the end: dropped
  offset = _offset(tables, seen, FUSION)
  made: dict[str, dict[str, jax.Array]] = {
    key: {} for key in ("labels", "seen", "features", "centres")
  }
  for name, features in seen.features.items():
    there = seen.known & seen.present.get(name, True)
    row = jnp.where(there, place, size)
    labels = labels_of(tables, seen, name)
    if name != FUSION:
      new = _moved(_offset(tables, seen, name), offset, seen.truth, rules)
      n = visits.astype(jnp.float32)
      moved = (n - 1.0) / (n + 1.0) * labels + 2.0 / (n + 1.0) * new
      # A branch that was not seen before has no features between any centres.
      again = (visits > 1) & tables["seen"][name][seen.index]
      labels = jnp.where(again, moved, seen.truth)
    made["labels"][name] = tables["labels"][name].at[row].set(labels, mode="drop")
    made["seen"][name] = tables["seen"][name].at[row].set(True, mode="drop")
    made["features"][name] = tables["features"][name].at[row].set(features, mode="drop")
    made["centres"][name] = _centres(
      made["labels"][name],
      made["seen"][name],
      made["features"][name],
      tables["centres"][name],
      rules,
    )
  counted = tables["visits"].at[place].set(visits, mode="drop")
  return {"visits": counted, **made}


def _offset(tables: Tables, seen: Seen, name: str) -> Float[Array, " b"]:
  """Where features are between the centres: (d_n - d_p) / (d_p + 1e-8), Eq. 5-6."""
  apart = seen.features[name][:, None] - tables["centres"][name][None]  # [b 2 d]
  distance = jnp.sqrt(jnp.sum(apart**2, axis=-1))
  positive, negative = distance[:, 0], distance[:, 1]
  return (negative - positive) / (positive + _SMALL)


def _moved(
  offset: Float[Array, " b"],
  fusion: Float[Array, " b"],
  truth: Float[Array, " b"],
  rules: Rules,
) -> Float[Array, " b"]:
  """A modality's label by its offset and that of the fusion, Eq. 7-9."""
  shifted = truth + offset - fusion
  safe = fusion if rules.compat == "mmsa" else jnp.where(_far(fusion), fusion, 1.0)
  new = 0.5 * (offset / (safe + _SMALL)) * truth + 0.5 * shifted
  if rules.compat != "mmsa":
    new = jnp.where(_far(fusion), new, shifted)
  return jnp.clip(new, -rules.limit, rules.limit)


def _far(fusion: Float[Array, " b"]) -> Bool[Array, " b"]:
  return jnp.abs(fusion) >= _NEAR


def _centres(
  labels: Float[Array, " n"],
  seen: Bool[Array, " n"],
  features: Float[Array, "n d"],
  old: Float[Array, "2 d"],
  rules: Rules,
) -> Float[Array, "2 d"]:
  """Mean features of positive and of negative samples; the old ones without any."""
  positive = labels > 0 if rules.exclude_zero else labels >= 0
  groups = jnp.stack([positive, labels < 0]) & seen[None]  # [2 n]
  count = jnp.sum(groups, axis=1, keepdims=True).astype(features.dtype)
  total = groups.astype(features.dtype) @ features
  if rules.compat == "mmsa":
    return total / count
  return jnp.where(count > 0, total / jnp.maximum(count, 1.0), old)
