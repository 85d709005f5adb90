"""Every config file and every variant of it makes a model that can be initialised."""

import importlib

import jax
import pytest
from paths import ROOT
from small_spec import with_spec

from msa_jax.config import validate
from msa_jax.config.experiment import from_json, to_json
from msa_jax.errors import UserError
from msa_jax.models import SYSTEMS
from msa_jax.step import compose

FOLDER = ROOT / "configs"
FILES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")
MODULES = {name: importlib.import_module(f"configs.{name}") for name in FILES}
BUILT: set[tuple[str, ...]] = set()
CASES = [(name, v) for name in FILES for v in ("", *MODULES[name].VARIANTS)]


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_every_variant_builds_and_has_a_learning_rate_for_every_parameter(
  name, variant
):
  config = with_spec(MODULES[name].get_config(variant), variant)
  validate.validate(config)
  recipe = compose.build(config)
  # What else a variant changes has no shape: the networks of most are the same.
  shape = repr((config.system, config.model, config.anchor, config.text, config.spec))
  rates = sorted({*config.optim.learning_rates, *config.optim.weight_decays})
  if (shape, *rates) not in BUILT:
    BUILT.add((shape, *rates))
    state = jax.eval_shape(recipe.init, 0)
    assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) > 0
  assert from_json(to_json(config)) == config


@pytest.mark.parametrize("name", FILES)
def test_unknown_variants_and_keys_are_refused(name):
  with pytest.raises(UserError, match="variant 'moon' must be one of"):
    MODULES[name].get_config("moon")
  with pytest.raises((AttributeError, KeyError)):
    MODULES[name].get_config().optim.learning_rat = 1.0


def test_every_system_has_a_config_file():
  assert set(FILES) == set(SYSTEMS)
