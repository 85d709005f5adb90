"""Sentiment from ratings: IEMOCAP's annotators rated valence, not sentiment."""

import dataclasses

import numpy as np
from jaxtyping import Float

from msa_jax.errors import UserError
from msa_jax.typing import Corpus, Split, Task

_KEYS = ("valence", "vad")  # extras: [n], or [n 3] valence, activation, dominance


def valence_as_sentiment(corpus: Corpus) -> Corpus:
  """Adds the task `sentiment`: (valence - 3) * 1.5, so 1..5 becomes [-3, 3].

  Ratings outside 1..5 (0 = not rated) and non-finite ones are no label. A corpus
  without any labels comes back as it is: it is there to be predicted.

  Source: MMoLRE's sheet; ours.

  Raises:
    UserError: no ratings, or sentiment labels besides them.
  """
  if not corpus.tasks:
    return corpus
  ratings = {name: _ratings(split) for name, split in corpus.splits.items()}
  if "sentiment" in corpus.tasks or all(found is None for found in ratings.values()):
    reason = "already has" if "sentiment" in corpus.tasks else "has no"
    what = "sentiment labels" if "sentiment" in corpus.tasks else "ratings of valence"
    raise UserError(
      f"config.data.valence=True: {corpus.name!r} {reason} {what} (extras"
      f" {' or '.join(_KEYS)}); set it to False."
    )
  splits = {
    name: split
    if (found := ratings[name]) is None
    else dataclasses.replace(
      split, labels={**split.labels, "sentiment": _scaled(found)}
    )
    for name, split in corpus.splits.items()
  }
  sentiment = Task("regression", low=-3.0, high=3.0, protocol="mosi")
  return dataclasses.replace(
    corpus, splits=splits, tasks={**corpus.tasks, "sentiment": sentiment}
  )


def _ratings(split: Split) -> np.ndarray | None:
  for key in _KEYS:
    if key in split.extras:
      values = np.asarray(split.extras[key], np.float32)
      return values[:, 0] if values.ndim == 2 else values
  return None


def _scaled(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
  rated = (values >= 1.0) & (values <= 5.0)
  return np.where(rated, (values - 3.0) * 1.5, np.nan).astype(np.float32)
