"""Labels of another file, in the meaning that a trained run gives its own."""

import dataclasses
import json
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from absl import logging

from msa_jax.data.transforms.transform import OTHER_CORPORA_ONLY, State, Transform
from msa_jax.typing import Corpus, Task


@dataclasses.dataclass(frozen=True)
class Relabel(Transform):
  """Gives other corpora the tasks of the run; see `relabel`. They need no labels."""

  name: ClassVar[str] = "relabel"
  occasions: ClassVar[frozenset[str]] = OTHER_CORPORA_ONLY

  def fit(self, corpus: Corpus) -> State:
    return tasks_state(corpus.tasks)

  def apply(self, corpus: Corpus, state: State) -> Corpus:
    found = json.loads(str(state["tasks"]))
    tasks = {
      name: Task(**{**task, "classes": tuple(task["classes"])})
      for name, task in found.items()
    }
    return relabel(corpus, tasks)


def tasks_state(tasks: Mapping[str, Task]) -> State:
  """The state of `Relabel`: a run's tasks."""
  found = {name: dataclasses.asdict(task) for name, task in tasks.items()}
  return {"tasks": np.asarray(json.dumps(found))}


def relabel(corpus: Corpus, tasks: Mapping[str, Task]) -> Corpus:
  """Numbers the classes of a corpus as a run does, by their names.

  A file's classes are those that occur in it, so that one of two emotions numbers
  them otherwise than one of seven.

  Args:
    corpus: any corpus.
    tasks: of the run.

  Returns:
    A corpus of the run's tasks. Labels of classes that the run does not know count as
    none, as do tasks of another kind; both are a warning.
  """
  kept = {}
  for name, task in corpus.tasks.items():
    if name in tasks and task.kind == tasks[name].kind:
      kept[name] = tasks[name]
    elif name in tasks:
      logging.warning(
        "%s: its labels of %s are %s, the run's %s: left out.",
        corpus.name,
        name,
        task.kind,
        tasks[name].kind,
      )
  splits = {}
  for place, split in corpus.splits.items():
    labels = {}
    for name, values in split.labels.items():
      if name in kept:
        where = f"{corpus.name}, {place}: {name}"
        labels[name] = _values(values, corpus.tasks[name], kept[name], where)
    splits[place] = dataclasses.replace(split, labels=labels)
  return dataclasses.replace(corpus, splits=splits, tasks=kept)


def _values(values: np.ndarray, theirs: Task, ours: Task, where: str) -> np.ndarray:
  if theirs.kind == "regression":
    outside = int(((values < ours.low - 1e-3) | (values > ours.high + 1e-3)).sum())
    if outside:
      logging.warning(
        "%s: %d labels are outside the run's range [%g, %g].",
        where,
        outside,
        ours.low,
        ours.high,
      )
    return values
  if theirs.classes == ours.classes:
    return values
  number = {name: i for i, name in enumerate(ours.classes)}
  if theirs.kind == "binary":
    columns = [
      values[:, theirs.classes.index(name)]
      if name in theirs.classes
      else np.full(len(values), -1, values.dtype)
      for name in ours.classes
    ]
    return np.stack(columns, axis=1)
  # One more, for the number -1 of samples without a label.
  table = np.array([*(number.get(name, -1) for name in theirs.classes), -1], np.int32)
  renumbered = table[values]
  if lost := int(((values >= 0) & (renumbered < 0)).sum()):
    unknown = sorted(set(theirs.classes) - set(ours.classes))
    logging.warning(
      "%s: %d labels are of classes that the run does not know (%s): not scored.",
      where,
      lost,
      ", ".join(unknown),
    )
  return renumbered
