"""Contract tests for systems of other packages: `check_system`.

>>> def test_my_system_keeps_the_contract():
...   msa_jax.testing.check_system(SYSTEM, {"width": 8})

What is absent must have exactly no influence, padding and filler rows change nothing,
labels are not looked at to predict, every parameter learns, and a step is a pure
function that survives `vmap`. `checks.CHECKS` has one function for each rule.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from flax import traverse_util

from msa_jax import models
from msa_jax.config.experiment import Experiment
from msa_jax.config.options import OptimConfig
from msa_jax.models.system import System
from msa_jax.step import compose
from msa_jax.step.recipe import example_batch
from msa_jax.testing.checks import CHECKS, Checked, compiled
from msa_jax.testing.data import ROWS, example_spec, random_batch
from msa_jax.typing import Spec

__all__ = ["check_system", "example_spec", "random_batch"]

_NAME = "system under test"


def check_system(
  system: System | type[nn.Module],
  options: Mapping[str, Any] | None = None,
  *,
  spec: Spec | None = None,
  loss: Mapping[str, Any] | None = None,
  unused: Sequence[str] = (),
) -> None:
  """Checks that a system keeps the contract of the library's trainer.

  Takes seconds for small networks: choose options that make one.

  Args:
    system: a `System`, or the class of a network (see `models.system_of`).
    options: of its network, `config.model`; the system's own defaults for the rest.
    spec: shapes and tasks to check with; None = `example_spec` of a unit it reads.
    loss: options of the objective, e.g. weights of auxiliary losses.
    unused: parameters that need not learn, `decoder/bias` or beginnings of such paths.

  Raises:
    AssertionError: a check failed; the message says which, where and by how much.
    UserError: options that the system refuses.
  """
  if isinstance(system, type):
    system = models.system_of(system)
  unit = "utterance" if "utterance" in system.units else system.units[0]
  spec = example_spec(unit) if spec is None else spec
  config = Experiment(
    system=_NAME,
    model={**system.options, **(options or {})},
    loss={
      "task": "default",
      "aux_warmup_fraction": 0.0,
      **system.losses,
      **(loss or {}),
    },
    spec=spec,
  )
  config = config.replace("data", sample_unit=unit)
  with _registered(system):
    config = config.replace(optim=_plain_descent(system, config))
    checked = _checked(system, config, tuple(unused))
    for check in CHECKS:
      check(checked)


@contextlib.contextmanager
def _registered(system: System) -> Iterator[None]:
  models.register(_NAME, system, replace=True)
  try:
    yield
  finally:
    del models.SYSTEMS[_NAME]


def _plain_descent(system: System, config: Experiment) -> OptimConfig:
  """Plain gradient descent, so that a parameter moves only if its gradient does."""
  model = system.build(config.model, config.corpus_spec)
  batch = example_batch(config.corpus_spec)
  variables = jax.eval_shape(lambda: model.init(jax.random.key(0), batch, train=False))
  paths = traverse_util.flatten_dict(variables["params"])
  return OptimConfig(
    name="sgd",
    learning_rate=0.05,
    learning_rates=dict.fromkeys({*map(system.partition, paths)} - {"new"}, 0.05),
    warmup_fraction=0.0,
    schedule="constant",
    grad_clip_norm=0.0,
    epochs=100,
    batch_size=ROWS,
  )


def _checked(system: System, config: Experiment, unused: tuple[str, ...]) -> Checked:
  recipe = compiled(config, -1)
  state = recipe.init(0)
  model = compose.networks(config).inner
  batch = random_batch(config.corpus_spec)
  return Checked(
    system, config, model, recipe, batch, state.params, state.collections, unused
  )
