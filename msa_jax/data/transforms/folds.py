"""Cross-validation by session: one session to test on, a part of the rest to select."""

import dataclasses
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Int

from msa_jax.data.transforms.transform import OWN_CORPUS_ONLY, State, Transform
from msa_jax.errors import UserError
from msa_jax.typing import Corpus, Sequences, Split

WHOLE = "all"  # name of the split of a file that leaves splitting to us
SESSION = "session"  # the `extras` entry [n] to split by
VALIDATION = ("holdout10", "none")
_SHARE = 0.1  # of the training dialogues


@dataclasses.dataclass(frozen=True)
class Fold(Transform):
  """Splits a corpus of sessions; see `by_session`. Later files stay whole.

  Attributes:
    fold: session to test on; 0 = the last one, or the corpus's own splits.
    validation: one of `VALIDATION`.
  """

  name: ClassVar[str] = "fold"
  occasions: ClassVar[frozenset[str]] = OWN_CORPUS_ONLY
  fold: int = 0
  validation: str = "holdout10"

  def apply(self, corpus: Corpus, state: State) -> Corpus:
    return by_session(corpus, self.fold, self.validation)


def by_session(corpus: Corpus, fold: int, validation: str) -> Corpus:
  """Splits a corpus that has sessions and no splits.

  Args:
    corpus: returned unchanged if it has splits already.
    fold: session to test on; 0 = the last one, or the corpus's own splits.
    validation: `holdout10`: a tenth of each training session's dialogues, the same
      for every seed, is the validation split; `none`: there is none.

  Raises:
    UserError: a fold of a corpus without sessions or without that session, or an
      unknown validation.
  """
  if validation not in VALIDATION:
    raise UserError(
      f"config.data.iemocap_val={validation!r} must be one of {VALIDATION}."
    )
  if set(corpus.splits) != {WHOLE}:
    if fold:
      raise UserError(
        f"config.data.fold={fold}: {corpus.name!r} comes with the splits"
        f" {', '.join(corpus.splits)}; 0 takes those."
      )
    return corpus
  whole = corpus.splits[WHOLE]
  if SESSION not in whole.extras:
    raise UserError(
      f"{corpus.name!r} has neither splits nor sessions to make them of"
      f" (extras: {', '.join(whole.extras) or 'none'})."
    )
  sessions = whole.extras[SESSION]
  known = np.unique(sessions).tolist()
  chosen = fold or known[-1]
  if chosen not in known or len(known) < 2:
    raise UserError(
      f"config.data.fold={fold}: the sessions of {corpus.name!r} are"
      f" {', '.join(map(str, known))}; two at least are needed."
    )
  test = sessions == chosen
  held = np.zeros_like(test)
  if validation == "holdout10":
    held = _held_out(whole, ~test)
  rows = {"train": ~test & ~held, "valid": held, "test": test}
  splits = {
    name: take(whole, np.flatnonzero(mask)) for name, mask in rows.items() if mask.any()
  }
  notes = {**corpus.notes, "fold": {"test_session": chosen, "sessions": known}}
  return dataclasses.replace(corpus, splits=splits, notes=notes)


def _held_out(split: Split, training: Bool[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
  """Samples of a tenth of each training session's dialogues, chosen once for all."""
  groups = split.ids if split.groups is None else split.groups
  random = np.random.default_rng(0)
  held = np.zeros_like(training)
  for session in np.unique(split.extras[SESSION][training]):
    rows = training & (split.extras[SESSION] == session)
    names = np.unique(groups[rows])
    chosen = random.permutation(names)[: max(1, round(_SHARE * len(names)))]
    held |= rows & np.isin(groups, chosen)
  return held


def take(split: Split, rows: Int[np.ndarray, " k"]) -> Split:
  """Some samples of a split."""

  def some(values):
    return None if values is None else values[rows]

  return Split(
    ids=split.ids[rows],
    modalities={
      name: Sequences(
        features=one.features[rows],
        lengths=one.lengths[rows],
        lost=some(one.lost),
        ids={key: ids[rows] for key, ids in one.ids.items()},
        context={key: ids[rows] for key, ids in one.context.items()},
      )
      for name, one in split.modalities.items()
    },
    labels={name: values[rows] for name, values in split.labels.items()},
    raw_text=some(split.raw_text),
    groups=some(split.groups),
    extras={name: values[rows] for name, values in split.extras.items()},
    available=some(split.available),
  )
