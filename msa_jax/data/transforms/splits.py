"""Splits of a corpus to train on: which there must be, and which one selects."""

import dataclasses
from typing import ClassVar

from absl import logging

from msa_jax.data.transforms.transform import FIRST_RUN_ONLY, State, Transform
from msa_jax.errors import UserError
from msa_jax.typing import Corpus


def check_trainable(corpus: Corpus) -> None:
  """Checks that a corpus can be trained on.

  Raises:
    UserError: the corpus has no training split, or no labels.
  """
  if "train" not in corpus.splits:
    raise UserError(
      f"{corpus.name!r} has no split 'train' (splits: {sorted(corpus.splits)})."
    )
  if not corpus.tasks:
    raise UserError(f"{corpus.name!r} has no labels to train on.")


@dataclasses.dataclass(frozen=True)
class CheckTrainable(Transform):
  """Refuses corpora that cannot be trained on; changes nothing."""

  name: ClassVar[str] = "check_trainable"
  occasions: ClassVar[frozenset[str]] = FIRST_RUN_ONLY

  def fit(self, corpus: Corpus) -> State:
    check_trainable(corpus)
    return {}

  def apply(self, corpus: Corpus, state: State) -> Corpus:
    return corpus


@dataclasses.dataclass(frozen=True)
class SelectionSplit(Transform):
  """Makes the split that selects epochs `valid`.

  Attributes:
    chosen: `val`; `none`: nothing selects, the last epoch is kept; or `official`: the
      test split, with a warning, as some released code has it. Its figures are not
      comparable with any other.
    waived: a corpus without `valid` was asked for already (`data.iemocap_val=none`).
  """

  name: ClassVar[str] = "selection_split"
  occasions: ClassVar[frozenset[str]] = FIRST_RUN_ONLY
  chosen: str = "val"
  waived: bool = False

  def apply(self, corpus: Corpus, state: State) -> Corpus:
    """The corpus with the selecting split as `valid`.

    Raises:
      UserError: another value, or the split that it needs is not there.
    """
    has = ", ".join(corpus.splits)
    if self.chosen in ("val", "none"):
      if not self.waived and (self.chosen == "val") != ("valid" in corpus.splits):
        raise UserError(
          f"config.train.selection_split={self.chosen!r}, but {corpus.name!r} has the"
          f" splits {has}: val needs valid, whose figures select the epoch; without one"
          " choose none (the last epoch is kept) or cut folds (config.data.num_folds)."
        )
      return corpus
    if self.chosen != "official" or "test" not in corpus.splits:
      raise UserError(
        f"config.train.selection_split={self.chosen!r} must be val, none, or official"
        f" where there is a test split ({corpus.name!r} has {has})."
      )
    logging.warning(
      "config.train.selection_split='official' selects epochs on the test split: the"
      " figures overstate what the model can do, and serve to compare with such"
      " results only."
    )
    splits = {**corpus.splits, "valid": corpus.splits["test"]}
    notes = {**corpus.notes, "selected_on": "test"}
    return dataclasses.replace(corpus, splits=splits, notes=notes)
