"""MMSA's feature pickles: MOSI, MOSEI, SIMS, SIMS v2, aligned and unaligned.

Layout (github.com/thuiar/MMSA): {split: {text [n t d], audio, vision,
audio_lengths, vision_lengths, text_bert [n 3 t] (token ids, mask, segments), id,
raw_text, regression_labels, and for SIMS regression_labels_T/A/V}}. Aligned files
have no lengths. Every field but one modality is optional here, so that data to
predict on, or made by a feature extractor, can be read too.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from msa_jax.data.readers import fields
from msa_jax.errors import UserError
from msa_jax.safe_io.pickles import load_pickle
from msa_jax.typing import MODALITIES, Corpus, Sequences, Split, Task

# Field of the file -> our task.
_LABELS = {
  "regression_labels": "sentiment",
  "regression_labels_T": "sentiment_text",
  "regression_labels_A": "sentiment_audio",
  "regression_labels_V": "sentiment_vision",
}
_SINGLE = {"text": 2, "audio": 2, "vision": 2, "text_bert": 2}


def from_pickle(
  data: Any, name: str, features: Mapping[str, str | os.PathLike] | None = None
) -> Corpus:
  """Turns an unpickled MMSA file into a corpus that still needs `cleaning.clean`.

  Args:
    data: what `load_pickle` gave; its splits are emptied while they are converted.
    name: the corpus's name, for titles.
    features: modality -> path of a pickle {split: {modality, modality_lengths}} that
      replaces this modality (MMSA's feature_T, feature_A, feature_V).

  Raises:
    UserError: the layout is another, or rows do not match.
  """
  splits = fields.named_splits(data, name)
  for modality, path in (features or {}).items():
    _replace(splits, modality, Path(path).expanduser())
  corpus_splits = {key: _split(value, key) for key, value in splits.items()}
  return Corpus(
    name=name,
    splits=corpus_splits,
    tasks=sentiment_tasks(corpus_splits),
    notes={"format": "mmsa"},
  )


def sentiment_tasks(splits: Mapping[str, Split]) -> dict[str, Task]:
  """Tasks of regression labels, by their range over all splits (`label_range`)."""
  names = sorted({task for split in splits.values() for task in split.labels})
  found = [split.labels[task] for split in splits.values() for task in split.labels]
  return dict.fromkeys(names, Task.from_labels(found)) if names else {}


def _replace(splits: dict[str, dict], modality: str, path: Path) -> None:
  if modality not in MODALITIES:
    raise UserError(
      f"feature file for {modality!r}; the modalities are {', '.join(MODALITIES)}"
    )
  if not path.is_file():
    raise UserError(f"no such feature file: {path.absolute()}")
  other = fields.named_splits(load_pickle(path), str(path))
  for name, split in splits.items():
    if name not in other or modality not in other[name]:
      raise UserError(f"{path}: has no {modality} for split {name}")
    count = len(other[name][modality])
    if count != samples(split, name):
      raise UserError(
        f"{path}: {count} samples of {modality} in split {name}, the main file has"
        f" {samples(split, name)}"
      )
    split.pop(f"{modality}_lengths", None)
    for key in (modality, f"{modality}_lengths"):
      if key in other[name]:
        split[key] = other[name].pop(key)
    if modality == "text":
      # Another tokenisation: the old tokens say nothing about the new steps.
      split.pop("text_bert", None)
      split |= {k: v for k, v in other[name].items() if k == "text_bert"}


def samples(split: Mapping[str, Any], name: str) -> int:
  """Number of samples of a split as found in the file."""
  for modality in MODALITIES:
    if split.get(modality) is not None:
      value = split[modality]
      if not isinstance(value, list | tuple) and not np.shape(value):
        raise UserError(f"split {name}: {modality} holds no samples")
      if not len(value):
        raise UserError(f"split {name} is empty; remove it or fill it")
      return len(value)
  raise UserError(f"split {name} has no modality; one at least is needed")


def _split(data: dict, name: str) -> Split:
  if isinstance(data.get("raw_text"), str) or isinstance(data.get("id"), str):
    data = _one_sample(data)
  n = samples(data, name)
  # Before the ids: an array without cells may say that it has any number of rows.
  text_bert = _text_bert(data, n, name)
  modalities = _modalities(data, n, name, text_bert)
  ids = (
    fields.strings(data["id"], n, f"{name}, id")
    if data.get("id") is not None
    else fields.numbered(n, name)
  )
  labels = {
    task: fields.regression(data[key], n, f"{name}, {key}")
    for key, task in _LABELS.items()
    if data.get(key) is not None
  }
  raw_text = data.get("raw_text")
  return Split(
    ids=ids,
    modalities=modalities,
    labels=labels,
    raw_text=None if raw_text is None else fields.strings(raw_text, n, f"{name}, text"),
    groups=fields.videos(ids),
    extras={} if text_bert is None else {"text_bert": text_bert},
  )


def _one_sample(data: dict) -> dict:
  """Extractors write a single clip without the samples' axis."""
  return {
    key: np.asarray(value)[None] if np.ndim(value) == _SINGLE.get(key, 0) else value
    for key, value in data.items()
    if value is not None
  }


def _text_bert(data: dict, n: int, name: str) -> np.ndarray | None:
  if data.get("text_bert") is None:
    return None
  value = np.asarray(data.pop("text_bert"))
  if value.ndim != 3 or value.shape[:2] != (n, 3) or value.dtype.kind not in "fiu":
    raise UserError(
      f"{name}: text_bert has shape {list(value.shape)}; it should be [{n}, 3, tokens]"
    )
  return np.nan_to_num(value).astype(np.int32)


def _modalities(
  data: dict, n: int, name: str, text_bert: np.ndarray | None
) -> dict[str, Sequences]:
  arrays: dict[str, np.ndarray] = {}
  lengths: dict[str, np.ndarray] = {}
  for modality in MODALITIES:
    if data.get(modality) is None:
      continue
    where = f"{name}, {modality}"
    arrays[modality], found = fields.features(data.pop(modality), where)
    if len(arrays[modality]) != n:
      raise UserError(f"{where}: {len(arrays[modality])} samples, others have {n}")
    stated = data.get(f"{modality}_lengths")
    if stated is not None:
      lengths[modality] = fields.lengths(stated, n, where)
    elif found is not None:
      lengths[modality] = found
  steps = {modality: array.shape[1] for modality, array in arrays.items()}
  if "text" in arrays and "text" not in lengths:
    lengths["text"] = _text_lengths(arrays["text"], text_bert)
  for modality in arrays.keys() - lengths.keys():
    last = fields.occupied(arrays[modality])[1]
    if "text" in arrays and steps[modality] == steps["text"] > 1:
      # Aligned with the words: a frame of zeros inside the sentence is a real step.
      last = np.where(last > 0, np.maximum(last, lengths["text"]), 0)
    lengths[modality] = last.astype(np.int32)
  return {
    modality: Sequences(arrays[modality], lengths[modality])
    for modality in MODALITIES
    if modality in arrays
  }


def _text_lengths(text: np.ndarray, text_bert: np.ndarray | None) -> np.ndarray:
  """From the tokens' mask, since encoders write something at padding too."""
  if text_bert is not None and text_bert.shape[2] == text.shape[1] > 1:
    return fields.occupied(text_bert[:, 1, :, None].astype(np.float32))[1]
  return fields.occupied(text)[1]
