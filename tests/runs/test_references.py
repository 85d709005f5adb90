"""What a run says of the constant, of linear models, and of its own anchor."""

import dataclasses
import io
import json

import numpy as np
import pytest
import tiny_encoder
import toy
from changes import change
from rich.console import Console
from sklearn.linear_model import Ridge

from configs import lf_dnn
from msa_jax import models
from msa_jax.report import reading, results, terminal
from msa_jax.report.missing import print_grids
from msa_jax.runs import prepare, references, run
from msa_jax.studies import missing
from msa_jax.training.scoring import LabelArrays
from msa_jax.typing import Task


@pytest.fixture(autouse=True)
def toy_system(monkeypatch):
  monkeypatch.setitem(models.SYSTEMS, "toy", toy.SYSTEM)
  monkeypatch.setattr(prepare, "load", lambda config, **_: toy.corpus())


def anchored(**anchor):
  made = toy.config(epochs=1)
  return change(made, anchor={"to": "text", "dropout": 0.0, **anchor})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """Folder and summary of an anchored run."""
  folder = tmp_path_factory.mktemp("run") / "anchored"
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(models.SYSTEMS, "toy", toy.SYSTEM)
    patch.setattr(prepare, "load", lambda config, **_: toy.corpus())
    return folder, run.train(anchored(), folder)


def means(split, names):
  return np.concatenate(
    [
      [x[:n].mean(axis=0) for x, n in zip(s.features, s.lengths, strict=True)]
      for s in (split.modalities[name] for name in names)
    ],
    axis=1,
  )


def test_the_linear_models_beside_a_run_are_those_of_its_corpus(trained):
  _, summary = trained
  corpus = toy.corpus()
  train, test = corpus.splits["train"], corpus.splits["test"]
  for name, names in (("linear_text", ["text"]), ("linear_all", ["text", "audio"])):
    found = summary["references"]["test"]["sentiment"][name]
    x = means(train, names)
    center, scale = x.mean(axis=0), x.std(axis=0)
    model = Ridge(alpha=found["penalty"])
    model.fit((x - center) / scale, train.labels["sentiment"])
    predicted = model.predict((means(test, names) - center) / scale)
    error = np.mean(np.abs(predicted - test.labels["sentiment"]))
    np.testing.assert_allclose(found["mae"], error, rtol=1e-3)
  constant = summary["references"]["test"]["sentiment"]["constant"]["mae"]
  middle = np.median(train.labels["sentiment"])
  expected = np.mean(np.abs(test.labels["sentiment"] - middle))
  np.testing.assert_allclose(constant, expected, rtol=1e-5)


def test_a_run_is_compared_with_text_alone_pair_by_pair(trained):
  folder, summary = trained
  # One epoch of a linear network: worse than the ridge, and surely so.
  found = summary["compared"]["test"]["sentiment"]["linear_text"]
  ours = summary["splits"]["test"]["sentiment"]["mae"]["mean"]
  theirs = summary["references"]["test"]["sentiment"]["linear_text"]["mae"]
  np.testing.assert_allclose(found["difference"], ours - theirs, rtol=1e-3)
  assert found["better"] == "no" and found["p"] < 0.05 < found["interval"][0]
  said = terminal.training(summary, folder)
  assert f"test sentiment, linear on text: mae {theirs:.3f}" in said
  assert "test sentiment: better than linear on text: no (mae +" in said
  rows = {
    row.name: row for row in results.local_rows([reading.read(folder)], "sentiment")
  }
  assert rows["linear on text"].cells["mae"] == f"{theirs:.3f}"
  assert "better than linear on text: no" in rows["linear on text"].remark


def test_an_anchored_run_tells_what_the_correction_does(trained):
  folder, summary = trained
  columns = reading.read(folder).predictions["test"]
  own, alone = (
    reading.numbers(columns[name]) for name in ("sentiment", "sentiment@anchor")
  )
  found = summary["anchor"]["correction"]["test"]["sentiment"]
  np.testing.assert_allclose(
    found["mean_change"], np.mean(np.abs(own - alone)), rtol=1e-3
  )
  flips = np.mean((own > 0) != (alone > 0))
  np.testing.assert_allclose(found["decisions_changed"], flips)
  assert abs(summary["anchor"]["scale"]["sentiment"]["mean"] - 0.1) < 0.3
  compared = summary["compared"]["test"]["sentiment"]["text_head"]
  labels = reading.numbers(columns["sentiment_label"])
  gain = np.mean(np.abs(own - labels)) - np.mean(np.abs(alone - labels))
  np.testing.assert_allclose(compared["difference"], gain, atol=1e-4)
  assert "own text-only head" in terminal.training(summary, folder)
  json.dumps(summary)


def test_a_grid_has_the_same_rows_under_the_same_masks(trained):
  folder, summary = trained
  report = missing.grid(folder, "conditions")
  rows = {"+".join(row["visible"]): row for row in report["grids"]["conditions"]}
  found = {
    name: row["references"]["sentiment"]["linear_all"]["mae"]
    for name, row in rows.items()
  }
  whole = summary["references"]["test"]["sentiment"]
  np.testing.assert_allclose(found["text+audio"], whole["linear_all"]["mae"], rtol=1e-6)
  assert found["audio"] != found["text"] != found["text+audio"]
  # Without text the model of text alone predicts its mean, the training labels'.
  corpus = toy.corpus()
  mean = corpus.splits["train"].labels["sentiment"].mean()
  error = np.mean(np.abs(corpus.splits["test"].labels["sentiment"] - mean))
  alone = rows["audio"]["references"]["sentiment"]["linear_text"]["mae"]
  np.testing.assert_allclose(alone, error, rtol=1e-4)
  stream = io.StringIO()
  print_grids(report, Console(file=stream, width=300))
  assert "linear_text" in stream.getvalue() and f"{alone:.3f}" in stream.getvalue()


def test_references_can_be_left_out(tmp_path):
  made = change(toy.config(epochs=1), train={"references": False})
  summary = run.train(made, tmp_path / "run")
  assert summary["references"] == {} and summary["compared"] == {"test": {}}
  assert summary["anchor"] is None and not (tmp_path / "run" / references.FILE).exists()


def test_who_is_better_is_said_if_it_is_sure():
  random = np.random.default_rng(0)
  labels = LabelArrays(random.normal(size=200), np.arange(200) < 190)
  good, bad = (labels.values + random.normal(size=200) * s for s in (0.1, 1.0))
  good[190:] = 1e6  # without a label
  task = Task("regression", -3.0, 3.0)
  assert references.compare(task, good, bad, labels)["better"] == "yes"
  assert references.compare(task, bad, good, labels)["better"] == "no"
  same = labels.values + random.normal(size=200)
  assert references.compare(task, bad, same, labels)["better"] == "cannot say"
  task = Task("classes", classes=("a", "b"))
  answers = random.integers(0, 2, 200)
  labels = LabelArrays(answers, np.ones(200, bool))
  right = np.eye(2)[answers]
  found = references.compare(task, right, np.full((200, 2), 0.5), labels)
  assert found["better"] == "yes" and found["metric"] == "wa"
  np.testing.assert_allclose(found["difference"], np.mean(answers == 1))
  task = Task("binary", classes=("a", "b"))
  yes = random.integers(0, 2, (200, 2))
  found = references.compare(task, 0.9 * yes, 1.0 - yes, LabelArrays(yes, labels.mask))
  assert (found["difference"], found["better"]) == (1.0, "yes")


def test_corrections_of_classes_and_questions_are_shares():
  tasks = {
    "emotion": Task("classes", classes=("a", "b")),
    "mood": Task("binary", classes=("c",)),
  }
  sure, unsure = np.array([[9.0, -9.0]]), np.array([[-9.0, 9.0]])
  seed = {
    "emotion": sure,
    "emotion@anchor": unsure,
    "mood": sure[:, None],
    "mood@anchor": sure[:, None],
  }
  found = references.correction(tasks, [seed])
  np.testing.assert_allclose(found["emotion"]["mean_change"], 1.0, atol=1e-6)
  assert found["emotion"]["decisions_changed"] == 1.0
  assert found["mood"] == {"mean_change": 0.0, "decisions_changed": 0.0}


def test_text_of_a_trained_encoder_is_what_the_checkpoint_says(tmp_path, monkeypatch):
  folder = tiny_encoder.folder(tmp_path / "encoder", n_layers=1)
  monkeypatch.setattr(prepare, "load", lambda config, **_: tiny_encoder.corpus())
  made = change(
    lf_dnn.get_config(),
    data={"modalities": ("text", "audio"), "align": "none"},
    text={"input": "encoder", "encoder": folder, "finetune": "all"},
  )
  prepared = prepare.prepare(made)
  fitted = references.fit(prepared.config, prepared.corpus)
  assert fitted["sentiment"]["linear_text"].weights.shape == (8, 1)
  split = prepared.corpus.splits["test"]
  index = np.array([4, 2])
  part = references.pool(prepared.config, split, index).means["text"]
  whole = references.pool(prepared.config, split).means["text"]
  np.testing.assert_allclose(part, whole[index], atol=2e-3)
  assert whole.std(axis=0).min() > 0
  gone = dataclasses.replace(prepared.config.text, encoder=str(tmp_path / "none"))
  assert references.fit(prepared.config.replace(text=gone), prepared.corpus) == {}
