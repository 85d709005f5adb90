"""Modalities of later corpora are those of the run."""

import numpy as np
import pytest
import ragged
from ragged import SENTIMENT, fit_apply, make_split, with_modality

from msa_jax.data.transforms.modalities import SelectModalities, select_modalities
from msa_jax.data.transforms.transform import OTHER
from msa_jax.errors import UserError
from msa_jax.typing import Corpus, Sequences


@pytest.fixture(name="corpus")
def _corpus():
  return ragged.corpus()


def test_another_width_is_refused_with_both_widths(corpus):
  fitted, _ = fit_apply(corpus)
  later = Corpus("later", {"test": make_split(5, widths=(4, 7))}, SENTIMENT)
  with pytest.raises(UserError, match="audio has 7 features per step.*trained on 3"):
    fitted.apply(later, OTHER)


def test_a_modality_the_run_never_saw_is_left_out_with_a_note(corpus):
  fitted, _ = fit_apply(corpus)
  split = corpus.splits["test"]
  extra = with_modality(split, "vision", split.modalities["audio"])
  result = fitted.apply(Corpus("later", {"test": extra}, SENTIMENT), OTHER)
  assert set(result.splits["test"].modalities) == {"text", "audio"}
  assert result.notes["left_out_modalities"] == ["vision"]


def test_a_modality_without_training_content_stays_unavailable(corpus):
  empty = Sequences(np.zeros((9, 2, 5), np.float32), np.zeros(9, np.int32))
  full = Sequences(np.ones((9, 2, 5), np.float32), np.full(9, 2, np.int32))
  train = with_modality(corpus.splits["train"], "vision", empty)
  test = with_modality(corpus.splits["test"], "vision", full)
  corpus = Corpus("ragged", {"train": train, "test": test}, SENTIMENT)
  for chosen in ({}, {"align": "pool", "clusters": 4}):
    fitted, result = fit_apply(corpus, **chosen)
    assert fitted.states["match_modalities"]["unseen"].tolist() == ["vision"]
    assert not result.splits["test"].modalities["vision"].lengths.any()
    assert result.notes["untrained_modalities"] == ["vision"]


def test_named_modalities_are_kept_and_later_corpora_may_lack_them(corpus):
  assert SelectModalities().apply(corpus, SelectModalities().fit(corpus)) is corpus
  one = SelectModalities(("audio",))
  state = one.fit(corpus)
  assert set(one.apply(corpus, state).splits["valid"].modalities) == {"audio"}
  text = select_modalities(corpus, ["text"])
  assert one.apply(text, state) is text  # `MatchModalities` says what is lacking
  with pytest.raises(UserError, match="the corpus has no vision .it has audio, text"):
    SelectModalities(("vision",)).fit(corpus)
