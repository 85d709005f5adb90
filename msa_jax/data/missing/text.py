"""How a corpus's text loses steps: before an encoder reads it, or after."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Bool, Float

from msa_jax.data.missing.patterns import Pattern
from msa_jax.data.transforms import dialogues
from msa_jax.errors import UserError
from msa_jax.names import TEXT_CONTEXT, TEXT_STEPS, TEXT_TOKENS, TEXT_WORDS
from msa_jax.typing import Corpus, Sequences, Split

# Text with `ids["tokens"]`, steps that nobody may attend to in `lost` -> its features.
Encode = Callable[[Sequences], Float[np.ndarray, "n t d"]]


class Source(NamedTuple):
  """What makes a corpus's text.

  Attributes:
    unknown: id of the token [UNK]; None = there is none.
    encode: makes features again; None = that cannot be done, or a model does.
  """

  unknown: int | None = None
  encode: Encode | None = None


FILE = Source()  # features of a file, of which nothing more is known


def source_of(corpus: Corpus, encode: Encode | None = None) -> Source:
  """The source of a corpus's text.

  Args:
    corpus: its notes have the id of [UNK].
    encode: of the run that reads it, if its encoder is not trained with it.
  """
  note = corpus.notes.get("text", {})
  return Source(note.get("unknown") if isinstance(note, dict) else None, encode)


def outer(split: Split) -> Bool[np.ndarray, "n t"]:
  """Steps of the text that stand for no word, such as [CLS] and [SEP].

  Known of text that was tokenised here (`extras["text_words"]`), and of files with
  token ids of every step (`extras["text_bert"]`): what every text begins with, and
  what every text ends with. Of others there are none.
  """
  text = split.modalities["text"]
  steps = text.features.shape[1]
  step = np.arange(steps)[None]
  real = step < text.lengths[:, None]
  words = split.extras.get(TEXT_WORDS)
  if words is not None and words.shape[1] >= steps:
    return real & (words[:, :steps] < 0)
  stored = split.extras.get("text_bert")
  if stored is None or stored.shape[-1] < steps:
    return np.zeros_like(real)
  ids, counted = stored[:, 0, :steps], stored[:, 1].astype(bool).sum(axis=1)
  last = np.maximum(text.lengths - 1, 0)
  rows = np.flatnonzero(text.lengths > 1)
  ends = ids[rows, last[rows]]
  every = len(rows) > 1 and (counted[rows] == text.lengths[rows]).all()
  if not every or (ids[rows, 0] != ids[rows[0], 0]).any() or (ends != ends[0]).any():
    return np.zeros_like(real)
  return real & ((step == 0) | (step == last[:, None]))


def check(
  pattern: Pattern, corpus: Corpus, source: Source = FILE, option: str = ""
) -> None:
  """Checks that a corpus can lose steps in the way a pattern says, and says in one
  line what `features` means where it is not what is lost.

  Args:
    pattern: any.
    corpus: before preprocessing.
    source: of its text.
    option: where the pattern was written, which messages begin with.

  Raises:
    UserError: naming the pattern to use instead.
  """
  if not pattern.stepwise or not pattern.rate:
    return
  split = next(iter(corpus.splits.values()))
  if dialogues.is_grouped(split) and pattern.way != "ends":
    rate = f"{pattern.rate:g}"
    other = f"random:{rate}" if pattern.protocol == "frames" else f"samples:{rate}"
    raise UserError(
      f"{option}missing pattern {str(pattern)!r} takes steps, and a dialogue's steps"
      f" are whole utterances; choose {other!r}, which takes modalities of utterances."
    )
  text = split.modalities.get("text")
  if text is None or corpus.notes.get(TEXT_STEPS) == "words" and pattern.way != "unk":
    return
  if pattern.way in ("features", "ends"):
    _check_features(pattern, text, option)
    return
  inside = "tokens" in text.ids
  again = TEXT_TOKENS in split.extras and source.encode is not None
  if not (inside or again):
    raise UserError(
      f"{option}missing pattern {str(pattern)!r} loses words before the encoder reads"
      f" them, and {corpus.name!r} comes with features: choose"
      f" {_on_features(pattern)!r}, which loses rows of them (their neighbours still"
      " know the words), or config.text.input='encoder' with its folder in"
      " config.text.encoder."
    )
  if pattern.way == "unk" and source.unknown is None:
    raise UserError(
      f"{option}missing pattern {str(pattern)!r}: the text's tokenizer has no token"
      f" for unknown words; choose {str(dataclasses.replace(pattern, way='hide'))!r}."
    )


def _check_features(pattern: Pattern, text: Sequences, option: str) -> None:
  if "tokens" in text.ids:
    way = dataclasses.replace(pattern, way="hide", protocol="tokens")
    if pattern.protocol == "frames":
      way = dataclasses.replace(way, protocol="frames")
    raise UserError(
      f"{option}missing pattern {str(pattern)!r} loses rows of features, and this"
      f" run's encoder makes them of tokens; choose {str(way)!r}."
    )
  logging.warning(
    "%s%s loses rows of features that were computed from the whole transcript: their"
    " neighbours still know the words, so figures are better than under tokens:RATE.",
    option,
    pattern,
  )


def _on_features(pattern: Pattern) -> str:
  if pattern.protocol == "frames":
    return str(dataclasses.replace(pattern, way="features"))
  return str(Pattern("features", pattern.rate, way="features"))


def lose(
  split: Split, steps: Bool[np.ndarray, "n t"], way: str, source: Source = FILE
) -> Sequences:
  """The text of a split without some of its steps.

  Args:
    split: before preprocessing.
    steps: True = lost.
    way: one of `patterns.WAYS`, which the corpus can do (`check`).
    source: of its text.

  Returns:
    The text. Lost steps are marked as such, but for `unk`, where [UNK] is what is
    read there.
  """
  text = split.modalities["text"]
  lost = steps if text.lost is None else steps | text.lost
  kept = split.extras.get(TEXT_TOKENS)
  ids = text.ids.get("tokens") if kept is None else kept[:, : steps.shape[1]]
  if way == "unk":
    if ids is None or source.unknown is None:
      raise ValueError("`check` refuses texts without token ids")
    ids, lost = np.where(steps, np.int32(source.unknown), ids), text.lost
    if "tokens" in text.ids:
      return dataclasses.replace(text, ids={**text.ids, "tokens": ids})
  hidden = dataclasses.replace(text, lost=lost)
  if way not in ("hide", "unk") or source.encode is None or kept is None:
    return hidden
  # Neighbours that were read beside a text still are, whole.
  beside = split.extras.get(TEXT_CONTEXT)
  context = {} if beside is None else {"tokens": beside}
  given = dataclasses.replace(hidden, ids={"tokens": ids}, context=context)
  encoded = source.encode(given)
  return dataclasses.replace(hidden, features=encoded)
