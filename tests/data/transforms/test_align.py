"""Pooling and cutting against slow loops over segments."""

import dataclasses

import numpy as np
import pytest
import ragged
from ragged import SENTIMENT, fit_apply, visible_rows, with_modality

from msa_jax.data.transforms.align import Align
from msa_jax.data.transforms.transform import OTHER
from msa_jax.errors import UserError
from msa_jax.typing import Corpus


@pytest.fixture(name="corpus")
def _corpus():
  return ragged.corpus()


def pooled_by_loop(sequences, row, segments):
  """Segment means, whether each is lost, and its first frame's tag."""
  frames = int(sequences.lengths[row])
  means, lost, tags = [], [], []
  for segment in range(segments):
    start = segment * frames // segments
    end = max((segment + 1) * frames // segments, start + 1)
    chosen = [f for f in range(start, end) if not sequences.lost[row, f]]
    lost.append(not chosen)
    tags.append(sequences.ids["tags"][row, start])
    width = sequences.features.shape[2]
    rows = sequences.features[row, chosen].astype(np.float64)
    means.append(rows.mean(axis=0) if chosen else np.zeros(width))
  return np.array(means), lost, tags


@pytest.mark.parametrize("max_steps", [0, 4])
def test_pooling_equals_a_loop_over_segments(corpus, max_steps):
  result = fit_apply(corpus, "pool", max_steps, ())[1]
  kinds = set()
  for name, split in corpus.splits.items():
    text, audio = split.modalities["text"], split.modalities["audio"]
    pooled = result.splits[name].modalities["audio"]
    for row in range(len(split)):
      frames, spoken = int(audio.lengths[row]), int(text.lengths[row])
      bound = max_steps or 6  # the text's longest
      segments = min(spoken, bound) if spoken else min(frames, bound)
      segments = segments if frames else 0
      assert pooled.lengths[row] == segments
      if not segments:
        assert not pooled.features[row].any()
        continue
      means, lost, tags = pooled_by_loop(audio, row, segments)
      np.testing.assert_allclose(pooled.features[row, :segments], means, atol=1e-5)
      np.testing.assert_array_equal(pooled.lost[row, :segments], lost)
      np.testing.assert_array_equal(pooled.ids["tags"][row, :segments], tags)
      assert not pooled.features[row, segments:].any()
      assert not pooled.lost[row, segments:].any()
      kinds |= {("lost", any(lost)), ("text", spoken > 0), ("few", frames < segments)}
  assert {("lost", True), ("text", False), ("few", True), ("few", False)} <= kinds


@pytest.mark.parametrize("standardize", [(), ("audio",)])
def test_hidden_content_never_enters_a_mean(corpus, standardize):
  chosen = {"align": "pool", "standardize": standardize}
  clean = fit_apply(corpus, **chosen)[1]
  splits = {}
  for name, split in corpus.splits.items():
    audio = split.modalities["audio"]
    features = np.full_like(audio.features, np.nan)
    for row, step in visible_rows(audio):
      features[row, step] = audio.features[row, step]
    splits[name] = with_modality(
      split, "audio", dataclasses.replace(audio, features=features)
    )
  dirty = Corpus("ragged", splits, SENTIMENT)
  dirty = fit_apply(dirty, **chosen)[1]
  for name in corpus.splits:
    np.testing.assert_array_equal(
      clean.splits[name].modalities["audio"].features,
      dirty.splits[name].modalities["audio"].features,
    )


def test_a_run_without_text_pools_to_its_longest_sequence(corpus):
  splits = {
    name: dataclasses.replace(split, modalities={"audio": split.modalities["audio"]})
    for name, split in corpus.splits.items()
  }
  corpus = Corpus("ragged", splits, SENTIMENT)
  result = fit_apply(corpus, align="pool", max_steps=5)[1]
  for name, split in corpus.splits.items():
    np.testing.assert_array_equal(
      result.splits[name].modalities["audio"].lengths,
      np.minimum(split.modalities["audio"].lengths, 5),
    )


def test_a_later_corpus_without_text_is_pooled_to_the_runs_text_length(corpus):
  fitted, _ = fit_apply(corpus, align="pool")
  split = corpus.splits["test"]
  later = dataclasses.replace(split, modalities={"audio": split.modalities["audio"]})
  result = fitted.apply(Corpus("later", {"predict": later}, {}), OTHER)
  lengths = split.modalities["audio"].lengths
  modalities = result.splits["predict"].modalities
  np.testing.assert_array_equal(modalities["audio"].lengths, np.minimum(lengths, 6))
  assert modalities["text"].features.shape[2] == 4
  assert not modalities["text"].lengths.any()
  assert result.notes["lacking_modalities"] == ["text"]


def test_long_texts_are_cut_and_counted(corpus):
  result = fit_apply(corpus, max_steps=3)[1]
  for name, split in corpus.splits.items():
    before, after = split.modalities["text"], result.splits[name].modalities["text"]
    assert after.features.shape[1] == 3
    np.testing.assert_array_equal(after.lengths, np.minimum(before.lengths, 3))
    np.testing.assert_array_equal(after.features, before.features[:, :3])
    np.testing.assert_array_equal(after.lost, before.lost[:, :3])
    assert result.notes["truncated_texts"][name] == sum(before.lengths > 3)
  assert result.notes["truncated_texts"]["max_steps"] == 3


def test_an_unknown_alignment_is_refused():
  with pytest.raises(UserError, match="align='stretch' must be one of"):
    Align("stretch")
