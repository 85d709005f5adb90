"""The balance study: probes on frozen features, comparisons, its command's errors."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import toy
from changes import change

from configs import awf as awf_config
from msa_jax.config.experiment import experiment
from msa_jax.errors import UserError
from msa_jax.models import SYSTEMS
from msa_jax.models.outputs import REGRESSION
from msa_jax.runs import prepare, run
from msa_jax.studies import balance, probes
from msa_jax.studies.changes import changed
from msa_jax.typing import Label

WIDTHS = {"feature_dim": 4, "post_dim": 4}


def awf():
  """An unresolved experiment of a tiny AWF for the toy corpus."""
  made = experiment(awf_config.get_config())
  made = changed(made, {f"model.{key}": value for key, value in WIDTHS.items()})
  data = {"align": "none", "max_steps": 0, "buckets": 0}
  optim = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-2}
  return change(made, data=data, optim=optim, balance={"enabled": True})


@pytest.fixture
def toy_corpus(monkeypatch):
  monkeypatch.setattr(prepare, "load", lambda config, **_: toy.corpus())


def test_a_probe_learns_what_its_features_say_and_nothing_masked():
  random = np.random.default_rng(0)
  features = jnp.asarray(random.normal(size=(96, 3)), jnp.float32)
  value = 2.0 * np.asarray(features[:, 0])
  mask = np.arange(96) < 64
  target = REGRESSION
  label = Label(jnp.asarray(np.where(mask, value, 100.0)), jnp.asarray(mask))
  head, params = probes.fit_probe(target, features, label, epochs=300)
  error = np.abs(np.asarray(head.apply({"params": params}, features)) - value)
  # The mean alone is off by 2 * E|x| = 1.6.
  assert error[mask].mean() < 0.3
  other = Label(jnp.asarray(np.where(mask, value, -7.0)), jnp.asarray(mask))
  _, same = probes.fit_probe(target, features, other, epochs=3)
  _, again = probes.fit_probe(target, features, label, epochs=3)
  np.testing.assert_array_equal(same["Dense_0"]["kernel"], again["Dense_0"]["kernel"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """Folder of a trained AWF on the toy corpus."""
  folder = tmp_path_factory.mktemp("awf")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(prepare, "load", lambda config, **_: toy.corpus())
    run.train(awf(), folder)
  return folder


def test_one_modality_alone_is_the_model_with_the_others_unavailable(
  toy_corpus, trained
):
  config, corpus, made, ((params, collections),) = balance._open(trained)
  report = probes.zero_others(config, made, params, collections, corpus)
  data = probes.batches.whole(
    corpus.splits["test"], corpus.tasks, dict(config.spec.lengths)
  )
  only = jnp.broadcast_to(jnp.array([True, False]), data.available.shape)
  rows = probes.batches.take(
    data.replace(available=only), jnp.arange(len(corpus.splits["test"]))
  )
  prediction = made.predict(params, collections, rows).predictions["sentiment"]
  error = np.abs(np.asarray(prediction) - corpus.splits["test"].labels["sentiment"])
  np.testing.assert_allclose(report["text"]["mae"], error.mean(), rtol=1e-5)


def test_attention_is_trained_again_from_every_seed(toy_corpus, trained):
  entries = balance.attention_ratios(trained, seeds=(0, 1), epochs=2)
  for entry in entries:
    np.testing.assert_allclose(sum(entry["ratio"].values()), 1.0, rtol=1e-6)
    assert np.isfinite(entry["figures"]["mae"])
  assert entries[0]["ratio"] != entries[1]["ratio"]


def test_a_run_without_attention_has_no_ratios(toy_corpus, trained, monkeypatch):
  config, corpus, made, ((params, collections),) = balance._open(trained)
  params = {name: leaf for name, leaf in params.items() if name != "attention"}
  opened = (config, corpus, made, [(params, collections)])
  monkeypatch.setattr(balance, "_open", lambda folder: opened)
  with pytest.raises(UserError, match="has no A-fusion"):
    balance.attention_ratios(trained)


def test_probes_of_a_system_without_features_by_modality_are_refused(
  toy_corpus, tmp_path, monkeypatch
):
  monkeypatch.setitem(SYSTEMS, "toy", toy.SYSTEM)
  run.train(toy.config(epochs=1), tmp_path)
  with pytest.raises(UserError, match="probes need output.features"):
    balance.probe_run(tmp_path)


def test_unknown_tables_and_options_are_refused(tmp_path):
  with pytest.raises(UserError, match="--table=moon: choose one of balance"):
    balance.study(awf(), tmp_path, "moon")
  with pytest.raises(UserError, match="config.model.attention_fusion; toy has no such"):
    changed(toy.config(), {"model.attention_fusion": False})


@pytest.mark.parametrize(
  ("arguments", "message"),
  [(["moon"], "choose a study: ablation"), (["balance"], "needs --config")],
)
def test_bad_commands_end_with_one_line(arguments, message):
  result = subprocess.run(
    [sys.executable, "-m", "msa_jax.studies", *arguments],
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 2
  assert len(result.stderr.strip().splitlines()) == 1
  assert message in result.stderr
