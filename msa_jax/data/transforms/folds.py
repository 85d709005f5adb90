"""Cross-validation: a session or fold to test on, a part of the rest to select."""

import dataclasses
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Int

from msa_jax.data.transforms import joint
from msa_jax.data.transforms.transform import OWN_CORPUS_ONLY, State, Transform
from msa_jax.errors import UserError
from msa_jax.typing import Corpus, Sequences, Split

WHOLE = "all"  # name of the split of a file that leaves splitting to us
SESSION = "session"  # the `extras` entry [n] to split by
VALIDATION = ("holdout10", "none")
_SHARE = 0.1  # of the training dialogues
_OF_SPLITS = ("bayes", "bayes_by_condition")  # notes


@dataclasses.dataclass(frozen=True)
class Fold(Transform):
  """Splits a corpus; see `split`. Later files stay whole.

  Attributes:
    fold: session or fold to test on; 0 = the last one, or the corpus's own splits.
    validation: one of `VALIDATION`.
    num_folds: folds of groups; 0 = sessions, or the corpus's own splits.
  """

  name: ClassVar[str] = "fold"
  occasions: ClassVar[frozenset[str]] = OWN_CORPUS_ONLY
  fold: int = 0
  validation: str = "holdout10"
  num_folds: int = 0

  def apply(self, corpus: Corpus, state: State) -> Corpus:
    return split(corpus, self.fold, self.validation, self.num_folds)


def split(corpus: Corpus, fold: int, validation: str, num_folds: int = 0) -> Corpus:
  """A corpus split for one fold: `by_group` with a number of folds, or `by_session`."""
  if num_folds:
    return by_group(corpus, fold, validation, num_folds)
  return by_session(corpus, fold, validation)


def numbers(corpus: Corpus, num_folds: int) -> list[int]:
  """The folds of a corpus: its sessions, or 1 to `num_folds`.

  Raises:
    UserError: it has splits, and no number of folds is given to cut it anew.
  """
  if num_folds:
    return list(range(1, num_folds + 1))
  if set(corpus.splits) != {WHOLE} or SESSION not in corpus.splits[WHOLE].extras:
    raise UserError(
      f"config.data.fold='all': {corpus.name!r} has no sessions; give the number of"
      " folds of its videos or dialogues, config.data.num_folds=5."
    )
  return np.unique(corpus.splits[WHOLE].extras[SESSION]).tolist()


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
  _check(validation)
  if set(corpus.splits) != {WHOLE}:
    if fold:
      raise UserError(
        f"config.data.fold={fold}: {corpus.name!r} comes with the splits"
        f" {', '.join(corpus.splits)}; 0 takes those, config.data.num_folds=5 cuts all"
        " of it anew."
      )
    return corpus
  whole = corpus.splits[WHOLE]
  if SESSION not in whole.extras:
    raise UserError(
      f"{corpus.name!r} has neither splits nor sessions to make them of"
      f" (extras: {', '.join(whole.extras) or 'none'}); config.data.num_folds=5 makes"
      " folds of its videos or dialogues."
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
    held = _held_out(whole, ~test, sessions)
  note = {"test_session": chosen, "sessions": known}
  return _in_three(corpus, whole, test, held, note)


def by_group(corpus: Corpus, fold: int, validation: str, num_folds: int) -> Corpus:
  """Splits a corpus into folds of whole videos or dialogues, its own splits pooled.

  The folds have about as many samples each and are the same whatever the seed and the
  order of the file: groups, the largest first, go to the smallest fold.

  Args:
    corpus: whose samples have groups.
    fold: fold to test on, from 1; 0 = the last.
    validation: `holdout10`: a tenth of the training groups is the validation split;
      `none`: there is none.
    num_folds: at least two.

  Raises:
    UserError: no groups, fewer than folds, no such fold, or an unknown validation.
  """
  _check(validation)
  whole = _pooled(corpus)
  if whole.groups is None:
    raise UserError(
      f"config.data.num_folds={num_folds}: the samples of {corpus.name!r} have neither"
      " groups nor ids such as 'video$_$clip' to keep together."
    )
  names, sizes = np.unique(whole.groups, return_counts=True)
  if not 2 <= num_folds <= len(names):
    raise UserError(
      f"config.data.num_folds={num_folds} must be from 2 to {len(names)}, the number of"
      f" videos or dialogues of {corpus.name!r}."
    )
  if not 0 <= fold <= num_folds:
    raise UserError(f"config.data.fold={fold} must be from 1 to {num_folds}, or all.")
  fold = fold or num_folds
  totals, fold_of = np.zeros(num_folds, int), {}
  for place in np.argsort(-sizes, kind="stable"):
    smallest = int(np.argmin(totals))
    totals[smallest] += sizes[place]
    fold_of[names[place]] = smallest + 1
  test = np.asarray([fold_of[name] == fold for name in whole.groups])
  held = np.zeros_like(test)
  if validation == "holdout10":
    held = _held_out(whole, ~test, np.zeros(len(whole), int))
  return _in_three(corpus, whole, test, held, {"test_fold": fold, "folds": num_folds})


def _check(validation: str) -> None:
  if validation not in VALIDATION:
    raise UserError(
      f"config.data.iemocap_val={validation!r} must be one of {VALIDATION}."
    )


def _in_three(corpus, whole, test, held, note) -> Corpus:
  rows = {"train": ~test & ~held, "valid": held, "test": test}
  splits = {
    name: take(whole, np.flatnonzero(mask)) for name, mask in rows.items() if mask.any()
  }
  # What is known of the splits that the corpus came with is not of these.
  kept = {k: v for k, v in corpus.notes.items() if k not in _OF_SPLITS}
  return dataclasses.replace(corpus, splits=splits, notes={**kept, "fold": note})


def _pooled(corpus: Corpus) -> Split:
  """All labelled splits of a corpus as one, train first."""
  order = sorted(corpus.splits, key=lambda n: (n != "train", n != "valid", n))
  parts = [corpus.splits[name] for name in order if corpus.splits[name].labels]
  if not parts:
    raise UserError(f"{corpus.name!r} has no labels to make folds of.")
  return joint.concatenate(parts, corpus.tasks) if len(parts) > 1 else parts[0]


def _held_out(
  split: Split, training: Bool[np.ndarray, " n"], strata: Int[np.ndarray, " n"]
) -> Bool[np.ndarray, " n"]:
  """Samples of a tenth of the training groups of each stratum, chosen once for all."""
  groups = split.ids if split.groups is None else split.groups
  random = np.random.default_rng(0)
  held = np.zeros_like(training)
  for stratum in np.unique(strata[training]):
    rows = training & (strata == stratum)
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
