"""The programmatic API: pure functions over plain data, nothing hidden.

    config, corpus = train_state.prepare(hgem.get_config())
    state = train_state.create(config, seed=0)
    state, metrics = train_state.train_step(config, state, batch)
    output = train_state.predict(config, state, batch)

Every function is deterministic, compiled, and can be jitted, vmapped and
differentiated; the config is static.
"""

import functools
import os
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from msa_jax import models
from msa_jax.config.experiment import Experiment, from_json, to_json
from msa_jax.data.batching import batches
from msa_jax.runs import linear_start, references, warm_start
from msa_jax.runs import prepare as prepare_lib
from msa_jax.runs import run as run_lib
from msa_jax.step import compose, ema, objective, recipe
from msa_jax.step.recipe import Recipe
from msa_jax.text import finetune
from msa_jax.training.run_directory import RunDirectory
from msa_jax.typing import Batch, Corpus, Metrics, ModelOutput, TrainState

__all__ = [
  "create",
  "eval_step",
  "export_encoder",
  "load",
  "predict",
  "prepare",
  "train_step",
  "whole_split",
]


class _Programs(NamedTuple):
  """The recipe of an experiment, and its functions compiled."""

  recipe: Recipe
  init: Callable[..., TrainState]
  step: Callable[..., tuple[TrainState, Metrics]]
  predict: Callable[..., ModelOutput]


@functools.lru_cache(maxsize=8)
def _compiled(text: str, system: int) -> _Programs:
  del system  # a name may be registered anew
  config = from_json(text)
  made = warm_start.starting(config, compose.build(config))
  return _Programs(made, *map(jax.jit, (made.init, made.step, made.predict)))


def _programs(config: Experiment) -> _Programs:
  """Built once per experiment: callers need not compile, and may do so all the same."""
  return _compiled(to_json(config), id(models.get(config.system)))


def prepare(
  config: ml_collections.ConfigDict | Experiment, corpus: Corpus | None = None
) -> tuple[Experiment, Corpus]:
  """Reads and preprocesses the config's corpus and resolves the config against it.

  Args:
    config: what `get_config` of a file in `configs/` returns.
    corpus: in memory, in place of the file that the config names.

  Returns:
    The resolved config, which every other function takes, and the corpus.
  """
  prepared = prepare_lib.prepare(config, corpus)
  return prepared.config, prepared.corpus


def whole_split(config: Experiment, corpus: Corpus, split: str) -> Batch:
  """A whole split on the device as one batch; `batches.take` picks rows of it."""
  lengths = dict(config.corpus_spec.lengths)
  data = batches.whole(corpus.splits[split], corpus.tasks, lengths)
  return jax.device_put(data)


def create(
  config: Experiment, seed: recipe.Seed = 0, corpus: Corpus | None = None
) -> TrainState:
  """Initialises a training state.

  Args:
    config: resolved config.
    seed: may be traced; `jax.vmap` over seeds stacks states.
    corpus: that goes with the config, for text-only heads that start as its linear
      model (`config.init.text_head`), as those of a run do; None = at random.
  """
  # Compiled as a whole: hundreds of small initialisers one by one take far longer.
  state = _programs(config).init(seed)
  if corpus is None:
    return state
  fit = functools.partial(references.fit_text, config, corpus)
  return linear_start.place(config, state, linear_start.heads(config, fit))


def train_step(
  config: Experiment,
  state: TrainState,
  batch: Batch,
  seed: recipe.Seed = 0,
) -> tuple[TrainState, Metrics]:
  """One optimizer update.

  Args:
    config: resolved config.
    state: from `create` or an earlier step.
    batch: [b] samples with labels.
    seed: with `state.step`, decides dropout and noise.

  Returns:
    The next state; scalars `loss`, `loss/<task>`, `aux/<name>`, `weighted/<name>`,
    `gradient_norm`.
  """
  return _programs(config).step(state, batch, seed)


def predict(config: Experiment, state: TrainState, batch: Batch) -> ModelOutput:
  """Predicts a batch, labelled or not, without dropout."""
  return _programs(config).predict(state.params, state.collections, batch)


def eval_step(config: Experiment, state: TrainState, batch: Batch) -> Metrics:
  """Task losses of a labelled batch, without dropout.

  Returns:
    `loss/<task>`: mean over the real samples that carry the label.
  """
  output = predict(config, state, batch)
  spec = config.corpus_spec
  terms = models.get(config.system).terms(config.loss, spec)
  losses = objective.task_losses(spec.tasks, terms, output, batch)
  return {f"loss/{name}": value for name, value in losses.items()}


def load(
  workdir: str | os.PathLike, seed: int | None = None
) -> tuple[Experiment, TrainState]:
  """Loads a trained run to predict with.

  Args:
    workdir: folder of the run.
    seed: one of the run's seeds; None = its first.

  Returns:
    The resolved config, and a state with the selected parameters (its optimizer
    state and step are those of a fresh one).
  """
  run = RunDirectory(workdir)
  config = run.experiment()
  seed = config.replicas.seeds[0] if seed is None else seed
  one = config.replace("replicas", seeds=(seed,))
  params, collections = run_lib.restore(run, one)[0]
  start = _programs(config).recipe.start
  return config, start(params, collections, jnp.zeros((), jnp.int32))


def export_encoder(
  workdir: str | os.PathLike, folder: str, seed: int | None = None
) -> None:
  """Writes the text encoder of a trained run as a Hugging Face folder: the weights
  that the run predicts with, and the tokenizer of the encoder it started from.

  Args:
    workdir: folder of the run.
    folder: where to write; made if need be.
    seed: one of the run's seeds; None = its first.

  Raises:
    UserError: no such run, or one that trained no encoder.
  """
  config, state = load(workdir, seed)
  # Where a mean of the parameters is kept, it is what predicts.
  params = state.collections.get(ema.AVERAGE, state.params)
  finetune.export(config.text, config.corpus_spec.encoder, params, folder)
