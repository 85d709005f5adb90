"""Missing content in runs: configured, drawn once, saved, counted; and the prior."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import toy
from changes import change
from ragged import fit_apply

from msa_jax import models, train_state
from msa_jax.data import missing
from msa_jax.data.batching import batches
from msa_jax.data.transforms.modalities import select_modalities
from msa_jax.data.transforms.transform import OTHER
from msa_jax.errors import UserError
from msa_jax.layers.masking import has_content
from msa_jax.models.system import Stage
from msa_jax.runs import prepare, run
from msa_jax.step import compose, recipe
from msa_jax.step.recipe import Recipe, with_missing
from msa_jax.typing import Batch, Modality, ModelOutput, TrainState


@pytest.fixture(autouse=True)
def toy_system(monkeypatch):
  monkeypatch.setitem(models.SYSTEMS, "toy", toy.SYSTEM)
  monkeypatch.setattr(prepare, "load", lambda config, **_: toy.corpus())


def _config(**options):
  return change(toy.config(epochs=2), missing=options)


def _batch(n=24, seed=0):
  config, corpus = train_state.prepare(toy.config())
  return config, train_state.whole_split(config, corpus, "train")


def _kept(pattern, batch, step, seed=0, n_batches=5):
  """Availability after one training step's losses."""
  seen = {}

  def spy(state, batch, seed):
    seen["available"] = batch.available
    return state, {}

  wrapped = with_missing(
    Recipe(None, spy, None, None), missing.parse(pattern), n_batches
  )
  wrapped.step(TrainState(jnp.asarray(step), {}, {}, ()), batch, seed)
  return np.asarray(seen["available"])


def test_training_losses_are_drawn_anew_at_each_step_and_seed():
  _, batch = _batch()
  for pattern in ("dropout:0.5", "random:0.4", "conditions"):
    first, again = _kept(pattern, batch, 3), _kept(pattern, batch, 3)
    np.testing.assert_array_equal(first, again)
    assert (first != _kept(pattern, batch, 4)).any()
    assert (first != _kept(pattern, batch, 3, seed=1)).any()
  assert _kept("random:0.4", batch, 0).sum() == round(0.6 * 37 * 2)
  np.testing.assert_array_equal(_kept("text", batch, 0)[:, 0], True)
  assert not _kept("text", batch, 0)[:, 1].any()


def test_training_batches_lose_by_their_place_in_the_epoch():
  batch = Batch(
    modalities={
      name: Modality(
        jnp.ones((6, 2, 1)), jnp.ones((6, 2), bool), jnp.zeros((6, 2), bool)
      )
      for name in ("text", "audio", "vision")
    },
    available=jnp.ones((6, 3), bool),
    labels={},
    index=jnp.arange(6),
    sample_mask=jnp.ones(6, bool),
  )
  counts = [_kept("batches:0.3", batch, s, n_batches=10).sum(1) for s in range(12)]
  assert all((c == c[0]).all() for c in counts)
  # One draw for a batch: all its rows lose the same modalities, others another time.
  kept = [_kept("batches:0.3", batch, step, n_batches=10) for step in range(3)]
  assert all((rows == rows[0]).all() for rows in kept)
  draws = [_kept("batches:0.3", batch, 0, seed=s, n_batches=10)[0] for s in range(8)]
  assert len({tuple(row) for row in draws}) > 1
  assert [c[0] for c in counts] == [1] * 3 + [2] * 3 + [3] * 4 + [1] * 2


def test_a_run_with_missing_validation_and_test_saves_and_reports_them(tmp_path):
  summary = run.train(_config(eval="random:0.3", train="dropout:0.2"), tmp_path)
  assert summary["without_content"] == {"valid": 0, "test": 0}
  data = json.loads((tmp_path / "data.json").read_text())
  assert set(data["missing"]) == {"valid", "test"}
  share = 1 - round(0.7 * 26) / 26
  assert data["missing"]["test"]["realised"]["entries"] == pytest.approx(share)
  with np.load(tmp_path / "predictions" / "missing_test.npz") as file:
    masks = file["random:0.3/available"]
  pattern = missing.parse("random:0.3")
  drawn = missing.draw(pattern, toy.corpus().splits["test"], seed=0)
  np.testing.assert_array_equal(masks, drawn.available)
  assert run.evaluate(tmp_path)["test"] == summary["splits"]["test"]
  complete = run.train(_config(train="dropout:0.2"), tmp_path / "complete")
  assert complete["splits"]["test"] != summary["splits"]["test"]


def test_lost_steps_of_training_are_drawn_once_before_the_preprocessing():
  prepared = prepare.prepare(_config(train="frames:0.5:features"))
  assert set(prepared.masks) == {"train"}
  train = prepared.corpus.splits["train"]
  lost = prepared.masks["train"].lost
  assert lost["audio"].any() and lost["text"].any()
  for name in ("text", "audio"):
    np.testing.assert_array_equal(train.modalities[name].lost, lost[name])


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"train": "fog:0.3"}, r"config.missing.train: missing pattern 'fog:0.3' must be"),
    ({"eval": "vision"}, "the corpus has text, audio"),
    ({"eval": "batches:0.1"}, "three modalities"),
    ({"seed": -1}, r"config.missing.seed=-1 must be in"),
  ],
)
def test_bad_options_are_refused_before_training(options, message):
  with pytest.raises(UserError, match=message):
    prepare.prepare(_config(**options))


def test_samples_without_content_get_the_prior_and_are_counted(tmp_path, monkeypatch):
  corpus = toy.corpus()
  for name in ("text", "audio"):
    corpus.splits["test"].modalities[name].lengths[:4] = 0
  monkeypatch.setattr(prepare, "load", lambda config, **_: corpus)
  summary = run.train(_config(), tmp_path)
  assert summary["without_content"] == {"valid": 0, "test": 4}
  table = np.genfromtxt(
    tmp_path / "predictions" / "test.csv", delimiter=",", names=True, dtype=None
  )
  median = np.median(corpus.splits["train"].labels["sentiment"])
  np.testing.assert_allclose(table["sentiment_seed_0"][:4], median, rtol=1e-5)
  assert not np.isclose(table["sentiment_seed_0"][4:], median).all()
  saved = json.loads((tmp_path / "config.json").read_text())["spec"]["priors"]
  np.testing.assert_allclose(saved["sentiment"], [median], rtol=1e-6)
  record = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
  assert record["without_content"] == 0


def test_losing_every_step_counts_as_having_no_content():
  config, batch = _batch()
  state = train_state.create(config)
  lost = {
    name: m.replace(lost=m.mask & (jnp.arange(37) < 2)[:, None])
    for name, m in batch.modalities.items()
  }
  batch = batch.replace(modalities=lost)
  content = np.asarray(has_content(batch))
  assert content.sum() == 35 and not content[:2].any()
  predictions = train_state.predict(config, state, batch).predictions["sentiment"]
  np.testing.assert_allclose(
    predictions[:2], config.spec.priors["sentiment"][0], rtol=1e-6
  )


def test_utterances_and_questions_get_their_own_prior():
  priors = {"yes": tuple(np.log([0.9, 0.1, 0.4, 0.6]).tolist())}
  mask = jnp.asarray([[True, True, False]])
  available = jnp.asarray([[[True, False], [False, False], [True, True]]])
  batch = Batch(
    modalities={
      name: Modality(jnp.ones((1, 3, 2)), mask, jnp.zeros((1, 3), bool))
      for name in ("text", "audio")
    },
    available=available,
    labels={},
    index=jnp.zeros(1, int),
    sample_mask=jnp.ones(1, bool),
  )
  output = ModelOutput(
    {"yes": jnp.full((1, 3, 2, 2), 7.0), "no": jnp.ones(3)}, {}, {}, {}
  )
  plain = Recipe(None, None, lambda params, collections, batch: output, None)
  found = recipe.with_prior(plain, priors).predict({}, {}, batch).predictions
  prior = np.log([[0.9, 0.1], [0.4, 0.6]])
  np.testing.assert_allclose(found["yes"][0, 0], 7.0)
  np.testing.assert_allclose(found["yes"][0, 1], prior, rtol=1e-6)
  np.testing.assert_allclose(found["yes"][0, 2], prior, rtol=1e-6)
  np.testing.assert_array_equal(found["no"], 1.0)


def test_a_stage_can_train_on_complete_data(monkeypatch):
  seen = []

  def spied(model, stage, made):
    def step(state, batch, seed):
      seen.append((stage.name, np.asarray(batch.available).all()))
      return state, {}

    return made._replace(step=step)

  stages = (Stage("alone", 1, missing=False), Stage("mixed", 1))
  system = toy.SYSTEM._replace(stages=lambda *arguments: stages, recipe=spied)
  monkeypatch.setitem(models.SYSTEMS, "toy", system)
  config, corpus = train_state.prepare(_config(train="dropout:0.5"))
  batch = train_state.whole_split(config, corpus, "train")
  state = train_state.create(config)
  for stage in (0, 1):
    compose.build(config, stage).step(state, batch, 0)
  assert seen == [("alone", True), ("mixed", False)]


def test_other_modalities_keep_their_availability():
  corpus = toy.corpus()
  split = corpus.splits["test"]
  split = dataclasses.replace(split, available=np.arange(26).reshape(13, 2) % 3 > 0)
  corpus = dataclasses.replace(corpus, splits={"test": split})
  alone = select_modalities(corpus, ("audio",)).splits["test"]
  np.testing.assert_array_equal(alone.available[:, 0], split.available[:, 1])
  more = batches.available_columns(split, ("vision", "audio", "text"))
  np.testing.assert_array_equal(more[:, :2], split.available)
  assert not more[:, 2].any()
  assert batches.available_columns(toy.corpus().splits["test"], ("text",)) is None


def test_a_file_without_a_modality_keeps_the_availability_of_the_others():
  corpus = toy.corpus()
  fitted, _ = fit_apply(corpus)
  split = corpus.splits["test"]
  split = dataclasses.replace(
    split,
    modalities={"audio": split.modalities["audio"]},
    available=np.arange(13)[:, None] % 2 > 0,
  )
  corpus = dataclasses.replace(corpus, splits={"test": split})
  batch = batches.whole(fitted.apply(corpus, OTHER).splits["test"], {})
  expected = np.stack([np.zeros(13, bool), np.arange(13) % 2 > 0], axis=1)
  np.testing.assert_array_equal(batch.available, expected)
