"""What a transform is: one step between a corpus's file and its batches."""

import abc
from collections.abc import Mapping
from typing import Any, ClassVar

from msa_jax.typing import Corpus

# When a corpus comes to a run.
FIRST = "first"  # the run's corpus, to be fitted on and trained on
OWN = "own"  # the run's corpus, read again
OTHER = "other"  # another corpus, for the trained run

EVERY = frozenset({FIRST, OWN, OTHER})
FIRST_RUN_ONLY = frozenset({FIRST})
OWN_CORPUS_ONLY = frozenset({FIRST, OWN})
OTHER_CORPORA_ONLY = frozenset({OTHER})

State = Mapping[str, Any]  # name -> array


class Transform(abc.ABC):
  """One step between a corpus's file and its batches.

  Subclasses are frozen dataclasses whose fields are their options.

  Attributes:
    name: unique in a pipeline; its key in preprocessing.npz.
    occasions: the corpora that it is applied to; it is fitted on the first in any case.
    redrawn: its state belongs to a corpus, not to the run: it is fitted on each corpus
      and not saved.
  """

  name: ClassVar[str]
  occasions: ClassVar[frozenset[str]] = EVERY
  redrawn: ClassVar[bool] = False

  def fit(self, corpus: Corpus) -> State:
    """What `apply` needs besides the options, from the corpus to train on.

    Raises:
      UserError: options that do not fit the corpus.
    """
    del corpus
    return {}

  @abc.abstractmethod
  def apply(self, corpus: Corpus, state: State) -> Corpus:
    """The transformed corpus.

    Args:
      corpus: what the transforms before made of it.
      state: what `fit` returned.
    """
