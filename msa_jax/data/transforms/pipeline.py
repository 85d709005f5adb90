"""The way of a run's corpus from its file to its batches: fitted, saved, replayed.

A pipeline is an ordered tuple of transforms. It is fitted once, each transform on what
those before it made of the training corpus; the run keeps what was fitted in
preprocessing.npz, and every corpus that is read for the run later takes the same way.
A further step is one `Transform` and one entry in `runs.transforms.pipeline_of`.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from msa_jax.data.transforms.relabel import tasks_state
from msa_jax.data.transforms.transform import FIRST, State, Transform
from msa_jax.errors import UserError
from msa_jax.safe_io import archives, durable
from msa_jax.typing import Corpus, Task

_DAMAGE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
_LISTED = "transforms"  # entry of the file that lists the transforms, as JSON
_OLD = "settings"  # entry that only files of version 0.1 have


@dataclasses.dataclass(frozen=True)
class Pipeline:
  """Transforms in order, and what was fitted.

  Attributes:
    transforms: of different names.
    states: name of a transform -> what it was fitted to; empty before `fit_apply`.
  """

  transforms: tuple[Transform, ...]
  states: Mapping[str, State] = dataclasses.field(default_factory=dict)

  def fit_apply(self, corpus: Corpus) -> tuple["Pipeline", Corpus]:
    """Fits every transform on what those before it made of a corpus.

    Args:
      corpus: as read, to train on.

    Returns:
      The fitted pipeline and the transformed corpus.

    Raises:
      UserError: options that do not fit the corpus.
    """
    states = {}
    for transform in self.transforms:
      states[transform.name] = transform.fit(corpus)
      if FIRST in transform.occasions:
        corpus = transform.apply(corpus, states[transform.name])
    return dataclasses.replace(self, states=states), corpus

  def apply(self, corpus: Corpus, occasion: str) -> Corpus:
    """Replays a fitted pipeline on a later corpus.

    Args:
      corpus: as read.
      occasion: `transform.OWN` or `transform.OTHER`.

    Raises:
      UserError: a corpus that does not fit the run.
    """
    for transform in self.transforms:
      if occasion in transform.occasions:
        state = transform.fit(corpus) if transform.redrawn else self._state(transform)
        corpus = transform.apply(corpus, state)
    return corpus

  def _state(self, transform: Transform) -> State:
    return self.states.get(transform.name, {})

  def before(self, name: str) -> "Pipeline":
    """The transforms that come before one of them."""
    return dataclasses.replace(self, transforms=self.transforms[: self._place(name)])

  def after(self, name: str) -> "Pipeline":
    """The transforms that come after one of them."""
    start = self._place(name) + 1
    return dataclasses.replace(self, transforms=self.transforms[start:])

  def _place(self, name: str) -> int:
    return [transform.name for transform in self.transforms].index(name)

  def describe(self) -> list[dict[str, Any]]:
    """Name and options of every transform, for data.json."""
    return [{"name": each.name, **_options(each)} for each in self.transforms]


def _options(transform: Any) -> dict[str, Any]:
  # What has no repr is no plain value (a function).
  fields = [field.name for field in dataclasses.fields(transform) if field.repr]
  return {name: getattr(transform, name) for name in fields}


def save(pipeline: Pipeline, path: str | os.PathLike) -> None:
  """Writes a fitted pipeline as a plain `.npz`: `<transform>/<array>`, and the list of
  its transforms."""
  arrays: dict[str, Any] = {
    f"{each.name}/{key}": np.asarray(value)
    for each in pipeline.transforms
    if not each.redrawn
    for key, value in pipeline.states[each.name].items()
  }
  listed = {_LISTED: np.asarray(json.dumps(pipeline.describe()))}
  with durable.replacing(pathlib.Path(path)) as partial:
    np.savez(partial, **listed, **arrays)


def load(
  path: str | os.PathLike,
  transforms: Sequence[Transform],
  tasks: Mapping[str, Task],
) -> Pipeline:
  """Reads what `save`, or version 0.1, wrote.

  Args:
    path: preprocessing.npz of a run.
    transforms: those that the run's config asks for. Any that the file does not list
      came later than the run, and are left out.
    tasks: the run's, which files of version 0.1 lack.

  Raises:
    UserError: not there, damaged, or fitted for transforms that are not there.
  """
  try:
    arrays = archives.read_npz(pathlib.Path(path))
    if _OLD in arrays:
      return Pipeline(tuple(transforms), _old_states(arrays, tasks))
    listed = [each["name"] for each in json.loads(str(arrays.pop(_LISTED)))]
    states: dict[str, dict[str, np.ndarray]] = {name: {} for name in listed}
    for entry, value in arrays.items():
      name, _, key = entry.partition("/")
      states[name][key] = value
  except _DAMAGE as error:
    raise UserError(f"{path} cannot be read: {error}.") from error
  unknown = sorted(set(listed) - {each.name for each in transforms})
  if unknown:
    raise UserError(
      f"{path} has the state of {', '.join(unknown)}; this version and the run's"
      f" config know {', '.join(each.name for each in transforms)}."
    )
  return Pipeline(tuple(each for each in transforms if each.name in states), states)


def _old_states(
  arrays: dict[str, np.ndarray], tasks: Mapping[str, Task]
) -> dict[str, State]:
  """States from a file of version 0.1, which held what one function had fitted."""
  settings = json.loads(str(arrays.pop(_OLD)))
  kinds: dict[str, dict[str, np.ndarray]] = {"mean": {}, "scale": {}, "centroids": {}}
  for entry, value in arrays.items():
    kinds[entry.partition("/")[0]][entry] = value
  widths = {f"width/{n}": np.asarray(w) for n, w in settings["widths"].items()}
  unseen = np.asarray(settings["unseen"], np.str_)
  return {
    "select_modalities": {"names": np.asarray(list(settings["widths"]), np.str_)},
    "relabel": tasks_state(tasks),
    "match_modalities": {**widths, "unseen": unseen},
    "standardize": {**kinds["mean"], **kinds["scale"]},
    "align": {"anchor_steps": np.asarray(settings["anchor_steps"])},
    "frame_clusters": kinds["centroids"],
  }
