"""Classes from sentiment scores."""

import dataclasses
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from msa_jax.data.transforms.transform import State, Transform
from msa_jax.errors import UserError
from msa_jax.typing import Corpus, Task

TASKS = ("regression", "cls2", "cls7")
_CLASSES = {
  "cls2": ("negative", "positive"),
  "cls7": tuple(str(value) for value in range(-3, 4)),
}


@dataclasses.dataclass(frozen=True)
class DeriveTask(Transform):
  """Turns the sentiment regression into classes (H-GEM, row 24).

  Later corpora need not have scores, nor scores of the whole range.

  Attributes:
    task: `regression` (no change), `cls2` (negative, positive; zeros have no label),
      `cls7` (clipped to [-3, 3], rounded half to even).
  """

  name: ClassVar[str] = "derive_task"
  task: str

  def fit(self, corpus: Corpus) -> State:
    """Checks that the corpus has scores to make the classes of.

    Raises:
      UserError: unknown task, no sentiment regression to derive it from, or `cls7` of
        scores in another range than [-3, 3].
    """
    if self.task not in TASKS:
      raise UserError(f"config.data.task={self.task!r} must be one of {TASKS}.")
    if self.task == "regression":
      return {}
    known = corpus.tasks.get("sentiment")
    if known is None or known.kind != "regression":
      raise UserError(
        f"config.data.task={self.task!r} needs a sentiment regression; {corpus.name!r}"
        f" has {sorted(corpus.tasks)}."
      )
    if self.task == "cls7" and (known.low, known.high) != (-3.0, 3.0):
      raise UserError(
        f"config.data.task='cls7' needs scores in [-3, 3]; those of {corpus.name!r} are"
        f" in [{known.low:g}, {known.high:g}]: choose regression or cls2."
      )
    return {}

  def apply(self, corpus: Corpus, state: State) -> Corpus:
    known = corpus.tasks.get("sentiment")
    if self.task == "regression" or known is None or known.kind != "regression":
      return corpus
    splits = {}
    for name, split in corpus.splits.items():
      labels = dict(split.labels)
      if "sentiment" in labels:
        labels["sentiment"] = _classes(labels["sentiment"], self.task)
      splits[name] = dataclasses.replace(split, labels=labels)
    classes = Task("classes", classes=_CLASSES[self.task], protocol="classes")
    tasks = {**corpus.tasks, "sentiment": classes}
    return dataclasses.replace(corpus, splits=splits, tasks=tasks)


def _classes(values: Float[np.ndarray, " n"], task: str) -> Int[np.ndarray, " n"]:
  known = np.isfinite(values)
  numbers = np.where(known, values, 0.0)
  if task == "cls2":
    return np.where(known & (numbers != 0), numbers > 0, -1).astype(np.int32)
  rounded = np.rint(np.clip(numbers, -3, 3)) + 3
  return np.where(known, rounded, -1).astype(np.int32)
