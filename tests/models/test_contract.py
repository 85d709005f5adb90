"""Every rule that the trainer has for systems, for those that are compared with."""

import pytest
import tiny_systems

from msa_jax import testing
from msa_jax.config.experiment import flatten
from msa_jax.models import SYSTEMS
from msa_jax.studies.changes import changed

NAMES = ("self_mm", "misa", "mag_bert", "cenet", "mmim", "tetfn", "almt")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_system_keeps_the_contract(name):
  made = tiny_systems.config(name)
  sizes = {f"model.{k}": v for k, v in tiny_systems.TINY[name].items()}
  rates = {f"model.{k}": 0.1 for k in flatten(made.model) if "dropout" in k}
  testing.check_system(SYSTEMS[name], changed(made, {**rates, **sizes}).model)
