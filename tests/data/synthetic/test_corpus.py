"""The synthetic corpus: its shapes, its statistics, and that it can be learned from."""

import dataclasses

import ml_collections
import numpy as np
import pytest

from msa_jax.data import synthetic
from msa_jax.data.synthetic import generator, posterior
from msa_jax.errors import UserError

# Full size in all but the width of the text.
OPTIONS = dataclasses.replace(generator.SyntheticOptions(), widths=(24, 5, 20))


@pytest.fixture(scope="module")
def corpus():
  return synthetic.synthetic(OPTIONS)


def every_array(corpus):
  for split in corpus.splits.values():
    yield split.ids
    yield split.groups
    yield split.raw_text
    yield from split.labels.values()
    yield from split.extras.values()
    for sequences in split.modalities.values():
      yield from (sequences.features, sequences.lengths, sequences.lost)


def test_splits_shapes_and_ids_are_those_of_mosi(corpus):
  assert {name: len(split) for name, split in corpus.splits.items()} == {
    "train": 1284,
    "valid": 229,
    "test": 686,
  }
  videos = {name: set(split.groups) for name, split in corpus.splits.items()}
  assert {name: len(groups) for name, groups in videos.items()} == {
    "train": 52,
    "valid": 10,
    "test": 31,
  }
  assert len(set.union(*videos.values())) == 93  # no video in two splits
  ids = np.concatenate([split.ids for split in corpus.splits.values()])
  assert len(set(ids)) == 2199
  for split in corpus.splits.values():
    assert [i.split("$_$")[0] for i in split.ids] == list(split.groups)
    shapes = {name: s.features.shape[1:] for name, s in split.modalities.items()}
    assert shapes == {"text": (50, 24), "audio": (375, 5), "vision": (500, 20)}
  train = corpus.splits["train"].modalities
  assert train["text"].features.dtype == np.float16
  assert train["vision"].features.dtype == np.float32
  assert 12 < train["text"].lengths.mean() < 15
  for name in ("audio", "vision"):
    real = train[name].lengths[train[name].lengths > 0]
    assert np.all(np.percentile(real, [25, 75]) > 25)
    assert np.all(np.percentile(real, [25, 75]) < 150)


def test_labels_are_averages_of_ratings_with_signs_like_those_of_mosi(corpus):
  label = np.concatenate([s.labels["sentiment"] for s in corpus.splits.values()])
  np.testing.assert_allclose(label * 5, np.rint(label * 5), atol=1e-5)
  assert label.min() >= -3
  assert label.max() <= 3
  # MOSI: 1023 negative, 96 zero, 1080 positive of 2199; standard deviation 1.5.
  assert abs(np.mean(label < 0) - 1023 / 2199) < 0.05
  assert 0.02 < np.mean(label == 0) < 0.07
  assert abs(np.mean(label > 0) - 1080 / 2199) < 0.07
  assert 1.3 < label.std() < 1.8


def test_content_is_zero_where_there_is_none(corpus):
  for split in corpus.splits.values():
    for sequences in split.modalities.values():
      real = np.arange(sequences.features.shape[1]) < sequences.lengths[:, None]
      assert not np.any(sequences.features[~real | sequences.lost])
      assert not np.any(sequences.lost & ~real)
      assert np.all(np.any(sequences.features[real & ~sequences.lost] != 0, axis=-1))
    lengths = np.stack([s.lengths for s in split.modalities.values()], axis=1)
    assert np.all((lengths > 0).any(axis=1))
  lengths = corpus.splits["train"].modalities["vision"].lengths
  assert 0.02 < np.mean(lengths == 0) < 0.09  # asked for 0.05


def test_lost_steps_have_the_asked_rate_and_spare_the_outer_tokens(corpus):
  for name in ("text", "audio", "vision"):
    sequences = corpus.splits["train"].modalities[name]
    lengths = np.maximum(sequences.lengths - (2 if name == "text" else 0), 0)
    assert abs(sequences.lost.sum() / lengths.sum() - 0.03) < 0.006
  text = corpus.splits["train"].modalities["text"]
  last = np.maximum(text.lengths - 1, 0)
  assert not text.lost[:, 0].any()
  assert not text.lost[np.arange(1284), last].any()


def test_raw_text_names_the_tokens_whose_embeddings_the_features_are(corpus):
  laws = generator.build_world(OPTIONS)
  split = corpus.splits["valid"]
  text = split.modalities["text"]
  for row in range(len(split)):
    spoken = split.raw_text[row].split()
    length = text.lengths[row]
    assert len(spoken) == max(length - 2, 0)
    if not length:
      continue
    tokens = ["[CLS]", *spoken, "[SEP]"]
    for step, token in enumerate(tokens):
      if token == "[UNK]":
        assert text.lost[row, step]
        continue
      distance = laws.embedding - text.features[row, step].astype(np.float32)
      assert laws.tokens[(distance**2).sum(axis=1).argmin()] == token


def test_the_same_seed_gives_the_same_corpus_and_another_seed_another():
  first, again = (
    synthetic.synthetic(generator.TINY),
    synthetic.synthetic(generator.TINY),
  )
  assert first.notes == again.notes
  for a, b in zip(every_array(first), every_array(again), strict=True):
    np.testing.assert_array_equal(a, b)
  other = synthetic.synthetic(dataclasses.replace(generator.TINY, seed=1))
  train, different = first.splits["train"], other.splits["train"]
  assert not np.array_equal(train.labels["sentiment"], different.labels["sentiment"])
  assert not np.array_equal(
    train.modalities["audio"].features, different.modalities["audio"].features
  )
  assert train.raw_text[0] != different.raw_text[0]
  assert not np.array_equal(
    train.labels["sentiment"][:8], first.splits["valid"].labels["sentiment"]
  )


def test_frames_have_the_known_mean_covariance_and_autocorrelation():
  options = dataclasses.replace(
    generator.TINY,
    steps=(8, 30, 30),
    frames_per_token=(20.0, 20.0),
    lost=(0.0, 0.0, 0.0),
  )
  laws = generator.build_world(options)
  split = synthetic.draw(options, np.random.default_rng(0), 3000)
  for name in ("audio", "vision"):
    law, sequences = laws.frames[name], split.modalities[name]
    full = sequences.lengths == 30
    mean = (
      law.offset
      + split.extras[f"latent_{name}"][:, None] * law.direction
      + np.where(split.extras[f"clear_{name}"], 1.0, -1.0)[:, None] * law.tell
    )
    noise = (sequences.features - mean[:, None])[full]
    scale = np.sqrt(np.diag(law.covariance))
    now, later = noise[:, :-1].reshape(-1, noise.shape[-1]), noise[:, 1:]
    later = later.reshape(now.shape)
    covariance = now.T @ now / len(now)
    lagged = now.T @ later / len(now)
    scales = np.outer(scale, scale)
    assert full.sum() > 2000
    np.testing.assert_allclose(covariance / scales, law.covariance / scales, atol=0.04)
    np.testing.assert_allclose(
      lagged / scales, law.autocorrelation * law.covariance / scales, atol=0.04
    )
    np.testing.assert_allclose(noise.mean(axis=(0, 1)) / scale, 0.0, atol=0.03)


def test_latents_agree_conflict_and_blur_at_the_asked_rates():
  options = dataclasses.replace(
    generator.TINY,
    noise=(0.3, 0.6, 0.9),
    conflict=(0.1, 0.2, 0.3),
    clear=(0.9, 0.6, 0.5),
  )
  split = synthetic.draw(options, np.random.default_rng(0), 6000, text_features=False)
  sentiment = split.extras["latent_sentiment"]
  for column, name in enumerate(generator.MODALITIES):
    clear = split.extras[f"clear_{name}"]
    conflict = split.extras[f"conflict_{name}"]
    assert abs(clear.mean() - options.clear[column]) < 0.025
    assert abs(conflict[clear].mean() - options.conflict[column]) < 0.025
    deviation = (split.extras[f"latent_{name}"] - sentiment)[clear & ~conflict]
    assert abs(deviation.mean()) < 0.06
    assert abs(deviation.std() - options.noise[column]) < 0.04
    for independent in (conflict, ~clear):
      other = split.extras[f"latent_{name}"][independent]
      assert abs(np.corrcoef(other, sentiment[independent])[0, 1]) < 0.2


def test_notes_hold_the_optimum_of_every_split_and_condition(corpus):
  for name, split in corpus.splits.items():
    median = split.extras["bayes_median"]
    label = split.labels["sentiment"]
    assert corpus.notes["bayes"][name]["mae"] == pytest.approx(
      np.abs(median - label).mean(), abs=1e-6
    )
    polar = label != 0
    called = split.extras["bayes_positive"][polar] > 0.5
    share = np.mean(called == (label[polar] > 0))
    assert abs(corpus.notes["bayes"][name]["acc2_non0"] - share) < 0.02
    assert len(corpus.notes["bayes_by_condition"][name]) == 7
    full = corpus.notes["bayes_by_condition"][name]["text+audio+vision"]
    assert full == corpus.notes["bayes"][name]


def pooled_features(split, names):
  columns = [np.ones((len(split), 1))]
  for name in names:
    sequences = split.modalities[name]
    real = np.arange(sequences.features.shape[1]) < sequences.lengths[:, None]
    seen = (real & ~sequences.lost).astype(np.float32)
    total = np.einsum("ntd,nt->nd", sequences.features.astype(np.float32), seen)
    columns.append(total / np.maximum(seen.sum(axis=1, keepdims=True), 1))
  return np.concatenate(columns, axis=1)


def ridge_error(corpus, names):
  train, test = corpus.splits["train"], corpus.splits["test"]
  x, y = pooled_features(train, names), train.labels["sentiment"]
  weights = np.linalg.solve(x.T @ x + 1.0 * np.eye(x.shape[1]), x.T @ y)
  guess = pooled_features(test, names) @ weights
  return np.abs(guess - test.labels["sentiment"]).mean()


def test_each_modality_helps_and_a_linear_model_leaves_something_to_learn(corpus):
  optimal = corpus.notes["bayes_by_condition"]["test"]
  best = optimal["text+audio+vision"]["mae"]
  assert 0.45 < best < 0.6
  assert best < 0.9 * optimal["text"]["mae"]
  label = corpus.splits["test"].labels["sentiment"]
  constant = np.abs(label - np.median(label)).mean()
  for name in generator.MODALITIES:
    assert ridge_error(corpus, (name,)) < 0.85 * constant
    assert optimal["text"]["mae"] <= optimal[name]["mae"]
  linear = ridge_error(corpus, generator.MODALITIES)
  assert 1.08 * best < linear < 1.3 * best


def test_emotions_name_regions_of_the_latent_sentiment():
  options = dataclasses.replace(generator.TINY, tasks=("emotion",), sizes=(600, 8, 12))
  corpus = synthetic.synthetic(options)
  assert corpus.tasks["emotion"].classes == ("angry", "sad", "calm", "happy")
  assert "sentiment" not in corpus.tasks
  train = corpus.splits["train"]
  assert set(train.labels) == {"emotion"}
  region = 0 + (train.extras["latent_sentiment"] > -1.2500001)
  region = region + (train.extras["latent_sentiment"] > -0.0000001)
  region = region + (train.extras["latent_sentiment"] > 1.2499999)
  np.testing.assert_array_equal(train.labels["emotion"], region)
  assert np.all(np.bincount(region) > 60)
  chosen = posterior.bayes(options, train).emotion.argmax(axis=1)
  accuracy = corpus.notes["bayes"]["train"]["emotion_accuracy"]
  assert accuracy == pytest.approx(np.mean(chosen == region))
  assert 0.45 < accuracy < 0.9


def test_a_config_may_name_a_preset_and_change_some_of_it():
  config = ml_collections.ConfigDict(
    {"preset": "tiny", "seed": 4, "tasks": ("sentiment", "emotion")}
  )
  corpus = synthetic.synthetic(config)
  assert len(corpus.splits["train"]) == 24
  assert corpus.notes["seed"] == 4
  assert set(corpus.tasks) == {"sentiment", "emotion"}
  assert generator.read_options([("sizes", [9, 8, 7]), ("preset", "tiny")]).sizes == (
    9,
    8,
    7,
  )
  assert generator.read_options([("preset", "one_strong")]) == generator.ONE_STRONG


def test_one_strong_modality_leaves_little_to_the_others():
  options = dataclasses.replace(
    generator.ONE_STRONG, widths=(2, 5, 20), steps=(50, 120, 120)
  )
  split = synthetic.draw(options, np.random.default_rng(0), 1500, text_features=False)
  figures = posterior.optimum_by_condition(options, split)
  mae = {name: value["mae_expected"] for name, value in figures.items()}
  assert mae["text+audio+vision"] > 0.94 * mae["text"]
  assert min(mae["audio"], mae["vision"]) > 1.5 * mae["text"]


def test_one_fast_modality_says_most_and_leaves_something_to_the_others():
  options = dataclasses.replace(
    generator.ONE_FAST, widths=(2, 40, 40), steps=(50, 99, 99)
  )
  split = synthetic.draw(options, np.random.default_rng(0), 1500, text_features=False)
  figures = posterior.optimum_by_condition(options, split)
  mae = {name: value["mae_expected"] for name, value in figures.items()}
  assert 0.8 * mae["text"] < mae["text+audio+vision"] < 0.95 * mae["text"]
  assert min(mae["audio"], mae["vision"]) > 1.2 * mae["text"]


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"tasks": ("valence",)}, "tasks .*choose from sentiment, emotion"),
    ({"conflict": (0.1, 1.5, 0.1)}, r"conflict 1.5: must be in \[0.0, 1.0\]"),
    ({"autocorrelation": (1.0, 0.5)}, "autocorrelation 1.0"),
    ({"steps": (3, 4, 4)}, "text steps 3"),
    ({"videos": (4, 9, 3)}, "videos 9"),
  ],
)
def test_impossible_worlds_are_refused_in_one_line(changes, message):
  with pytest.raises(UserError, match=message):
    dataclasses.replace(generator.TINY, **changes)


def test_unknown_options_and_presets_are_named():
  with pytest.raises(UserError, match="option colour: choose from preset"):
    generator.read_options([("colour", 1)])
  with pytest.raises(
    UserError, match="preset huge: choose from mosi, conflict, echo, tiny"
  ):
    generator.read_options([("preset", "huge")])
