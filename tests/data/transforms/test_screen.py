"""Modalities of pure noise are left out, by value on other videos of the training."""

import dataclasses

import numpy as np
import pytest

from msa_jax import get_config
from msa_jax.config.experiment import experiment
from msa_jax.data import synthetic
from msa_jax.data.synthetic.generator import SyntheticOptions
from msa_jax.data.transforms import pipeline, transform
from msa_jax.data.transforms.modalities import MatchModalities, names_of
from msa_jax.data.transforms.screen import Screen
from msa_jax.linear import value
from msa_jax.runs.transforms import pipeline_of
from msa_jax.typing import Corpus, Sequences, Split, Task

ROWS, VIDEOS = 240, 24


def screen(level=0.05):
  return Screen(level, value.moments, value.of, value.FEWEST)


def corpus(kind="regression", text="tells", rows=ROWS):
  """Text tells the label, audio is noise that knows the video, vision is half gone."""
  random = np.random.default_rng(3)
  video = np.arange(rows) % VIDEOS
  y = random.normal(size=VIDEOS)[video] + random.normal(size=rows)
  labels = {
    "regression": y.astype(np.float32),
    "classes": np.digitize(y, [-0.5, 0.5]).astype(np.int32),
    "binary": np.stack([y > 0, y > 1], axis=-1).astype(np.int32),
  }[kind]
  lengths = random.integers(2, 6, rows).astype(np.int32)

  def sequences(signal, lengths=lengths):
    features = random.normal(size=(rows, 5, 6)).astype(np.float32)
    features[..., 0] += signal[:, None]
    features[np.arange(5)[None] >= lengths[:, None]] = 1e6  # padding says anything
    return Sequences(features, lengths)

  nothing = np.zeros(rows)
  there = random.random(rows) < 0.5
  modalities = {
    "text": sequences(y if text == "tells" else nothing),
    # Fifty numbers of the video: who fits these learns the videos of training.
    "audio": sequences(10 * random.normal(size=VIDEOS)[video]),
    "vision": sequences(-y, np.where(there, lengths, 0).astype(np.int32)),
  }
  ids = np.array([f"v{v}$_${i}" for i, v in enumerate(video)])
  split = Split(ids, modalities, {"y": labels})
  task = Task(kind, classes=tuple({"classes": "abc", "binary": "de"}.get(kind, "")))
  return Corpus("made", {"train": split, "test": split}, {"y": task})


@pytest.mark.parametrize("kind", ["regression", "classes", "binary"])
def test_noise_goes_and_what_tells_the_label_stays(kind):
  made = corpus(kind)
  state = screen().fit(made)
  assert state["kept"].tolist() == ["text", "vision"]
  assert state["explained/text"] > 0.3 > 0.05 > state["explained/audio"]
  found = screen().apply(made, state)
  assert names_of(found) == ["text", "vision"]
  assert found.notes["screened_out"] == ["audio"]


def test_it_is_a_matter_of_training_and_is_replayed(tmp_path):
  made = corpus()
  fitted, first = pipeline.Pipeline((screen(), MatchModalities())).fit_apply(made)
  path = tmp_path / "preprocessing.npz"
  pipeline.save(fitted, path)
  loaded = pipeline.load(path, fitted.transforms, made.tasks)
  # A later corpus whose audio would tell everything is read as the run learned to.
  other = corpus(text="nothing")
  for occasion in (transform.OWN, transform.OTHER):
    assert names_of(loaded.apply(other, occasion)) == ["text", "vision"]
  assert names_of(first) == ["text", "vision"]
  assert fitted.describe()[0] == {"name": "screen", "level": 0.05, "fewest": 50}
  only = dataclasses.replace(made, splits={"test": made.splits["test"]})
  assert names_of(loaded.apply(only, transform.OTHER)) == ["text", "vision"]


def test_what_cannot_be_measured_stays():
  few = corpus(rows=48)
  assert screen().fit(few)["kept"].tolist() == ["audio", "text", "vision"]
  # Of token ids there are no features yet.
  made = corpus()
  split = made.splits["train"]
  ids = dataclasses.replace(
    split.modalities["text"], features=np.zeros((ROWS, 5, 0), np.float32)
  )
  split = dataclasses.replace(split, modalities={**split.modalities, "text": ids})
  state = screen().fit(dataclasses.replace(made, splits={"train": split}))
  assert state["kept"].tolist() == ["text", "vision"]
  assert "z/text" not in state and "z/vision" in state


def test_of_nothing_but_noise_all_stays():
  made = corpus(text="nothing")
  split = made.splits["train"]
  kept = {name: split.modalities[name] for name in ("text", "audio")}
  split = dataclasses.replace(split, modalities=kept)
  found = dataclasses.replace(made, splits={"train": split})
  state = screen(1e-6).fit(found)
  assert state["kept"].tolist() == ["audio", "text"]
  assert names_of(screen(1e-6).apply(found, state)) == ["audio", "text"]


@pytest.mark.parametrize("noise", ["audio", "vision", ""])
def test_a_run_on_the_synthetic_corpus_is_that_without_its_noise(noise):
  """So noise costs nothing, whatever the system: its corpus is the same."""
  place = {"audio": 0, "vision": 1}.get(noise, 2)
  signal, tell = [0.8, 0.8, 0.8], [1.2, 1.2, 1.2]
  signal[place] = tell[place] = 1e-3
  options = SyntheticOptions(
    sizes=(400, 20, 20),
    videos=(20, 2, 2),
    widths=(16, 5, 8),
    steps=(20, 40, 40),
    frames_per_token=(2.0, 2.0),
    signal=tuple(signal[:2]),
    tell=tuple(tell[:2]),
  )
  made = synthetic.synthetic(options)
  config = get_config("lf_dnn")
  config.data.screen_level = 0.05
  _, found = pipeline_of(experiment(config)).fit_apply(made)
  names = [name for name in ("audio", "text", "vision") if name != noise]
  assert names_of(found) == names
  config.data.update({"screen_level": 0.0, "modalities": tuple(names)})
  _, without = pipeline_of(experiment(config)).fit_apply(made)
  for name in names:
    np.testing.assert_array_equal(
      found.splits["test"].modalities[name].features,
      without.splits["test"].modalities[name].features,
    )
