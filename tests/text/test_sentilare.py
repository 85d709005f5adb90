"""Parts of speech and polarities of words, by hand."""

import math
import sys
import types

import pytest

from msa_jax.errors import UserError
from msa_jax.text import sentilare


def numbers(annotator, text):
  spans, parts, polarities = sentilare.annotate(annotator, text)
  return [
    (text[slice(*span)], part, polarity)
    for span, part, polarity in zip(spans, parts, polarities, strict=True)
  ]


def test_the_lexicon_of_the_package_tells_parts_of_speech_and_polarities():
  annotator = sentilare.load()
  found = numbers(annotator, "I don’t really love this terrible movie.")
  assert found == [
    ("I", 4, 2),
    ("do", 0, 2),
    ("n’t", 2, 2),
    ("really", 2, 1),
    ("love", 3, 1),
    ("this", 4, 2),
    ("terrible", 1, 0),
    ("movie", 3, 2),
    (".", 4, 2),
  ]
  assert annotator.name.startswith("textblob ")
  assert numbers(annotator, "") == []


def test_senses_are_weighed_by_rank():
  weights = [math.exp(1 / 2), math.exp(1 / 4)]
  expected = (weights[0] * 0.5 - weights[1] * 0.25) / sum(weights)
  assert sentilare.weighed([0.5, -0.25]) == pytest.approx(expected)
  assert sentilare.weighed([]) == 0.0


class Sense:
  def __init__(self, positive, negative):
    self.scores = positive, negative

  def pos_score(self):
    return self.scores[0]

  def neg_score(self):
    return self.scores[1]


def nltk_with(monkeypatch, senses):
  """A stand-in for NLTK and its data, which no package ships."""
  nltk = types.ModuleType("nltk")
  nltk.pos_tag = lambda words: [
    (word, "VBZ" if word == "hates" else "IN") for word in words
  ]
  corpus, stem = types.ModuleType("nltk.corpus"), types.ModuleType("nltk.stem")
  corpus.sentiwordnet = types.SimpleNamespace(senti_synsets=senses)

  class Lemmatizer:
    def lemmatize(self, word, pos):
      return {("hates", "v"): "hate"}.get((word, pos), word)

  stem.WordNetLemmatizer = Lemmatizer
  for module in (nltk, corpus, stem):
    monkeypatch.setitem(sys.modules, module.__name__, module)
  monkeypatch.setattr(sentilare.metadata, "version", lambda name: "1")


def test_sentiwordnet_is_asked_for_lemmas_where_it_is_installed(monkeypatch):
  def senses(lemma, pos):
    return [Sense(0.0, 0.75), Sense(0.5, 0.0)] if (lemma, pos) == ("hate", "v") else []

  nltk_with(monkeypatch, senses)
  annotator = sentilare.load()
  assert annotator.name == "sentiwordnet, nltk 1"
  assert numbers(annotator, "Hates hates of") == [
    ("Hates", 4, 2),
    ("hates", 0, 0),
    ("of", 4, 2),
  ]


def test_without_its_data_the_package_lexicon_is_used(monkeypatch):
  def absent(lemma, pos):
    raise LookupError("sentiwordnet")

  nltk_with(monkeypatch, absent)
  assert sentilare.load().name == "textblob 1"


def test_no_lexicon_at_all_names_the_install(monkeypatch):
  monkeypatch.setitem(sys.modules, "nltk", None)
  monkeypatch.setitem(sys.modules, "textblob", None)
  with pytest.raises(UserError, match=r"pip install 'msa_jax\[text\]'"):
    sentilare.load()
