"""The grid of missing modalities: one program, files, bounds, the command line."""

import csv
import dataclasses
import io
import json

import jax
import numpy as np
import pytest
import toy
from changes import change
from rich.console import Console

from configs import lf_dnn
from msa_jax import models
from msa_jax.config.experiment import experiment
from msa_jax.data import missing
from msa_jax.data.batching import batches
from msa_jax.data.synthetic import posterior
from msa_jax.errors import UserError
from msa_jax.report.missing import print_grids
from msa_jax.runs import prepare, run
from msa_jax.runs.open import open_run
from msa_jax.step import compose
from msa_jax.studies.missing import grid
from msa_jax.training import feed as feed_lib
from msa_jax.typing import MODALITIES


@pytest.fixture
def toy_system(monkeypatch):
  monkeypatch.setitem(models.SYSTEMS, "toy", toy.SYSTEM)
  monkeypatch.setattr(prepare, "load", lambda config, **_: toy.corpus())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """LF-DNN, two seeds, on a tiny synthetic corpus with some absent modalities."""
  sizes = {"sizes": (32, 16, 24), "videos": (4, 2, 3), "widths": (8, 3, 4)}
  config = experiment(lf_dnn.get_config())
  world = dataclasses.replace(config.data.synthetic, **sizes, absent=(0.1, 0.1, 0.1))
  config = change(
    config,
    data={"synthetic": world},
    optim={"epochs": 1},
    train={"eval_batch_size": 16},
    replicas={"seeds": (0, 1)},
  )
  folder = tmp_path_factory.mktemp("run")
  return folder, run.train(config, folder)


def test_the_grid_takes_no_more_programs_for_more_patterns(trained):
  folder, summary = trained
  report = grid(folder, "conditions,random,batches:0.3,frames:0.5,tokens:0.4")
  buckets = 2  # of lengths: LF-DNN's batches are cut to one of them
  assert report["n_programs"] == grid(folder, "conditions")["n_programs"] == buckets
  assert [len(rows) for rows in report["grids"].values()] == [7, 8, 1, 1, 1]
  complete = report["grids"]["random"][0]
  assert complete["figures"] == summary["splits"]["test"]
  for name in ("conditions", "random", "batches_0.3", "frames_0.5", "tokens_0.4"):
    assert {p.suffix for p in (folder / "missing").glob(f"{name}.*")} == {
      ".json",
      ".csv",
      ".npz",
    }


def test_figures_masks_and_predictions_in_the_files_agree(trained):
  folder, _ = trained
  grid(folder, "conditions")
  with (folder / "missing" / "conditions.csv").open() as file:
    lines = list(csv.DictReader(file))
  (line,) = (
    x
    for x in lines
    if (x["pattern"], x["metric"], x["seed"]) == ("text+vision", "mae", "1")
  )
  with np.load(folder / "missing" / "conditions.npz") as file:
    prediction = file["text+vision/predictions_sentiment"][1]
    masks = file["text+vision/available"]
  config = run.RunDirectory(folder).experiment()
  test = prepare.load(config).splits["test"]
  labels = test.labels["sentiment"]
  error = np.abs(prediction.astype(float) - labels).mean()
  assert float(line["value"]) == pytest.approx(error, rel=1e-5)
  assert not masks[:, 1].any()
  alone = ~batches.availability(test)[:, [0, 2]].any(axis=1)
  assert int(line["without_content"]) == alone.sum()
  median = np.median(prepare.load(config).splits["train"].labels["sentiment"])
  np.testing.assert_allclose(prediction[alone], median, rtol=1e-5)
  rows = json.loads((folder / "missing" / "conditions.json").read_text())["rows"]
  figure = rows[4]["figures"]["sentiment"]["mae"]
  assert rows[4]["pattern"] == "text+vision"
  assert figure["values"][1] == pytest.approx(error, rel=1e-5)
  assert figure["std"] == pytest.approx(np.std(figure["values"], ddof=1))


def test_masking_a_modality_is_the_same_as_never_having_had_it(trained):
  folder, _ = trained
  grid(folder, "audio+vision")
  config = run.RunDirectory(folder).experiment()
  with np.load(folder / "missing" / "audio+vision.npz") as file:
    masked = file["audio+vision/predictions_sentiment"][0]
  corpus = prepare.reload(config, open_run(folder).pipeline)
  test = corpus.splits["test"]
  text = test.modalities["text"]
  without = dataclasses.replace(text, lengths=np.zeros_like(text.lengths))
  test = dataclasses.replace(test, modalities={**test.modalities, "text": without})
  system = compose.build(config)
  chosen = run.restore(run.RunDirectory(folder), config)
  corpus = dataclasses.replace(corpus, splits={"test": test})
  feed = run.feeds_of(config, corpus)["test"]
  alone = feed_lib.Predictor(system, 16)(*chosen[0], feed).outputs["sentiment"]
  np.testing.assert_array_equal(masked, alone)


def test_bounds_on_the_synthetic_corpus_are_those_of_each_condition(trained):
  folder, _ = trained
  rows = grid(folder, "conditions,random,frames:0.5")["grids"]
  config = run.RunDirectory(folder).experiment()
  corpus = prepare.load(config)
  known = corpus.notes["bayes_by_condition"]["test"]
  for row in rows["conditions"]:
    assert row["bayes"]["sentiment"]["mae"] == known[row["pattern"]]["mae"]
    assert row["bayes"]["sentiment"]["acc2_non0"] == known[row["pattern"]]["acc2_non0"]
  # Random missing, sample by sample: each sample alone under its own condition.
  test = corpus.splits["test"]
  options = config.data.synthetic
  masks = missing.draw(missing.parse("random:0.5"), test, 0).available
  errors = []
  for row, mask in enumerate(masks):
    visible = [name for name, seen in zip(MODALITIES, mask, strict=True) if seen]
    median = posterior.bayes(options, test, visible).median[row]
    errors.append(abs(median - test.labels["sentiment"][row]))
  half = rows["random"][5]
  assert half["pattern"] == "random:0.5"
  assert half["bayes"]["sentiment"]["mae"] == pytest.approx(np.mean(errors))
  lost = missing.apply(test, missing.draw(missing.parse("frames:0.5"), test, 0))
  best = posterior.optimum(posterior.bayes(options, lost), test)
  assert rows["frames:0.5"][0]["bayes"]["sentiment"]["mae"] == best["mae"]


def test_streamed_splits_give_the_same_predictions(trained):
  folder, _ = trained
  config = run.RunDirectory(folder).experiment()
  corpus = prepare.reload(config, open_run(folder).pipeline)
  lengths, tasks = dict(config.spec.lengths), corpus.tasks
  split = corpus.splits["test"]
  masks = missing.draw(missing.parse("random:0.5"), split, 0).available
  order = np.asarray([[3, 0, 5], [23, 1, -1]])
  found = []
  for budget in (2**30, 0):
    feed = feed_lib.make_feed(split, tasks, lengths, budget)
    feed = feed_lib.with_available(feed, masks)
    if feed.resident is not None:
      found.append([batches.take(feed.resident, rows) for rows in order])
    else:
      found.append(list(feed.stream(order, 0)))
  for ours, theirs in zip(*found, strict=True):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
      np.testing.assert_array_equal(a, b)


def test_the_table_shows_patterns_figures_bounds_and_priors(trained):
  report = grid(trained[0], "conditions,frames:0.5")
  text = io.StringIO()
  print_grids(report, Console(file=text, width=200))
  lines = text.getvalue().splitlines()
  line, beside = (x for x in lines if "audio+vision" in x and "text" not in x)
  row = report["grids"]["conditions"][5]
  assert f"{row['figures']['sentiment']['mae']['mean']:.3f} ±" in line
  assert f"{row['bayes']['sentiment']['mae']:.3f}" in line
  assert f" {row['without_content']} " in line
  for reference in ("constant", "linear_text", "linear_all"):
    assert f" {row['references']['sentiment'][reference]['mae']:.3f} " in beside
  assert "24 samples of test, masks of seed 0" in text.getvalue()


def test_two_modalities_have_a_grid_of_three_and_no_tables(toy_system, tmp_path):
  run.train(toy.config(epochs=1), tmp_path)
  rows = grid(tmp_path, "conditions")["grids"]["conditions"]
  assert [row["pattern"] for row in rows] == ["text", "audio", "text+audio"]
  assert rows[0]["bayes"] == {}
  with pytest.raises(UserError, match="tables for three modalities"):
    grid(tmp_path, "batches")


def test_files_without_labels_have_no_grid(toy_system, tmp_path, monkeypatch):
  run.train(toy.config(epochs=1), tmp_path)
  monkeypatch.setattr(prepare, "load", lambda config, **_: toy.corpus(labelled=False))
  with pytest.raises(UserError, match="new.npz has no labels to evaluate on"):
    grid(tmp_path, "conditions", "new.npz")
