"""Whole runs of a toy system: directory, resume, selection, evaluation, prediction."""

import csv
import dataclasses
import json
import os
import signal

import jax
import numpy as np
import pytest
import toy
from changes import change, resolve
from stops import StopAt

from msa_jax import models
from msa_jax.config import files
from msa_jax.config.experiment import experiment
from msa_jax.data.batching import batches
from msa_jax.data.readers import npz
from msa_jax.errors import UserError
from msa_jax.models.outputs import output_specs
from msa_jax.report import terminal
from msa_jax.runs import prepare, run
from msa_jax.runs.summary import over_seeds, parameter_hash
from msa_jax.step import compose
from msa_jax.training import loop, run_directory, scoring, selection
from msa_jax.training.checkpoint import ResumePoint
from msa_jax.training.compiled_stages import CompiledStages
from msa_jax.training.feed import Steps


@pytest.fixture(autouse=True)
def toy_system(monkeypatch):
  monkeypatch.setitem(models.SYSTEMS, "toy", toy.SYSTEM)
  monkeypatch.setattr(prepare, "load", lambda config, **_: toy.corpus())


def _config(**sections):
  return change(toy.config(), **sections)


def _fit(config, folder, stop=None, corpus=None):
  """Trains seed 0 of the toy system; returns (params, what `fit` says)."""
  corpus = toy.corpus() if corpus is None else corpus
  config = resolve(config, corpus)
  feeds = run.feeds_of(config, corpus)
  labels = scoring.label_arrays(corpus.splits["valid"], corpus.tasks)
  directory = run_directory.RunDirectory(folder)
  (trained,) = loop.fit(
    config,
    CompiledStages(config),
    feeds,
    labels,
    [loop.Replica(0, directory)],
    ResumePoint(directory.last(0)),
    stop,
  )
  return trained.params, trained


def _criterion(config):
  spec = config.corpus_spec
  outputs = output_specs(config.model, spec)
  return selection.criterion(config.train.monitor, spec.tasks, outputs)


def test_a_run_learns_and_leaves_a_complete_directory(tmp_path):
  config = _config(replicas={"seeds": (0, 1)}, optim={"learning_rate": 0.2})
  summary = run.train(config, tmp_path)
  names = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
  assert {
    "config.json",
    "environment.json",
    "data.json",
    "preprocessing.npz",
    "metrics.jsonl",
    "summary.json",
    "predictions/valid.csv",
    "predictions/test.csv",
    "routing/test.npz",
  } <= names
  assert summary["splits"]["test"]["sentiment"]["mae"]["mean"] < 0.8  # mean: about 1.5
  assert len(summary["parameter_hash"]) == 2
  assert len(set(summary["parameter_hash"])) == 2
  lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert sorted((x["seed"], x["epoch"]) for x in lines) == [
    (s, e) for s in (0, 1) for e in (1, 2, 3, 4)
  ]
  assert {"loss", "loss/sentiment", "aux/size", "weighted/size"} <= set(
    lines[0]["train"]
  )
  environment = json.loads((tmp_path / "environment.json").read_text())
  assert environment["packages"]["jax"] == jax.__version__
  data = json.loads((tmp_path / "data.json").read_text())
  assert data["splits"]["train"]["samples"] == 37
  assert sum(data["splits"]["test"]["labels"]["sentiment"].values()) == 13


def test_predictions_csv_agrees_with_the_summary(tmp_path):
  summary = run.train(_config(), tmp_path)
  with (tmp_path / "predictions" / "test.csv").open() as file:
    rows = list(csv.DictReader(file))
  assert [row["id"] for row in rows] == toy.corpus().splits["test"].ids.tolist()
  error = [
    abs(float(r["sentiment_label"]) - float(r["sentiment_seed_0"])) for r in rows
  ]
  mae = summary["splits"]["test"]["sentiment"]["mae"]["values"][0]
  np.testing.assert_allclose(np.mean(error), mae, rtol=1e-5)


def test_routing_file_holds_every_sample_and_gate(tmp_path):
  run.train(_config(), tmp_path)
  with np.load(tmp_path / "routing" / "test.npz") as routing:
    assert routing["gate/probs"].shape == (1, 13, 3)
    np.testing.assert_allclose(routing["gate/probs"].sum(-1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("calls", [1, 4, 5, 14])
def test_a_run_stopped_anywhere_and_resumed_ends_bit_identical(tmp_path, calls):
  # 5 batches per epoch, at most 2 per call: stops fall inside and at the end of epochs.
  config = _config(train={"steps_per_call": 2})
  straight, _ = _fit(config, tmp_path / "straight")
  folder = tmp_path / "stopped"
  if calls < 14:
    with pytest.raises(loop.Interrupted, match="stopped after step"):
      _fit(config, folder, StopAt(calls))
  resumed, position = _fit(config, folder)
  assert parameter_hash(resumed) == parameter_hash(straight)
  records = run_directory.RunDirectory(folder).metrics()
  assert [r["epoch"] for r in records] == [1, 2, 3, 4]
  expected = run_directory.RunDirectory(tmp_path / "straight").metrics()
  for ours, theirs in zip(records, expected, strict=True):
    assert ours["train"] == theirs["train"]
    assert ours["valid"] == theirs["valid"]


def test_epochs_after_the_last_save_are_trained_again_to_the_same_end(tmp_path):
  config = _config()
  straight, _ = _fit(config, tmp_path / "straight")
  folder = tmp_path / "killed"
  with pytest.raises(loop.Interrupted):
    _fit(config, folder, StopAt(2))
  # A kill after the save: metrics.jsonl is ahead of the checkpoint, its end torn.
  with (folder / "metrics.jsonl").open("a") as file:
    file.write('{"seed": 0, "epoch": 3, "train": {}}\n{"seed": 0, "ep')
  resumed, _ = _fit(config, folder)
  assert parameter_hash(resumed) == parameter_hash(straight)
  assert [r["epoch"] for r in run_directory.RunDirectory(folder).metrics()] == [
    1,
    2,
    3,
    4,
  ]


def test_one_program_per_call_gives_the_same_numbers_as_one_per_step():
  corpus = toy.corpus()
  config = resolve(_config(), corpus)
  system = compose.build(config)
  feed = run.feeds_of(config, corpus)["train"]
  order = np.asarray(batches.epoch_order(0, 0, feed.size, 8))
  results = []
  for looped in (True, False):
    steps = Steps(system, 3, looped=looped)
    state, early = steps(system.init(0), feed, order, 0, 0)
    state, late = steps(state, feed, order, 3, 0)
    assert (len(early["loss"]), len(late["loss"])) == (3, 2)
    losses = np.concatenate([early["loss"], late["loss"]])
    results.append((losses, *jax.tree.leaves(state.params)))
  for ours, theirs in zip(*results, strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_streaming_from_the_host_gives_the_same_parameters(tmp_path):
  resident, _ = _fit(_config(), tmp_path / "resident")
  streamed, _ = _fit(_config(data={"device_budget_mib": 0}), tmp_path / "streamed")
  for ours, theirs in zip(
    jax.tree.leaves(streamed), jax.tree.leaves(resident), strict=True
  ):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_termination_signal_saves_and_the_same_command_goes_on(tmp_path, monkeypatch):
  expected = run.train(_config(), tmp_path / "straight")["parameter_hash"]
  original = run_directory.RunDirectory.append_metrics

  def kill_at_second_epoch(self, record):
    original(self, record)
    if record["epoch"] == 2:
      os.kill(os.getpid(), signal.SIGTERM)

  with monkeypatch.context() as patch:
    patch.setattr(run_directory.RunDirectory, "append_metrics", kill_at_second_epoch)
    with pytest.raises(loop.Interrupted, match="goes on from there"):
      run.train(_config(), tmp_path / "killed")
  assert run.train(_config(), tmp_path / "killed")["parameter_hash"] == expected


def test_early_stopping_counts_epochs_without_improvement(tmp_path):
  config = _config(
    optim={
      "epochs": 30,
      "patience": 2,
      "learning_rate": 0.0,
      "learning_rates": {"gate": 0.0},
    }
  )
  _, position = _fit(config, tmp_path)
  # Nothing ever changes: epoch 1 is the best, epochs 2 and 3 are stale.
  assert (position.best_epoch, position.epoch) == (1, 3)


def test_selection_never_sees_the_test_split(tmp_path):
  honest, _ = _fit(_config(), tmp_path / "a")
  corpus = toy.corpus()
  test = corpus.splits["test"]
  test = dataclasses.replace(test, labels={"sentiment": -test.labels["sentiment"]})
  splits = {**corpus.splits, "test": test}
  poisoned = dataclasses.replace(corpus, splits=splits)
  other, _ = _fit(_config(), tmp_path / "b", corpus=poisoned)
  assert parameter_hash(honest) == parameter_hash(other)


def test_the_best_validation_epoch_is_kept_not_the_last(tmp_path):
  # A learning rate that overshoots: validation is not monotone.
  config = _config(
    optim={"epochs": 12, "learning_rate": 1.5, "schedule": "constant", "patience": 0}
  )
  run.train(config, tmp_path)
  records = run_directory.RunDirectory(tmp_path).metrics()
  maes = [r["valid"]["sentiment"]["mae"] for r in records]
  best = int(np.argmin(maes))
  assert best != len(maes) - 1
  summary = run_directory.RunDirectory(tmp_path).read_json("summary.json")
  assert summary["selected_epoch"] == [best + 1]
  reached = summary["splits"]["valid"]["sentiment"]["mae"]["values"][0]
  np.testing.assert_allclose(reached, maes[best], rtol=1e-5)


def test_a_diverging_run_names_the_step(tmp_path):
  corpus = toy.corpus()
  train = corpus.splits["train"]
  labels = train.labels["sentiment"].copy()
  labels[:] = 3e38
  train = dataclasses.replace(train, labels={"sentiment": labels})
  broken = dataclasses.replace(corpus, splits={**corpus.splits, "train": train})
  config = _config(loss={"task": "mse"})
  with pytest.raises(loop.Diverged, match="not finite at step 1 of epoch 1"):
    _fit(config, tmp_path, corpus=broken)


def test_a_folder_with_another_run_is_refused_by_the_differing_keys(tmp_path):
  run.train(_config(optim={"epochs": 1}), tmp_path)
  with pytest.raises(UserError, match="optim.epochs: 2 here, 1 there"):
    run.train(_config(optim={"epochs": 2}), tmp_path)


def test_a_config_that_the_system_refuses_leaves_no_folder(tmp_path, monkeypatch):
  def refuse(options, spec):
    raise UserError("no such fusion")

  monkeypatch.setitem(models.SYSTEMS, "toy", toy.SYSTEM._replace(build=refuse))
  with pytest.raises(UserError, match="no such fusion"):
    run.train(_config(), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_file_as_workdir_is_refused(tmp_path):
  path = tmp_path / "file"
  path.write_text("")
  with pytest.raises(UserError, match="must be a folder"):
    run.train(_config(optim={"epochs": 1}), path)


def test_more_seeds_can_be_added_and_finished_ones_are_kept(tmp_path):
  first = run.train(_config(optim={"epochs": 2}), tmp_path)
  both = run.train(_config(optim={"epochs": 2}, replicas={"seeds": (0, 5)}), tmp_path)
  assert both["parameter_hash"][0] == first["parameter_hash"][0]
  assert both["seeds"] == [0, 5]


def test_evaluate_reproduces_the_summary(tmp_path):
  summary = run.train(_config(), tmp_path)
  report = run.evaluate(tmp_path)
  assert report == {split: summary["splits"][split] for split in ("valid", "test")}


def test_evaluate_and_predict_read_other_files_also_without_labels(tmp_path):
  run.train(_config(replicas={"seeds": (0, 1)}), tmp_path / "run")
  labelled, unlabelled = tmp_path / "l.npz", tmp_path / "u.npz"
  npz.save(toy.corpus(seed=3), labelled)
  npz.save(toy.corpus(seed=3, labelled=False), unlabelled)

  def read(config, **_):
    return prepare.readers.read(config.data.path)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(prepare, "load", read)
    report = run.evaluate(tmp_path / "run", str(labelled))
    assert set(report) == {"train", "valid", "test"}
    with pytest.raises(UserError, match="no labels"):
      run.evaluate(tmp_path / "run", str(unlabelled))
    output = run.predict(tmp_path / "run", str(unlabelled), tmp_path / "out" / "p.csv")
  with output.open() as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == 37 + 11 + 13
  both = [float(rows[0][f"sentiment_seed_{s}"]) for s in (0, 1)]
  np.testing.assert_allclose(float(rows[0]["sentiment"]), np.mean(both), rtol=1e-4)
  sign = {True: "positive", False: "negative"}
  assert rows[0]["sentiment_class"] == sign[float(rows[0]["sentiment"]) > 0]
  gates = [float(rows[0][f"gate_{e}"]) for e in range(3)]
  np.testing.assert_allclose(sum(gates), 1.0, rtol=1e-4)


def test_commands_on_a_folder_without_a_run_say_so(tmp_path):
  with pytest.raises(UserError, match="holds no run"):
    run.evaluate(tmp_path)
  with pytest.raises(UserError, match="holds no run"):
    run.predict(tmp_path, "x.npz", tmp_path / "p.csv")


def test_an_unfinished_or_damaged_seed_is_named(tmp_path):
  run.train(_config(optim={"epochs": 1}), tmp_path)
  best = tmp_path / "checkpoints" / "seed_0" / "best"
  for file in best.rglob("*"):
    if file.is_file():
      file.write_bytes(b"garbage")
  with pytest.raises(UserError, match="damaged or of another model"):
    run.evaluate(tmp_path)
  best.rename(tmp_path / "elsewhere")
  with pytest.raises(UserError, match="has not finished"):
    run.evaluate(tmp_path)


def test_an_unwritable_output_is_named(tmp_path):
  run.train(_config(optim={"epochs": 1}), tmp_path / "run")
  npz.save(toy.corpus(), tmp_path / "x.npz")
  (tmp_path / "taken").write_text("")
  with pytest.raises(UserError, match="cannot be written"):
    run.predict(tmp_path / "run", str(tmp_path / "x.npz"), tmp_path / "taken" / "p.csv")


@pytest.mark.parametrize(
  ("select", "expected"),
  [
    ("auto", ("sentiment", "mae")),
    ("acc7", ("sentiment", "acc7")),
    ("sentiment/corr", ("sentiment", "corr")),
  ],
)
def test_selection_is_chosen_by_name(select, expected):
  config = resolve(_config(train={"monitor": select}), toy.corpus())
  assert _criterion(config).terms == ((1.0, *expected),)


@pytest.mark.parametrize("select", ["mea", "emotion/wa", "wa"])
def test_unknown_selection_is_answered_with_the_choices(select):
  config = resolve(_config(train={"monitor": select}), toy.corpus())
  with pytest.raises(UserError, match="must be one of|no task"):
    _criterion(config)


def test_over_seeds_gives_mean_sample_deviation_and_values():
  figures = over_seeds([{"a": {"x": 1.0}}, {"a": {"x": 2.0}}, {"a": {"x": 6.0}}])
  # Mean 3; deviations -2, -1, 3: squares sum to 14, over n - 1 = 2 gives 7.
  assert figures["a"]["x"]["mean"] == 3.0
  np.testing.assert_allclose(figures["a"]["x"]["std"], 7.0**0.5)
  assert over_seeds([{"x": 1.0}])["x"] == {"mean": 1.0, "std": None, "values": [1.0]}


def test_a_finished_run_says_that_nothing_was_trained_and_refuses_other_code(tmp_path):
  first = run.train(_config(), tmp_path)
  assert "repeated" not in first
  again = run.train(_config(), tmp_path)
  assert again["repeated"] and again["splits"] == first["splits"]
  assert "nothing was trained" in terminal.training(again, tmp_path)
  assert "nothing was trained" not in terminal.training(first, tmp_path)
  environment = json.loads((tmp_path / "environment.json").read_text())
  kept = (tmp_path / "predictions" / "test.csv").read_bytes()
  environment["source"]["system_sha256"] = "0" * 64
  (tmp_path / "environment.json").write_text(json.dumps(environment))
  with pytest.raises(UserError, match="has finished under other code .*system_sha256"):
    run.train(_config(), tmp_path)
  assert (tmp_path / "predictions" / "test.csv").read_bytes() == kept
  del environment["source"]  # of a version that did not note it
  (tmp_path / "environment.json").write_text(json.dumps(environment))
  assert run.train(_config(), tmp_path)["repeated"]


def test_a_corpus_without_validation_needs_an_explicit_choice(tmp_path, monkeypatch):
  whole = toy.corpus()
  splits = {name: whole.splits[name] for name in ("train", "test")}
  lacking = dataclasses.replace(whole, splits=splits)
  monkeypatch.setattr(prepare, "load", lambda config, **_: lacking)
  with pytest.raises(UserError, match="choose none .the last epoch is kept."):
    run.train(_config(), tmp_path / "a")
  assert not (tmp_path / "a").exists()
  config = _config(train={"selection_split": "none"}, optim={"epochs": 2})
  summary = run.train(config, tmp_path / "a")
  assert summary["selected_by"] == "nothing: the last epoch"
  assert summary["selected_epoch"] == [2]
  monkeypatch.setattr(prepare, "load", lambda config, **_: whole)
  with pytest.raises(UserError, match="selection_split='none', but 'toy' has"):
    run.train(config, tmp_path / "b")


def test_settings_of_a_data_set_need_its_file(tmp_path):
  config = experiment(files.get_config("lf_dnn:mosi"))
  with pytest.raises(UserError, match="config.data.recipe='mosi'.*whose file is lack"):
    prepare.read_own(config)
  assert experiment(files.get_config("lf_dnn")).data.recipe == ""
  assert experiment(files.get_config("lf_dnn:own")).data.recipe == ""


def test_a_listener_is_told_what_metrics_say(tmp_path):
  heard = []
  run.train(_config(optim={"epochs": 2}), tmp_path, listener=heard.append)
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert heard == [json.loads(line) for line in lines] and len(heard) == 2
  assert heard[1]["epoch"] == 2 and heard[1]["valid"]["sentiment"]["mae"] > 0
