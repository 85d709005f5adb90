"""Configs are found by name, by path and by the name of a system."""

import itertools

import own_model
import pytest
from paths import ROOT

from msa_jax import config as config_lib
from msa_jax import models
from msa_jax.config import files
from msa_jax.config.experiment import experiment, with_options
from msa_jax.errors import UserError


@pytest.fixture
def mine(monkeypatch):
  monkeypatch.setattr("msa_jax.models.registry.SYSTEMS", dict(models.SYSTEMS))
  models.register("mine", own_model.Mine)


def test_shipped_configs_are_found_from_any_folder(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  assert files.locate("hgem:mosi") == (ROOT / "configs" / "hgem.py", "mosi")
  assert files.locate("hgem:mosi").flag == f"{ROOT / 'configs' / 'hgem.py'}:mosi"
  assert files.get_config("hgem:mosi").optim.learning_rate == 1e-3
  assert set(files.shipped()) == {
    path.stem for path in (ROOT / "configs").glob("*.py")
  } - {"__init__"}


@pytest.mark.parametrize("name", sorted(files.shipped()))
def test_data_of_one_s_own_never_get_the_recipe_of_the_synthetic_corpus(name):
  own = name if name == "text_only" else f"{name}:own"  # which has one for all data
  assert files.for_own_data(name) == own
  variant = files.get_config(files.for_own_data(name))
  assert variant.missing.train == "none" and variant.optim.ema_decay in (0.0, 0.98)


def test_a_variant_of_a_data_set_keeps_its_recipe():
  assert files.for_own_data("derl:mosei,tuned") == "derl:mosei,tuned"
  assert files.for_own_data("momke:small") == "momke:small,own"
  made = files.get_config(files.for_own_data("derl"))
  assert (made.optim.epochs, made.optim.ema_decay) == (50, 0.0)
  default = files.get_config("derl")
  assert (default.optim.epochs, default.optim.ema_decay) == (12, 0.98)
  made = files.get_config(files.for_own_data("momke"))
  assert (made.model.hidden_dim, made.model.dropout) == (64, 0.5)


def test_a_config_file_or_system_without_such_a_recipe_is_taken_as_it_is(
  mine, tmp_path
):
  assert files.for_own_data("mine") == "mine"
  (tmp_path / "c.py").write_text("def get_config(text=''):\n  return text\n")
  assert files.for_own_data(f"{tmp_path}/c.py:a") == f"{tmp_path}/c.py:a"


def test_a_file_comes_before_a_shipped_config(monkeypatch, tmp_path):
  text = "def get_config(text='none'):\n  return text\n"
  (tmp_path / "mine.py").write_text(text)
  (tmp_path / "hgem").write_text(text)
  monkeypatch.chdir(tmp_path)
  assert files.get_config("mine.py") == "none"
  assert files.get_config(f"{tmp_path}/mine.py:a,b") == "a,b"
  assert files.get_config("hgem:x") == "x"


def test_installed_configs_come_before_those_of_a_checkout(monkeypatch, tmp_path):
  (tmp_path / "configs").mkdir()
  (tmp_path / "configs" / "other.py").write_text("")
  monkeypatch.setattr(files, "_FOLDERS", (tmp_path / "configs", ROOT / "configs"))
  assert list(files.shipped()) == ["other"]
  monkeypatch.setattr(files, "_FOLDERS", (tmp_path / "none", ROOT / "configs"))
  assert "hgem" in files.shipped()


def test_a_registered_system_needs_no_config_file(mine):
  made = experiment(files.get_config("mine"))
  assert made.system == "mine"
  assert made.model == {"task": "auto", "width": 8, "leak": ""}
  assert with_options(made, {"model.width": 3, "optim.epochs": 2}).optim.epochs == 2


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("moon", "there is no config or system of this name; choose one of almt, awf"),
    (
      "moon.py:mosi",
      "there is no file moon.py; give the path of one, or one of almt, awf",
    ),
    ("configs/moon", "there is no file configs/moon"),
    ("mine:small", "mine has no variants"),
    ("hgem:mois", "'mois' must be one of"),
  ],
)
def test_what_is_not_found_is_answered_with_the_choices(mine, text, message):
  with pytest.raises(UserError, match=message):
    files.get_config(text)


def test_files_that_are_no_configs_are_refused(tmp_path):
  (tmp_path / "empty.py").write_text("")
  with pytest.raises(UserError, match="empty.py has no get_config"):
    files.get_config(str(tmp_path / "empty.py"))
  (tmp_path / "broken.py").write_text("1 / 0")
  with pytest.raises(UserError, match=r"broken.py cannot be run \(ZeroDivisionError"):
    files.get_config(str(tmp_path / "broken.py"))


@pytest.mark.parametrize(
  ("key", "message"),
  [
    ("optim.learning_rat", "did you mean learning_rate or learning_rates"),
    ("model.zzz", "mine has no such option; The choices are leak, name, task"),
    ("optin.epochs", "The choices are anchor, data, .*optim"),
    ("model.width.x", "no such option"),
  ],
)
def test_options_that_do_not_exist_are_answered_with_their_neighbours(
  mine, key, message
):
  with pytest.raises(UserError, match=message):
    with_options(experiment(files.get_config("mine")), {key: 1})


@pytest.mark.parametrize("name", sorted(files.shipped()))
def test_the_order_of_variants_does_not_matter_and_data_sets_exclude_each_other(name):
  module = __import__(f"configs.{name}", fromlist=["VARIANTS"])
  data_sets = set(getattr(module, "DATA_SETS", getattr(module, "TABLE_2", ())))
  for one, other in itertools.combinations(module.VARIANTS, 2):
    if {one, other} <= data_sets:
      with pytest.raises(UserError, match="settings of several data sets; choose one"):
        module.get_config(f"{one},{other}")
    else:
      first, second = f"{one},{other}", f"{other},{one}"
      assert module.get_config(first).to_dict() == module.get_config(second).to_dict()


def test_variants_are_applied_in_the_order_of_their_file():
  known = {"mosi": None, "mosei": None, "paper": None}
  assert config_lib.parse_variants("paper, mosi", known) == ("mosi", "paper")
  assert config_lib.parse_variants("mosi,mosi", known, ("mosi", "mosei")) == ("mosi",)
