"""Content that is missing from a corpus for all of a run."""

import dataclasses
from typing import ClassVar

from msa_jax.data import missing
from msa_jax.data.transforms.modalities import names_of
from msa_jax.data.transforms.transform import OWN_CORPUS_ONLY, State, Transform
from msa_jax.typing import Corpus


@dataclasses.dataclass(frozen=True)
class Degrade(Transform):
  """Draws once what is missing: all of validation and test, and the lost steps of
  training.

  The state is split -> `missing.Masks`, drawn from the samples' ids for each corpus.

  Attributes:
    train, held_out: patterns (`config.missing.train` and `.eval`).
    seed: of the masks.
    batch_size: samples that the pattern `batches` takes content from together.
  """

  name: ClassVar[str] = "degrade"
  occasions: ClassVar[frozenset[str]] = OWN_CORPUS_ONLY
  redrawn: ClassVar[bool] = True
  train: str
  held_out: str
  seed: int
  batch_size: int

  def fit(self, corpus: Corpus) -> State:
    """Draws the masks.

    Raises:
      UserError: a pattern that does not fit the corpus.
    """
    known = names_of(corpus)
    held_out = missing.parse(self.held_out, known, "config.missing.eval: ")
    train = missing.parse(self.train, known, "config.missing.train: ")
    patterns = dict.fromkeys(corpus.splits, held_out)
    # What training loses besides is drawn at every step.
    patterns["train"] = train if train.stepwise else missing.NONE
    return missing.degrade(corpus, patterns, self.seed, self.batch_size)[1]

  def apply(self, corpus: Corpus, state: State) -> Corpus:
    return missing.apply_all(corpus, state)
