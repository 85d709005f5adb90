"""Linguistic inputs of SentiLARE: part of speech and polarity of every word.

Numbers of parts of speech (verb, adjective, adverb, noun, other), of word polarities
(negative, positive, neutral) and of the polarity of a whole text, which is `unknown`
wherever a model is to predict it, are those of the released checkpoints and of CENet.

Source: Ke et al., EMNLP 2020, section 3.1; H-GEM (2026), Eq. 2. SentiLARE weighs a
word's senses by their rank and by how alike gloss and sentence are; without sentence
encoder, rank alone weighs them here.
"""

import math
import re
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any, NamedTuple

from msa_jax.errors import UserError

OTHER, NEUTRAL, UNKNOWN = 4, 2, 5
# Number of each input that stands for none, also for padding and special tokens.
PADDING = {"pos": OTHER, "word_polarity": NEUTRAL, "sentence_polarity": UNKNOWN}
_POS = {"v": 0, "a": 1, "r": 2, "n": 3}
_TAGS = {"VB": "v", "JJ": "a", "RB": "r", "NN": "n"}  # first letters in Penn's tags
# Penn's words: clitics and marks apart.
_UNIT = re.compile(
  r"\w+?(?=n['’]t\b)|n['’]t\b|['’](?:s|re|ve|ll|d|m)\b|\w+(?:-\w+)*|[^\w\s]",
  re.IGNORECASE,
)


class Annotator(NamedTuple):
  """A tagger and a lexicon.

  Attributes:
    name: of both, with versions.
    tag: words -> tags of the Penn Treebank.
    polarity: word, part of speech (v, a, r, n or "") -> negative to positive number.
  """

  name: str
  tag: Callable[[list[str]], list[str]]
  polarity: Callable[[str, str], float]


def load() -> Annotator:
  """NLTK's tagger and SentiWordNet where they are installed, otherwise TextBlob's
  tagger and lexicon, which are parts of that package.

  Raises:
    UserError: neither is installed.
  """
  try:
    return _sentiwordnet()
  except (ImportError, LookupError):
    pass
  try:
    return _textblob()
  except ImportError:
    raise UserError(
      "config.text.linguistic=True needs a tagger and a lexicon: pip install"
      " 'msa_jax[text]' (TextBlob), or nltk with its data"
      " averaged_perceptron_tagger_eng, wordnet and sentiwordnet"
    ) from None


def _sentiwordnet() -> Annotator:
  import nltk
  from nltk.corpus import sentiwordnet
  from nltk.stem import WordNetLemmatizer

  lemmatizer = WordNetLemmatizer()

  def tag(words: list[str]) -> list[str]:
    return [tag for _, tag in nltk.pos_tag(words)]

  def polarity(word: str, pos: str) -> float:
    if not pos:
      return 0.0
    lemma = lemmatizer.lemmatize(word.lower(), pos=pos)
    senses = sentiwordnet.senti_synsets(lemma, pos)
    return weighed([sense.pos_score() - sense.neg_score() for sense in senses])

  polarity("good", "a")  # Data that are absent are a LookupError at first use.
  tag(["good"])
  return Annotator(f"sentiwordnet, nltk {metadata.version('nltk')}", tag, polarity)


def weighed(scores: Sequence[float]) -> float:
  """Score of a word of several senses, the most frequent first."""
  weights = [math.exp(1 / (2 * rank)) for rank in range(1, len(scores) + 1)]
  total = sum(w * score for w, score in zip(weights, scores, strict=True))
  return total / sum(weights) if scores else 0.0


def _textblob() -> Annotator:
  from textblob import en

  version = metadata.version("textblob")
  en.sentiment.load()

  def tag(words: list[str]) -> list[str]:
    return [tag for _, tag in en.parser.find_tags(list(words))]

  def polarity(word: str, pos: str) -> float:
    # Its lexicon is one of adjectives in the main: other uses have their score.
    scores: Any = en.sentiment.get(word.lower(), {})
    penn = {"v": "VB", "a": "JJ", "r": "RB", "n": "NN"}.get(pos)
    return float(scores.get(penn, scores.get(None, (0.0,)))[0])

  return Annotator(f"textblob {version}", tag, polarity)


def annotate(
  annotator: Annotator, text: str
) -> tuple[list[tuple[int, int]], list[int], list[int]]:
  """Units of a text (words, clitics, marks): their spans in order, parts of speech and
  polarities."""
  spans = [match.span() for match in _UNIT.finditer(text)]
  units = [text[start:end].replace("’", "'") for start, end in spans]
  parts = [_TAGS.get((tag or "")[:2], "") for tag in annotator.tag(units)]
  scores = [
    annotator.polarity(unit, part) for unit, part in zip(units, parts, strict=True)
  ]
  polarities = [1 if score > 0 else 0 if score < 0 else NEUTRAL for score in scores]
  return spans, [_POS.get(part, OTHER) for part in parts], polarities
