"""Recipes follow the text input, and give way to whatever somebody sets."""

import copy
import importlib
import subprocess
import sys

import pytest
from paths import ROOT

import msa_jax
from msa_jax.config import regimes
from msa_jax.config.experiment import experiment
from msa_jax.config.files import get_config
from msa_jax.errors import UserError
from msa_jax.models import SYSTEMS
from msa_jax.runs import run

ENCODER = {"input": "encoder", "encoder": "folder", "finetune": "all"}


def tuned(name):
  config = get_config(name)
  config.text.update(ENCODER)
  return config


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_an_encoder_that_is_trained_changes_the_recipe_of_every_system(name):
  frozen, found = experiment(get_config(name)), experiment(tuned(name))
  assert found.optim.name == "adamw" and found.optim.weight_decay == 0.01
  assert found.optim.epochs == (16 if name == "momke" else 8)
  assert found.optim.ema_decay == found.optim.patience == 0
  assert found.text.learning_rate == 5e-5 != frozen.text.learning_rate
  rates = found.model.get("dropout", 0.1)
  assert set(rates.values() if isinstance(rates, dict) else [rates]) == {0.1}
  # What is no matter of the recipe stays.
  for section in ("data", "missing", "replicas", "loss"):
    ours, theirs = getattr(found, section), getattr(frozen, section)
    assert ours == theirs or (name, section) == ("derl", "loss")


def test_frozen_features_have_the_values_of_the_file():
  """Also with a frozen encoder, and after a change there and back."""
  config = get_config("hgem:mosi")
  assert (config.optim.epochs, config.optim.weight_decay) == (14, 0.3)
  assert config.model.dropout.embed == 0.5
  config.text.update({**ENCODER, "finetune": "none"})
  assert (config.optim.epochs, config.optim.weight_decay) == (14, 0.3)
  config.text.finetune = "top_2"
  assert (config.optim.epochs, config.model.dropout.embed) == (8, 0.1)
  config.text.start = "scratch"
  assert (config.optim.epochs, config.model.dropout.embed) == (20, 0.3)
  config.text.input = "features"
  assert (config.optim.epochs, config.model.dropout.embed) == (14, 0.5)


def test_who_sets_a_value_has_set_it():
  config = get_config("hgem:mosi")
  config.optim.epochs = 14  # as in the file
  config.optim.update({"weight_decay": 0.2})
  config.text.update(ENCODER)
  found = experiment(config)
  assert (found.optim.epochs, found.optim.weight_decay) == (14, 0.2)
  assert found.optim.ema_decay == 0.0
  # A copy is one of its own.
  other = copy.deepcopy(tuned("hgem:mosi"))
  other.text.finetune = "none"
  assert other.optim.epochs == 14


def test_variants_that_were_asked_for_stay_and_papers_are_taken_literally():
  assert experiment(tuned("lf_dnn:sgd")).optim.name == "sgd"
  for name in ("hgem:paper", "derl:paper_min", "awf:paper", "tfn:paper"):
    found = experiment(tuned(name))
    assert found.train.preset == "none"
    assert found.optim == experiment(get_config(name)).optim
  assert experiment(tuned("awf:paper")).model["text_encoder"] == "bert_cls"
  assert experiment(tuned("lf_dnn:mosi")).model["text_encoder"] == "mean"
  assert experiment(get_config("lf_dnn:mosi")).model["text_encoder"] == "lstm"


def test_a_recipe_can_be_chosen_by_hand():
  config = get_config("hgem:mosi")
  config.train.preset = "tuned"
  assert config.optim.epochs == 8
  config = tuned("hgem:mosi")
  config.train.preset = "none"
  assert config.optim.epochs == 14
  config.train.preset = "moon"
  with pytest.raises(UserError, match="preset='moon' must be one of .*'tuned'"):
    msa_jax.train(config)


def test_options_of_the_python_interface_are_followed_too(monkeypatch, tmp_path):
  seen = []
  monkeypatch.setattr(run, "train", lambda config, *_, **__: seen.append(config) or {})
  options = {f"text.{key}": value for key, value in ENCODER.items()}
  msa_jax.train("hgem:mosi", None, tmp_path, options)
  msa_jax.train("hgem:mosi", None, tmp_path, {**options, "optim.epochs": 14})
  msa_jax.train("hgem:mosi", None, tmp_path)
  assert [one.optim.epochs for one in seen] == [8, 14, 14]
  assert [one.optim.weight_decay for one in seen] == [0.01, 0.01, 0.3]
  assert seen[0].text.finetune == "all"


def test_flags_are_followed_and_win():
  program = (
    "import sys; from absl import app, flags; from ml_collections import config_flags;"
    "from msa_jax.config.experiment import experiment;"
    "flag = config_flags.DEFINE_config_file('config');"
    "app.run(lambda _: print(experiment(flag.value).optim))"
  )
  command = [sys.executable, "-c", program, f"--config={ROOT}/configs/hgem.py:mosi"]
  command += ["--config.optim.epochs=14", "--config.text.input=encoder"]
  command += ["--config.text.finetune=all"]
  said = subprocess.run(
    command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=120
  ).stdout
  assert "epochs=14" in said and "weight_decay=0.01" in said


def test_every_field_of_a_recipe_exists():
  for name in sorted(SYSTEMS):
    config = importlib.import_module(f"configs.{name}").get_config()
    flat = {key for recipe in regimes.RECIPES.values() for key in recipe}
    for path in flat:
      section, key = path.split(".")
      assert key in config[section]


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ({"start": "moon"}, "start='moon' must be one of"),
    ({"start": "scratch", "finetune": "none"}, "finetune='none' must be all"),
    ({"layer_decay": 0.0}, r"layer_decay=0.0 must be in \(0, 1\]"),
  ],
)
def test_impossible_starts_and_decays_are_refused(text, message):
  config = tuned("hgem")
  config.text.update(text)
  with pytest.raises(UserError, match=message):
    msa_jax.train(config)


@pytest.mark.parametrize(
  "name", ["hgem:mosi", "awf:own", "lf_dnn:sims", "derl:mosi,tuned"]
)
def test_real_data_are_anchored_in_text_and_papers_and_the_synthetic_corpus_are_not(
  name,
):
  found = experiment(get_config(name))
  assert (found.anchor.to, found.init.text_head) == ("auto", "linear")
  found = experiment(tuned(name))
  assert (found.anchor.to, found.init.text_head) == ("auto", "random")
  plain = experiment(get_config(name.partition(":")[0]))
  assert (plain.anchor.to, plain.init.text_head) == ("none", "linear")
  if name != "awf:own" and not name.startswith("derl"):
    literal = experiment(get_config(f"{name},paper"))
    assert literal.anchor.to == "none" and literal.init.text_head == "random"
