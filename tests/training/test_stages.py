"""Training in stages: composition, trainable parts, tracks, resume, own recipes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
import toy_stages
from changes import change, resolve
from stops import StopAt
from toy_stages import BOTH, FIRST, HEADS, SECOND

from msa_jax import models, train_state
from msa_jax.config.options import BalanceConfig
from msa_jax.errors import UserError
from msa_jax.models.system import one_loss
from msa_jax.runs import prepare, run
from msa_jax.runs.summary import parameter_hash
from msa_jax.step import compose, objective, recipe
from msa_jax.training import loop, run_directory, scoring
from msa_jax.training.compiled_stages import CompiledStages


@pytest.fixture
def system(monkeypatch):
  """Installs a toy system with the given stages; returns the function that does."""
  monkeypatch.setattr(prepare, "load", lambda config, **_: toy.corpus())

  def install(*stages, **hooks):
    monkeypatch.setitem(models.SYSTEMS, "toy", toy_stages.system(*stages, **hooks))

  return install


def _config(**sections):
  config = toy.config(name="adamw", weight_decay=0.1, schedule="constant")
  config = change(config, optim={"warmup_fraction": 0.0})
  if "balance" in sections:
    config = config.replace(balance=BalanceConfig(**sections.pop("balance")))
  return change(config, **sections)


def _train(folder, **sections):
  """Trains; returns the selected parameters and the records."""
  run.train(_config(**sections), folder)
  directory = run_directory.RunDirectory(folder)
  ((params, _),) = run.restore(directory, directory.experiment())
  return params, directory.metrics()


def _head(params, name):
  return parameter_hash(params[f"head_{name}"])


def test_the_second_stage_starts_from_each_tracks_own_best_epoch(tmp_path, system):
  # The text's head runs away (a step decays it by three times itself), the audio's
  # descends its loss.
  climbing = {"partition": lambda path: "gate" if path[0] == "head_text" else "new"}
  system(*BOTH, **climbing)
  rates = {"optim": {"learning_rates": {"gate": 30.0}}}
  params, records = _train(tmp_path / "both", **rates)
  assert [(r["stage"], r["epoch"]) for r in records] == [
    *(("heads", e) for e in (1, 2, 3, 4)),
    *(("mixture", e) for e in (5, 6, 7)),
  ]
  best = {
    n: int(np.argmin([r["valid"][f"sentiment@{n}"]["mae"] for r in records[:4]])) + 1
    for n in HEADS
  }
  assert best == {"text": 1, "audio": 4}
  assert records[0]["improved"] == list(HEADS) and records[0]["selected"]
  for name, epoch in best.items():
    # What the head was after that epoch, from a run that ended there.
    whole = FIRST._replace(epochs=epoch, compose=lambda snapshots, final: final)
    system(whole, **climbing)
    ended, _ = _train(tmp_path / name, **rates)
    assert _head(params, name) == _head(ended, name)


def test_parameters_outside_a_stage_neither_move_nor_decay(tmp_path, system):
  system(*BOTH)
  config, corpus = train_state.prepare(_config())
  programs = CompiledStages(config)
  feed = run.feeds_of(config, corpus)["train"]
  order = np.asarray([np.arange(8), np.arange(8, 16)])
  state, best = programs.begin([0])
  before = {k: parameter_hash(v) for k, v in state.params.items()}
  state, _ = programs.advance(0, state, feed, [order], 0, [0], [True])
  after = {k: parameter_hash(v) for k, v in state.params.items()}
  assert {k for k in after if after[k] != before[k]} == {"head_text", "head_audio"}
  state, _ = programs.enter(1, best, state)
  entered = {k: parameter_hash(v) for k, v in state.params.items()}
  assert entered == before  # the snapshots are those of the beginning
  assert int(state.step) == 2  # streams of random numbers go on
  state, _ = programs.advance(1, state, feed, [order], 0, [0], [True])
  after = {k: parameter_hash(v) for k, v in state.params.items()}
  assert {k for k in after if after[k] != entered[k]} == {"mix"}


@pytest.mark.parametrize("carry", [False, True])
def test_the_optimizer_starts_afresh_unless_it_is_carried(system, carry):
  system(FIRST, SECOND._replace(carry_opt_state=carry))
  config, corpus = train_state.prepare(_config())
  programs = CompiledStages(config)
  feed = run.feeds_of(config, corpus)["train"]
  state, best = programs.begin([0])
  order = np.asarray([np.arange(8)])
  state, _ = programs.advance(0, state, feed, [order], 0, [0], [True])
  moved = jax.device_get(state.opt_state)
  state, _ = programs.enter(1, best, state)
  fresh = compose.build(config, 0).start(state.params, {}, state.step).opt_state
  expected = moved if carry else fresh
  for ours, theirs in zip(
    jax.tree.leaves(state.opt_state), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("calls", [2, 13, 15])
def test_a_run_stopped_in_or_between_stages_ends_bit_identical(
  tmp_path, system, monkeypatch, calls
):
  # 5 batches per epoch, at most 2 per call: 13 calls in the first stage, 10 in the
  # second.
  system(*BOTH)
  straight, expected = _train(tmp_path / "straight", train={"steps_per_call": 2})
  original = loop.fit

  def stopping(*arguments):
    return original(*arguments[:-1], StopAt(calls))

  with monkeypatch.context() as patch:
    patch.setattr(loop, "fit", stopping)
    with pytest.raises(loop.Interrupted, match="stopped after step"):
      _train(tmp_path / "stopped", train={"steps_per_call": 2})
  resumed, records = _train(tmp_path / "stopped", train={"steps_per_call": 2})
  assert parameter_hash(resumed) == parameter_hash(straight)
  for ours, theirs in zip(records, expected, strict=True):
    assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


def test_a_stage_ends_when_all_its_tracks_are_stale(tmp_path, system):
  # The text's head stands still from the start; the audio's learns slowly.
  system(
    FIRST._replace(
      epochs=20, patience=2, trainable=lambda path: path[0] == "head_audio"
    ),
    SECOND,
  )
  _, records = _train(tmp_path, optim={"learning_rate": 0.05})
  first = [r["improved"] for r in records if r["stage"] == "heads"]
  assert first[0] == list(HEADS)
  last = max(epoch for epoch, names in enumerate(first) if "audio" in names)
  assert last >= 3 and len(first) == min(20, last + 3)


def test_heads_of_one_task_share_its_labels_in_loss_score_and_tables(tmp_path, system):
  system(FIRST)
  config, corpus = train_state.prepare(_config())
  batch = train_state.whole_split(config, corpus, "valid")
  state = train_state.create(config)
  output = train_state.predict(config, state, batch)
  terms = one_loss(config.loss, config.corpus_spec)
  losses = objective.task_losses(config.corpus_spec.tasks, terms, output, batch)
  labels = scoring.label_arrays(corpus.splits["valid"], corpus.tasks)
  predictions = jax.device_get(dict(output.predictions))
  scores = scoring.score(corpus.tasks, predictions, labels)
  assert set(scores) == set(losses) == {"sentiment@text", "sentiment@audio"}
  for name, values in predictions.items():
    mae = np.mean(np.abs(values - corpus.splits["valid"].labels["sentiment"]))
    np.testing.assert_allclose(losses[name], mae, rtol=1e-5)
    np.testing.assert_allclose(scores[name]["mae"], mae, rtol=1e-5)
  summary = run.train(_config(), tmp_path)
  assert set(summary["splits"]["test"]) == set(losses)
  assert summary["selected_by"] == "valid sentiment@text/mae, valid sentiment@audio/mae"
  header = (tmp_path / "predictions" / "test.csv").read_text().splitlines()[0]
  assert "sentiment@text_seed_0" in header


def _branches(model, stage, made):
  """Two copies of the second stage, by vmap; the first knows half of each output."""
  if stage.name != "mixture":
    return made
  scale = jnp.asarray([0.5, 1.0])

  def step(state, batch, seed):
    axes = dataclasses.replace(state, step=None, params=0, collections=0, opt_state=0)
    out = dataclasses.replace(axes, step=None)
    state, metrics = jax.vmap(made.step, (axes, None, None), (out, 0))(
      state, batch, seed
    )
    return state, {name: jnp.mean(value) for name, value in metrics.items()}

  def predict(params, collections, batch):
    output = jax.vmap(made.predict, (0, 0, None))(params, collections, batch)
    values = output.predictions["sentiment"] * scale[:, None]
    return output.replace(
      predictions={f"sentiment@{n}": values[i] for i, n in enumerate(("half", "all"))}
    )

  def start(params, collections, step):
    axes = dataclasses.replace(made.init(0), step=None, params=0, collections=0)
    axes = axes.replace(opt_state=0)
    return jax.vmap(made.start, (0, 0, None), axes)(params, collections, step)

  return recipe.Recipe(made.init, step, predict, start)


def test_a_systems_own_recipe_trains_branches_of_a_stage_at_once(tmp_path, system):
  system(*BOTH)
  alone, records = _train(tmp_path / "alone")

  def spread(snapshots, final):
    one = toy_stages.compose(snapshots, final)
    return jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), one)

  def pick(snapshots, final):
    del final
    return jax.tree.map(lambda a, b: jnp.stack([a[0], b[1]]), *snapshots.values())

  tracks = {name: f"sentiment@{name}/mae" for name in ("half", "all")}
  system(
    FIRST._replace(compose=spread),
    SECOND._replace(tracks=tracks, compose=pick),
    recipe=_branches,
  )
  branched, both = _train(tmp_path / "both")
  np.testing.assert_allclose(
    branched["mix"]["kernel"][1], alone["mix"]["kernel"], rtol=1e-4
  )
  for ours, theirs in zip(both[4:], records[4:], strict=True):
    full = ours["valid"]["sentiment@all"]["mae"]
    np.testing.assert_allclose(full, theirs["valid"]["sentiment"]["mae"], rtol=1e-4)
    assert ours["valid"]["sentiment@half"]["mae"] != full
  report = run.evaluate(tmp_path / "both")
  assert set(report["test"]) == {"sentiment@half", "sentiment@all"}
  config, state = train_state.load(str(tmp_path / "both"))
  assert state.params["mix"]["kernel"].shape == (2, 2, 1)


@pytest.mark.parametrize(
  ("stages", "message"),
  [
    ((), "there must be one"),
    ((FIRST, FIRST), "names distinct"),
    ((FIRST._replace(epochs=0),), "epochs=0 must be positive"),
    ((FIRST._replace(collections="vision"),), "collections='vision' must be one of"),
  ],
)
def test_stages_that_make_no_sense_are_refused(system, stages, message):
  system(*stages)
  with pytest.raises(UserError, match=message):
    compose.stages_of(resolve(_config(), toy.corpus()))


def test_a_track_of_an_unknown_metric_is_refused_before_training(tmp_path, system):
  system(FIRST, SECOND._replace(tracks={"x": "sentiment@text/wa"}))
  with pytest.raises(UserError, match="'sentiment@text/wa' must be one of"):
    run.train(_config(), tmp_path)


def test_b_fusion_refuses_stages_that_change_the_call(system):
  system(*BOTH)
  config, _ = train_state.prepare(_config(balance={"enabled": True}))
  with pytest.raises(UserError, match="which encode and tail do not take"):
    compose.build(config, 0)


def test_running_means_of_parameters_are_for_training_in_one_stage(system):
  system(*BOTH)
  config, _ = train_state.prepare(_config(optim={"ema_decay": 0.5}))
  with pytest.raises(UserError, match="ema_decay=0.5: must be 0 for toy"):
    compose.build(config)
