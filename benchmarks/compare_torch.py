"""The same training steps here and in PyTorch, one after the other on one machine."""

import json
import os
import pathlib
import statistics
import subprocess
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from benchmarks import measure, torch_steps
from msa_jax import config as config_lib
from msa_jax.config.experiment import Experiment, experiment
from msa_jax.devices import compilation
from msa_jax.errors import UserError
from msa_jax.layers.attention import TransformerBlock
from msa_jax.layers.recurrent import LSTM
from msa_jax.models.late_fusion import lf_dnn, tfn
from msa_jax.step import compose, recipe, rngs
from msa_jax.text.bert import EncoderConfig, TextEncoder
from msa_jax.typing import Spec, Task

_OPTIONS = {"tfn": tfn.options, "lf_dnn": lf_dnn.options}


def encoder_config() -> EncoderConfig:
  """Sizes of the comparison's text encoder."""
  case = torch_steps.CASES["encoder"]
  return EncoderConfig(
    family="bert",
    vocabulary=torch_steps.VOCABULARY,
    positions=torch_steps.POSITIONS,
    types=2,
    width=torch_steps.ENCODER_WIDTH,
    n_layers=case["layers"],
    n_heads=case["heads"],
    inner=case["ffn"],
    dropout=torch_steps.ENCODER_DROPOUT,
    attention_dropout=torch_steps.ENCODER_DROPOUT,
  )


def _module(name: str) -> nn.Module:
  case = torch_steps.CASES[name]
  if name == "encoder":
    return TextEncoder(encoder_config(), deterministic=False)
  if name == "lstm":
    return LSTM(case["hidden"])
  return TransformerBlock(case["ffn"], case["heads"], deterministic=False)


def _layer_step(name: str) -> tuple[Callable, Any, tuple]:
  """(step, state, inputs) of one layer, or of the text encoder, under Adam."""
  case = torch_steps.CASES[name]
  module, optimizer = _module(name), optax.adam(1e-3)
  shape = (case["batch"], case["steps"])
  if name == "encoder":
    values = jax.random.randint(jax.random.key(0), shape, 1, torch_steps.VOCABULARY)
  else:
    values = jax.random.normal(jax.random.key(0), (*shape, case["width"]))
  mask = jnp.ones(shape, bool)
  keys = {"params": jax.random.key(1), "dropout": jax.random.key(2)}
  params = jax.jit(module.init)(keys, values, mask)

  def loss(params, values, mask, key):
    outputs = module.apply(params, values, mask, rngs={"dropout": key})
    # An LSTM's outputs come before its state, an encoder's last layer comes last.
    if isinstance(outputs, tuple):
      outputs = outputs[-1 if name == "encoder" else 0]
    return jnp.mean(jnp.abs(outputs))

  def step(state, values, mask):
    params, opt_state = state
    key = rngs.stream(0, "dropout", optax.tree.get(opt_state, "count"))
    value, gradients = jax.value_and_grad(loss)(params, values, mask, key)
    updates, opt_state = optimizer.update(gradients, opt_state)
    return (optax.apply_updates(params, updates), opt_state), value

  return step, (params, optimizer.init(params)), (values, mask)


def config_of(name: str) -> Experiment:
  """A resolved experiment of a late-fusion system with the comparison's sizes."""
  case = torch_steps.CASES[name]
  hidden = torch_steps.HIDDEN
  rates = dict.fromkeys(torch_steps.WIDTHS, torch_steps.DROPOUT)
  options = _OPTIONS[name]() | {
    "hidden_dims": {"text": hidden, "audio": case["audio"], "vision": hidden},
    "text_dim": case["text_out"],
    "post_dim": case["post"],
    "dropout": rates,
    "post_dropout": torch_steps.DROPOUT,
  }
  made = experiment(config_lib.base(options))
  made = made.replace(
    "optim", grad_clip_norm=0.0, schedule="constant", batch_size=case["batch"]
  )
  lengths = dict.fromkeys(torch_steps.WIDTHS, case["steps"])
  tasks = {"sentiment": Task("regression", -3.0, 3.0)}
  spec = Spec(torch_steps.WIDTHS, lengths, tasks, train_size=1284)
  return made.replace(spec=spec)


def _system_step(name: str) -> tuple[Callable, Any, tuple]:
  config = config_of(name)
  made = compose.build(config)
  batch = recipe.example_batch(config.corpus_spec, torch_steps.CASES[name]["batch"])

  def step(state, batch):
    state, metrics = made.step(state, batch, 0)
    return state, metrics["loss"]

  return step, made.init(0), (batch,)


def training(name: str) -> Callable[[], jax.Array]:
  """A function that trains a case one step further and returns the loss."""
  make = _system_step if name in _OPTIONS else _layer_step
  step, state, inputs = make(name)
  # As in training, the new state takes the place of the old one.
  options = compilation.options()
  step = jax.jit(step, donate_argnums=0, compiler_options=options)
  return measure.repeated(step, state, *inputs)


def theirs(python: str, repeats: int, case: str) -> dict[str, Any]:
  """Runs the PyTorch side of a case with another interpreter, on the same kind of
  device and as many cores.

  Raises:
    UserError: the interpreter cannot be run, or has no PyTorch.
  """
  script = pathlib.Path(torch_steps.__file__)
  device = "cuda" if jax.default_backend() == "gpu" else "cpu"
  threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
  command = [python, str(script), f"--repeats={repeats}", f"--device={device}"]
  command += [f"--threads={threads}", f"--cases={case}"]
  try:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
  except (OSError, subprocess.CalledProcessError) as error:
    said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
    raise UserError(
      f"--torch_python={python}: PyTorch does not run there"
      f" ({said[-1] if said else error})."
    ) from error
  return json.loads(done.stdout.splitlines()[-1])


ROUNDS = 3


def against_torch(python: str, repeats: int) -> dict[str, Any]:
  """Case -> seconds here and in PyTorch, and how many times faster this is.

  The two take turns, `ROUNDS` times: a machine's speed changes within minutes.
  """
  inner = measure.calls_per_timing()
  cases, version = {}, ""
  for name in torch_steps.CASES:
    further, own, other = training(name), [], []
    for _ in range(ROUNDS):
      measured = theirs(python, repeats, name)
      version = measured["version"]
      other.append(measured["seconds"][name])
      own.append(measure.median_seconds(further, repeats, inner))
    seconds, torch_seconds = statistics.median(own), statistics.median(other)
    cases[name] = {
      "seconds": seconds,
      "torch_seconds": torch_seconds,
      "faster": torch_seconds / seconds,
    }
  return {"torch": version, "cases": cases}
