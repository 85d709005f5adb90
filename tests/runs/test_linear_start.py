"""Heads on pooled text start as ridge, or logistic regression, of that text."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_systems
import toy
from changes import change

from msa_jax import models, train_state
from msa_jax.config.validate import validate
from msa_jax.errors import UserError
from msa_jax.linear import references as linear
from msa_jax.linear.pooling import Pooled
from msa_jax.linear.references import Labelled
from msa_jax.models import SYSTEMS
from msa_jax.runs import linear_start, prepare, references, run
from msa_jax.step import compose, ema
from msa_jax.typing import Task

LINEAR = {"text_head": "linear"}


@pytest.fixture
def toy_system(monkeypatch):
  monkeypatch.setitem(models.SYSTEMS, "toy", toy.SYSTEM)
  monkeypatch.setattr(prepare, "load", lambda config, **_: toy.corpus())


def anchored(**optim):
  made = toy.config(**{"epochs": 1, **optim})
  return change(made, anchor={"to": "auto"}, init=LINEAR)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("kind", ["regression", "classes", "binary"])
def test_a_layer_says_what_the_linear_model_says_wherever_there_is_text(kind, missing):
  random = np.random.default_rng(0)
  means = random.normal(2.0, 3.0, (60, 5))
  means[:, 3] = 7.0  # says nothing
  seen = random.random(60) < 0.7 if missing else np.ones(60, bool)
  pooled = Pooled({"text": np.where(seen[:, None], means, 0)}, {"text": seen}, None)
  labels = {
    "regression": means[:, 0] - means[:, 1],
    "classes": random.integers(0, 3, 60),
    "binary": random.integers(0, 2, (60, 2)),
  }[kind]
  classes = {"regression": (), "classes": ("a", "b", "c"), "binary": ("d", "e")}[kind]
  rows = Labelled(pooled, {"y": (labels, np.ones(60, bool))})
  constant = {"y": [0.0] * {"regression": 1, "classes": 3, "binary": 4}[kind]}
  fitted = linear.fit({"y": Task(kind, classes=classes)}, rows, None, constant)
  model = fitted["y"]["linear_text"]
  layer = linear_start.as_layer(model)
  found = means @ layer["kernel"] + layer["bias"]
  expected = linear.predict(model, pooled)
  shape = {"regression": (60,), "classes": (60, 3), "binary": (60, 2, 2)}[kind]
  found = found.reshape(shape)
  np.testing.assert_allclose(found[seen], expected[seen], rtol=1e-4, atol=1e-4)
  assert np.ptp(found[seen]) > 0.1


def test_states_start_with_it_alone_side_by_side_and_with_a_mean(toy_system):
  made = change(anchored(ema_decay=0.9), anchor={"to": "text"})
  config, corpus = train_state.prepare(made)
  together = jax.vmap(lambda seed: train_state.create(config, seed, corpus))
  stacked, one = together(jnp.arange(2)), train_state.create(config, 1, corpus)
  batch = train_state.whole_split(config, corpus, "test")
  gone = batch.available.at[2, batch.order.index("text")].set(False)
  batch = batch.replace(available=gone)
  found = train_state.predict(config, one, batch).predictions["sentiment@anchor"]
  model = references.fit_text(config, corpus)["sentiment"]
  expected = linear.predict(model, references.pool(config, corpus.splits["test"]))
  rows = np.arange(len(expected)) != 2
  np.testing.assert_allclose(
    np.asarray(found)[: len(rows)][rows], expected[rows], rtol=1e-4, atol=1e-4
  )
  assert not np.isclose(found[2], expected[2])
  head = one.params["anchor"]["heads"]["sentiment"]
  mean = one.collections[ema.AVERAGE]["anchor"]["heads"]["sentiment"]
  for each in (
    mean,
    jax.tree.map(lambda leaf: leaf[1], stacked.params["anchor"]["heads"]["sentiment"]),
  ):
    jax.tree.map(np.testing.assert_array_equal, each, head)
  # What is no head starts at random, and without a corpus so do heads.
  plain = train_state.create(config, 1)
  np.testing.assert_array_equal(
    plain.params["Dense_0"]["kernel"], one.params["Dense_0"]["kernel"]
  )
  assert np.any(
    plain.params["anchor"]["heads"]["sentiment"]["kernel"] != head["kernel"]
  )


@pytest.mark.parametrize("references_on", [True, False])
def test_a_run_of_several_seeds_starts_there(toy_system, tmp_path, references_on):
  """With rates of 0 it ends there as well."""
  still = {"learning_rate": 0.0, "learning_rates": {"gate": 0.0}}
  made = change(
    anchored(**still),
    replicas={"seeds": (3, 5), "mode": "vmap"},
    train={"references": references_on},
  )
  summary = run.train(made, tmp_path / "run")
  alone = summary["splits"]["test"]["sentiment@anchor"]["mae"]
  config, corpus = train_state.prepare(made)
  assert config.anchor.to == "text"
  model = references.fit_text(config, corpus)["sentiment"]
  said = linear.predict(model, references.pool(config, corpus.splits["test"]))
  error = np.mean(np.abs(said - corpus.splits["test"].labels["sentiment"]))
  np.testing.assert_allclose(alone["values"], [error, error], rtol=1e-4)
  assert bool(summary["references"]) == references_on
  own = summary["splits"]["test"]["sentiment"]["mae"]["values"]
  assert own[0] != own[1]  # the correction starts at random


@functools.cache
def system(name):
  made = tiny_systems.config(name)
  return change(made, anchor={"to": "auto"}, init=LINEAR)


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_auto_anchors_whatever_reads_more_than_text(name):
  found = compose.with_anchor_chosen(system(name))
  assert found.anchor.to == ("none" if name == "text_only" else "text")
  assert linear_start.is_possible(found)


def test_auto_leaves_alone_what_cannot_be_anchored_or_was_not_measured():
  one = system("lf_dnn")

  def chosen(config):
    return compose.with_anchor_chosen(config).anchor.to

  spec = one.corpus_spec
  widths = {k: v for k, v in spec.widths.items() if k != "text"}
  assert chosen(one.replace("spec", widths=widths)) == "none"
  tasks = {"sentiment": Task("classes", classes=("a", "b"))}
  assert chosen(one.replace("spec", tasks=tasks)) == "none"
  branched = {"stage2_mask": "condition", "condition": "all"}
  assert chosen(change(system("momke"), model=branched)) == "none"
  assert chosen(change(one, anchor={"to": "text"})) == "text"
  assert chosen(change(one, anchor={"to": "none"})) == "none"


@pytest.mark.parametrize(
  "sections",
  [
    {"anchor": {"to": "none"}},
    {"anchor": {"to": "text", "pool": "first"}},
    {"init": {"from_run": "there", "what": "all"}},
    {"text": {"input": "encoder", "finetune": "all", "start": "scratch"}},
    {"text": {"input": "encoder", "finetune": "all"}, "init": {"from_run": "there"}},
    {"init": {"text_head": "random"}},
  ],
)
def test_a_head_that_reads_something_else_starts_at_random(sections):
  config = change(change(system("lf_dnn"), anchor={"to": "text"}), **sections)

  def fit():
    raise AssertionError("not asked for")

  assert linear_start.heads(config, fit) == {}


def test_an_unknown_start_is_refused():
  with pytest.raises(UserError, match="text_head='ridge' must be one of"):
    validate(change(tiny_systems.config("lf_dnn"), init={"text_head": "ridge"}))
