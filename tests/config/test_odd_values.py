"""Any value for any option ends in a config that can be built, or in one line.

CI takes a quarter of the values for every key of the shared sections, once, and of the
model and loss sections of every system; `MSA_JAX_FUZZ=full` takes every value for every
key of every config, and builds the whole recipe.
"""

import math
import os

import pytest
import toy
from changes import resolve

import msa_jax
from msa_jax import models
from msa_jax.config import files, validate
from msa_jax.config.experiment import experiment, flatten, to_tree, with_options
from msa_jax.errors import UserError
from msa_jax.runs.transforms import pipeline_of
from msa_jax.step import compose

pytestmark = pytest.mark.slow


FULL = os.environ.get("MSA_JAX_FUZZ") == "full"
ODD = (
  *(-1, 0, 3, 2**31, 10**30, -1.0, 0.0, 1.5, 1e300, math.nan, math.inf, -math.inf),
  *("", "a,b", "none", "nan", "-1", "x" * 20_000, "\0", b"x", None, True, False),
  *((), (0,), (1, 2), (1, "a"), ((1,), 2), ("a", "b", "c", "d"), [math.nan], {}),
  *({"a": 1}, {1: {}}, object()),
)
SHARED = ("optim", "data", "train", "missing", "text", "replicas", "sharding")
NAMES = sorted(files.shipped())


def outcome(config, spec, key, value):
  """None, or the line that the value was refused with."""
  try:
    made = with_options(config, {key: value})
    validate.validate(made)
    pipeline_of(made)
    made = made.replace(spec=spec)
    if not made.text.is_encoded:
      system = models.get(made.system)
      compose.stages_of(made)
      compose.objective_of(made, system, compose.networks(made).inner)
      if FULL:
        compose.build(made)
  except UserError as error:
    assert "\n" not in str(error)
    assert len(str(error)) < 1500
    return str(error)
  return None


@pytest.mark.parametrize("name", NAMES)
def test_every_option_takes_odd_values_or_refuses_them_in_one_line(name):
  config = experiment(msa_jax.get_config(name))
  spec = resolve(config, toy.corpus()).spec
  assert outcome(config, spec, "optim.batch_size", 3) is None
  keys = [key for key in flatten(to_tree(config)) if key != "model.name"]
  if not FULL and name != NAMES[0]:
    keys = [key for key in keys if key.partition(".")[0] not in SHARED]
  refused, failed = 0, []
  share = 1 if FULL else 4
  for number, key in enumerate(keys):
    for value in ODD[number % share :: share]:
      try:
        refused += outcome(config, spec, key, value) is not None
      except Exception as error:  # noqa: BLE001  All of them are to be seen.
        about = f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
        failed.append(f"{key}={str(value)[:20]!r}: {about}")
  assert not failed, "\n".join(failed[:60])
  assert refused > 10 * len(keys) / share
