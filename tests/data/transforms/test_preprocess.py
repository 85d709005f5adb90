"""Preprocessing against slow loops: fitted on train, over real steps only."""

import dataclasses

import ml_collections
import numpy as np
import pytest

from msa_jax.data.transforms import preprocess
from msa_jax.errors import UserError
from msa_jax.typing import Corpus, Sequences, Split, Task

OPTIONS = {
  "align": "none",
  "max_steps": 0,
  "standardize": ("audio", "vision"),
  "num_frame_clusters": 0,
}
SENTIMENT = {"sentiment": Task("regression", low=-3.0, high=3.0)}


def options(**changes):
  return ml_collections.ConfigDict({**OPTIONS, **changes})


def make_split(seed, size=9, text=6, audio=11, widths=(4, 3)):
  rng = np.random.default_rng(seed)
  modalities = {}
  for name, steps, width in (("text", text, widths[0]), ("audio", audio, widths[1])):
    lengths = rng.integers(0, steps + 1, size).astype(np.int32)
    lengths[0], lengths[1] = steps, 1
    real = np.arange(steps) < lengths[:, None]
    lost = real & (rng.random(real.shape) < 0.3)
    features = 5.0 + 2.0 * rng.standard_normal((size, steps, width))
    features[~real | lost] = 0
    kind = np.float16 if name == "text" else np.float32
    ids = {"tags": rng.integers(1, 9, (size, steps)).astype(np.int32)}
    modalities[name] = Sequences(features.astype(kind), lengths, lost, ids)
  label = np.linspace(-3, 3, size).astype(np.float32)
  return Split(
    np.array([f"{seed}$_${i}" for i in range(size)]), modalities, {"sentiment": label}
  )


@pytest.fixture
def corpus():
  splits = {"train": make_split(0), "valid": make_split(1), "test": make_split(2)}
  return Corpus("toy", splits, SENTIMENT, {"kept": 1})


def visible_rows(sequences):
  """Every visible step as a list of (row, step)."""
  return [
    (row, step)
    for row in range(len(sequences.lengths))
    for step in range(sequences.lengths[row])
    if sequences.lost is None or not sequences.lost[row, step]
  ]


def with_modality(split, name, sequences):
  return dataclasses.replace(split, modalities={**split.modalities, name: sequences})


def test_standardisation_uses_the_real_steps_of_train_alone(corpus):
  fitted = preprocess.fit(corpus, options())
  train = corpus.splits["train"].modalities["audio"]
  values = np.array(
    [train.features[row, step] for row, step in visible_rows(train)], np.float64
  )
  np.testing.assert_allclose(fitted.mean["audio"], values.mean(axis=0), rtol=1e-12)
  np.testing.assert_allclose(fitted.scale["audio"], 1 / values.std(axis=0), rtol=1e-12)
  result = preprocess.apply(fitted, corpus)
  for name in ("train", "valid"):
    before = corpus.splits[name].modalities["audio"]
    after = result.splits[name].modalities["audio"]
    expected = np.zeros(before.features.shape)
    for row, step in visible_rows(before):
      centred = before.features[row, step] - values.mean(axis=0)
      expected[row, step] = centred / values.std(axis=0)
    np.testing.assert_allclose(after.features, expected, atol=1e-5)
    assert after.features.dtype == np.float32
    assert (
      result.splits[name].modalities["text"] is corpus.splits[name].modalities["text"]
    )
  assert result.notes == {"kept": 1}


def test_other_splits_do_not_move_the_fit(corpus):
  other = Corpus(
    "toy", {**corpus.splits, "test": make_split(77), "valid": make_split(78)}, SENTIMENT
  )
  first, second = preprocess.fit(corpus, options()), preprocess.fit(other, options())
  np.testing.assert_array_equal(first.mean["audio"], second.mean["audio"])
  np.testing.assert_array_equal(first.scale["audio"], second.scale["audio"])


def test_constant_and_enormous_columns_survive(corpus):
  audio = corpus.splits["train"].modalities["audio"]
  features = audio.features.copy()
  rng = np.random.default_rng(0)
  for row, step in visible_rows(audio):
    features[row, step, 0] = 0.1  # constant
    features[row, step, 1] = 1e5 + rng.standard_normal()  # small spread, far away
  changed = dataclasses.replace(audio, features=features)
  split = with_modality(corpus.splits["train"], "audio", changed)
  corpus = Corpus("toy", {"train": split}, SENTIMENT)
  fitted = preprocess.fit(corpus, options())
  result = preprocess.apply(fitted, corpus).splits["train"].modalities["audio"]
  assert fitted.scale["audio"][0] == 0
  assert not result.features[..., 0].any()
  seen = np.array([result.features[row, step, 1] for row, step in visible_rows(audio)])
  assert abs(seen.mean()) < 1e-3
  assert abs(seen.std() - 1) < 1e-3


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
  chosen = options(align="pool", max_steps=max_steps, standardize=())
  result = preprocess.apply(preprocess.fit(corpus, chosen), corpus)
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
  chosen = options(align="pool", standardize=standardize)
  clean = preprocess.apply(preprocess.fit(corpus, chosen), corpus)
  splits = {}
  for name, split in corpus.splits.items():
    audio = split.modalities["audio"]
    features = np.full_like(audio.features, np.nan)
    for row, step in visible_rows(audio):
      features[row, step] = audio.features[row, step]
    splits[name] = with_modality(
      split, "audio", dataclasses.replace(audio, features=features)
    )
  dirty = Corpus("toy", splits, SENTIMENT)
  dirty = preprocess.apply(preprocess.fit(dirty, chosen), dirty)
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
  corpus = Corpus("toy", splits, SENTIMENT)
  chosen = options(align="pool", max_steps=5)
  result = preprocess.apply(preprocess.fit(corpus, chosen), corpus)
  for name, split in corpus.splits.items():
    np.testing.assert_array_equal(
      result.splits[name].modalities["audio"].lengths,
      np.minimum(split.modalities["audio"].lengths, 5),
    )


def test_a_later_corpus_without_text_is_pooled_to_the_runs_text_length(corpus):
  chosen = options(align="pool")
  fitted = preprocess.fit(corpus, chosen)
  split = corpus.splits["test"]
  later = dataclasses.replace(split, modalities={"audio": split.modalities["audio"]})
  result = preprocess.apply(fitted, Corpus("later", {"predict": later}, {}))
  lengths = split.modalities["audio"].lengths
  modalities = result.splits["predict"].modalities
  np.testing.assert_array_equal(modalities["audio"].lengths, np.minimum(lengths, 6))
  assert modalities["text"].features.shape[2] == 4
  assert not modalities["text"].lengths.any()
  assert result.notes["lacking_modalities"] == ["text"]


def test_long_texts_are_cut_and_counted(corpus):
  result = preprocess.apply(preprocess.fit(corpus, options(max_steps=3)), corpus)
  for name, split in corpus.splits.items():
    before, after = split.modalities["text"], result.splits[name].modalities["text"]
    assert after.features.shape[1] == 3
    np.testing.assert_array_equal(after.lengths, np.minimum(before.lengths, 3))
    np.testing.assert_array_equal(after.features, before.features[:, :3])
    np.testing.assert_array_equal(after.lost, before.lost[:, :3])
    assert result.notes["truncated_texts"][name] == sum(before.lengths > 3)
  assert result.notes["truncated_texts"]["max_steps"] == 3


@pytest.mark.parametrize("align", ["none", "pool"])
def test_codes_name_the_nearest_centroid_and_padding_has_its_own(corpus, align):
  chosen = options(align=align, codes=5)
  fitted = preprocess.fit(corpus, chosen)
  centroids = fitted.centroids["audio"]
  assert centroids.shape == (5, 3)
  assert "text" not in fitted.centroids
  result = preprocess.apply(fitted, corpus)
  used = set()
  for split in result.splits.values():
    audio = split.modalities["audio"]
    codes, visible = audio.ids["codes"], set(visible_rows(audio))
    for row in range(codes.shape[0]):
      for step in range(codes.shape[1]):
        expected = 5
        if (row, step) in visible:
          distance = ((audio.features[row, step] - centroids) ** 2).sum(axis=1)
          expected = distance.argmin()
        assert codes[row, step] == expected
        used.add(expected)
  assert used == {0, 1, 2, 3, 4, 5}


def test_centroids_are_fixed_points_that_separate_clear_clusters():
  rng = np.random.default_rng(0)
  centres = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
  member = rng.integers(0, 3, (40, 20))
  features = centres[member] + 0.1 * rng.standard_normal((40, 20, 2))
  sequences = Sequences(features.astype(np.float32), np.full(40, 20, np.int32))
  found = preprocess._centroids(sequences, 3)
  order = np.argsort(found @ [1.0, 2.0])
  np.testing.assert_allclose(found[order], centres, atol=0.05)
  few = Sequences(np.ones((1, 2, 2), np.float32), np.array([2], np.int32))
  np.testing.assert_allclose(preprocess._centroids(few, 4), np.ones((4, 2)))


def test_a_saved_preprocessor_does_the_same(corpus, tmp_path):
  fitted = preprocess.fit(corpus, options(align="pool", max_steps=4, codes=3))
  path = tmp_path / "preprocessing.npz"
  preprocess.save(fitted, path)
  loaded = preprocess.load(path)
  for field in dataclasses.fields(fitted):
    before, after = getattr(fitted, field.name), getattr(loaded, field.name)
    if field.name in ("mean", "scale", "centroids"):
      assert set(before) == set(after)
      for name in before:
        np.testing.assert_array_equal(before[name], after[name])
    else:
      assert before == after
  a, b = preprocess.apply(fitted, corpus), preprocess.apply(loaded, corpus)
  np.testing.assert_array_equal(
    a.splits["test"].modalities["audio"].features,
    b.splits["test"].modalities["audio"].features,
  )


def test_damaged_files_are_refused_in_one_line(tmp_path):
  array, other = tmp_path / "array.npz", tmp_path / "other.npz"
  np.save(array.with_suffix(".npy"), np.zeros(3))
  array.with_suffix(".npy").rename(array)
  np.savez(other, mean=np.zeros(3))
  empty = tmp_path / "empty.npz"
  empty.write_bytes(b"")
  broken = tmp_path / "broken.npz"
  broken.write_bytes(other.read_bytes()[:50])
  for path in (array, other, empty, broken, tmp_path / "absent.npz"):
    with pytest.raises(UserError, match=f"{path.name} cannot be read") as caught:
      preprocess.load(path)
    assert "\n" not in str(caught.value)


def test_another_width_is_refused_with_both_widths(corpus):
  fitted = preprocess.fit(corpus, options())
  later = Corpus("later", {"test": make_split(5, widths=(4, 7))}, SENTIMENT)
  with pytest.raises(UserError, match="audio has 7 features per step.*trained on 3"):
    preprocess.apply(fitted, later)


def test_a_modality_the_run_never_saw_is_left_out_with_a_note(corpus):
  fitted = preprocess.fit(corpus, options())
  split = corpus.splits["test"]
  extra = with_modality(split, "vision", split.modalities["audio"])
  result = preprocess.apply(fitted, Corpus("later", {"test": extra}, SENTIMENT))
  assert set(result.splits["test"].modalities) == {"text", "audio"}
  assert result.notes["left_out_modalities"] == ["vision"]


def test_a_modality_without_training_content_stays_unavailable(corpus):
  empty = Sequences(np.zeros((9, 2, 5), np.float32), np.zeros(9, np.int32))
  full = Sequences(np.ones((9, 2, 5), np.float32), np.full(9, 2, np.int32))
  train = with_modality(corpus.splits["train"], "vision", empty)
  test = with_modality(corpus.splits["test"], "vision", full)
  corpus = Corpus("toy", {"train": train, "test": test}, SENTIMENT)
  for chosen in (options(), options(align="pool", codes=4)):
    fitted = preprocess.fit(corpus, chosen)
    result = preprocess.apply(fitted, corpus)
    assert fitted.unseen == ("vision",)
    assert not result.splits["test"].modalities["vision"].lengths.any()
    assert result.notes["untrained_modalities"] == ["vision"]


def test_an_unknown_alignment_is_refused(corpus):
  with pytest.raises(UserError, match="align='stretch' must be one of"):
    preprocess.fit(corpus, options(align="stretch"))


def scored(values, task=SENTIMENT["sentiment"]):
  split = dataclasses.replace(
    make_split(0, size=len(values)),
    labels={"sentiment": np.array(values, np.float32)},
  )
  bare = dataclasses.replace(split, labels={})
  return Corpus("toy", {"train": split, "predict": bare}, {"sentiment": task})


def test_two_classes_are_signs_and_zeros_have_no_label():
  result = preprocess.derive_task(scored([-0.2, 0.0, 1.4, np.nan]), "cls2")
  label = result.splits["train"].labels["sentiment"]
  assert label.dtype == np.int32
  np.testing.assert_array_equal(label, [0, -1, 1, -1])
  task = result.tasks["sentiment"]
  assert (task.kind, task.classes) == ("classes", ("negative", "positive"))
  assert result.splits["predict"].labels == {}


def test_seven_classes_round_halves_to_even_after_clipping():
  scores = [-4.0, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 2.6, np.nan]
  result = preprocess.derive_task(scored(scores), "cls7")
  # clip and round: -3, -2, -2, 0, 0, 2, 2, 3; the class is 3 more.
  np.testing.assert_array_equal(
    result.splits["train"].labels["sentiment"], [0, 1, 1, 3, 3, 5, 5, 6, -1]
  )
  assert result.tasks["sentiment"].classes == ("-3", "-2", "-1", "0", "1", "2", "3")


def test_regression_leaves_the_corpus_alone(corpus):
  assert preprocess.derive_task(corpus, "regression") is corpus


def test_impossible_tasks_are_refused(corpus):
  with pytest.raises(UserError, match="task='cls5' must be one of"):
    preprocess.derive_task(corpus, "cls5")
  classes = preprocess.derive_task(corpus, "cls2")
  with pytest.raises(UserError, match="needs a sentiment regression"):
    preprocess.derive_task(classes, "cls7")
  narrow = scored([0.5, -1.0], Task("regression", low=-1.0, high=1.0, protocol="sims"))
  with pytest.raises(UserError, match=r"in \[-1, 1\]: choose regression or cls2"):
    preprocess.derive_task(narrow, "cls7")
