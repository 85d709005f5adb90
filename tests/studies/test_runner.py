"""The studies' runner: trials to runs to one csv, going on where it stopped."""

import csv
import dataclasses

import numpy as np
import pytest
import toy
from changes import change

from msa_jax.config import files
from msa_jax.data.transforms import subsample
from msa_jax.errors import UserError
from msa_jax.models import SYSTEMS
from msa_jax.report import page, studies
from msa_jax.runs import prepare, run
from msa_jax.studies import __main__ as command
from msa_jax.studies import catalogue, robustness, runner
from msa_jax.typing import Task


@pytest.fixture
def toys(monkeypatch):
  monkeypatch.setitem(SYSTEMS, "toy", toy.SYSTEM)
  monkeypatch.setattr(prepare, "load", lambda config, **_: toy.corpus())


def test_a_study_trains_its_trials_once_and_goes_on_after_a_stop(
  toys, tmp_path, monkeypatch
):
  trials = catalogue.low_resource([toy.config(epochs=1)])
  trials = [trials[0], trials[-1]]
  trained, train = [], run.train

  def counted(config, folder):
    trained.append(folder.name)
    if len(trained) == 2:
      raise UserError("stopped")
    return train(config, folder)

  monkeypatch.setattr(run, "train", counted)
  with pytest.raises(UserError, match="stopped"):
    runner.run_trials("low_resource", trials, tmp_path)
  first = (tmp_path / "study.csv").read_text()
  summaries = runner.run_trials("low_resource", trials, tmp_path)
  assert trained == ["toy_synthetic_10", "toy_synthetic_100", "toy_synthetic_100"]
  assert (tmp_path / "study.csv").read_text().startswith(first)
  assert runner.run_trials("low_resource", trials, tmp_path) == summaries
  assert len(trained) == 3
  lines = studies.read(tmp_path)
  wanted = {"trial": "toy_synthetic_100", "split": "test", "metric": "mae", "seed": "0"}
  (line,) = [each for each in lines if wanted.items() <= each.items()]
  figure = summaries["toy_synthetic_100"]["splits"]["test"]["sentiment"]["mae"]
  assert float(line["value"]) == figure["values"][0]
  assert (line["x"], line["group"]) == ("1.0", "toy_synthetic")
  entropy = {"task": "gate gate", "metric": "router_entropy_dense_bits"}
  assert any(entropy.items() <= each.items() for each in lines)
  made = studies.drawings(lines)
  curve = made[0].figure.axes[0].lines[0].get_xydata()
  other = summaries["toy_synthetic_10"]["splits"]["test"]["sentiment"]["mae"]
  np.testing.assert_allclose(curve, [[0.1, other["mean"]], [1.0, figure["mean"]]])
  with pytest.raises(UserError, match="two trials 'toy_synthetic_10'"):
    runner.run_trials("low_resource", [trials[0]] * 2, tmp_path)


def test_a_share_of_training_is_stratified_nested_and_fixed():
  corpus = toy.corpus(sizes=(200, 5, 5))
  kept = {s: subsample.shrink(corpus, s).splits["train"] for s in (0.1, 0.2, 0.5)}
  whole = np.sign(corpus.splits["train"].labels["sentiment"])
  for share, split in kept.items():
    signs = np.sign(split.labels["sentiment"])
    for sign in (-1, 1):
      assert np.sum(signs == sign) == round(share * np.sum(whole == sign))
  assert set(kept[0.1].ids) < set(kept[0.2].ids) < set(kept[0.5].ids)
  again = subsample.shrink(corpus, 0.2).splits
  np.testing.assert_array_equal(again["train"].ids, kept[0.2].ids)
  assert again["test"] is corpus.splits["test"]
  assert subsample.shrink(corpus, 1.0) is corpus
  for share in (0.0, 1.5):
    with pytest.raises(UserError, match="train_fraction=.* must be in"):
      subsample.shrink(corpus, share)


def test_questions_and_missing_labels_are_strata_of_their_own():
  corpus = toy.corpus(sizes=(40, 5, 5))
  train = corpus.splits["train"]
  answers = np.tile([[0, 1], [1, 1]], (20, 1)).astype(np.int32)
  yes_no = dataclasses.replace(train, labels={"emotion": answers})
  tasks = {"emotion": Task("binary", classes=("a", "b"), protocol="emotions")}
  made = dataclasses.replace(corpus, splits={"train": yes_no}, tasks=tasks)
  found = subsample.shrink(made, 0.2).splits["train"].labels["emotion"]
  assert found.sum(axis=0).tolist() == [4, 8]
  values = np.where(np.arange(40) < 10, np.nan, 1.0).astype(np.float32)
  some = dataclasses.replace(train, labels={"sentiment": values})
  made = dataclasses.replace(corpus, splits={"train": some})
  found = subsample.shrink(made, 0.5).splits["train"].labels["sentiment"]
  assert (np.isnan(found).sum(), len(found)) == (5, 20)


@pytest.mark.parametrize(
  "data", [{"sample_unit": "dialogue"}, {"extra_train_paths": ("other.npz",)}]
)
def test_shares_of_dialogues_and_joined_files_are_refused(toys, data):
  config = change(toy.config(), data={"train_fraction": 0.5, **data})
  with pytest.raises(UserError, match="train_fraction=0.5 shrinks one file"):
    prepare.prepare(config)


def test_studies_are_products_of_systems_files_and_settings(toys, monkeypatch):
  plain = [toy.config()]
  names = [trial.name for trial in catalogue.leaderboard(plain, ["a.x", "b.x"])]
  assert names == ["toy_a", "toy_b"]
  assert [trial.name for trial in catalogue.router_compare(plain)] == ["toy_synthetic"]
  dropped = {"undropped": {"model.dropout": 0.0}, "much": {"model.dropout": 0.5}}
  system = toy.SYSTEM._replace(
    router_variants=dropped,
    robustness={"without": {"model.dropout": 0.25}},
  )
  monkeypatch.setitem(SYSTEMS, "toy", system)
  trials = catalogue.router_compare(plain)
  assert [trial.name for trial in trials] == [
    "toy_synthetic_undropped",
    "toy_synthetic_much",
  ]
  assert [trial.config.model["dropout"] for trial in trials] == [0.0, 0.5]
  whole, without = robustness.trials(plain)
  assert (whole.group, without.group) == ("toy_synthetic", "toy_synthetic_without")
  assert without.config.model["dropout"] == 0.25


def test_other_systems_that_are_no_configs_are_refused(tmp_path):
  with pytest.raises(UserError, match="there is no file moon.py"):
    files.get_config("moon.py:mosi")
  (tmp_path / "empty.py").write_text("")
  with pytest.raises(UserError, match="has no get_config"):
    files.get_config(str(tmp_path / "empty.py"))
  (tmp_path / "broken.py").write_text("so it is")
  with pytest.raises(UserError, match=r"cannot be run \(SyntaxError"):
    files.get_config(str(tmp_path / "broken.py"))


def test_every_study_is_listed():
  assert set(catalogue.STUDIES) < set(command.STUDIES)
  assert command.listing().count("\n") == len(command.STUDIES) - 1


def test_a_report_shows_studies_and_escapes_their_names(tmp_path):
  columns = ("study", "trial", "group", "axis", "x", "split", "task", "metric", "value")
  rows = [("<s>", f"<b>{i}", "", "", "", "test", "t", "mae", 0.5 + i) for i in (0, 1)]
  with (tmp_path / "study.csv").open("w", newline="") as file:
    csv.writer(file).writerows([columns, *rows])
  text = page.write([], tmp_path / "out", [tmp_path]).read_text()
  assert "&lt;b&gt;1" in text
  assert "<b>" not in text
  assert "1.500" in text
  assert text.count("<figure>") == 1


def test_damaged_studies_are_refused(tmp_path):
  path = tmp_path / "study.csv"
  path.write_text("a,b\n1,2\n")
  with pytest.raises(UserError, match="it needs lines and the columns study"):
    studies.read(tmp_path)
  columns = ("study", "trial", "group", "axis", "x", "split", "task", "metric", "value")
  with path.open("w", newline="") as file:
    csv.writer(file).writerows(
      [columns, ("s", "c", "", "", "", "test", "t", "mae", "x")]
    )
  with pytest.raises(UserError, match="study.csv is damaged"):
    studies.read(tmp_path)
