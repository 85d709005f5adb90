"""The ablation study: what systems declare, trained and compared."""

import importlib
import json

import pytest
import toy

from configs import derl as derl_config
from msa_jax import models
from msa_jax.config.experiment import experiment
from msa_jax.errors import UserError
from msa_jax.runs import prepare
from msa_jax.studies import ablation
from msa_jax.studies.changes import changed, current

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


@pytest.mark.parametrize(("system", "what", "name", "run"), DECLARED)
def test_what_a_system_declares_changes_options_that_it_has(system, what, name, run):
  declared = getattr(models.SYSTEMS[system], what)
  changes = (declared[name] if name else declared)[run]
  plain = experiment(importlib.import_module(f"configs.{system}").get_config())
  made = changed(plain, changes)
  for path, value in changes.items():
    assert current(made, path) == value


def test_tables_name_the_papers_rows():
  tables = models.SYSTEMS["derl"].ablations
  assert len(tables["encoders"]) == 9
  assert set(tables["modules"]) >= {"without_filter", "without_enhancement", "full"}
  layers = [tuple(changes.values()) for changes in tables["layers"].values()]
  assert layers == [(1,), (2,), (3,), (4,), (5,), (6,)]
  hgem = models.SYSTEMS["hgem"]
  assert set(hgem.router_variants) >= {"average", "fixed", "single"}
  assert set(hgem.robustness) == {"without_robust"}


def test_a_study_trains_and_compares_what_a_table_names(monkeypatch, tmp_path):
  monkeypatch.setattr(prepare, "load", lambda config, **_: toy.corpus())
  rows = {"plain": {}, "undropped": {"model.dropout": 0.0}}
  system = toy.SYSTEM._replace(ablations={"two": rows})
  monkeypatch.setitem(models.SYSTEMS, "toy", system)
  report = ablation.study(toy.config(epochs=1), tmp_path, "two")
  assert report["plain"]["parameters"] == report["undropped"]["parameters"] > 0
  assert report["plain"]["figures"]["mae"] != report["undropped"]["figures"]["mae"]
  assert json.loads((tmp_path / "study.json").read_text()) == report
  for name, rate in (("plain", 0.1), ("undropped", 0.0)):
    trained = json.loads((tmp_path / name / "config.json").read_text())
    assert trained["model"]["dropout"] == rate
  text = ablation.as_text(report, ablation.metric_of(tmp_path, report))
  assert [line.split()[0] for line in text.splitlines()] == ["plain", "undropped"]
  assert text.count("parameters, mae ") == 2


def test_unknown_tables_and_systems_without_tables_are_refused(monkeypatch, tmp_path):
  monkeypatch.setitem(models.SYSTEMS, "toy", toy.SYSTEM)
  derl = experiment(derl_config.get_config())
  with pytest.raises(UserError, match="--table=moon: derl has encoders, modules"):
    ablation.study(derl, tmp_path, "moon")
  with pytest.raises(UserError, match="toy has no ablations .* derl"):
    ablation.study(toy.config(), tmp_path, "modules")


def test_figures_of_one_seed_have_no_deviation():
  assert ablation.figure({"mean": 0.5, "std": None}) == "0.500"
  assert ablation.figure({"mean": 0.5, "std": 0.25}) == "0.500 ± 0.250"
