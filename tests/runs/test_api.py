"""Whole runs from Python: in memory, with an own system, back as predictions."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import own_model
import pytest
from paths import ROOT, SUPPORT

import msa_jax
from msa_jax import models, train_state
from msa_jax.data import save
from msa_jax.errors import UserError
from msa_jax.models import registry

OPTIONS = {"optim.epochs": 2, "replicas.seeds": (0, 1), "optim.batch_size": 8}


def _arrays(n, seed):
  random = np.random.default_rng(seed)
  y = random.uniform(-3, 3, n)
  text = random.normal(size=(n, 5, 4)) + y[:, None, None]
  return {"text": text, "audio": random.normal(size=(n, 7, 3))}, y


def _corpus(labels=None, tasks=None):
  (train, y), (valid, y_valid), (test, y_test) = (
    _arrays(n, seed) for seed, n in enumerate((24, 8, 9))
  )
  found = {"sentiment": {"train": y, "valid": y_valid, "test": y_test}}
  return msa_jax.Corpus.from_arrays(
    train, valid, test, labels=labels or found, tasks=tasks
  )


@pytest.fixture(scope="module")
def mine():
  patch = pytest.MonkeyPatch()
  patch.setattr(registry, "SYSTEMS", dict(registry.SYSTEMS))
  msa_jax.register("mine", own_model.SYSTEM)  # no options, no `task`
  yield
  patch.undo()


@pytest.fixture(scope="module")
def trained(mine, tmp_path_factory):
  folder = tmp_path_factory.mktemp("api") / "run"
  return msa_jax.train("mine", _corpus(), folder, OPTIONS), folder


def _csv(path):
  with path.open() as file:
    return list(csv.DictReader(file))


def test_training_in_memory_says_so_and_evaluates_to_the_same_figures(trained):
  summary, folder = trained
  assert summary["workdir"] == str(folder)
  data = json.loads((folder / "data.json").read_text())
  assert (data["source"], data["raw_steps"]) == ("memory", {"text": 5, "audio": 7})
  report = msa_jax.evaluate(folder, _corpus())
  assert set(report) == {"valid", "test"}
  for split in report:
    ours, theirs = (each[split]["sentiment"] for each in (report, summary["splits"]))
    assert ours["mae"]["values"] == pytest.approx(theirs["mae"]["values"], rel=1e-6)


def test_a_run_of_a_corpus_in_memory_asks_for_it_again(trained, tmp_path):
  _, folder = trained
  with pytest.raises(UserError, match="in memory, which is not stored: give it again"):
    msa_jax.evaluate(folder)
  save(_corpus(), tmp_path / "mine.npz")  # or a file, which is another corpus
  assert set(msa_jax.evaluate(folder, tmp_path / "mine.npz")) == {
    "train",
    "valid",
    "test",
  }


def test_another_corpus_in_memory_is_evaluated_whole(trained):
  arrays, y = _arrays(10, seed=7)
  other = msa_jax.Corpus.from_arrays(arrays, labels={"sentiment": y})
  assert set(msa_jax.evaluate(trained[1], other)) == {"train"}
  unlabelled = msa_jax.Corpus.from_arrays(arrays)
  with pytest.raises(UserError, match="memory has no labels to evaluate on"):
    msa_jax.evaluate(trained[1], unlabelled)


def test_a_predictor_says_what_the_run_said(trained):
  _, folder = trained
  rows = _csv(folder / "predictions" / "test.csv")
  expected = [float(row["sentiment"]) for row in rows]
  predictor = msa_jax.Predictor(folder)
  arrays, _ = _arrays(9, seed=2)
  found = predictor(**arrays)
  np.testing.assert_allclose(found["sentiment"], expected, rtol=1e-4, atol=1e-5)
  assert found.has_content.all() and not found.classes
  one = predictor(text=arrays["text"][4], audio=arrays["audio"][4])
  assert one["sentiment"] == pytest.approx(expected[4], abs=1e-4)
  lists = predictor(text=list(arrays["text"][:2]), audio=list(arrays["audio"][:2]))
  np.testing.assert_allclose(lists["sentiment"], expected[:2], rtol=1e-4, atol=1e-5)
  alone = predictor(text=arrays["text"])["sentiment"]
  assert (np.abs(alone - expected) > 1e-6).all()
  short = predictor(**arrays, lengths={"text": np.full(9, 2)})["sentiment"]
  assert (np.abs(short - expected) > 1e-6).all()
  programs = [each.n_programs for each in predictor._predictors.values()]
  assert sum(programs) <= 3 and max(programs) == 1


@pytest.mark.parametrize(
  ("arrays", "message"),
  [
    ({"txt": np.ones((2, 5, 4))}, "modality 'txt': the run knows text, audio"),
    ({}, "give one modality at least of text, audio"),
    ({"text": np.ones((2, 5, 9))}, "text has 9 features per step"),
    ({"text": np.ones((5, 4)), "audio": np.ones((2, 7, 3))}, "one sample and others"),
    ({"text": np.ones((2, 5, 4)), "audio": np.ones((3, 7, 3))}, "3 samples"),
    ({"text": "so good"}, "trained on features, not on transcripts"),
  ],
)
def test_arrays_that_a_run_cannot_read_are_refused(trained, arrays, message):
  with pytest.raises(UserError, match=message):
    msa_jax.Predictor(trained[1])(**arrays)


def test_lengths_of_an_unknown_modality_are_refused(trained):
  with pytest.raises(UserError, match="lengths of 'txt'"):
    msa_jax.Predictor(trained[1])(text=np.ones((2, 5, 4)), lengths={"txt": [1, 1]})


def test_predictions_of_a_corpus_are_columns_of_numbers(trained, tmp_path):
  columns = msa_jax.predict(trained[1], _corpus(), tmp_path / "p.csv")
  assert {len(column) for column in columns.values()} == {24 + 8 + 9}
  rows = _csv(tmp_path / "p.csv")
  assert [row["id"] for row in rows] == columns["id"].tolist()
  np.testing.assert_allclose(
    [float(row["sentiment"]) for row in rows], columns["sentiment"], rtol=1e-4
  )


def test_a_system_of_ones_own_is_loaded_again(trained):
  config, state = train_state.load(trained[1], seed=1)
  batch = msa_jax.Batch.from_arrays(_arrays(3, seed=5)[0])
  output = train_state.predict(config, state, batch)
  assert output.predictions["sentiment"].shape == (3,)


def test_classes_come_as_probabilities_and_single_steps_as_rows(mine, tmp_path):
  (train, y), (valid, y_valid) = _arrays(24, 0), _arrays(8, 1)
  train, valid = ({"text": each["text"][:, 0]} for each in (train, valid))
  labels = {"train": (y > 0).astype(int), "valid": (y_valid > 0).astype(int)}
  corpus = msa_jax.Corpus.from_arrays(train, valid, labels={"emotion": labels})
  msa_jax.train("mine", corpus, tmp_path / "run", {"optim.epochs": 1})
  found = msa_jax.Predictor(tmp_path / "run")(text=valid["text"])
  assert found["emotion"].shape == (8, 2) and found.classes == {"emotion": ("0", "1")}
  np.testing.assert_allclose(found["emotion"].sum(-1), 1.0, rtol=1e-6)


def test_folders_are_named_after_the_corpus(mine, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  summary = msa_jax.train("mine", _corpus(), options={"optim.epochs": 1})
  assert summary["workdir"].startswith("runs/mine-memory-")


def test_corpora_in_memory_are_checked_like_files(mine, tmp_path):
  corpus = _corpus()
  train = corpus.splits["train"]
  twice = train.ids.copy()
  twice[0] = twice[1]
  for changes, message in (
    ({"ids": twice}, "occurs twice in train"),
    ({"labels": {"sentiment": np.zeros(24, int)}}, "the task is regression"),
    ({"ids": train.ids[:3]}, "rows of"),
  ):
    split = train.__class__(**{**vars(train), **changes})
    wrong = corpus.__class__("x", {**corpus.splits, "train": split}, corpus.tasks)
    with pytest.raises(UserError, match=message):
      msa_jax.train("mine", wrong, tmp_path / "wrong")


def _python(code, folder, *paths):
  return subprocess.run(
    [sys.executable, "-c", code],
    cwd=folder,
    env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, *paths)))},
    capture_output=True,
    text=True,
    timeout=300,
  )


def test_a_packages_system_trains_here_and_predicts_in_another_process(tmp_path, mine):
  site = tmp_path / "site"
  folder = site / "theirs-1.2.dist-info"
  folder.mkdir(parents=True)
  (site / "their_package.py").write_text("from own_model import SYSTEM\n")
  (folder / "METADATA").write_text(
    "Metadata-Version: 2.1\nName: theirs\nVersion: 1.2\n"
  )
  points = "[msa_jax.systems]\ntheirs = their_package:SYSTEM\n"
  (folder / "entry_points.txt").write_text(points)
  code = (
    "import numpy as np, msa_jax\n"
    "x = np.random.default_rng(0).normal(size=(16, 3, 2)); y = x.sum((1, 2))\n"
    "corpus = msa_jax.Corpus.from_arrays({'text': x}, {'text': x},"
    " labels={'sentiment': {'train': y, 'valid': y}})\n"
    "msa_jax.train('theirs', corpus, 'run', options={'optim.epochs': 1})\n"
    "print(msa_jax.evaluate('run', corpus)['valid']['sentiment']['mae']['mean'])\n"
  )
  done = _python(code, tmp_path, site, SUPPORT)
  assert done.returncode == 0, done.stderr
  config = json.loads((tmp_path / "run" / "config.json").read_text())
  assert config["provided_by"] == "theirs 1.2 (their_package:SYSTEM)"
  code = (
    "import numpy as np, msa_jax\n"
    "print(msa_jax.Predictor('run')(text=np.ones((2, 3, 2)))['sentiment'].shape)\n"
  )
  again = _python(code, tmp_path, site, SUPPORT)
  assert again.stdout.strip() == "(2,)", again.stderr
  without = _python(code, tmp_path, SUPPORT)
  assert "install the package that provides it" in without.stderr
  assert models.provider("theirs") == ""
