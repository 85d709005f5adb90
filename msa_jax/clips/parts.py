"""What was made of each clip, in a file of its own: the ground of going on."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from msa_jax.clips.extractor import Features
from msa_jax.clips.words import Word
from msa_jax.errors import UserError
from msa_jax.safe_io import archives, durable

_FORMAT = "msa_jax clip 1"


@dataclasses.dataclass(frozen=True)
class Part:
  """What was made of one clip.

  Attributes:
    features: modality -> features.
    words: of its transcript, with times.
    notes: what is not as expected, one line each.
    seconds: how long it is.
  """

  features: Mapping[str, Features]
  words: list[Word]
  notes: list[str]
  seconds: float


def place(folder: Path, name: str) -> Path:
  """The file of a clip's part; names of clips can hold anything."""
  return folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.npz"


def key(about: Mapping[str, Any], mark: str) -> str:
  """What a part depends on: the extractors, and the clip with its transcript."""
  text = json.dumps([_FORMAT, about, mark], sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def save(part: Part, path: Path, made_of: str) -> None:
  """Writes a part, whole or not at all."""
  arrays: dict[str, Any] = {
    "key": np.array(made_of),
    "words": np.array([word.text for word in part.words], np.str_),
    "word_times": _times(part.words),
    "notes": np.array(part.notes, np.str_),
    "seconds": np.array(part.seconds),
  }
  for modality, found in part.features.items():
    arrays[f"{modality}/values"] = found.values
    arrays[f"{modality}/times"] = found.times
    for name in ("lost", "words"):
      if (value := getattr(found, name)) is not None:
        arrays[f"{modality}/{name}"] = value
  with durable.replacing(path) as partial:
    np.savez(partial, **arrays)


def _times(words: list[Word]) -> np.ndarray:
  pairs = [(word.begin, word.end) for word in words]
  return np.array(pairs, np.float32).reshape(-1, 2)


def load(path: Path) -> Part:
  """Reads what `save` wrote.

  Raises:
    UserError: damaged.
  """
  arrays = archives.read_npz(path)
  features = {}
  for name in [name for name in arrays if name.endswith("/values")]:
    modality = name.removesuffix("/values")
    lost, words = (arrays.get(f"{modality}/{each}") for each in ("lost", "words"))
    times = arrays[f"{modality}/times"]
    features[modality] = Features(arrays[name], times, lost, words)
  times = arrays["word_times"].tolist()
  words = [
    Word(text, *time)
    for text, time in zip(arrays["words"].tolist(), times, strict=True)
  ]
  return Part(features, words, arrays["notes"].tolist(), float(arrays["seconds"]))


def is_made(path: Path, made_of: str) -> bool:
  """Whether a clip's part is there and of what it would be made of now."""
  try:
    return path.is_file() and str(archives.read_npz(path)["key"]) == made_of
  except (UserError, KeyError):
    return False
