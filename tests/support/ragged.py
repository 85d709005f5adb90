"""A corpus of ragged sequences with lost steps, and the transforms that are fitted."""

import dataclasses

import numpy as np

from msa_jax.data.transforms.align import Align, MaxSteps
from msa_jax.data.transforms.kmeans import FrameClusters
from msa_jax.data.transforms.modalities import MatchModalities
from msa_jax.data.transforms.pipeline import Pipeline
from msa_jax.data.transforms.standardize import Standardize
from msa_jax.typing import Corpus, Sequences, Split, Task

SENTIMENT = {"sentiment": Task("regression", low=-3.0, high=3.0)}


def fit_apply(corpus, align="none", max_steps=0, standardize=("audio",), clusters=0):
  """Fits the later part of a run's pipeline; returns it and the transformed corpus."""
  transforms = (
    MatchModalities(),
    Standardize(standardize),
    *([MaxSteps(max_steps)] if max_steps else []),
    Align(align, max_steps),
    *([FrameClusters(clusters)] if clusters else []),
  )
  return Pipeline(transforms).fit_apply(corpus)


def make_split(seed, size=9, text=6, audio=11, widths=(4, 3)):
  rng = np.random.default_rng(seed)
  modalities = {}
  for name, steps, width in (("text", text, widths[0]), ("audio", audio, widths[1])):
    lengths = rng.integers(0, steps + 1, size).astype(np.int32)
    lengths[0], lengths[1] = steps, 1
    real = np.arange(steps) < lengths[:, None]
    lost = real & (rng.random(real.shape) < 0.3)
    features = 5.0 + 2.0 * rng.standard_normal((size, steps, width))
    features[~real | lost] = 0
    kind = np.float16 if name == "text" else np.float32
    ids = {"tags": rng.integers(1, 9, (size, steps)).astype(np.int32)}
    modalities[name] = Sequences(features.astype(kind), lengths, lost, ids)
  label = np.linspace(-3, 3, size).astype(np.float32)
  return Split(
    np.array([f"{seed}$_${i}" for i in range(size)]), modalities, {"sentiment": label}
  )


def corpus():
  """Three splits of nine samples."""
  splits = {"train": make_split(0), "valid": make_split(1), "test": make_split(2)}
  return Corpus("ragged", splits, SENTIMENT, {"kept": 1})


def visible_rows(sequences):
  """Every visible step as a list of (row, step)."""
  return [
    (row, step)
    for row in range(len(sequences.lengths))
    for step in range(sequences.lengths[row])
    if sequences.lost is None or not sequences.lost[row, step]
  ]


def with_modality(split, name, sequences):
  return dataclasses.replace(split, modalities={**split.modalities, name: sequences})
