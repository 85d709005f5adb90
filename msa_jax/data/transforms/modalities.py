"""Which modalities a corpus has: those that are named, those that a run knows."""

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

import numpy as np

from msa_jax.data.batching.batches import available_columns
from msa_jax.data.sequences import visible_steps
from msa_jax.data.transforms.transform import State, Transform
from msa_jax.errors import UserError
from msa_jax.typing import Corpus, Sequences, Split, modality_order


def names_of(corpus: Corpus) -> list[str]:
  """Modalities of a corpus, sorted."""
  return sorted(next(iter(corpus.splits.values())).modalities)


def select_modalities(corpus: Corpus, names: Iterable[str]) -> Corpus:
  """Keeps the named modalities (all if none is named).

  Raises:
    UserError: the corpus has no such modality.
  """
  names, known = tuple(names), names_of(corpus)
  unknown = set(names) - set(known)
  if unknown:
    raise UserError(
      f"config.data.modalities={names}: the corpus has no"
      f" {', '.join(sorted(unknown))} (it has {', '.join(known)})."
    )
  if not names:
    return corpus
  splits = {
    key: dataclasses.replace(
      split,
      modalities={n: split.modalities[n] for n in known if n in names},
      available=available_columns(split, names),
    )
    for key, split in corpus.splits.items()
  }
  return dataclasses.replace(corpus, splits=splits)


@dataclasses.dataclass(frozen=True)
class SelectModalities(Transform):
  """Keeps the named modalities; of later corpora those of them that are there.

  Attributes:
    modalities: () = all that the training corpus has.
  """

  name: ClassVar[str] = "select_modalities"
  modalities: tuple[str, ...] = ()

  def fit(self, corpus: Corpus) -> State:
    names = names_of(select_modalities(corpus, self.modalities))
    return {"names": np.asarray(names, np.str_)}

  def apply(self, corpus: Corpus, state: State) -> Corpus:
    names, known = state["names"].tolist(), names_of(corpus)
    if set(known) == set(names):
      return corpus
    return select_modalities(corpus, [name for name in known if name in names])


@dataclasses.dataclass(frozen=True)
class MatchModalities(Transform):
  """Gives a corpus the modalities of the run, of the same widths.

  Modalities that the run does not know are left out. Those that the corpus lacks are
  unavailable, and so are those that the training split had no content of: the model
  learned nothing from them. All of this is in `notes`. The state has
  `width/<modality>` and the names `unseen`.
  """

  name: ClassVar[str] = "match_modalities"

  def fit(self, corpus: Corpus) -> State:
    modalities = corpus.splits["train"].modalities
    unseen = [
      name
      for name in modality_order(modalities)
      if not visible_steps(modalities[name]).any()
    ]
    widths = {
      f"width/{name}": np.asarray(sequences.features.shape[-1])
      for name, sequences in modalities.items()
    }
    return {**widths, "unseen": np.asarray(unseen, np.str_)}

  def apply(self, corpus: Corpus, state: State) -> Corpus:
    """The corpus with the run's modalities.

    Raises:
      UserError: a modality of another width.
    """
    unseen = state["unseen"].tolist()
    widths = {
      entry.partition("/")[2]: int(width)
      for entry, width in state.items()
      if entry.startswith("width/")
    }
    splits = {n: _matched(split, widths, unseen) for n, split in corpus.splits.items()}
    notes, found = dict(corpus.notes), set(names_of(corpus))
    for key, names in (
      ("left_out_modalities", found - set(widths)),
      ("lacking_modalities", set(widths) - found),
      ("untrained_modalities", found & set(unseen)),
    ):
      if names:
        notes[key] = sorted(names)
    return dataclasses.replace(corpus, splits=splits, notes=notes)


def _matched(split: Split, widths: dict[str, int], unseen: list[str]) -> Split:
  modalities = {}
  for name, width in widths.items():
    sequences = split.modalities.get(name, _absent(split, width))
    if sequences.features.shape[-1] != width:
      raise UserError(
        f"{name} has {sequences.features.shape[-1]} features per step; the run was"
        f" trained on {width}."
      )
    modalities[name] = _absent(split, width) if name in unseen else sequences
  available = available_columns(split, modalities)
  return dataclasses.replace(split, modalities=modalities, available=available)


def _absent(split: Split, width: int) -> Sequences:
  available = split.available
  # Dialogues share their steps between modalities.
  steps = 1 if available is None or available.ndim == 2 else available.shape[1]
  shape = (len(split), steps, width)
  return Sequences(np.zeros(shape, np.float32), np.zeros(len(split), np.int32))
