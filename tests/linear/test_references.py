"""Pooled rows by loops, and references by scikit-learn: what is absent is absent."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from msa_jax.data.lazy import LazyFeatures
from msa_jax.data.transforms.dialogues import group
from msa_jax.linear import pooling, references
from msa_jax.linear.references import Labelled
from msa_jax.training import scoring
from msa_jax.typing import Corpus, Sequences, Split, Task

TASKS = {
  "sentiment": Task("regression", -3.0, 3.0),
  "emotion": Task("classes", classes=("a", "b", "c"), protocol="classes"),
  "mood": Task("binary", classes=("d", "e"), protocol="emotions"),
}
CONSTANTS = {"sentiment": (0.5,), "emotion": (-1.0, -2.0, -3.0), "mood": (0, 1, 2, 3)}


def split(n=40, seed=0, name="train"):
  """Ragged sequences with lost steps; some samples lack audio, two lack all."""
  random = np.random.default_rng(seed)
  modalities = {}
  for modality, width in (("audio", 2), ("text", 3), ("vision", 2)):
    lengths = random.integers(0 if modality == "audio" else 1, 5, n).astype(np.int32)
    lengths[:2] = 0
    features = random.normal(size=(n, 4, width)).astype(np.float32) * 3 + 1
    features[np.arange(4)[None] >= lengths[:, None]] = 9e3  # must not be read
    lost = random.random((n, 4)) < 0.2
    features[lost] = np.nan
    if modality == "vision":
      lengths[:] = 0
    modalities[modality] = Sequences(features, lengths, lost)
  available = random.random((n, 3)) < 0.9
  label = random.normal(size=n).astype(np.float32)
  label[5] = np.nan
  return Split(
    ids=np.array([f"v{i % 7}$_${name}{i}" for i in range(n)]),
    modalities=modalities,
    labels={
      "sentiment": label,
      "emotion": random.integers(-1, 3, n).astype(np.int32),
      "mood": random.integers(0, 2, (n, 2)).astype(np.int32),
    },
    groups=np.array([f"v{i % 7}" for i in range(n)]),
    available=available,
  )


def rows(data, name):
  """Mean of the visible steps of each sample, None where there is none."""
  column = ["text", "audio", "vision"].index(name)
  sequences, found = data.modalities[name], []
  for i in range(len(data)):
    steps = [
      sequences.features[i, t].astype(float)
      for t in range(sequences.lengths[i])
      if not sequences.lost[i, t] and data.available[i, column]
    ]
    found.append(np.mean(steps, axis=0) if steps else None)
  return found


@pytest.mark.parametrize("lazy", [False, True])
def test_pooled_rows_are_means_of_the_steps_that_are_there(lazy):
  data = split()
  expected = {name: rows(data, name) for name in ("text", "audio", "vision")}
  if lazy:
    for name, one in data.modalities.items():
      features = LazyFeatures(one.features.shape, np.float32, one.features.__getitem__)
      data.modalities[name] = Sequences(features, one.lengths, one.lost)
  index = np.array([3, 0, 17, 30, 8])
  for found, chosen in (
    (pooling.pool(data), range(40)),
    (pooling.pool(data, index), index),
  ):
    for name, each in expected.items():
      for row, i in enumerate(chosen):
        there = each[i] is not None
        assert found.seen[name][row] == there
        value = each[i] if there else 0.0
        np.testing.assert_allclose(found.means[name][row], value, rtol=1e-6)
  assert found.dialogue is None


def test_rows_of_dialogues_are_their_utterances_beside_the_mean_of_all():
  data = split()
  corpus = Corpus("c", {"train": data}, TASKS)
  grouped = group(corpus).splits["train"]
  pooled = pooling.pool(grouped)
  order = [i for video in range(7) for i in range(video, 40, 7)]
  expected = rows(data, "text")
  assert pooled.seen["text"].tolist() == [expected[i] is not None for i in order]
  design = pooling.design(pooled, ("text",), context=True)
  matrix = pooling.matrix(design, pooled)
  seen = [i for i in order if expected[i] is not None]
  all_rows = np.stack([expected[i] for i in seen])
  mean, deviation = all_rows.mean(axis=0), all_rows.std(axis=0)
  for row, i in enumerate(order):
    own = (expected[i] - mean) / deviation if expected[i] is not None else np.zeros(3)
    mates = [k for k in seen if k % 7 == i % 7]
    around = np.mean([(expected[k] - mean) / deviation for k in mates], axis=0)
    there = float(expected[i] is not None)
    wanted = np.concatenate([own, [there], around, [1.0]])
    np.testing.assert_allclose(matrix[row], wanted, rtol=1e-4, atol=1e-5)


def labelled(data, tasks=TASKS):
  found = scoring.label_arrays(data, tasks)
  return Labelled(
    pooling.pool(data), {name: (each.values, each.mask) for name, each in found.items()}
  )


def by_hand(train, names):
  """Function of a split: standardised means, zero and a column where they lack."""
  kept = {name: [r for r in rows(train, name) if r is not None] for name in names}

  def matrix(data):
    columns = []
    for name in names:
      mean, deviation = np.mean(kept[name], axis=0), np.std(kept[name], axis=0)
      columns.append(
        [
          np.zeros_like(mean) if r is None else (r - mean) / deviation
          for r in rows(data, name)
        ]
      )
    there = [[[float(r is not None)] for r in rows(data, name)] for name in names]
    return np.concatenate([*columns, *there], axis=1)

  return matrix


def test_references_are_scikit_learn_s_models_of_the_same_rows():
  train, valid, test = split(), split(seed=1, name="valid"), split(seed=2, name="test")
  fitted = references.fit(TASKS, labelled(train), labelled(valid), CONSTANTS)
  assert {task: list(named) for task, named in fitted.items()} == dict.fromkeys(
    TASKS, ["constant", "linear_text", "linear_all"]
  )
  pooled = pooling.pool(test)
  for name, names in (("linear_text", ("text",)), ("linear_all", ("text", "audio"))):
    one = fitted["sentiment"][name]
    matrix, known = by_hand(train, names), np.isfinite(train.labels["sentiment"])
    model = Ridge(alpha=one.penalty)
    model.fit(matrix(train)[known], train.labels["sentiment"][known])
    found = references.predict(one, pooled)
    np.testing.assert_allclose(found, model.predict(matrix(test)), rtol=1e-4, atol=1e-4)
    one = fitted["emotion"][name]
    known = train.labels["emotion"] >= 0
    model = LogisticRegression(C=one.penalty, tol=1e-9, max_iter=1000)
    model.fit(matrix(train)[known], train.labels["emotion"][known])
    logits = references.predict(one, pooled)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(
      weights / weights.sum(axis=1, keepdims=True),
      model.predict_proba(matrix(test)),
      atol=2e-3,
    )
  assert references.predict(fitted["mood"]["linear_all"], pooled).shape == (40, 2, 2)


def test_constants_are_those_given_and_unlabelled_tasks_have_no_reference():
  train = split()
  unlabelled = np.full(40, -1, np.int32)
  train.labels["emotion"][:] = unlabelled
  fitted = references.fit(TASKS, labelled(train), None, CONSTANTS)
  assert set(fitted) == {"sentiment", "mood"}
  pooled = pooling.pool(train)
  values = references.predict(fitted["sentiment"]["constant"], pooled)
  assert values.tolist() == [0.5] * 40
  mood = references.predict(fitted["mood"]["constant"], pooled)
  assert mood[7].tolist() == [[0, 1], [2, 3]]


def test_fitted_references_are_read_as_they_were_written(tmp_path):
  train, test = split(), split(seed=2)
  fitted = references.fit(TASKS, labelled(train), None, CONSTANTS)
  references.save(tmp_path / "r.npz", fitted)
  found = references.load(tmp_path / "r.npz")
  pooled = pooling.pool(test)
  assert {t: list(named) for t, named in found.items()} == {
    t: list(named) for t, named in fitted.items()
  }
  for task, named in fitted.items():
    for name, one in named.items():
      np.testing.assert_array_equal(
        references.predict(found[task][name], pooled), references.predict(one, pooled)
      )
  assert references.load(tmp_path / "none.npz") == {}


def test_large_corpora_are_fitted_on_a_part(monkeypatch):
  train = split()
  whole = references.fit(TASKS, labelled(train), None, CONSTANTS)
  monkeypatch.setattr(references, "MOST_ROWS", 20)
  part = references.fit(TASKS, labelled(train), None, CONSTANTS)
  weights = [f["sentiment"]["linear_text"].weights for f in (whole, part)]
  assert not np.allclose(*weights) and np.isfinite(weights[1]).all()
