"""The room as a user meets it: what it exports, and the examples of its docstrings."""

import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from msa_jax import layers

MODULES = sorted(
  module.name for module in pkgutil.walk_packages(layers.__path__, "msa_jax.layers.")
)
# What the docstring of the package says to import, and the package's exports.
NAMES = {name: getattr(layers, name) for name in layers.__all__}
NAMES |= {"jax": jax, "jnp": jnp, "nn": nn}


def _examples(module):
  return [
    found
    for found in doctest.DocTestFinder().find(module, extraglobs=NAMES)
    if found.examples
  ]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_the_docstrings_give_what_they_show(name):
  for example in _examples(importlib.import_module(name)):
    transcript = []
    doctest.DocTestRunner().run(example, out=transcript.append)
    assert not transcript, "".join(transcript)


def test_every_public_class_shows_an_example():
  shown, public = set(), set()
  for module in map(importlib.import_module, MODULES):
    shown |= {found.name for found in _examples(module)}
    public |= {
      f"{value.__module__}.{name}"
      for name, value in vars(module).items()
      if inspect.isclass(value)
      and value.__module__ == module.__name__
      and not name.startswith("_")
    }
  assert len(public) > 10
  assert public <= shown


def test_every_export_is_there_once_and_has_a_docstring():
  assert len(set(layers.__all__)) == len(layers.__all__)
  for name in set(layers.__all__) - {"ACTIVATIONS", "LAYER_NORM_EPSILON"}:
    assert inspect.getdoc(getattr(layers, name)), name


def test_importing_layers_loads_nothing_of_systems_training_or_data():
  program = (
    "import sys, msa_jax.errors, msa_jax.typing\n"
    "before = set(sys.modules)\n"
    "import msa_jax.layers\n"
    "print(*sorted(set(sys.modules) - before))"
  )
  done = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True, check=True
  )
  ours = [name for name in done.stdout.split() if name.startswith("msa_jax.")]
  assert "msa_jax.layers.moe" in ours
  assert [name for name in ours if not name.startswith("msa_jax.layers")] == []
