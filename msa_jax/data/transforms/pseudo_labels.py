"""Labels that a corpus lacks, as a transform."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

from msa_jax.data.transforms.transform import FIRST_RUN_ONLY, State, Transform
from msa_jax.typing import Corpus


@dataclasses.dataclass(frozen=True)
class PseudoLabels(Transform):
  """Gives training samples the labels they lack.

  Attributes:
    run: run directory whose model predicts them.
    fill: (corpus, run) -> the corpus with the labels. It is not saved: a run's later
      corpora get no labels.
  """

  name: ClassVar[str] = "pseudo_labels"
  occasions: ClassVar[frozenset[str]] = FIRST_RUN_ONLY
  run: str
  fill: Callable[[Corpus, str], Corpus] | None = dataclasses.field(
    default=None, repr=False
  )

  def apply(self, corpus: Corpus, state: State) -> Corpus:
    return corpus if self.fill is None else self.fill(corpus, self.run)
