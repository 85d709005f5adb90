"""Cross-validation: a run for each fold, and what they say together."""

import csv
import dataclasses
import json

import numpy as np
import pytest
import toy
from changes import change

from msa_jax import api, models
from msa_jax.data.readers import npz
from msa_jax.errors import UserError
from msa_jax.report import page, reading, results, style, terminal
from msa_jax.runs import folds, run
from msa_jax.studies.missing import grid
from msa_jax.training.run_directory import fold_folders

pytestmark = pytest.mark.slow


CONDITIONS = ("text", "audio", "text+audio")


@pytest.fixture(autouse=True)
def toy_system(monkeypatch):
  monkeypatch.setitem(models.SYSTEMS, "toy", toy.SYSTEM)


def _file(folder):
  corpus = toy.corpus()
  splits = {
    name: dataclasses.replace(
      split, groups=np.asarray([f"{name}{i // 3}" for i in range(len(split))])
    )
    for name, split in corpus.splits.items()
  }
  npz.save(dataclasses.replace(corpus, splits=splits), folder / "toy.npz")
  return folder / "toy.npz"


def _config(path, fold="all", num_folds=2, **options):
  data = {"path": str(path), "fold": fold, "num_folds": num_folds, **options}
  made = change(toy.config(epochs=2), data=data)
  return change(made, replicas={"seeds": (0, 1)})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  folder = tmp_path_factory.mktemp("folds")
  models.SYSTEMS["toy"] = toy.SYSTEM
  try:
    config = _config(_file(folder))
    return folder / "run", config, run.train(config, folder / "run")
  finally:
    del models.SYSTEMS["toy"]


def test_figures_are_means_and_spreads_over_folds_and_seeds(trained):
  folder, _, summary = trained
  assert summary["folds"] == [1, 2] and summary["seeds"] == [0, 1]
  parts = [
    json.loads((folder / f"fold_{k}" / "summary.json").read_text()) for k in (1, 2)
  ]
  values = np.asarray(  # [fold seed]
    [part["splits"]["test"]["sentiment"]["mae"]["values"] for part in parts]
  )
  figure = summary["splits"]["test"]["sentiment"]["mae"]
  assert figure["mean"] == pytest.approx(values.mean())
  (a, b), (c, d) = values
  # Of two numbers the deviation is their distance over the root of two.
  assert figure["std"] == pytest.approx(abs((a + b) / 2 - (c + d) / 2) / np.sqrt(2))
  seeds = [(a + c) / 2, (b + d) / 2]
  assert figure["std_over_seeds"] == pytest.approx(abs(np.diff(seeds)[0]) / np.sqrt(2))
  np.testing.assert_allclose(figure["values"], seeds)
  np.testing.assert_allclose(figure["by_fold"], [(a + b) / 2, (c + d) / 2])
  said = terminal.training(summary, folder)
  assert "folds [1, 2], seeds [0, 1]" in said
  assert f"mae {values.mean():.3f} ± {figure['std']:.3f}" in said


def test_every_sample_is_predicted_by_the_run_that_did_not_see_it(trained):
  folder, _, _ = trained
  with (folder / "predictions" / "test.csv").open() as file:
    rows = list(csv.DictReader(file))
  assert len({row["id"] for row in rows}) == len(rows) == 61
  for number in (1, 2):
    with (folder / f"fold_{number}" / "predictions" / "test.csv").open() as file:
      own = {row["id"]: row["sentiment"] for row in csv.DictReader(file)}
    ours = {r["id"]: r["sentiment"] for r in rows if r["fold"] == str(number)}
    assert ours == own


def test_the_same_call_goes_on_and_another_is_refused(trained):
  folder, config, summary = trained
  kept = sorted((folder / "fold_1" / "checkpoints").glob("seed_*/trained.json"))
  times = [path.stat().st_mtime_ns for path in kept]
  assert len(times) == 2
  # As if the second fold had been stopped before its second seed was written.
  (folder / "fold_2" / "checkpoints" / "seed_1" / "trained.json").unlink()
  (folder / "fold_2" / "summary.json").unlink()
  with pytest.raises(UserError, match="fold_2 has not finished"):
    fold_folders(folder)
  again = run.train(config, folder)
  assert again["splits"] == summary["splits"]
  assert [path.stat().st_mtime_ns for path in kept] == times
  with pytest.raises(UserError, match="holds a run with other settings"):
    run.train(change(config, optim={"epochs": 3}), folder)


def test_all_folds_are_evaluated_at_once(trained):
  folder, _, summary = trained
  assert run.evaluate(folder)["test"] == summary["splits"]["test"]
  report = grid(folder, "conditions")
  rows = {row["pattern"]: row for row in report["grids"]["conditions"]}
  assert tuple(rows) == CONDITIONS and report["samples"] == 61
  for name in CONDITIONS:
    means = [
      grid(path, "conditions")["grids"]["conditions"][CONDITIONS.index(name)]
      for path in fold_folders(folder).values()
    ]
    means = [row["figures"]["sentiment"]["mae"]["mean"] for row in means]
    figure = rows[name]["figures"]["sentiment"]["mae"]
    assert figure["mean"] == pytest.approx(np.mean(means))
    assert figure["std"] == pytest.approx(np.std(means, ddof=1))
  with (folder / "missing" / "conditions.csv").open() as file:
    assert {line["seed"] for line in csv.DictReader(file)} == {"0", "1"}


def test_a_report_reads_all_folds_as_one_run(trained):
  folder, _, _ = trained
  read = reading.read(folder)
  assert not read.gaps and list(read.tasks()) == ["sentiment"]
  gaps = []
  with style.look():
    names = {drawing.name for drawing in page.drawings(read, gaps)}
  assert not gaps and any("sentiment" in name for name in names)
  row, *references = results.local_rows([read], "sentiment")
  assert "2 folds" in row.remark
  assert references and all("mean over folds" in each.remark for each in references)
  assert results.verdict(read, read, "sentiment").startswith("sentiment: run minus run")


def test_one_fold_alone_is_asked_for_where_one_run_is_needed(trained, tmp_path):
  folder, config, _ = trained
  with pytest.raises(UserError, match="holds a run for each fold; give one of them: "):
    run.predict(folder, config.data.path, tmp_path / "p.csv")
  with pytest.raises(UserError, match="fold='all' makes one run for each fold"):
    config.data.fold_number  # noqa: B018
  with pytest.raises(UserError, match=r"fold='one' must be the number of a session"):
    run.train(_config(config.data.path, "one"), tmp_path / "a")
  with pytest.raises(UserError, match="no sessions; give the number of folds"):
    run.train(_config(config.data.path, num_folds=0), tmp_path / "b")
  assert not (tmp_path / "b").exists()


def test_arrays_in_memory_have_folds_too(tmp_path):
  corpus = npz.load(_file(tmp_path))[0]
  config = change(_config("", num_folds=2), replicas={"seeds": (0,)})
  made = api.train(config, corpus, tmp_path / "run")
  assert made["splits"]["test"]["sentiment"]["mae"]["std_over_seeds"] is None
  assert api.evaluate(tmp_path / "run", corpus)["test"] == made["splits"]["test"]


def test_what_only_some_folds_have_is_left_out():
  figure = {"mean": 1.0, "std": None, "values": [1.0]}
  other = {"mean": 3.0, "std": None, "values": [3.0]}
  made = folds.combine([{"a": figure, "b": figure}, {"a": other}])
  assert set(made) == {"a"} and made["a"]["mean"] == 2.0
  lists = [{"mean": [0.0], "std": None, "values": [[0.0, 1.0]]}] * 2
  assert folds.combine(lists)["by_fold"] == [[0.0, 1.0], [0.0, 1.0]]
