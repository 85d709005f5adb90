"""Masks of splits under a pattern: drawn by sample, put on the split, saved."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from msa_jax.data.batching.batches import availability
from msa_jax.data.missing import rules, text
from msa_jax.data.missing.patterns import Pattern
from msa_jax.safe_io import durable
from msa_jax.typing import Corpus, Split, modality_order


class Masks(NamedTuple):
  """What is missing of a split, on the host.

  Attributes:
    pattern: where it came from.
    available: [n m] or [n t m] bool, True = present, in `modality_order`.
    lost: modality -> [n t] bool, True = the step's content is lost.
    realised: shares that are really missing: `entries` (of the modalities the samples
      have), and of stepwise patterns `steps` and `steps_<modality>` (of steps that
      had content).
  """

  pattern: Pattern
  available: Bool[np.ndarray, "n *t m"]
  lost: Mapping[str, Bool[np.ndarray, "n t"]]
  realised: Mapping[str, float]


def uniforms(
  ids: Sequence[str] | np.ndarray, stream: str, seed: int, shape: tuple[int, ...]
) -> Float[np.ndarray, "n ..."]:
  """Numbers in [0, 1) that depend on a sample's own id, a stream and a seed.

  Args:
    ids: of the samples.
    stream: e.g. `random/audio`.
    seed: of the masks, not of a model.
    shape: numbers per sample; a longer first axis leaves the first ones as they are.
  """
  rows = np.empty((len(ids), *shape))
  for row, sample in enumerate(ids):
    name = f"{seed}/{stream}/{sample}".encode()
    key = int.from_bytes(hashlib.blake2b(name, digest_size=16).digest(), "little")
    rows[row] = np.random.Generator(np.random.Philox(key=key)).random(shape)
  return rows


def draw(pattern: Pattern, split: Split, seed: int, batch: int = 32) -> Masks:
  """The masks of a split under a pattern.

  Args:
    pattern: what goes missing.
    split: as read from its file, before any preprocessing; gives ids, lengths and
      what is missing already.
    seed: of the masks.
    batch: samples per batch, of `batches`, which are drawn from all over the split;
      they are somewhat smaller where their number must be a multiple of ten for the
      rate to be hit.
  """
  present = availability(split)  # [n m] or [n t m]
  order = modality_order(split.modalities)
  lost = {}
  keep = present
  if pattern.stepwise:
    names = [n for n in order if pattern.protocol == "frames" or n == "text"]
    lost = {name: _lost_steps(split, name, pattern, seed) for name in names}
  elif pattern.protocol != "none":
    keep = _kept(pattern, split, present, order, seed, batch)
  return Masks(pattern, keep, lost, _realised(split, present, keep, lost))


def _kept(pattern, split, present, order, seed, batch) -> np.ndarray:
  shape = (*present.shape[1:-1], 2)
  numbers = np.stack(
    [uniforms(split.ids, f"{pattern.protocol}/{n}", seed, shape) for n in order],
    axis=-2,
  )
  n_batches = 10 * -(-len(split) // (10 * batch))
  (drawn,) = uniforms(split.ids, "batches/order", seed, (1,)).T
  position = np.argsort(np.argsort(drawn)) * n_batches // len(split)
  names = [f"batch {number}" for number in range(n_batches)]
  choice = uniforms(names, f"batches/{pattern.rate:g}", seed, (len(order),))[position]
  if present.ndim == 3:
    choice = np.repeat(choice[:, None], present.shape[1], axis=1)
    position = np.repeat(position[:, None], present.shape[1], axis=1)
  kept = keep(pattern, order, numbers, present, choice, position, n_batches)
  return np.asarray(kept)


def keep(
  pattern: Pattern,
  order: Sequence[str],
  numbers: rules.Uniforms,
  available: rules.Available,
  choice: Any,
  position: Any,
  n_batches: int,
  rounding: Any = 0.5,
) -> Any:
  """Which modalities a pattern leaves, from uniform numbers; can be traced.

  Args:
    pattern: one that is not stepwise.
    order: the modalities, as the last axis of `available` has them.
    numbers: [... m 2].
    available: [... m].
    choice: [... m] numbers, one draw per batch; read by `batches` only.
    position: [...] number of the batch; read by `batches` only.
    n_batches: of an epoch.
    rounding: of a number of batches, see `rules.by_batch`.

  Returns:
    [... m] bool, a subset of `available`.
  """
  slots = [name in pattern.visible for name in order]
  rule = {
    "none": lambda: available,
    "only": lambda: available & np.broadcast_to(slots, available.shape),
    "conditions": lambda: rules.any_condition(numbers, available),
    "dropout": lambda: rules.independent(numbers, available, pattern.rate),
    "random": lambda: rules.at_rate(numbers, available, pattern.rate),
    "samples": lambda: rules.without_one(
      numbers, available, list(order).index("text"), pattern.rate
    ),
    "batches": lambda: rules.by_batch(
      numbers, available, choice, position, n_batches, pattern.rate, rounding
    ),
  }
  return rule[pattern.protocol]()


def _lost_steps(split: Split, name: str, pattern: Pattern, seed: int) -> np.ndarray:
  sequences = split.modalities[name]
  longest = sequences.features.shape[1]
  step = np.arange(longest)[None, :]
  real = step < sequences.lengths[:, None]
  if name == "text" and pattern.way == "ends":
    real &= (step > 0) & (step < sequences.lengths[:, None] - 1)
  elif name == "text":
    real &= ~text.outer(split)
  numbers = uniforms(split.ids, f"steps/{name}", seed, (longest,))
  return real & (numbers < pattern.rate)


def _realised(split, present, keep, lost) -> dict[str, float]:
  shares = {"entries": 1.0 - float(keep.sum()) / max(int(present.sum()), 1)}
  gone, all_steps = 0, 0
  for name, steps in lost.items():
    sequences = split.modalities[name]
    content = np.arange(steps.shape[1])[None, :] < sequences.lengths[:, None]
    if sequences.lost is not None:
      content &= ~sequences.lost
    n_gone, n_steps = int((steps & content).sum()), int(content.sum())
    shares[f"steps_{name}"] = n_gone / max(n_steps, 1)
    gone, all_steps = gone + n_gone, all_steps + n_steps
  if lost:
    shares["steps"] = gone / max(all_steps, 1)
  return shares


def apply(split: Split, masks: Masks, source: text.Source = text.FILE) -> Split:
  """The split with what `masks` says missing; before preprocessing.

  Lengths stay, so that alignment is what it was.

  Args:
    split: as read.
    masks: of it.
    source: what makes its text, which is made again where words are lost.
  """
  modalities = dict(split.modalities)
  for name, steps in masks.lost.items():
    sequences = modalities[name]
    if name == "text":
      modalities[name] = text.lose(split, steps, masks.pattern.way, source)
      continue
    lost = steps if sequences.lost is None else steps | sequences.lost
    modalities[name] = dataclasses.replace(sequences, lost=lost)
  return dataclasses.replace(split, modalities=modalities, available=masks.available)


def draw_all(
  corpus: Corpus, patterns: Mapping[str, Pattern], seed: int, batch: int = 32
) -> dict[str, Masks]:
  """The masks of those splits of a corpus in which something goes missing.

  Args:
    corpus: as read, before preprocessing.
    patterns: split -> what goes missing there.
    seed, batch: as for `draw`.
  """
  return {
    name: draw(pattern, corpus.splits[name], seed, batch)
    for name, pattern in patterns.items()
    if name in corpus.splits and pattern.protocol != "none"
  }


def apply_all(
  corpus: Corpus, masks: Mapping[str, Masks], encode: text.Encode | None = None
) -> Corpus:
  """`apply` to every split that has masks."""
  source = text.source_of(corpus, encode)
  splits = {
    name: apply(split, masks[name], source) if name in masks else split
    for name, split in corpus.splits.items()
  }
  return dataclasses.replace(corpus, splits=splits)


def arrays(masks: Masks) -> dict[str, np.ndarray]:
  """Masks as arrays for an npz: `available`, and `lost_<modality>` where any is."""
  lost = {f"lost_{name}": steps for name, steps in masks.lost.items()}
  return {"available": masks.available, **lost}


def save(
  path: str | os.PathLike, split: Split, patterns: Mapping[str, Mapping[str, Any]]
) -> None:
  """Writes masks beside a run's predictions.

  Args:
    path: npz file; gets `ids`, `modalities`, and `<pattern>/<array>`.
    split: gives the ids.
    patterns: pattern -> arrays, as from `arrays`.
  """
  flat = {
    f"{pattern}/{name}": values
    for pattern, parts in patterns.items()
    for name, values in parts.items()
  }
  order = np.asarray(modality_order(split.modalities))
  with durable.replacing(pathlib.Path(path)) as partial:
    np.savez_compressed(partial, ids=split.ids, modalities=order, **flat)
