"""The table of systems is open: to code that registers, and to packages."""

import sys

import flax.linen as nn
import own_model
import pytest

from msa_jax import models
from msa_jax.errors import UserError
from msa_jax.models import registry

PACKAGE = """
from msa_jax.models import System
from own_model import build

SYSTEM = System(build=build)
NOT_ONE = 3
"""
POINTS = """[msa_jax.systems]
theirs = their_package:SYSTEM
torn = their_package_that_is_gone:SYSTEM
wrong = their_package:NOT_ONE
"""


@pytest.fixture(autouse=True)
def table(monkeypatch):
  monkeypatch.setattr(registry, "SYSTEMS", dict(registry.SYSTEMS))
  monkeypatch.setattr(registry, "_PROVIDERS", {})


@pytest.fixture
def package(tmp_path, monkeypatch):
  (tmp_path / "their_package.py").write_text(PACKAGE)
  folder = tmp_path / "theirs-1.2.dist-info"
  folder.mkdir()
  (folder / "METADATA").write_text(
    "Metadata-Version: 2.1\nName: theirs\nVersion: 1.2\n"
  )
  (folder / "entry_points.txt").write_text(POINTS)
  monkeypatch.syspath_prepend(str(tmp_path))
  yield tmp_path
  sys.modules.pop("their_package", None)


def test_a_registered_system_is_found_by_its_name():
  assert models.register("mine", own_model.SYSTEM) is own_model.SYSTEM
  assert models.get("mine") is own_model.SYSTEM and "mine" in models.names()
  assert models.provider("mine") == ""


def test_a_network_alone_is_a_system_whose_options_are_its_fields():
  system = models.register("mine", own_model.Mine)
  assert system.options == {"task": "auto", "width": 8, "leak": ""}

  class Needy(nn.Module):
    width: int

  with pytest.raises(UserError, match="field 'width' of a network needs a default"):
    models.register("needy", Needy)


def test_a_second_system_of_a_name_is_refused():
  models.register("mine", own_model.SYSTEM)
  models.register("mine", models.System(build=own_model.build))  # the same, again
  models.register("other", own_model.Mine)
  models.register("other", own_model.Mine)
  with pytest.raises(UserError, match="'mine' already, of own_model: .* replace=True"):
    models.register("mine", own_model.Mine)
  first, second = models.System(build=lambda *_: 1), models.System(build=lambda *_: 2)
  models.register("lambdas", first)
  models.register("lambdas", models.System(build=first.build))

  def elsewhere(*_):
    return second

  with pytest.raises(UserError, match="already"):
    models.register("lambdas", models.System(build=elsewhere))
  assert models.register("mine", own_model.Mine, replace=True) is models.get("mine")
  with pytest.raises(UserError, match="takes a System or a network class, not int"):
    models.register("three", 3)


def test_an_unknown_name_is_answered_with_the_table_and_what_to_do():
  with pytest.raises(UserError, match="must be one of .*hgem.*--config file that"):
    models.get("moon")


def test_a_packages_system_is_loaded_when_it_is_asked_for(package):
  assert "theirs" in models.names() and "their_package" not in sys.modules
  models.get("hgem")
  assert "their_package" not in sys.modules
  assert models.get("theirs").build is own_model.build
  assert models.provider("theirs") == "theirs 1.2 (their_package:SYSTEM)"


def test_an_entry_point_that_is_broken_is_the_packages_error(package):
  with pytest.raises(UserError, match="'torn': its entry point .*ModuleNotFoundError"):
    models.get("torn")
  with pytest.raises(UserError, match="takes a System or a network class, not int"):
    models.get("wrong")
