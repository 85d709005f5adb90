"""Every rule that the trainer has for systems, for the sequence baselines."""

import dataclasses

import pytest
import tiny_systems

from msa_jax import testing
from msa_jax.config.experiment import flatten
from msa_jax.models import SYSTEMS
from msa_jax.studies.changes import changed

NAMES = ("ef_lstm", "graph_mfn", "lmf", "mfn", "mlf_dnn", "mlmf", "mtfn", "mult")
# The cheapest always; all of them on request.
QUICK = ("ef_lstm",)


def check(name):
  made = tiny_systems.config(name)
  sizes = {f"model.{k}": v for k, v in tiny_systems.TINY[name].items()}
  rates = {f"model.{k}": 0.1 for k in flatten(made.model) if "dropout" in k}
  model = changed(made, {**rates, **sizes}).model
  spec = testing.example_spec()
  spec = dataclasses.replace(spec, tasks={**spec.tasks, **made.spec.tasks})
  testing.check_system(SYSTEMS[name], model, spec=spec)


@pytest.mark.parametrize("name", QUICK)
def test_a_system_keeps_the_contract(name):
  check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(NAMES) - set(QUICK)))
def test_other_systems_keep_it_too(name):
  check(name)
