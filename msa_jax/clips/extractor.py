"""The interface of an extractor: a clip in, a sequence of features with times out."""

import dataclasses
import importlib.util
import os
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from msa_jax.clips.decode import Clip
from msa_jax.errors import UserError


class Features(NamedTuple):
  """One stream of one clip, at its own rate.

  Attributes:
    values: [t d]; t = 0 where the clip has nothing of the kind.
    times: [t 2], when each step begins and ends, in seconds from the clip's start;
      (-1, -1) = no time of its own.
    lost: [t], steps without content, such as frames without a face; None = none.
    words: [t], number of the word that a step is of, -1 = none; of text alone.
    note: one line where something is not as expected, such as "no audio track".
  """

  values: Float[np.ndarray, "t d"]
  times: Float[np.ndarray, "t 2"]
  lost: Bool[np.ndarray, " t"] | None = None
  words: Int[np.ndarray, " t"] | None = None
  note: str = ""


@dataclasses.dataclass(frozen=True)
class About:
  """What features depend on, as it is stored with a corpus and compared later.

  Attributes:
    name: of the extractor.
    version: of its code; grows with every change of its output.
    licence: of the code and weights, as its user has to know.
    width: features per step.
    rate: steps per second; 0 = the clip decides (words).
    settings: of its own.
    packages: name -> version of every package that computes.
    weights: file name -> SHA-256.
  """

  name: str
  version: str
  licence: str
  width: int
  rate: float
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  packages: Mapping[str, str] = dataclasses.field(default_factory=dict)
  weights: Mapping[str, str] = dataclasses.field(default_factory=dict)


@runtime_checkable
class Extractor(Protocol):
  """Makes features of clips; called from several threads at once."""

  @property
  def about(self) -> About:
    """What the features depend on."""
    ...

  def extract(self, clip: Clip) -> Features:
    """Features of one clip.

    Raises:
      UserError: the clip is damaged.
    """
    ...


def empty(width: int, note: str) -> Features:
  """Features of a clip that has nothing of the kind."""
  return Features(
    np.zeros((0, width), np.float32), np.zeros((0, 2), np.float32), note=note
  )


def cores() -> int:
  """Cores that this process may use, four at most."""
  known = getattr(os, "sched_getaffinity", None)  # of Linux alone
  return min(4, len(known(0)) if known else os.cpu_count() or 1)


def versions(*packages: str) -> dict[str, str]:
  """Installed versions, by name of the distribution."""
  return {name: metadata.version(name) for name in packages}


def package_folder(module: str, what: str, install: str) -> Path:
  """Folder of an installed package, which is not imported.

  Args:
    module: name to import.
    what: what is taken from it, for the message.
    install: arguments of `pip install` that bring it.

  Raises:
    UserError: not installed.
  """
  found = importlib.util.find_spec(module)
  if found is None or not found.submodule_search_locations:
    raise UserError(f"{what}: not installed; pip install {install}")
  return Path(next(iter(found.submodule_search_locations)))
