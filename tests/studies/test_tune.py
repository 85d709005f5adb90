"""The search: spaces, proposals, halving over seeds, going on, and what it leaves."""

import io
import json
import math
import sys

import hidden
import numpy as np
import pytest
import toy
from changes import change
from rich.console import Console

from msa_jax.config import files
from msa_jax.config.experiment import experiment
from msa_jax.errors import UserError
from msa_jax.models import SYSTEMS, names
from msa_jax.models.system import one_stage
from msa_jax.report import __main__ as terminal
from msa_jax.report import page
from msa_jax.runs import prepare, run
from msa_jax.studies import __main__ as command
from msa_jax.studies import chosen, proposals, spaces, tune
from msa_jax.studies.changes import changed, current
from msa_jax.studies.proposals import Outcome
from msa_jax.studies.search import STATE, Search, goes_on, rungs
from msa_jax.training import loop

CONFIG = """
from msa_jax import config as config_lib


def get_config():
  config = config_lib.base({"name": "toy", "dropout": 0.1})
  config.loss.size = 0.01
  config.optim.update({"epochs": 1, "batch_size": 8, "learning_rate": 0.3})
  config.optim.learning_rates.gate = 0.01
  config.replicas.seeds = (0, 1, 2)
  return config_lib.finish(config)
"""
SPACE = ("none", "optim.learning_rate=1e-4..1:log", "optim.name=adam,sgd")


@pytest.fixture(autouse=True)
def toys(monkeypatch):
  monkeypatch.setitem(SYSTEMS, "toy", toy.SYSTEM)
  monkeypatch.setattr(prepare, "load", lambda config, **_: toy.corpus())


@pytest.fixture
def source(tmp_path):
  """Path of a config of the toy system."""
  path = tmp_path / "mine.py"
  path.write_text(CONFIG)
  return str(path)


@pytest.fixture
def config(source):
  return experiment(files.get_config(source))


def error_of(config, seed):
  """A smooth valley at a learning rate of .01, sgd worse, seeds .01 apart; what a
  trained run would say of the test split is its opposite."""
  rate = math.log10(config.optim.learning_rate) + 2.0
  return 0.5 + 0.1 * rate**2 + 0.2 * (config.optim.name == "sgd") + 0.01 * seed


class Trainer:
  """In place of `run.train`: writes the summary that a training would."""

  def __init__(self):
    self.calls = []
    self.stop_at = 0

  def __call__(self, config, folder):
    self.calls.append((folder.name, len(config.replicas.seeds)))
    if len(self.calls) == self.stop_at:
      raise KeyboardInterrupt
    if config.optim.learning_rate > 0.9:
      raise loop.Diverged("the loss is not finite")
    seeds = list(config.replicas.seeds)
    values = [error_of(config, seed) for seed in seeds]
    splits = {
      name: {"sentiment": {"mae": {"values": each, "mean": np.mean(each)}}}
      for name, each in (("valid", values), ("test", [9.0 - v for v in values]))
    }
    folder.mkdir(parents=True, exist_ok=True)
    summary = {"model": "toy", "parameters": 8, "seeds": seeds, "splits": splits}
    summary |= {"routing": {}, "train_seconds": [60.0] * len(seeds)}
    summary |= {"trained_together": [1] * len(seeds)}
    (folder / "summary.json").write_text(json.dumps(summary))


@pytest.fixture
def trainer(monkeypatch):
  made = Trainer()
  monkeypatch.setattr(run, "train", made)
  return made


def test_spaces_are_read_with_the_types_of_their_options(config):
  entries = ("optim.learning_rate=1e-4..1e-2:log", "config.optim.epochs=2..8:2")
  entries += ("optim.name=adam,sgd", "model.dropout=0..0.5", "optim.ema_decay=0.5")
  found = spaces.space(config, entries)
  rate, epochs = found["optim.learning_rate"], found["optim.epochs"]
  assert (rate.low, rate.high, rate.log, rate.whole) == (1e-4, 1e-2, True, False)
  assert (epochs.low, epochs.high, epochs.step, epochs.whole) == (2, 8, 2, True)
  assert found["optim.name"].choices == ("adam", "sgd")
  assert spaces.fixed(found) == {"optim.ema_decay": 0.5}
  held = [value for value in range(1, 10) if epochs.holds(value)]
  assert held == [2, 4, 6, 8]
  assert rate.rounded(0.00123456) == 0.001235 and rate.rounded(1e-5) == 1e-4


@pytest.mark.parametrize(
  ("entry", "message"),
  [
    ("optim.learning_rate", "give option=low..high, with :log or :step"),
    ("optim.lr=1..2", r"config.optim has no 'lr'; choose of .*learning_rate"),
    ("optim.learning_rate=1..0.5", "must rise, 1.0 is not below 0.5"),
    ("optim.learning_rate=0..1:log", "a range above 0, not from 0.0"),
    ("optim.learning_rate=a..1", "'a' must be a finite number"),
    ("optim.learning_rate=0..inf", "'inf' must be a finite number"),
    ("optim.learning_rate=0..1:", "give option=low..high"),
    ("optim.learning_rate=0..1:2", "step 2.0 must be above 0 and within"),
    ("optim.epochs=1..2.5", "'2.5' must be a whole number"),
    ("optim.name=a..b", "a range is of numbers, and optim.name is 'adam'"),
    ("train.task_cosine=0..1", "a range is of numbers"),
    ("optim.epochs=2,2", "the value 2 is there twice"),
    ("replicas.seeds=(1),(2)", "decides what validation measures"),
  ],
)
def test_wrong_spaces_are_refused_in_one_line(config, entry, message):
  with pytest.raises(UserError, match=message) as caught:
    spaces.space(config, [entry])
  assert str(caught.value).startswith("--space=") and "\n" not in str(caught.value)


def test_a_space_needs_something_to_search_and_each_option_once(config):
  with pytest.raises(UserError, match="nothing to search"):
    spaces.space(config, ["none", "optim.epochs=2"])
  with pytest.raises(UserError, match="once for each option"):
    spaces.space(config, ["optim.epochs=1..2", "config.optim.epochs=3..4"])


@pytest.mark.parametrize("name", [name for name in files.shipped()])
def test_every_system_has_a_space_that_fits_its_options(name):
  made = experiment(files.get_config(name))
  found = spaces.space(made, [])
  assert "optim.learning_rate" in found and len(found) >= 2
  # Systems trained in stages take no running mean.
  is_whole = SYSTEMS[made.system].stages is one_stage
  assert ("optim.ema_decay" in found) == is_whole
  for path, dimension in found.items():
    value = dimension.choices[-1] if dimension.choices else dimension.high
    assert current(changed(made, {path: type(current(made, path))(value)}), path)
  # The config's own values are within, so that the search learns from them.
  outside = [p for p, each in found.items() if not each.holds(current(made, p))]
  assert not outside, outside
  assert set(files.shipped()) <= set(names())


def test_proposals_are_repeatable_within_the_space_and_learn(config):
  found = spaces.space(config, SPACE)
  outcomes = []
  for _ in range(24):
    values = proposals.propose(found, outcomes, 0)
    assert values == proposals.propose(found, outcomes, 0)
    assert all(found[path].holds(value) for path, value in values.items())
    error = error_of(changed(config, values), 0)
    outcomes.append(Outcome(values, (-error,), True))
  assert len({tuple(outcome.values.items()) for outcome in outcomes}) == 24
  first, last = outcomes[:8], outcomes[-8:]
  means = [np.mean([o.figures[0] for o in part]) for part in (first, last)]
  assert means[1] > means[0] + 0.05
  assert sum(o.values["optim.name"] == "adam" for o in last) >= 6
  shares = proposals.importances(found, outcomes)
  assert set(shares) == set(found) and sum(shares.values()) == pytest.approx(1.0)
  assert proposals.importances(found, outcomes[:3]) == {}


def test_a_trial_without_figure_ranks_below_those_that_were_stopped(config):
  """All drawn from one side have no figure: the search goes to the other."""
  found = spaces.space(config, ["none", "optim.learning_rate=0..1"])
  rates = np.linspace(0.05, 0.95, 10).round(3)
  outcomes = [
    Outcome({"optim.learning_rate": float(r)}, (-1.0 - r,) if r < 0.3 else (), False)
    for r in rates
  ]
  proposed = [proposals.propose(found, outcomes, seed) for seed in range(5)]
  drawn = [values["optim.learning_rate"] for values in proposed if values]
  assert np.mean(drawn) < 0.4


def test_where_all_settings_have_been_tried_nothing_is_proposed(config):
  found = spaces.space(config, ["none", "optim.name=adam,sgd"])
  tried = [Outcome({"optim.name": name}, (1.0,), True) for name in ("adam", "sgd")]
  assert proposals.propose(found, tried[:1], 0) == {"optim.name": "sgd"}
  assert proposals.propose(found, tried, 0) is None


def test_rungs_multiply_seeds_and_the_best_third_goes_on():
  assert rungs(5, 3) == [1, 3, 5]
  assert rungs(5, 2) == [1, 2, 4, 5]
  assert rungs(3, 1) == [3] and rungs(1, 3) == [1]
  assert goes_on(0.1, [], 3)
  assert not goes_on(0.1, [0.2], 3) and goes_on(0.3, [0.2], 3)
  others = [0.1, 0.2, 0.3, 0.4, 0.5]  # with one more, two of six go on
  assert goes_on(0.45, others, 3) and not goes_on(0.35, others, 3)


def test_a_search_finds_the_valley_and_writes_its_config(
  config, source, tmp_path, trainer
):
  search = Search(source, SPACE, 14)
  text = command.execute("tune", [config], [], tmp_path / "t", search=search)
  report = json.loads((tmp_path / "t" / "study.json").read_text())
  rows = {row["name"]: row for row in report["ranking"]}
  best = rows[report["best"]]
  assert best["state"] == "whole" and len(best["seeds"]) == 3
  assert best["valid"] < 0.56  # the valley's floor is .51
  own = rows["trial-000"]
  assert own["changes"] == {"optim.learning_rate": 0.3, "optim.name": "adam"}
  assert report["own"] == "trial-000"
  assert report["gain"]["mean"] == pytest.approx(own["valid"] - best["valid"])
  stopped = [row for row in rows.values() if row["state"] == "stopped"]
  assert stopped and {len(row["seeds"]) for row in stopped} == {1}
  assert len(trainer.calls) < 3 * 14
  budget = report["budget"]
  assert budget["trials"] == 14
  assert budget["trainings"] == sum(len(row["seeds"]) for row in rows.values())
  # The chosen file is the trial's config.
  made = experiment(files.get_config(str(tmp_path / "t" / "chosen.py")))
  assert made == changed(config, best["changes"])
  head = (tmp_path / "t" / "chosen.py").read_text()
  assert "--trials=14" in head and "14 trials" in head and "trainings" in head
  assert f"chosen config: --config={tmp_path / 't' / 'chosen.py'}" in text


def test_no_test_figure_is_read_or_shown(config, source, tmp_path, trainer):
  del trainer
  text = command.execute(
    "tune", [config], [], tmp_path / "t", search=Search(source, SPACE, 5)
  )
  written = (tmp_path / "t" / "study.csv").read_text()
  assert ",valid," in written and ",test," not in written
  html = (tmp_path / "t" / "report" / "index.html").read_text()
  console = Console(file=io.StringIO(), width=300)
  terminal.compare_study(str(tmp_path / "t"), console)
  shown = html + text + console.file.getvalue()
  summary = json.loads((tmp_path / "t" / "trial-000" / "summary.json").read_text())
  hidden = summary["splits"]["test"]["sentiment"]["mae"]["mean"]
  assert f"{hidden:.3f}" not in shown
  assert "Course of the search" in html and "Importance of the options" in html
  assert "trials by validation" in html and "optim.learning_rate" in html
  (tmp_path / "t" / "study.json").write_text('{"ranking": [1]}')
  text = page.write([], tmp_path / "again", [tmp_path / "t"]).read_text()
  assert "study.json is damaged" in text


def test_a_search_that_is_killed_goes_on_to_the_same_end(
  config, source, tmp_path, trainer
):
  stop_at = 2  # the first trial has trained its first seed
  search = Search(source, SPACE, 5)
  whole = tune.study(config, tmp_path / "whole", search)
  calls = list(trainer.calls)
  trainer.calls, trainer.stop_at = [], stop_at
  with pytest.raises(KeyboardInterrupt):
    tune.study(config, tmp_path / "cut", search)
  trainer.stop_at = 0
  parted = tune.study(config, tmp_path / "cut", search)
  assert parted["ranking"] == whole["ranking"]
  assert sorted(trainer.calls) == sorted([*calls, calls[stop_at - 1]])
  # Finished, it trains nothing again; asked for more, it goes on.
  trainer.calls = []
  assert tune.study(config, tmp_path / "cut", search) == parted
  assert trainer.calls == []
  more = tune.study(config, tmp_path / "cut", search._replace(trials=6))
  assert {name for name, _ in trainer.calls} == {"trial-005"}
  assert len(more["ranking"]) == 6


def test_trials_that_cannot_be_trained_are_kept_with_the_reason(
  config, source, tmp_path, trainer
):
  entries = ("none", "optim.learning_rate=0.1,0.95", "optim.epochs=0,1")
  report = tune.study(config, tmp_path / "t", Search(source, entries, 4, 1))
  rows = {tuple(row["changes"].values()): row for row in report["ranking"]}
  assert rows[1, 0.3]["state"] == "whole"
  assert rows[1, 0.95]["state"] == "diverged"
  assert "not finite" in rows[1, 0.95]["diverged"]
  refused = [row for row in rows.values() if row["state"] == "refused"]
  assert refused and "optim.epochs=0" in refused[0]["diverged"]
  assert all("epochs=0" not in name for name, _ in trainer.calls)


def test_bad_input_is_refused_before_anything_is_trained(
  config, source, tmp_path, trainer, monkeypatch
):
  search = Search(source, SPACE, 2)
  for name in ("trials", "halving"):
    with pytest.raises(UserError, match=f"--{name}=0 must be at least 1"):
      tune.study(config, tmp_path / "t", search._replace(**{name: 0}))
  official = change(config, train={"selection_split": "official"})
  with pytest.raises(UserError, match="tune ranks on validation"):
    tune.study(official, tmp_path / "t", search)
  with pytest.raises(UserError, match="takes no --also, and --data once"):
    command.execute("tune", [config], ["a", "b"], tmp_path / "t", search=search)
  wrong = change(config, optim={"epochs": 0})
  with pytest.raises(UserError, match="optim.epochs=0"):
    tune.study(wrong, tmp_path / "t", search)
  assert not (tmp_path / "t").exists()
  tune.study(config, tmp_path / "t", search)
  other = change(config, optim={"batch_size": 4})
  for changed_config, asked, what in (
    (other, search, "another config"),
    (config, search._replace(halving=2), "another halving"),
    (config, search._replace(spaces=SPACE[:2]), "another space"),
  ):
    with pytest.raises(UserError, match=what):
      tune.study(changed_config, tmp_path / "t", asked)
  state = tmp_path / "t" / STATE
  kept = state.read_text()
  state.write_text(kept.replace('"adam"', '"moon"'))
  with pytest.raises(UserError, match="holds a search|is damaged"):
    tune.study(config, tmp_path / "t", search)
  state.write_text(kept[: len(kept) // 2])
  with pytest.raises(UserError, match="cannot be read"):
    tune.study(config, tmp_path / "t", search)
  monkeypatch.setitem(sys.modules, "optuna", None)
  with pytest.raises(UserError, match=r"pip install 'msa_jax\[tune\]'"):
    tune.study(config, tmp_path / "new", search)
  assert len({name for name, _ in trainer.calls}) == 2


def test_where_every_trial_fails_the_search_says_why(config, source, tmp_path, trainer):
  del trainer
  hot = change(config, optim={"learning_rate": 0.95})
  search = Search(source, ("none", "optim.learning_rate=0.92,0.95"), 2)
  with pytest.raises(UserError, match="no trial has a validation figure: the loss"):
    tune.study(hot, tmp_path / "t", search)


def test_a_chosen_config_follows_its_base_in_what_follows_the_text(tmp_path):
  """Settings that others follow (`config/regimes.py`) do not drag them along."""
  named = "text_only:mosi"
  base = experiment(files.get_config(named))
  wanted = changed(base, {"text.input": "encoder", "text.finetune": "all"})
  assert wanted.optim.epochs == base.optim.epochs
  choice = chosen.Choice(named, wanted, ["one line\nimport os"])
  chosen.write_config(tmp_path / "c.py", choice)
  assert experiment(files.get_config(str(tmp_path / "c.py"))) == wanted
  assert "# one line import os" in (tmp_path / "c.py").read_text()
  found = files.locate(named)
  assert files.name_of(found.flag) == named
  assert files.name_of(files.locate("text_only").flag) == "text_only"


def test_one_real_search_trains_runs_that_are_there_to_be_read(
  config, source, tmp_path
):
  two = change(config, replicas={"seeds": (0, 1)}, train={"references": False})
  report = tune.study(two, tmp_path / "t", Search(source, SPACE, 2, 2))
  for row in report["ranking"]:
    summary = json.loads((tmp_path / "t" / row["name"] / "summary.json").read_text())
    assert summary["seeds"] == [0, 1][: len(row["seeds"])]
    valid = summary["splits"]["valid"]["sentiment"]["mae"]
    assert row["seeds"] == valid["values"]
  before = hidden.shown(tmp_path / "t", tmp_path / "page")
  hidden.disturb(tmp_path / "t" / "trial-000")
  assert hidden.shown(tmp_path / "t", tmp_path / "page") == before
