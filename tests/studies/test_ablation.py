"""The ablation study: what systems declare, trained and compared."""

import dataclasses
import importlib
import json

import pytest
import toy
from changes import change

from configs import derl as derl_config
from msa_jax import models
from msa_jax.config.experiment import experiment
from msa_jax.errors import UserError
from msa_jax.models.system import Placed
from msa_jax.report import studies, terminal
from msa_jax.runs import prepare
from msa_jax.studies import ablation
from msa_jax.studies.changes import changed, changes_of, current
from msa_jax.testing import example_spec
from msa_jax.typing import Task

DECLARED = [
  (system, what, name, run)
  for system, declared in models.SYSTEMS.items()
  for what, tables in (
    ("ablations", declared.ablations),
    ("router_variants", {"": declared.router_variants}),
    ("robustness", {"": declared.robustness}),
  )
  for name, table in tables.items()
  for run in table
]


def plain(system):
  return experiment(importlib.import_module(f"configs.{system}").get_config())


@pytest.mark.parametrize(("system", "what", "name", "run"), DECLARED)
def test_what_a_system_declares_changes_options_that_it_has(system, what, name, run):
  declared = getattr(models.SYSTEMS[system], what)
  row = (declared[name] if name else declared)[run]
  changes = changes_of(plain(system), row)
  made = changed(plain(system), changes)
  for path, value in changes.items():
    assert current(made, path) == value
  spec = example_spec(made.data.sample_unit)
  emotion = Task("classes", classes=("sad", "glad"), protocol="classes")
  spec = dataclasses.replace(spec, tasks={**spec.tasks, "emotion": emotion})
  models.SYSTEMS[system].build(made.model, spec)  # refuses what the network refuses


def test_tables_name_the_papers_rows():
  tables = models.SYSTEMS["derl"].ablations
  assert len(tables["encoders"]) == 9
  assert set(tables["modules"]) >= {"without_filter", "without_enhancement", "full"}
  layers = [(row.x, *row.changes.values()) for row in tables["layers"].values()]
  assert layers == [(n, n) for n in range(1, 7)]
  hgem = models.SYSTEMS["hgem"]
  assert set(hgem.router_variants) >= {"average", "fixed", "single"}
  assert set(hgem.robustness) == {"without_robust"}


def test_rows_that_depend_on_sizes_follow_those_that_the_user_chose():
  momke = change(plain("momke"), optim={"epochs": 7})
  row = models.SYSTEMS["momke"].ablations["parts"]["no_stage_2"]
  assert changes_of(momke, row) == {"model.stage1_epochs": 7}
  ranks = {"model.shared_ranks": (3, 4), "model.task_rank": 5}
  mmolre, tables = changed(plain("mmolre"), ranks), models.SYSTEMS["mmolre"].ablations
  rows = {name: changes_of(mmolre, row) for name, row in tables["sharing"].items()}
  assert rows["hard_equal"]["model.shared_ranks"] == (3, 4, 5, 5)
  assert rows["specific_equal"]["model.task_rank"] == 8
  equal = changes_of(mmolre, tables["ranks"]["equal_4"])["model.shared_ranks"]
  assert sum(equal) == 7 and len(equal) == 4 and max(equal) - min(equal) == 1
  full = changes_of(mmolre, tables["number"]["full_rank_8"])
  assert full == {"model.shared_ranks": (3,) * 8, "model.full_rank": True}


@pytest.fixture
def studied(monkeypatch):
  monkeypatch.setattr(prepare, "load", lambda config, **_: toy.corpus())
  rows = {
    "plain": {},
    "undropped": {"model.dropout": 0.0},
    "slow": Placed(lambda tree: {"optim.learning_rate": 1e-6}, "rate", 1e-6),
  }
  system = toy.SYSTEM._replace(ablations={"two": rows})
  monkeypatch.setitem(models.SYSTEMS, "toy", system)


def test_a_study_trains_and_compares_what_a_table_names(studied, tmp_path):
  report = ablation.study(toy.config(epochs=1), tmp_path, "two")
  assert report["plain"]["parameters"] == report["undropped"]["parameters"] > 0
  maes = {name: row["figures"]["sentiment"]["mae"] for name, row in report.items()}
  assert maes["plain"] != maes["undropped"]
  assert json.loads((tmp_path / "study.json").read_text()) == report
  for name, rate in (("plain", 0.1), ("undropped", 0.0)):
    trained = json.loads((tmp_path / name / "config.json").read_text())
    assert trained["model"]["dropout"] == rate
  assert report["plain"]["compared"] == {}
  for name in ("undropped", "slow"):  # against the run that changes nothing
    found = report[name]["compared"]["sentiment"]
    expected = maes[name]["mean"] - maes["plain"]["mean"]
    assert found["difference"] == pytest.approx(expected, abs=1e-5)
    low, high = found["interval"]
    assert low <= found["difference"] <= high and 0 < found["p"] <= 1
  text = ablation.as_text(report, ablation.metrics_of(tmp_path, report))
  lines = [line.split()[0] for line in text.splitlines()]
  assert lines == ["plain", "undropped", "sentiment:", "slow", "sentiment:"]
  assert text.count("parameters, sentiment mae ") == 3
  assert text.count("better than plain: ") == 2
  (place,) = {(x["axis"], x["x"]) for x in studies.read(tmp_path) if x["x"]}
  assert place == ("rate", "1e-06")


def test_some_rows_of_a_table_are_trained_alone(studied, tmp_path):
  report = ablation.study(toy.config(epochs=1), tmp_path, "", ["slow"])
  assert list(report) == ["slow"] and report["slow"]["compared"] == {}
  with pytest.raises(UserError, match="--rows=fast: table two of toy has plain, undr"):
    ablation.study(toy.config(), tmp_path, "two", ["plain", "fast"])


def test_unknown_tables_and_systems_without_tables_are_refused(monkeypatch, tmp_path):
  monkeypatch.setitem(models.SYSTEMS, "toy", toy.SYSTEM)
  derl = experiment(derl_config.get_config())
  with pytest.raises(UserError, match="--table=moon: derl has encoders, modules"):
    ablation.study(derl, tmp_path, "moon")
  with pytest.raises(UserError, match="toy has no ablations .* derl"):
    ablation.study(toy.config(), tmp_path, "modules")


def test_figures_of_one_seed_have_no_deviation():
  assert terminal.figure({"mean": 0.5, "std": None}) == "0.500"
  assert terminal.figure({"mean": 0.5, "std": 0.25}) == "0.500 ± 0.250"
