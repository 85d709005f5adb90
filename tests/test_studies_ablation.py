"""The ablation study: DERL's tables as changes of its config, trained and compared."""

import json

import pytest
import toy
from tiny_derl import QUIET

from configs import derl as derl_config
from msa_jax.config import finish
from msa_jax.studies import ablation
from msa_jax.train import inputs
from msa_jax.typing import UserError


def derl(**sections):
  """An unresolved config of a tiny DERL for the toy corpus."""
  made = derl_config.get_config().copy_and_resolve_references().unlock()
  made.model.update({"d": 4, "n_heads": 2, "ffn_mult": 1, "dropout": QUIET})
  made.data.align = "none"
  made.optim.update({"epochs": 1, "batch": 16})
  for section, values in sections.items():
    made[section].update(values)
  return finish(made)


def test_tables_name_the_papers_rows():
  tables = ablation.TABLES["derl"]
  assert len(tables["encoders"]) == 9
  assert set(tables["modules"]) >= {"without_filter", "without_enhancement", "full"}
  layers = [changes["model.n_layers"] for changes in tables["layers"].values()]
  assert layers == [1, 2, 3, 4, 5, 6]
  for table in tables.values():
    for changes in table.values():
      ablation.changed(derl_config.get_config(), changes)  # every key is there


def test_a_study_trains_and_compares_what_a_table_names(monkeypatch, tmp_path):
  monkeypatch.setattr(inputs, "load", lambda config, **_: toy.corpus())
  rows = {"short": {"model.n_layers": 1}, "plain": {"model.use_eu": False}}
  monkeypatch.setitem(ablation.TABLES["derl"], "two", rows)
  report = ablation.study(derl(), tmp_path, "two")
  assert report["short"]["parameters"] < report["plain"]["parameters"]
  assert json.loads((tmp_path / "study.json").read_text()) == report
  trained = json.loads((tmp_path / "short" / "config.json").read_text())
  assert trained["model"]["n_layers"] == 1
  text = ablation.as_text(report, ablation.metric_of(tmp_path, report))
  assert [line.split()[0] for line in text.splitlines()] == ["short", "plain"]
  assert text.count("parameters, mae ") == 2


def test_unknown_tables_and_systems_without_tables_are_refused(tmp_path):
  with pytest.raises(UserError, match="--table=moon: derl has encoders, modules"):
    ablation.study(derl(), tmp_path, "moon")
  with pytest.raises(UserError, match="toy has no ablations"):
    ablation.study(toy.config(), tmp_path, "modules")


def test_figures_of_one_seed_have_no_deviation():
  assert ablation.figure({"mean": 0.5, "std": None}) == "0.500"
  assert ablation.figure({"mean": 0.5, "std": 0.25}) == "0.500 ± 0.250"
