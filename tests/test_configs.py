"""Every config file and every variant of it makes a model that can be initialised."""

import importlib
import pathlib

import jax
import pytest

from msa_jax import config as config_lib
from msa_jax import config_rules
from msa_jax.models import SYSTEMS
from msa_jax.train import recipe
from msa_jax.typing import UserError

FOLDER = pathlib.Path(__file__).parent.parent / "configs"
FILES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")
MODULES = {name: importlib.import_module(f"configs.{name}") for name in FILES}
CASES = [(name, v) for name in FILES for v in ("", *MODULES[name].VARIANTS)]
EMOTIONS = ("neutral", "happy", "sad", "angry")


def with_spec(config, variant):
  """Fills in the spec of a small aligned corpus with the variant's tasks."""
  if variant == "iemocap":
    task = ("emotion", {"kind": "binary", "classes": EMOTIONS, "protocol": "emotions"})
    task[1].update({"low": 0.0, "high": 0.0})
  elif variant.startswith("iemocap"):
    task = (config.model.task, {"kind": "classes", "classes": EMOTIONS})
    task[1].update({"low": 0.0, "high": 0.0, "protocol": "classes"})
  else:
    limit, protocol = (1.0, "sims") if "sims" in variant else (3.0, "mosi")
    task = ("sentiment", {"kind": "regression", "classes": (), "protocol": protocol})
    task[1].update({"low": -limit, "high": limit})
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.spec = {
      "widths": {"text": 12, "audio": 5, "vision": 7},
      "lengths": {"text": 6, "audio": 6, "vision": 6},
      "ids": {"text": (), "audio": (), "vision": ()},
      "tasks": dict([task]),
      "train_size": 64,
      "utterances": 6 if config.data.unit == "dialogue" else 0,
    }
  return config.lock()


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_every_variant_builds_and_has_a_learning_rate_for_every_parameter(
  name, variant
):
  config = with_spec(MODULES[name].get_config(variant), variant)
  config_rules.validate(config, SYSTEMS)
  state = jax.eval_shape(recipe.build(config).init, 0)
  assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) > 0
  assert config_lib.from_json(config_lib.to_json(config)) == config


@pytest.mark.parametrize("name", FILES)
def test_unknown_variants_and_keys_are_refused(name):
  with pytest.raises(UserError, match="variant 'moon' must be one of"):
    MODULES[name].get_config("moon")
  with pytest.raises((AttributeError, KeyError)):
    MODULES[name].get_config().optim.learning_rate = 1.0


def test_every_system_has_a_config_file():
  assert set(FILES) == set(SYSTEMS)
