"""Data shapes to measure at: sizes, widths and lengths of the published corpora."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from msa_jax.config.experiment import Experiment
from msa_jax.data.synthetic.generator import SyntheticOptions
from msa_jax.errors import UserError


class Shape(NamedTuple):
  """A corpus of the synthetic generator with the shapes of a published one.

  Attributes:
    corpus: options of the generator; lengths are log-normal, as real ones are.
    align: `config.data.align`: `pool` = every modality has the text's steps.
    max_steps: `config.data.max_steps`; 0 = all.
  """

  corpus: SyntheticOptions
  align: str
  max_steps: int


# 13.6 of 50 tokens in the mean, and some 45 frames of 375 and 500.
_MOSI = SyntheticOptions(
  sizes=(1284, 229, 686),
  videos=(52, 10, 31),
  widths=(768, 5, 20),
  steps=(50, 375, 500),
  text_length=12.0,
  frames_per_token=(3.2, 3.2),
)
_MOSEI = dataclasses.replace(
  _MOSI,
  sizes=(16326, 1871, 4659),
  videos=(2249, 300, 679),
  widths=(768, 74, 35),
  steps=(50, 500, 500),
  text_length=19.0,
)

SHAPES: Mapping[str, Shape] = MappingProxyType(
  {
    "mosi": Shape(_MOSI, "pool", 50),
    "mosi_unaligned": Shape(_MOSI, "none", 0),
    # One vector for each utterance and modality.
    "mosi_pooled": Shape(_MOSI, "pool", 1),
    "mosei": Shape(_MOSEI, "pool", 50),
  }
)


def apply(config: Experiment, name: str, rows: int = 0) -> Experiment:
  """A config that trains on a shape's corpus.

  Args:
    config: of any system.
    name: of a shape.
    rows: most training samples; 0 = as many as the published corpus has.

  Raises:
    UserError: unknown shape, or negative `rows`.
  """
  if name not in SHAPES:
    raise UserError(f"--shape={name!r} must be one of {', '.join(SHAPES)}.")
  if rows < 0:
    raise UserError(f"--rows={rows} must be 0 (all) or positive.")
  shape = SHAPES[name]
  corpus = shape.corpus
  if rows:
    sizes = tuple(min(rows, size) for size in corpus.sizes)
    videos = tuple(min(pair) for pair in zip(sizes, corpus.videos, strict=True))
    corpus = dataclasses.replace(corpus, sizes=sizes, videos=videos)
  return config.replace(
    "data", path="", align=shape.align, max_steps=shape.max_steps, synthetic=corpus
  )
