"""A finished run is opened in one way: its options, pipeline, parameters, feeds."""

import dataclasses

import numpy as np
import pytest
import toy
from changes import change

from msa_jax import models
from msa_jax.data.transforms.transform import OTHER, OWN
from msa_jax.errors import UserError
from msa_jax.runs import prepare, run
from msa_jax.runs.open import PREPROCESSING, open_run
from msa_jax.runs.transforms import pipeline_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("run")
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(models.SYSTEMS, "toy", toy.SYSTEM)
    lost = {"eval": "random:0.3"}
    run.train(change(toy.config(epochs=1), missing=lost), folder, toy.corpus())
  return folder


@pytest.fixture(autouse=True)
def _toys(monkeypatch):
  monkeypatch.setitem(models.SYSTEMS, "toy", toy.SYSTEM)


def test_an_opened_run_reads_its_corpus_as_training_did(folder):
  opened = open_run(folder)
  trained = prepare.prepare(opened.config, toy.corpus())
  again = prepare.reload(opened.config, opened.pipeline, corpus=toy.corpus())
  for name, split in trained.corpus.splits.items():
    found = again.splits[name]
    for modality, sequences in split.modalities.items():
      found_features = found.modalities[modality].features
      np.testing.assert_array_equal(sequences.features, found_features)
    np.testing.assert_array_equal(split.available, found.available)
  feeds = opened.feeds(again)
  assert set(feeds) == {"train", "valid", "test"}
  (predicted,) = opened.predictions(feeds["test"])
  assert predicted.outputs["sentiment"].shape == (13,)


def test_only_the_run_s_own_corpus_is_degraded(folder):
  opened = open_run(folder)
  own = opened.pipeline.apply(toy.corpus(), OWN).splits["test"]
  assert own.available is not None and not own.available.all()
  assert opened.pipeline.apply(toy.corpus(), OTHER).splits["test"].available is None
  # A corpus in memory is the run's own where the run was trained on one in memory.
  assert prepare.occasion(opened.config, corpus=toy.corpus()) == OWN
  from_file = change(opened.config, data={"format": "auto", "path": "a.npz"})
  assert prepare.occasion(from_file, corpus=toy.corpus()) == OTHER
  assert prepare.occasion(from_file) == OWN
  assert prepare.occasion(from_file, "b.npz") == OTHER


def test_a_folder_without_a_pipeline_is_no_finished_run(folder, tmp_path):
  with pytest.raises(UserError, match="holds no run"):
    open_run(tmp_path)
  (tmp_path / "config.json").write_text((folder / "config.json").read_text())
  with pytest.raises(UserError, match=f"{PREPROCESSING} cannot be read"):
    open_run(tmp_path)


def test_options_add_the_transforms_that_they_ask_for():
  def names(**data):
    return [
      each["name"] for each in pipeline_of(change(toy.config(), data=data)).describe()
    ]

  plain = names()
  assert "pseudo_labels" not in plain and "frame_clusters" not in plain
  asked = names(
    pseudo_label_run="runs/a", sample_unit="dialogue", max_steps=3, num_frame_clusters=4
  )
  assert set(asked) - set(plain) == {
    "pseudo_labels",
    "group",
    "max_steps",
    "frame_clusters",
  }
  assert [name for name in asked if name in plain] == plain
  with pytest.raises(UserError, match="align='stretch' must be one of"):
    names(align="stretch")


def test_dropped_training_samples_and_swapped_splits_stay_out_of_later_corpora():
  config = change(
    toy.config(), data={"train_fraction": 0.5}, train={"selection_split": "official"}
  )
  prepared = prepare.prepare(config, toy.corpus())
  splits = prepared.corpus.splits
  assert len(splits["train"]) < 37
  np.testing.assert_array_equal(splits["valid"].ids, splits["test"].ids)
  again = prepare.reload(prepared.config, prepared.pipeline, corpus=toy.corpus())
  assert len(again.splits["train"]) == 37 and len(again.splits["valid"]) == 11
  described = {each["name"]: each for each in prepared.description["transforms"]}
  assert described["subsample"]["share"] == 0.5
  assert described["selection_split"]["chosen"] == "official"
  bare = {"train": toy.corpus().splits["train"]}
  with pytest.raises(
    UserError, match="must be val, none, or official where there is a test"
  ):
    prepare.prepare(config, dataclasses.replace(toy.corpus(), splits=bare))
