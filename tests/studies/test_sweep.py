"""The sweep: values of an option's own type, in every combination, and their ranks."""

import csv
import dataclasses
import io
import json
import math

import hidden
import numpy as np
import pytest
import toy
from changes import change
from rich.console import Console

from msa_jax.errors import UserError
from msa_jax.models import SYSTEMS
from msa_jax.report import __main__ as terminal
from msa_jax.report import page, studies
from msa_jax.runs import prepare, run
from msa_jax.studies import __main__ as command
from msa_jax.studies import changes, sweep
from msa_jax.training.selection import Criterion

MAE = Criterion(((1.0, "sentiment", "mae"),))


@pytest.fixture(autouse=True)
def toys(monkeypatch):
  monkeypatch.setitem(SYSTEMS, "toy", toy.SYSTEM)
  monkeypatch.setattr(prepare, "load", lambda config, **_: toy.corpus())


@pytest.mark.parametrize(
  ("path", "text", "values"),
  [
    ("optim.learning_rate", "1e-3, 3,", (1e-3, 3.0)),
    ("optim.learning_rates.gate", "0.1", (0.1,)),
    ("optim.epochs", "2,1", (2, 1)),
    ("optim.name", "adam,sgd", ("adam", "sgd")),
    ("train.task_cosine", "True,false", (True, False)),
    (
      "data.standardize",
      "(),(audio),[text, audio]",
      ((), ("audio",), ("text", "audio")),
    ),
    ("data.synthetic.widths", "(8,3,4)", ((8, 3, 4),)),
    ("model.dropout", "0,0.5", (0.0, 0.5)),
  ],
)
def test_values_have_the_type_of_their_option(path, text, values):
  config = toy.config()
  found = changes.parse_values(config, path, text)
  assert found == values
  assert [type(value) for value in found] == [type(value) for value in values]
  for value in found:
    assert changes.current(changes.changed(config, {path: value}), path) == value


@pytest.mark.parametrize(
  ("entries", "message"),
  [
    ([], "sweep needs --sweep=option=value,value"),
    (["optim.epochs"], "--sweep=optim.epochs: give option=value,value"),
    (["optim.epochs=1", "optim.epochs=2"], "once for each option"),
    (
      ["optim.lr=1"],
      r"--sweep=optim.lr=1: .*config.optim has no 'lr'; .*learning_rate",
    ),
    (["moon.x=1"], r"config has no 'moon'; choose of \['anchor', 'data'"),
    (["optim=1"], r"'optim' is a group; add one of \['accumulate_steps'"),
    (["optim.epochs.x=1"], "config.optim.epochs is a single option"),
    (["optim.epochs="], "give values with commas"),
    (["optim.epochs=2,2"], "the value 2 is there twice"),
    (["optim.epochs=2.5"], "'2.5' must be a whole number"),
    (["optim.learning_rate=fast"], "'fast' must be a number"),
    (["train.task_cosine=maybe"], "'maybe' must be True or False"),
    (["data.standardize=text"], r"'text' must be a list in brackets, e.g. \(a,b\)"),
    (["data.synthetic.sizes=(1,x,2)"], "decides what validation measures"),
    (["config.train.monitor=mae,corr"], "train.monitor decides what validation"),
    (["replicas.seeds=(1),(2)"], "settings that differ in it cannot be ranked"),
  ],
)
def test_wrong_sweeps_are_refused_in_one_line_with_the_choices(entries, message):
  with pytest.raises(UserError, match=message) as caught:
    sweep.settings(toy.config(), entries)
  assert "\n" not in str(caught.value)


def test_options_of_several_values_are_tried_in_every_combination():
  entries = ["optim.name=adam,sgd", "config.model.dropout=0.1,0.2"]
  chosen = sweep.settings(toy.config(), entries)
  assert chosen == [
    {"optim.name": name, "model.dropout": rate}
    for name in ("adam", "sgd")
    for rate in (0.1, 0.2)
  ]
  made = sweep.trials(toy.config(), chosen)
  assert made[1].name == "optim.name=adam,model.dropout=0.2"
  assert (made[2].config.optim.name, made[2].config.model["dropout"]) == ("sgd", 0.1)
  assert made[0].axis == ""
  (one, two) = sweep.trials(toy.config(), [{"optim.epochs": 1}, {"optim.epochs": 2}])
  assert (one.axis, one.x, two.x, one.group) == ("optim.epochs", 1.0, 2.0, "toy")


def test_names_of_settings_are_names_of_folders():
  name = sweep.trial_name({"data.standardize": ("text", "audio")})
  assert name == "data.standardize=text+audio"
  slash = sweep.trial_name({"balance.omega_lr": "0.05/steps_per_epoch"})
  assert "/" not in slash and slash.startswith("balance.omega_lr=0.05_steps_per_epoch-")
  assert slash != sweep.trial_name({"balance.omega_lr": "0.05_steps_per_epoch"})
  long = [sweep.trial_name({"optim.name": "x" * 300 + end}) for end in "ab"]
  assert long[0] != long[1] and max(map(len, long)) < 120


def summary(*values, metric="mae"):
  """A summary of one seed for each value."""
  seeds = list(range(len(values)))
  figures = {"sentiment": {metric: {"values": list(values)}}}
  return {"seeds": seeds, "splits": {"valid": figures}}


def test_settings_rank_by_the_mean_over_seeds_and_undefined_ones_last():
  chosen = [{"optim.epochs": epochs} for epochs in (1, 2, 3, 4)]
  names = [f"optim.epochs={epochs}" for epochs in (1, 2, 3, 4)]
  found = [
    summary(0.5, 0.75),
    {"diverged": "why"},
    summary(0.25, 0.5),
    summary(0.1, None),
  ]
  rows = sweep.ranked(chosen, dict(zip(names, found, strict=True)), MAE)
  assert [row["name"] for row in rows] == [names[i] for i in (2, 0, 1, 3)]
  assert [row["valid"] for row in rows] == [0.375, 0.625, None, None]
  assert rows[0]["seeds"] == [0.25, 0.5] and rows[1]["changes"] == {"optim.epochs": 1}
  assert rows[0]["std"] == pytest.approx(0.25 / math.sqrt(2))
  said = sweep.as_text({"selected_by": "valid sentiment/mae", "ranking": rows})
  assert said.splitlines() == [
    "settings by valid sentiment/mae:",
    "  1. optim.epochs=3: 0.375 ± 0.177",
    "  2. optim.epochs=1: 0.625 ± 0.177",
    "  3. optim.epochs=2: diverged",
    "  4. optim.epochs=4: undefined",
  ]


def test_where_greater_is_better_the_greatest_is_first():
  chosen = [{"optim.epochs": epochs} for epochs in (1, 2)]
  found = {
    "optim.epochs=1": summary(0.5, metric="corr"),
    "optim.epochs=2": summary(0.75, metric="corr"),
  }
  criterion = Criterion(((1.0, "sentiment", "corr"),))
  rows = sweep.ranked(chosen, found, criterion)
  assert [row["valid"] for row in rows] == [0.75, 0.5]
  assert rows[0]["std"] is None


@pytest.fixture
def swept(tmp_path):
  """Three settings of one option, the last of which diverges; what was printed."""
  config = change(toy.config(epochs=1), replicas={"seeds": (0, 1)})
  entries = ["optim.learning_rate=1e-4,0.05,1e30"]
  return (
    config,
    entries,
    command.execute("sweep", [config], [], tmp_path, sweeps=entries),
  )


def test_a_sweep_ranks_on_validation_and_tests_the_best_alone(swept, tmp_path):
  _, _, said = swept
  report = json.loads((tmp_path / "study.json").read_text())
  names = [row["name"] for row in report["ranking"]]
  assert names[0] == report["best"] and names[-1] == "optim.learning_rate=1e+30"
  assert "not finite" in report["ranking"][-1]["diverged"]
  for row in report["ranking"][:-1]:
    figures = json.loads((tmp_path / row["name"] / "summary.json").read_text())[
      "splits"
    ]
    assert row["seeds"] == figures["valid"]["sentiment"]["mae"]["values"]
    assert row["valid"] == pytest.approx(np.mean(row["seeds"]))
  assert report["ranking"][0]["valid"] < report["ranking"][1]["valid"]
  assert f"  1. {names[0]}: " in said and f"  3. {names[-1]}: diverged" in said
  assert f"the best one, {tmp_path / names[0]}:" in said
  assert said.count("test sentiment: mae") == 1
  lines = studies.read(tmp_path)
  assert studies.trials(lines) == names[:-1]
  assert {line["split"] for line in lines} == {"valid"}


def test_a_sweep_trains_nothing_twice_not_even_what_diverged(
  swept, tmp_path, monkeypatch
):
  config, entries, said = swept
  monkeypatch.setattr(run, "train", lambda *_: pytest.fail("trained again"))
  again = command.execute("sweep", [config], [], tmp_path, sweeps=entries)
  assert again == said


def test_a_report_shows_the_ranking_and_no_test_figures(swept, tmp_path):
  del swept
  text = page.write([], tmp_path / "page", [tmp_path]).read_text()
  assert "settings by validation" in text and "3. optim.learning_rate=1e+30" in text
  assert "diverged" in text and "minus" not in text
  assert text.count("<figure>") == 2  # curves over the rate; entropies of the gate
  console = Console(file=io.StringIO(), width=300)
  terminal.compare_study(str(tmp_path), console)
  said = console.file.getvalue()
  assert "optim.learning_rate=" in said and "minus" not in said
  (tmp_path / "study.json").write_text('{"ranking": 3')
  terminal.compare_study(str(tmp_path), console)
  (tmp_path / "study.json").unlink()
  terminal.compare_study(str(tmp_path), console)
  said = console.file.getvalue()
  assert "not there: study.json is damaged (JSONDecodeError)" in said
  assert "not there: study.json is absent: the study has not finished" in said


def test_what_the_test_split_says_changes_nothing_that_is_shown(swept, tmp_path):
  del swept
  study = tmp_path / "optim.learning_rate=0.05"
  before = hidden.shown(tmp_path, tmp_path / "page")
  hidden.disturb(study)
  assert hidden.shown(tmp_path, tmp_path / "page") == before
  # Where runs are tested, all of it is shown.
  written = tmp_path / "study.csv"
  written.write_text(written.read_text().replace("sweep,", "router_compare,"))
  page_, figures, said = hidden.shown(tmp_path, tmp_path / "other")
  assert "Cases of sentiment" in page_ and "Expert activation" in page_
  assert len(figures) > len(before[1]) and "minus" in page_ and "minus" in said


def test_a_sweep_where_all_diverge_is_refused(tmp_path):
  with pytest.raises(UserError, match="no setting has a validation figure: the loss"):
    sweep.study(toy.config(epochs=1), tmp_path, ["optim.learning_rate=1e30,1e31"])


def test_what_cannot_be_ranked_or_built_is_refused_before_it_trains(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(run, "train", lambda *_: pytest.fail("trained"))
  config = toy.config()
  with pytest.raises(UserError, match="config.optim.epochs=0 must be positive"):
    sweep.study(config, tmp_path, ["optim.epochs=1,0"])
  with pytest.raises(UserError, match="optim.name"):
    sweep.study(config, tmp_path, ["optim.name=adam,moon"])
  official = change(config, train={"selection_split": "official"})
  with pytest.raises(UserError, match="selection_split='official': a sweep ranks on"):
    sweep.study(official, tmp_path, ["optim.epochs=1,2"])
  corpus = toy.corpus()
  splits = {name: corpus.splits[name] for name in ("train", "test")}
  without = dataclasses.replace(corpus, splits=splits)
  monkeypatch.setattr(prepare, "load", lambda config, **_: without)
  with pytest.raises(UserError, match="selection_split='val', but 'toy' has"):
    sweep.study(config, tmp_path, ["optim.epochs=1,2"])
  assert not list(tmp_path.iterdir())


def test_the_csv_of_a_sweep_has_its_options_as_axis(swept, tmp_path):
  del swept
  with (tmp_path / "study.csv").open() as file:
    lines = list(csv.DictReader(file))
  assert {line["axis"] for line in lines} == {"optim.learning_rate"}
  assert {line["x"] for line in lines} == {"0.0001", "0.05"}
