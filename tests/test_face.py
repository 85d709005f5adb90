"""The face of the package: complete, lazy, of one version."""

import configparser
import subprocess
import sys

import pytest
from paths import ROOT

import msa_jax
from msa_jax.data import readers
from msa_jax.typing import Batch


def test_every_name_of_the_face_is_there():
  for name in msa_jax.__all__:
    if name != "__version__":
      assert getattr(msa_jax, name) is not None
  assert set(msa_jax.__all__) <= set(dir(msa_jax))
  assert msa_jax.load_corpus is readers.read and msa_jax.Batch is Batch
  with pytest.raises(AttributeError, match="no attribute 'moon'"):
    _ = msa_jax.moon


def test_importing_the_package_imports_nothing_else():
  code = (
    "import importlib, sys; before = set(sys.modules); import msa_jax; dir(msa_jax);"
    "print(sorted(set(sys.modules) - before))"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == "['msa_jax']"


def _setup():
  parser = configparser.ConfigParser()
  parser.read(ROOT / "setup.cfg")
  return parser


def test_the_version_is_that_of_the_installed_package(monkeypatch):
  monkeypatch.delitem(vars(msa_jax), "__version__", raising=False)
  asked = []
  monkeypatch.setattr(
    "importlib.metadata.version", lambda name: asked.append(name) or "9.9"
  )
  assert msa_jax.__version__ == "9.9" and asked == ["msa_jax"]
  monkeypatch.delitem(vars(msa_jax), "__version__")
  assert _setup()["metadata"]["version"]


def test_every_package_is_installed_and_so_are_the_configs():
  listed = _setup()["options"]["packages"].split()
  folders = {path.parent for path in (ROOT / "msa_jax").rglob("*.py")}
  found = {".".join(path.relative_to(ROOT).parts) for path in folders}
  assert sorted(listed) == sorted({*found, "msa_jax.configs"})
