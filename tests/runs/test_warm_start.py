"""Runs that start from another run: what is taken, how it is laid out, what is said."""

import json
import shutil

import jax
import numpy as np
import pytest
import tiny_encoder
import toy
from changes import change

from configs import lf_dnn
from msa_jax import models, train_state
from msa_jax.errors import UserError
from msa_jax.runs import prepare, run
from msa_jax.step import ema
from msa_jax.text import weights

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reading():
  """Runs read the corpus of tokens, whatever file they name; or the toy corpus."""
  patch = pytest.MonkeyPatch()
  patch.setitem(models.SYSTEMS, "toy", toy.SYSTEM)
  patch.setattr(prepare, "load", _load)
  yield
  patch.undo()


def _load(config, **_):
  return tiny_encoder.corpus() if config.text.is_tuned else toy.corpus()


def config(folder, modalities=("text", "audio"), **sections):
  made = change(
    lf_dnn.get_config(),
    model={"hidden_dims": {"text": 4, "audio": 4}, "text_dim": 4, "post_dim": 4},
    data={"modalities": modalities, "standardize": ("audio",), "align": "none"},
    optim={"epochs": 1, "batch_size": 16},
    text={"input": "encoder", "encoder": folder, "finetune": "all"},
  )
  return change(made, **sections)


@pytest.fixture(scope="module")
def first(reading, tmp_path_factory):
  """A finished run of text alone, seeds 3 and 5, and the encoder that it began with."""
  path = tmp_path_factory.mktemp("first")
  folder = tiny_encoder.folder(path / "encoder")
  made = config(
    folder,
    ("text",),
    text={"learning_rate": 1e-2},
    optim={"ema_decay": 0.5},
    replicas={"seeds": (3, 5), "mode": "vmap"},
  )
  return run.train(made, path / "run"), path / "run", folder


def same(ours, theirs):
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def selected(workdir, seed):
  _, state = train_state.load(workdir, seed)
  params, _ = ema.predicting(state.params, state.collections)
  return jax.device_get(params)


def test_each_seed_gets_the_encoder_of_that_run_s_seed_or_first(first, tmp_path):
  _, workdir, folder = first
  made = config(folder, text={"finetune": "top_1"}, init={"from_run": str(workdir)})
  made, _ = train_state.prepare(made)
  for seed, theirs in ((5, 5), (3, 3), (0, 3)):
    expected = weights.split(selected(workdir, theirs)["text_encoder"], 1)
    state = train_state.create(made, seed)
    same(jax.device_get(state.params["text_encoder"]), expected)
  assert np.any(selected(workdir, 3)["text_encoder"]["layers"]["query"]["kernel"])
  before = weights.load(folder).params["layers"]["query"]["kernel"]
  assert np.any(
    before != selected(workdir, 3)["text_encoder"]["layers"]["query"]["kernel"]
  )
  # All else is that of a run by itself.
  alone, _ = train_state.prepare(config(folder, text={"finetune": "top_1"}))
  alone, here = (train_state.create(each, 5).params for each in (alone, made))
  same(
    {k: v for k, v in here.items() if k != "text_encoder"},
    {k: v for k, v in alone.items() if k != "text_encoder"},
  )


def test_a_run_says_where_it_started_and_goes_on_without_that_run(first, tmp_path):
  _, workdir, folder = first
  shutil.copytree(workdir, tmp_path / "source")
  made = config(
    folder,
    optim={"learning_rate": 0.0, "warmup_fraction": 0.0, "weight_decay": 0.0},
    text={"learning_rate": 1e-30},
    init={"from_run": str(tmp_path / "source")},
    replicas={"seeds": (3, 5), "mode": "vmap"},
  )
  summary = run.train(made, tmp_path / "run")
  assert summary["init"]["what"] == "encoder"
  assert summary["init"]["from_run"] == str(tmp_path / "source")
  assert len(set(summary["init"]["parameter_hash"])) == 2
  told = json.loads((tmp_path / "run" / "config.json").read_text())["init"]
  assert told["parameter_hash"] == summary["init"]["parameter_hash"]
  for seed in (3, 5):
    ours, theirs = (selected(w, seed) for w in (tmp_path / "run", workdir))
    same(ours["text_encoder"], theirs["text_encoder"])
  shutil.rmtree(tmp_path / "source")
  assert run.evaluate(tmp_path / "run")["test"] == summary["splits"]["test"]
  with pytest.raises(UserError, match="holds no run"):
    run.train(made, tmp_path / "run")


def test_all_is_the_whole_state_and_predicts_the_same(reading, tmp_path):
  trained = run.train(toy.config(epochs=2, ema_decay=0.5), tmp_path / "a")
  made = change(
    toy.config(learning_rate=0.0, learning_rates={"gate": 0.0}, epochs=1),
    init={"from_run": str(tmp_path / "a"), "what": "all"},
  )
  again = run.train(made, tmp_path / "b")
  for name in ("valid", "test"):
    ours, theirs = (
      each["splits"][name]["sentiment"]["mae"]["mean"] for each in (again, trained)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
  resolved, _ = train_state.prepare(made)
  state = train_state.create(resolved)
  # Five batches an epoch, two epochs: the counter goes on, the optimizer does not.
  assert int(state.collections["statistics"]["batches"]) == 10
  assert int(state.step) == 0
  averaged, _ = train_state.prepare(change(made, optim={"ema_decay": 0.5}))
  state = train_state.create(averaged)
  same(state.params, state.collections[ema.AVERAGE])


def test_what_does_not_fit_is_one_line(first, reading, tmp_path):
  _, workdir, folder = first
  start = {"from_run": str(workdir)}

  def refused(message, made):
    with pytest.raises(UserError, match=message):
      prepare.prepare(made)

  refused("what='some' must be one of", config(folder, init={"what": "some"}))
  refused(
    "start='scratch' must be 'pretrained'",
    config(folder, init=start, text={"start": "scratch"}),
  )
  refused("holds no run", config(folder, init={"from_run": str(tmp_path)}))
  refused("this run trains no text encoder", change(toy.config(), init=start))
  refused(
    "is a run of lf_dnn, this one of toy",
    change(toy.config(), init={**start, "what": "all"}),
  )
  refused(
    r"shapes differ \(.*encoder_audio.* is absent there",
    config(folder, init={**start, "what": "all"}),
  )
  other = tiny_encoder.folder(tmp_path / "other", n_layers=1)
  refused(r"another encoder \(n_layers: 2 there, 1 here\)", config(other, init=start))
  run.train(toy.config(epochs=1), tmp_path / "features")
  refused(
    "that run trains no text encoder",
    config(folder, init={"from_run": str(tmp_path / "features")}),
  )
  prepared = prepare.prepare(config(folder, init=start)).config
  damaged = change(prepared, init={"parameter_hash": ("0", "0")})
  with pytest.raises(Exception, match="no longer holds the run"):
    train_state.create(damaged, 3)
