"""The same training steps here and in PyTorch, one after the other on one machine."""

import json
import os
import pathlib
import subprocess
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import optax

from msa_jax import config as config_lib
from msa_jax.bench import measure, torch_steps
from msa_jax.layers.attention import TransformerBlock
from msa_jax.layers.recurrent import LSTM
from msa_jax.models import lf_dnn, tfn
from msa_jax.train import compilation, recipe
from msa_jax.typing import UserError

_OPTIONS = {"tfn": tfn.options, "lf_dnn": lf_dnn.options}


def _module(name: str) -> nn.Module:
  case = torch_steps.CASES[name]
  if name == "lstm":
    return LSTM(case["hidden"])
  return TransformerBlock(case["ffn"], case["heads"], deterministic=False)


def _layer_step(name: str) -> tuple[Callable, Any, tuple]:
  """(step, state, inputs) of one layer under Adam."""
  case = torch_steps.CASES[name]
  module, optimizer = _module(name), optax.adam(1e-3)
  shape = (case["batch"], case["steps"])
  values = jax.random.normal(jax.random.key(0), (*shape, case["width"]))
  mask = jnp.ones(shape, bool)
  params = jax.jit(module.init)(jax.random.key(1), values, mask)

  def loss(params, values, mask):
    outputs = module.apply(params, values, mask)
    return jnp.mean(jnp.abs(outputs[0] if isinstance(outputs, tuple) else outputs))

  def step(state, values, mask):
    params, opt_state = state
    gradients = jax.grad(loss)(params, values, mask)
    updates, opt_state = optimizer.update(gradients, opt_state)
    return optax.apply_updates(params, updates), opt_state

  return step, (params, optimizer.init(params)), (values, mask)


def config_of(name: str) -> ml_collections.ConfigDict:
  """A resolved config of a late-fusion system with the comparison's sizes."""
  case = torch_steps.CASES[name]
  options = _OPTIONS[name]()
  hidden = {"text": torch_steps.HIDDEN, "audio": case["audio"]}
  options.hidden.update({**hidden, "vision": torch_steps.HIDDEN})
  options.update({"text_out": case["text_out"], "post": case["post"]})
  options.dropout.update(dict.fromkeys(options.dropout, torch_steps.DROPOUT))
  config = config_lib.base(options)
  config.optim.update({"clip": 0.0, "schedule": "constant", "batch": case["batch"]})
  task = {"kind": "regression", "low": -3.0, "high": 3.0}
  config.spec.update(
    {
      "widths": torch_steps.WIDTHS,
      "lengths": dict.fromkeys(torch_steps.WIDTHS, case["steps"]),
      "ids": dict.fromkeys(torch_steps.WIDTHS, ()),
      "tasks": {"sentiment": {**task, "classes": (), "protocol": "mosi"}},
      "train_size": 1284,
    }
  )
  return config_lib.finish(config)


def _system_step(name: str) -> tuple[Callable, Any, tuple]:
  config = config_of(name)
  made = recipe.build(config)
  batch = recipe.example_batch(config.spec, torch_steps.CASES[name]["batch"])
  return (lambda state, batch: made.step(state, batch, 0)[0]), made.init(0), (batch,)


def ours(name: str, repeats: int) -> float:
  """Seconds of one training step of a case, here."""
  make = _system_step if name in _OPTIONS else _layer_step
  step, state, inputs = make(name)
  step = jax.jit(step, compiler_options=compilation.options())
  inner = 1 if jax.default_backend() == "cpu" else 20
  return measure.median_seconds(lambda: step(state, *inputs), repeats, inner)


def theirs(python: str, repeats: int) -> dict[str, Any]:
  """Runs the PyTorch side with another interpreter, on the same kind of device.

  Raises:
    UserError: the interpreter cannot be run, or has no PyTorch.
  """
  script = pathlib.Path(torch_steps.__file__)
  device = "cuda" if jax.default_backend() == "gpu" else "cpu"
  threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
  command = [python, str(script), f"--repeats={repeats}", f"--device={device}"]
  command.append(f"--threads={threads}")
  try:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
  except (OSError, subprocess.CalledProcessError) as error:
    said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
    raise UserError(
      f"--torch_python={python}: PyTorch does not run there"
      f" ({said[-1] if said else error})."
    ) from error
  return json.loads(done.stdout.splitlines()[-1])


def against_torch(python: str, repeats: int) -> dict[str, Any]:
  """Case -> seconds here and in PyTorch, and how many times faster this is."""
  other = theirs(python, repeats)
  cases = {}
  for name, seconds in other["seconds"].items():
    own = ours(name, repeats)
    cases[name] = {"seconds": own, "torch_seconds": seconds, "faster": seconds / own}
  return {"torch": other["version"], "cases": cases}
