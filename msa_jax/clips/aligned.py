"""One step per word: the form that aligned corpora such as MOSI's have."""

import dataclasses

import numpy as np
from jaxtyping import Float

from msa_jax.clips.extractor import Features
from msa_jax.clips.parts import Part

_SHORTEST = 0.02  # seconds of a word


def by_words(part: Part) -> Part:
  """The part with a step per word in every modality.

  Features of a word are the mean over its span: of its tokens, or of the steps that
  are not lost and overlap with it, each weighted by the seconds that it does. A word
  without any is a lost step; a modality without any has no step.
  """
  spans = np.array([(word.begin, word.end) for word in part.words], np.float32)
  spans = spans.reshape(-1, 2)
  features = {
    name: _pooled(found, spans, _weights(found, spans))
    for name, found in part.features.items()
  }
  return dataclasses.replace(part, features=features)


def _weights(
  found: Features, spans: Float[np.ndarray, "w 2"]
) -> Float[np.ndarray, "w t"]:
  if found.words is not None:
    return (np.arange(len(spans))[:, None] == found.words[None]).astype(np.float64)
  # Recognisers give short words no time at all.
  ends = np.maximum(spans[:, 1], spans[:, 0] + _SHORTEST)
  begin = np.maximum(spans[:, None, 0], found.times[None, :, 0])
  end = np.minimum(ends[:, None], found.times[None, :, 1])
  overlap = np.maximum(end - begin, 0.0).astype(np.float64)
  if found.lost is not None:
    overlap = np.where(found.lost[None], 0.0, overlap)
  return overlap


def _pooled(
  found: Features, spans: Float[np.ndarray, "w 2"], weights: Float[np.ndarray, "w t"]
) -> Features:
  total = weights.sum(axis=1, keepdims=True)
  values = weights @ found.values.astype(np.float64)
  values = np.where(total > 0, values / np.maximum(total, 1e-9), 0.0)
  lost = total[:, 0] == 0
  if lost.all():
    return found._replace(
      values=found.values[:0], times=spans[:0], lost=None, words=None
    )
  values = values.astype(found.values.dtype)
  words = None if found.words is None else np.arange(len(spans), dtype=np.int32)
  return Features(values, spans, lost if lost.any() else None, words)
