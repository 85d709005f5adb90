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
    encode: makes text features again of what is left of the words, where a frozen
      encoder does.
  """

  name: ClassVar[str] = "degrade"
  occasions: ClassVar[frozenset[str]] = OWN_CORPUS_ONLY
  redrawn: ClassVar[bool] = True
  train: str
  held_out: str
  seed: int
  batch_size: int
  encode: missing.Encode | None = dataclasses.field(default=None, repr=False)

  def fit(self, corpus: Corpus) -> State:
    """Draws the masks.

    Raises:
      UserError: a pattern that does not fit the corpus.
    """
    train = self._pattern(self.train, corpus, "config.missing.train: ")
    held_out = self._pattern(self.held_out, corpus, "config.missing.eval: ")
    patterns = dict.fromkeys(corpus.splits, held_out)
    # What training loses besides is drawn at every step.
    patterns["train"] = train if train.stepwise else missing.NONE
    return missing.draw_all(corpus, patterns, self.seed, self.batch_size)

  def _pattern(self, text: str, corpus: Corpus, option: str) -> missing.Pattern:
    pattern = missing.parse(text, names_of(corpus), option)
    missing.check(pattern, corpus, missing.source_of(corpus, self.encode), option)
    return pattern

  def apply(self, corpus: Corpus, state: State) -> Corpus:
    return missing.apply_all(corpus, state, self.encode)
