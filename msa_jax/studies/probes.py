"""Unimodal probes: how much of the label each modality's network alone says.

Source: AWF (Journal of Software 2024, 35(10):4781-4793), table 8: the encoders are
frozen, and a fresh head is fitted on one modality's features.
"""

import functools
from collections.abc import Mapping
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from msa_jax import metrics
from msa_jax.config.experiment import Experiment
from msa_jax.data.batching import batches
from msa_jax.errors import UserError
from msa_jax.losses.task import masked_average, task_loss
from msa_jax.models.outputs import OutputSpec, primary_output, shape_predictions
from msa_jax.names import held_out_split
from msa_jax.step.recipe import Recipe
from msa_jax.training import scoring
from msa_jax.typing import Batch, Collections, Corpus, Label, Params

EPOCHS = 50
LEARNING_RATE = 1e-3
BATCH = 32


class ProbeHead(nn.Module):
  """Two layers on one modality's features.

  Attributes:
    width: hidden units.
    target: the task predicted.
  """

  width: int
  target: OutputSpec

  @nn.compact
  def __call__(self, values: Float[Array, "b d"]) -> Float[Array, "b ..."]:
    hidden = nn.relu(nn.Dense(self.width)(values))
    return shape_predictions(self.target, nn.Dense(self.target.num_outputs)(hidden))


def fit_probe(
  target: OutputSpec,
  features: Float[Array, "n d"],
  label: Label,
  loss: str = "default",
  seed: int = 0,
  epochs: int = EPOCHS,
) -> tuple[ProbeHead, Params]:
  """Fits a head by Adam on frozen features.

  Args:
    target: the task.
    features: of the training split.
    label: its labels; samples under a False mask have no influence.
    loss: key of the task's losses.
    seed: of the head and of shuffling.
    epochs: passes over the samples.

  Returns:
    The head and its parameters.
  """
  head = ProbeHead(features.shape[1], target)
  label = jax.tree.map(jnp.asarray, label)  # splits come as arrays of the host
  optimizer = optax.adam(LEARNING_RATE)

  def objective(params, rows):
    kept = rows >= 0
    part = Label(label.value[rows], label.mask[rows] & kept)
    predictions = cast(Array, head.apply({"params": params}, features[rows]))
    return masked_average(task_loss(target.kind, loss, predictions, part), part.mask)

  def step(carry, rows):
    params, state = carry
    updates, state = optimizer.update(jax.grad(objective)(params, rows), state)
    return (optax.apply_updates(params, updates), state), None

  def epoch(carry, number):
    order = batches.epoch_order(seed, number, len(features), BATCH)
    return jax.lax.scan(step, carry, order)[0], None

  @jax.jit
  def fit(key):
    params = head.init(key, features[:1])["params"]
    carry = (params, optimizer.init(params))
    return jax.lax.scan(epoch, carry, jnp.arange(epochs))[0][0]

  return head, fit(jax.random.key(seed))


def features_of(
  recipe: Recipe,
  params: Params,
  collections: Collections,
  data: Batch,
  size: int,
) -> dict[str, Float[Array, "n d"]]:
  """Modality -> its representation for every sample, without dropout.

  Args:
    recipe: of the trained system, whose output must have `features` by modality.
    params, collections: the selected ones.
    data: a whole split.
    size: rows per batch.

  Raises:
    UserError: the system has no representation by modality.
  """
  n_samples = len(data.sample_mask)
  order = batches.epoch_order(0, 0, n_samples, min(size, n_samples), shuffle=False)

  def one(params, collections, data, rows):
    output = recipe.predict(params, collections, batches.take(data, rows))
    missing = [name for name in data.order if name not in output.features]
    if missing:
      raise UserError(
        f"probes need output.features[{missing[0]!r}], the representation of the"
        f" modality [b d]; the system gives {', '.join(sorted(output.features))}."
      )
    return {name: output.features[name] for name in data.order}

  stacked = _map_rows(one, order, params, collections, data)
  return {
    name: values.reshape(-1, values.shape[-1])[:n_samples]
    for name, values in stacked.items()
  }


def _map_rows(function, order, *arguments):
  """Applies a function of (*arguments, rows) to every batch of rows, in one program."""
  return jax.jit(
    lambda order, *given: jax.lax.map(lambda rows: function(*given, rows), order)
  )(order, *arguments)


def probe(
  config: Experiment,
  recipe: Recipe,
  params: Params,
  collections: Collections,
  corpus: Corpus,
  seed: int = 0,
) -> dict[str, dict[str, Any]]:
  """Fits and scores a head for every modality of a trained system.

  Samples without the modality neither fit nor score.

  Args:
    config: the run's, resolved.
    recipe, params, collections: the trained system.
    corpus: preprocessed; heads are fitted on `train` and scored on `test` (on `valid`
      if there is none).
    seed: of the heads.

  Returns:
    Modality -> metric -> value; a modality that no sample has is left out.
  """
  target = primary_output(config.model, config.corpus_spec)
  task = config.corpus_spec.tasks[target.name]
  held_out = held_out_split(corpus.splits)
  extract = functools.partial(features_of, recipe, params, collections)
  data, features = {}, {}
  for split in ("train", held_out):
    lengths = dict(config.corpus_spec.lengths)
    data[split] = batches.whole(corpus.splits[split], corpus.tasks, lengths)
    features[split] = extract(data[split], config.train.eval_batch_size)
  labels = scoring.label_arrays(corpus.splits[held_out], corpus.tasks)[target.name]
  report = {}
  for slot, name in enumerate(data["train"].order):
    label = data["train"].labels[target.name]
    fitting = label.replace(mask=label.mask & data["train"].available[:, slot])
    scored = labels.mask & np.asarray(data[held_out].available[:, slot])
    if not (np.any(fitting.mask) and np.any(scored)):
      continue
    head, fitted = fit_probe(
      target, features["train"][name], fitting, config.loss.get("task", "default"), seed
    )
    predictions = np.asarray(head.apply({"params": fitted}, features[held_out][name]))
    report[name] = metrics.evaluate(task, predictions, labels.values, scored)
  return report


def zero_others(
  config: Experiment,
  recipe: Recipe,
  params: Params,
  collections: Collections,
  corpus: Corpus,
) -> Mapping[str, dict[str, Any]]:
  """Scores the trained system itself with one modality at a time.

  The other reading of "unimodal result": nothing is fitted, all other modalities are
  made unavailable.

  Returns:
    Modality -> metric -> value on `test` (`valid` if there is none), over the samples
    that have it.
  """
  target = primary_output(config.model, config.corpus_spec)
  task = config.corpus_spec.tasks[target.name]
  held_out = held_out_split(corpus.splits)
  split = corpus.splits[held_out]
  data = batches.whole(split, corpus.tasks, dict(config.corpus_spec.lengths))
  labels = scoring.label_arrays(split, corpus.tasks)[target.name]
  size = min(config.train.eval_batch_size, len(split))
  order = batches.epoch_order(0, 0, len(split), size, shuffle=False)

  def one(params, collections, data, rows):
    output = recipe.predict(params, collections, batches.take(data, rows))
    return output.predictions[target.name]

  report = {}
  for slot, name in enumerate(data.order):
    there = np.asarray(data.available[:, slot])
    if not np.any(there & labels.mask):
      continue
    only = jnp.zeros_like(data.available).at[:, slot].set(there)
    alone = data.replace(available=only)

    stacked = np.asarray(_map_rows(one, order, params, collections, alone))
    predictions = stacked.reshape(-1, *stacked.shape[2:])[: len(split)]
    report[name] = metrics.evaluate(
      task, predictions, labels.values, labels.mask & there
    )
  return report
