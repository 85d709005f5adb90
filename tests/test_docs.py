"""README and docs: every Python block runs, every flag and config variant exists."""

import importlib
import re

import pytest
from paths import ROOT

import msa_jax
from configs import awf, hgem
from msa_jax import models
from msa_jax.config import experiment

CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("[a-z]*.py"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = [*PAGES, *(ROOT / "configs" / f"{name}.py" for name in CONFIGS)]
TINY_CORPUS = {"sizes": (32, 16, 16), "videos": (4, 2, 2), "widths": (8, 3, 4)}


def blocks():
  return [
    pytest.param(code, id=f"{page.name}-{i}")
    for page in PAGES
    for i, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.S))
  ]


def tiny(get_config, **model):
  """A `get_config` of a smaller model on the smallest synthetic corpus."""

  def get(variants=""):
    config = get_config(variants).copy_and_resolve_references()
    with config.unlocked():
      config.data.synthetic.update(TINY_CORPUS)
      config.data.max_steps = 8
      config.model.update(model)
    return config.lock()

  return get


def get_config(name, variants=""):
  return importlib.import_module(f"configs.{name}").get_config(variants)


@pytest.fixture(scope="module")
def trees():
  return {
    name: experiment.to_tree(experiment.experiment(get_config(name)))
    for name in CONFIGS
  }


@pytest.mark.parametrize("code", blocks())
def test_python_blocks_run(code, monkeypatch, tmp_path):
  small = {
    "hgem": tiny(hgem.get_config, token_dim=16, fused_dim=8, fusion="single"),
    "awf": tiny(awf.get_config),
  }
  monkeypatch.setattr(msa_jax, "get_config", lambda name: small[name]())
  monkeypatch.chdir(tmp_path)
  known = set(models.SYSTEMS)
  try:
    exec(compile(code, "block", "exec"), {"__name__": "block"})
  finally:
    for name in set(models.SYSTEMS) - known:
      del models.SYSTEMS[name]


def exists(tree, key):
  for part in key.split("."):
    if not isinstance(tree, dict) or part not in tree:
      return False
    tree = tree[part]
  return True


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_flags_exist(path, trees):
  # A flag on a line that names a config is that config's; else any may have it.
  for line in path.read_text().splitlines():
    named = [n for n in re.findall(r"configs/(\w+)\.py", line) if n in trees]
    for key in re.findall(r"--config\.(\w+(?:\.\w+)*)", line):
      own = [trees[name] for name in named] or list(trees.values())
      assert any(exists(tree, key) for tree in own), f"--config.{key}"


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_configs_and_variants_exist(path):
  pattern = r"configs/(\w+)\.py(?::([\w,]+))?"
  for name, variants in re.findall(pattern, path.read_text()):
    assert name in CONFIGS, f"configs/{name}.py"
    get_config(name, variants)
