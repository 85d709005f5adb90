"""Which code trained a run."""

import importlib.util
import subprocess

import pytest

from msa_jax import models
from msa_jax.training import provenance

SOURCE = """
import flax.linen as nn

from msa_jax.models.system import System


class Net(nn.Module):
  width: int = 4


def build(options, spec):
  return Net()


SYSTEM = System(build=build)
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
  """Writes a system's source and registers it; calling it again is an edit."""

  def write(text):
    file = tmp_path / "mine.py"
    file.write_text(text)
    spec = importlib.util.spec_from_file_location("mine", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(models.SYSTEMS, "mine", module.SYSTEM)
    return provenance.source("mine")

  return write


def test_the_hash_is_of_the_systems_own_source(mine, tmp_path):
  first = mine(SOURCE)
  assert len(first["system_sha256"]) == 64
  assert first["commit"] == ""  # no checkout
  (tmp_path / "other.py").write_text("1")
  assert mine(SOURCE) == first
  assert mine(SOURCE + "\n")["system_sha256"] != first["system_sha256"]


def test_a_system_of_a_package_is_hashed_with_its_parts():
  of_hgem = {file.name for file in provenance._files("hgem")}
  assert {"system.py", "network.py"} <= of_hgem
  assert [file.name for file in provenance._files("text_only")] == ["text_only.py"]
  hashes = {provenance.source(name)["system_sha256"] for name in ("hgem", "derl")}
  assert len(hashes) == 2


def test_a_checkout_is_named_by_its_commit(tmp_path):
  def git(*arguments):
    name = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    command = ["git", "-C", str(tmp_path), *name, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout

  git("init")
  (tmp_path / "a.py").write_text("1")
  git("add", "a.py")
  git("commit", "-m", "first")
  head = git("rev-parse", "HEAD").strip()
  provenance._commit.cache_clear()
  assert provenance._commit(tmp_path) == head
  (tmp_path / "a.py").write_text("2")
  provenance._commit.cache_clear()
  assert provenance._commit(tmp_path) == f"{head}+"
