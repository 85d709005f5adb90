"""Modalities that say nothing of the labels are left out: all that a network can learn
of them is the noise of the training split.
"""

import dataclasses
from collections.abc import Callable
from statistics import NormalDist
from typing import Any, ClassVar

import numpy as np

from msa_jax.data import labels as has_label
from msa_jax.data.batching.batches import availability
from msa_jax.data.readers.fields import videos
from msa_jax.data.sequences import visible_steps
from msa_jax.data.transforms.modalities import names_of, select_modalities
from msa_jax.data.transforms.transform import State, Transform
from msa_jax.typing import Corpus, Split, modality_order


@dataclasses.dataclass(frozen=True)
class Screen(Transform):
  """Leaves out modalities without value on the training split.

  A modality stays if a linear model of its steps' means and deviations predicts a task
  of other videos better than the training labels' mean does, significantly. Stays too,
  unmeasured, what has no features yet (token ids) or too few samples; and all stay if
  none has value. A modality whose whole value lies in how it combines with another is
  left out wrongly: no linear model of it alone sees that. The state has the names
  `kept`, and `explained/<modality>`, `z/<modality>` of what was measured.

  Attributes:
    level: probability of keeping pure noise; 0 = all modalities stay.
    moments, value: `linear.value.moments`, `linear.value.of`.
    fewest: samples with the modality, for it to be measured.
  """

  name: ClassVar[str] = "screen"
  level: float
  moments: Callable[..., Any] = dataclasses.field(repr=False, compare=False)
  value: Callable[..., Any] = dataclasses.field(repr=False, compare=False)
  fewest: int = 50

  def fit(self, corpus: Corpus) -> State:
    train, names = corpus.splits["train"], names_of(corpus)
    state: dict[str, Any] = {"kept": np.asarray(names, np.str_)}
    if not self.level:
      return state
    least, kept = NormalDist().inv_cdf(1.0 - self.level), []
    for name in names:
      found = self._measured(train, corpus, name)
      if found is not None:
        state[f"explained/{name}"] = np.asarray(found.explained)
        state[f"z/{name}"] = np.asarray(found.z)
      if found is None or found.z > least:
        kept.append(name)
    return {**state, "kept": np.asarray(kept or names, np.str_)}

  def _measured(self, train: Split, corpus: Corpus, name: str) -> Any:
    """The best value for any task; None = cannot be measured."""
    sequences = train.modalities[name]
    if not sequences.features.shape[-1]:
      return None
    there = availability(train)[..., modality_order(train.modalities).index(name)]
    visible = visible_steps(sequences) & there[:, None]
    features, groups = self.moments(sequences, visible), _videos(train)
    best = None
    for task in corpus.tasks:
      if task not in train.labels:
        continue
      values = train.labels[task]
      known = has_label.known(values).reshape(len(values), -1).all(axis=1)
      rows = known & visible.any(axis=1)
      if rows.sum() < self.fewest:
        continue
      answers = values[rows].reshape(int(rows.sum()), -1)
      if corpus.tasks[task].kind == "classes":
        answers = np.eye(len(corpus.tasks[task].classes))[answers[:, 0].astype(int)]
      found = self.value(features[rows], answers, groups[rows])
      best = found if best is None or found.z > best.z else best
    return best

  def apply(self, corpus: Corpus, state: State) -> Corpus:
    kept, known = state["kept"].tolist(), names_of(corpus)
    gone = [name for name in known if name not in kept and f"z/{name}" in state]
    if not gone:
      return corpus
    notes = {**corpus.notes, "screened_out": gone}
    corpus = dataclasses.replace(corpus, notes=notes)
    return select_modalities(corpus, [name for name in known if name not in gone])


def _videos(split: Split) -> np.ndarray:
  """Number of each sample's video; where ids name none, of the sample."""
  found = videos(split.ids)
  return np.unique(split.ids if found is None else found, return_inverse=True)[1]
