"""Heads on pooled text that start as the linear model of it, `config.init.text_head`.

A linear layer on the mean of about a thousand texts learns slowly, and never as well as
ridge regression with a good penalty, which is solved in a second. So that layer, of
`text_only` or of an anchor, starts as that model (ridge, or logistic regression for
classes and questions), and is trained from there. Its penalty is chosen by
cross-validation on training, not on validation, which picks the epoch. Where an encoder
is trained as well, the model is fitted on what the checkpoint says.

Source: linear probing, then fine-tuning: Kumar et al., ICLR 2022.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from msa_jax.config.experiment import Experiment
from msa_jax.linear.references import Reference
from msa_jax.step import compose, ema
from msa_jax.step.recipe import Recipe, Seed
from msa_jax.typing import TrainState

Heads = Mapping[str, Mapping[str, np.ndarray]]


def is_possible(config: Experiment) -> bool:
  """Whether a resolved experiment has a head that reads what the linear model reads:
  the mean of the text's steps, as it is before anything is trained."""
  path = compose.text_head_path(config)
  pool = config.anchor.pool if config.anchor.is_on else config.model.get("pool", "mean")
  other_run = config.init.from_run and (
    config.text.is_tuned or config.init.what == "all"
  )
  scratch = config.text.is_tuned and config.text.start == "scratch"
  return bool(path) and pool == "mean" and not (other_run or scratch)


def heads(config: Experiment, fit: Callable[[], Mapping[str, Reference]]) -> Heads:
  """Task -> `kernel` [d c] and `bias` [c] that its head starts with.

  Args:
    config: resolved.
    fit: gives the linear model of each task's text; called if heads are to start so.

  Returns:
    Tasks that have a model of their text; none where `config.init.text_head` is
    `random`, or `is_possible` says no.
  """
  if config.init.text_head != "linear" or not is_possible(config):
    return {}
  return {task: as_layer(model) for task, model in fit().items()}


def as_layer(model: Reference) -> dict[str, np.ndarray]:
  """A linear model of standardised features as a layer of the features themselves.

  The layer's outputs are those of a row that has text: `pooled @ kernel + bias`, [c],
  or, of questions, no and yes of each in turn, [2c], where no is 0.
  """
  made = model.design
  if made is None:
    raise ValueError("the model is a constant")
  width = len(made.means["text"])
  kernel = model.weights[:width] / made.scales["text"][:, None]
  bias = model.bias - made.means["text"] @ kernel
  if made.indicators:  # the column that says that there is text
    bias = bias + model.weights[width]
  if model.kind == "binary":
    kernel, bias = (
      np.stack([np.zeros_like(each), each], axis=-1).reshape(*each.shape[:-1], -1)
      for each in (kernel, bias)
    )
  return {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}


def starting(config: Experiment, recipe: Recipe, found: Heads) -> Recipe:
  """A recipe of which every state starts with given heads.

  Args:
    config: resolved.
    recipe: of the first stage.
    found: from `heads`.
  """
  if not found:
    return recipe

  def init(seed: Seed) -> TrainState:
    return place(config, recipe.init(seed), found)

  return recipe._replace(init=init)


def place(config: Experiment, state: TrainState, found: Heads) -> TrainState:
  """A new state with given heads, and with the mean of its parameters anew."""
  if not found:
    return state
  params = _put(state.params, compose.text_head_path(config), found)
  collections = dict(state.collections)
  if ema.AVERAGE in collections:
    collections[ema.AVERAGE] = jax.tree.map(jnp.copy, params)
  return state.replace(params=params, collections=collections)


def _put(tree: Any, path: tuple[str, ...], found: Heads) -> Any:
  if path:
    return {**tree, path[0]: _put(tree[path[0]], path[1:], found)}
  placed = dict(tree)
  for task in set(found) & set(tree):
    placed[task] = jax.tree.map(
      # Of the old leaf's shape, which has an axis of seeds where states are stacked.
      lambda old, new: jnp.broadcast_to(jnp.asarray(new, old.dtype), old.shape),
      tree[task],
      dict(found[task]),
    )
  return placed
