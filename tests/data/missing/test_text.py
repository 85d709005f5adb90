"""Which steps of a text stand for no word, and which corpora can lose words."""

import dataclasses

import numpy as np
import pytest

from msa_jax.data import missing
from msa_jax.data.missing import text
from msa_jax.data.synthetic import synthetic
from msa_jax.data.synthetic.generator import TINY
from msa_jax.data.transforms import dialogues
from msa_jax.errors import UserError
from msa_jax.typing import Corpus, Sequences, Split

LENGTHS = np.asarray([4, 3, 0, 5], np.int32)
REAL = np.arange(5)[None] < LENGTHS[:, None]
OUTER = np.asarray([[1, 0, 0, 1, 0], [1, 0, 1, 0, 0], [0] * 5, [1, 0, 0, 0, 1]], bool)
BERT = np.asarray(
  [[101, 7, 8, 102, 0], [101, 9, 102, 0, 0], [0] * 5, [101, 7, 7, 102, 102]], np.int32
)


def _split(**extras):
  values = np.random.default_rng(0).normal(size=(4, 5, 3)).astype("f")
  sequences = Sequences(values, LENGTHS)
  ids = np.asarray([f"v{i // 2}$_${i}" for i in range(4)])
  groups = np.asarray(["v0", "v0", "v1", "v1"])
  modalities = {"text": sequences, "audio": sequences}
  return Split(ids, modalities, {}, groups=groups, extras=extras)


def _bert(ids, steps=5):
  stored = np.stack([ids, REAL.astype(np.int32), np.zeros_like(ids)], axis=1)
  return {"text_bert": stored[..., :steps]}


def _corpus(split=None, **notes):
  return Corpus("mine", {"test": _split() if split is None else split}, {}, notes)


def _everything(split, pattern="features:1"):
  return missing.draw(missing.parse(pattern), split, 0).lost["text"]


def test_special_tokens_of_files_with_ids_are_spared_and_words_at_the_ends_are_not():
  np.testing.assert_array_equal(_everything(_split(**_bert(BERT))), REAL & ~OUTER)
  # Word vectors: the first and the last step are words as all others.
  np.testing.assert_array_equal(_everything(_split()), REAL)
  other = np.where(BERT == 102, 5 + np.arange(4)[:, None], BERT)  # end in four words
  np.testing.assert_array_equal(_everything(_split(**_bert(other))), REAL)
  # Ids of fewer steps than the features: of another tokeniser.
  np.testing.assert_array_equal(_everything(_split(**_bert(BERT, 4))), REAL)
  words = np.asarray([[0, -1, 1, 2, -1]] * 4, np.int32)
  found = _everything(_split(text_words=words, **_bert(BERT)))
  np.testing.assert_array_equal(found, REAL & (words >= 0))
  # Earlier versions spared the ends of whatever it was.
  place = np.arange(5)[None]
  ends = (place == 0) | (place == LENGTHS[:, None] - 1)
  old = _everything(_split(), "features:1:ends")
  np.testing.assert_array_equal(old, REAL & ~ends)


def test_every_way_of_losing_words_loses_the_same_ones():
  split = _split(**_bert(BERT))
  first, *others = (
    _everything(split, name)
    for name in ("tokens:0.6", "tokens:0.6:unk", "features:0.6", "frames:0.6:features")
  )
  assert first.any() and not first[OUTER].any()
  for other in others:
    np.testing.assert_array_equal(first, other)


@pytest.mark.parametrize(
  ("pattern", "instead"),
  [
    ("tokens:0.3", "'features:0.3'"),
    ("tokens:0.3:unk", "'features:0.3'"),
    ("frames:0.3", "'frames:0.3:features'"),
  ],
)
def test_features_of_a_file_cannot_lose_words(pattern, instead):
  with pytest.raises(UserError) as caught:
    text.check(missing.parse(pattern), _corpus(), option="here: ")
  said = str(caught.value)
  assert said.startswith(f"here: missing pattern {pattern!r} loses words before")
  assert f"choose {instead}" in said and "config.text.input='encoder'" in said
  text.check(missing.parse("tokens:0"), _corpus())  # nothing is lost
  without = dataclasses.replace(
    _split(), modalities={"audio": _split().modalities["audio"]}
  )
  text.check(missing.parse("frames:0.3"), _corpus(without))


@pytest.mark.parametrize("pattern", ["features:0.3", "frames:0.3:features"])
def test_one_line_says_that_features_know_the_words(pattern, caplog):
  text.check(missing.parse(pattern), _corpus(), option="here: ")
  (line,) = caplog.messages
  assert line.startswith(f"here: {pattern} loses rows of features that were computed")


def test_words_that_were_made_alone_are_lost_with_their_features(caplog):
  corpus = synthetic(TINY)
  for pattern in ("tokens:0.3", "frames:0.3", "features:0.3"):
    text.check(missing.parse(pattern), corpus)
  assert not caplog.messages
  with pytest.raises(UserError, match="choose 'features:0.3'"):
    text.check(missing.parse("tokens:0.3:unk"), corpus)
  split = corpus.splits["test"]
  words, lengths = split.extras["words"], split.modalities["text"].lengths
  inner = (words > 1) & (np.arange(words.shape[1])[None] < lengths[:, None])
  np.testing.assert_array_equal(_everything(split, "tokens:1"), inner)


@pytest.mark.parametrize(
  ("pattern", "instead"),
  [
    ("tokens:0.3", "samples:0.3"),
    ("frames:0.3", "random:0.3"),
    ("features:1", "samples:1"),
  ],
)
def test_dialogues_lose_modalities_of_utterances_and_not_steps(pattern, instead):
  corpus = dialogues.group(_corpus())
  with pytest.raises(UserError, match=f"whole utterances; choose '{instead}'"):
    text.check(missing.parse(pattern), corpus)
  missing.draw(missing.parse(instead), corpus.splits["test"], 0)
  text.check(missing.parse("frames:0.3:ends"), corpus)  # as earlier versions did


def test_an_encoder_inside_needs_tokens_and_one_for_unknown_words():
  tokens = Sequences(np.zeros((4, 5, 0), "f"), LENGTHS, ids={"tokens": BERT})
  split = dataclasses.replace(_split(), modalities={"text": tokens})
  corpus = _corpus(split, text={"unknown": 100})
  source = missing.source_of(corpus)
  for pattern in ("tokens:0.3", "tokens:0.3:unk", "frames:0.3"):
    text.check(missing.parse(pattern), corpus, source)
  with pytest.raises(UserError, match=r"rows of features.*choose 'tokens:0.3'"):
    text.check(missing.parse("features:0.3"), corpus, source)
  none = _corpus(split, text={"unknown": None})
  with pytest.raises(UserError, match=r"no token.*unknown words; choose 'tokens:0.3'"):
    text.check(missing.parse("tokens:0.3:unk"), none, missing.source_of(none))
  lost = np.zeros((4, 5), bool)
  lost[0, 1] = lost[3, 2] = True
  made = text.lose(split, lost, "unk", source)
  np.testing.assert_array_equal(made.ids["tokens"], np.where(lost, 100, BERT))
  assert made.lost is None  # [UNK] is read as any token is
  made = text.lose(split, lost, "hide", source)
  np.testing.assert_array_equal(made.lost, lost)
  np.testing.assert_array_equal(made.ids["tokens"], BERT)
