"""A smaller training split: stratified, nested, the same for every model."""

import dataclasses
import zlib
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from jaxtyping import Int

from msa_jax.data.transforms import folds
from msa_jax.data.transforms.transform import FIRST_RUN_ONLY, State, Transform
from msa_jax.errors import UserError
from msa_jax.typing import Corpus, Split, Task

_SEED = 2026


@dataclasses.dataclass(frozen=True)
class Subsample(Transform):
  """Keeps a share of the training split; see `shrink`.

  Attributes:
    share: in (0, 1].
  """

  name: ClassVar[str] = "subsample"
  occasions: ClassVar[frozenset[str]] = FIRST_RUN_ONLY
  share: float

  def apply(self, corpus: Corpus, state: State) -> Corpus:
    return shrink(corpus, self.share)


def shrink(corpus: Corpus, share: float) -> Corpus:
  """Keeps a share of the training split, the same of every polarity or class.

  Which samples stay depends on their place in the split alone: all models see the same
  ones, and a smaller share is part of every larger one.

  Args:
    corpus: not grouped into dialogues.
    share: in (0, 1]; at least one sample of each stratum stays.

  Raises:
    UserError: a share outside (0, 1].
  """
  if not 0.0 < share <= 1.0:
    raise UserError(f"config.data.train_fraction={share} must be in (0, 1].")
  if share == 1.0:
    return corpus
  train = corpus.splits["train"]
  strata = _strata(train, corpus.tasks)
  parts = []
  for stratum in np.unique(strata):
    rows = np.flatnonzero(strata == stratum)
    random = np.random.default_rng([_SEED, zlib.crc32(str(stratum).encode())])
    kept = max(1, round(share * len(rows)))
    parts.append(random.permutation(rows)[:kept])
  rows = np.sort(np.concatenate(parts))
  splits = {**corpus.splits, "train": folds.take(train, rows)}
  return dataclasses.replace(corpus, splits=splits)


def _strata(split: Split, tasks: Mapping[str, Task]) -> Int[np.ndarray, " n"]:
  """Polarity or class by the first task that the split is labelled for; -9 = none."""
  task = next(name for name in tasks if name in split.labels)
  values = np.asarray(split.labels[task])
  if tasks[task].kind == "binary":  # one number for each set of answers
    values = np.where(values < 0, -9, values) @ (2 ** np.arange(values.shape[1]))
  signs = values if tasks[task].kind != "regression" else np.sign(values)
  return np.nan_to_num(signs, nan=-9).astype(int)
