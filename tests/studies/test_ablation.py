"""The ablation study: DERL's tables as changes of its config, trained and compared."""

import json

import pytest
import toy

from configs import derl as derl_config
from msa_jax import models
from msa_jax.errors import UserError
from msa_jax.runs import prepare
from msa_jax.studies import ablation


def test_tables_name_the_papers_rows():
  tables = ablation.TABLES["derl"]
  assert len(tables["encoders"]) == 9
  assert set(tables["modules"]) >= {"without_filter", "without_enhancement", "full"}
  layers = [changes["model.num_layers"] for changes in tables["layers"].values()]
  assert layers == [1, 2, 3, 4, 5, 6]
  for table in tables.values():
    for changes in table.values():
      ablation.changed(derl_config.get_config(), changes)  # every key is there


def test_a_study_trains_and_compares_what_a_table_names(monkeypatch, tmp_path):
  monkeypatch.setitem(models.SYSTEMS, "toy", toy.SYSTEM)
  monkeypatch.setattr(prepare, "load", lambda config, **_: toy.corpus())
  rows = {"plain": {}, "undropped": {"model.dropout": 0.0}}
  monkeypatch.setattr(ablation, "TABLES", {"toy": {"two": rows}, "derl": {}})
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


def test_unknown_tables_and_systems_without_tables_are_refused(tmp_path):
  with pytest.raises(UserError, match="--table=moon: derl has encoders, modules"):
    ablation.study(derl_config.get_config(), tmp_path, "moon")
  with pytest.raises(UserError, match="toy has no ablations"):
    ablation.study(toy.config(), tmp_path, "modules")


def test_figures_of_one_seed_have_no_deviation():
  assert ablation.figure({"mean": 0.5, "std": None}) == "0.500"
  assert ablation.figure({"mean": 0.5, "std": 0.25}) == "0.500 ± 0.250"
