"""Runs that start from another run's parameters, `config.init`.

The text encoder alone fits any system and corpus (trained on MOSEI, say, before MOSI,
whatever else the two runs read); `all` needs the same parameters in both runs.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from msa_jax.config.experiment import Experiment
from msa_jax.errors import UserError
from msa_jax.runs.open import restore
from msa_jax.runs.summary import parameter_hash
from msa_jax.step import compose, ema
from msa_jax.step.recipe import Recipe
from msa_jax.text import finetune
from msa_jax.text.finetune import PARAMETERS
from msa_jax.training.run_directory import RunDirectory
from msa_jax.typing import Collections, Params, TrainState


class _Source(NamedTuple):
  """The run that another one starts from."""

  run: RunDirectory
  config: Experiment

  def selected(self, seed: int) -> tuple[Params, Collections]:
    """What a seed of the run predicts with."""
    one = self.config.replace("replicas", seeds=(seed,))
    return ema.predicting(*restore(self.run, one)[0])


def resolve(config: Experiment) -> Experiment:
  """The experiment with the hashes of what it starts from.

  Args:
    config: resolved against its corpus.

  Raises:
    UserError: no such run, one that has not finished, one that trained no encoder, or
      of other shapes.
  """
  if not config.init.from_run:
    return config
  source = _source(config)
  _check(config, source)
  hashes = []
  for seed in source.config.replicas.seeds:
    params, collections = source.selected(seed)
    _check_shapes(config, _taken(config, source, params, collections))
    hashes.append(parameter_hash(params))
  return config.replace("init", parameter_hash=tuple(hashes))


def starting(config: Experiment, recipe: Recipe) -> Recipe:
  """A recipe of which every state starts as `config.init` says.

  Args:
    config: as `resolve` gave it.
    recipe: of the first stage.
  """
  if not config.init.from_run:
    return recipe

  def read(seed: Any) -> Any:
    source = _source(config)
    seeds = source.config.replicas.seeds
    chosen = int(seed) if int(seed) in seeds else seeds[0]
    params, collections = source.selected(chosen)
    if parameter_hash(params) != config.init.parameter_hash[seeds.index(chosen)]:
      raise UserError(
        f"config.init.from_run={config.init.from_run!r} no longer holds the run that"
        " this one began with."
      )
    taken = _taken(config, source, params, collections)
    like = _replaced(config, jax.eval_shape(recipe.init, 0))
    return jax.tree.map(lambda new, old: np.asarray(new).astype(old.dtype), taken, like)

  def init(seed: Any) -> TrainState:
    state = recipe.init(seed)
    shapes = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
      _replaced(config, state),
    )
    # Read when the program runs: shapes need no other run, and programs hold none.
    taken = jax.pure_callback(read, shapes, seed, vmap_method="sequential")
    return _with(state, taken)

  return recipe._replace(init=init)


def _source(config: Experiment) -> _Source:
  run = RunDirectory(config.init.from_run)
  if not run.config_path.exists():
    raise UserError(
      f"config.init.from_run={config.init.from_run!r} holds no run: there is no"
      f" {run.config_path}."
    )
  return _Source(run, run.experiment())


def _check(config: Experiment, source: _Source) -> None:
  """Checks that the other run has what is asked for.

  Raises:
    UserError: another system, no encoder on either side, or another one.
  """
  what, theirs = config.init.what, source.config
  at = f"config.init.from_run={config.init.from_run!r}"
  if what == "all" and theirs.system != config.system:
    raise UserError(
      f"{at} is a run of {theirs.system}, this one of {config.system}: choose"
      " config.init.what='encoder', or the same system."
    )
  if what == "all" and not (config.text.is_tuned or theirs.text.is_tuned):
    return
  for text, who in ((theirs.text, "that run"), (config.text, "this run")):
    if not text.is_tuned:
      raise UserError(
        f"{at}, what={what!r}: {who} trains no text encoder"
        f" (config.text.finetune={text.finetune!r}); for frozen features of a trained"
        " one, export it (train_state.export_encoder) and name its folder as"
        " config.text.encoder."
      )
  ours, other = (
    dataclasses.replace(each.corpus_spec.encoder, extras=())
    for each in (config, theirs)
  )
  if ours != other:
    fields = [
      f"{name}: {getattr(other, name)} there, {getattr(ours, name)} here"
      for name in ours.__dataclass_fields__
      if getattr(ours, name) != getattr(other, name)
    ]
    raise UserError(f"{at} trained another encoder ({'; '.join(fields)}).")


def _taken(
  config: Experiment, source: _Source, params: Params, collections: Collections
) -> dict[str, Any]:
  """What of a run's parameters is taken, laid out as this run has it."""
  found: dict[str, Any] = {}
  if config.text.is_tuned:
    plain = finetune.plain(source.config.text, params[PARAMETERS])
    encoder = config.corpus_spec.encoder
    found["encoder"] = finetune.laid_out(config.text, encoder, plain)
  if config.init.what == "all":
    found["params"] = {k: v for k, v in params.items() if k != PARAMETERS}
    found["collections"] = dict(collections)
  return found


def _replaced(config: Experiment, state: TrainState) -> dict[str, Any]:
  """The part of a new state that `_taken` replaces."""
  found: dict[str, Any] = {}
  if config.text.is_tuned:
    found["encoder"] = finetune.without_adapters(state.params[PARAMETERS])
  if config.init.what == "all":
    _, collections = ema.predicting(state.params, state.collections)
    found["params"] = {k: v for k, v in state.params.items() if k != PARAMETERS}
    found["collections"] = dict(collections)
  return found


def _with(state: TrainState, taken: Mapping[str, Any]) -> TrainState:
  params = {**state.params, **taken.get("params", {})}
  if "encoder" in taken:
    params[PARAMETERS] = {**params[PARAMETERS], **taken["encoder"]}
  collections = {**state.collections, **taken.get("collections", {})}
  if ema.AVERAGE in collections:
    collections[ema.AVERAGE] = jax.tree.map(jax.numpy.copy, params)
  return state.replace(params=params, collections=collections)


def _check_shapes(config: Experiment, taken: Mapping[str, Any]) -> None:
  """Raises UserError where this run has other parameters than were taken."""
  state = jax.eval_shape(compose.build(config, 0).init, 0)
  ours, theirs = (_shapes(tree) for tree in (_replaced(config, state), taken))
  names = sorted(
    name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)
  )
  if not names:
    return
  lines = [
    f"{name} is {theirs.get(name, 'absent')} there, {ours.get(name, 'absent')} here"
    for name in names[:3]
  ]
  more = f" and {len(names) - 3} more" if len(names) > 3 else ""
  raise UserError(
    f"config.init.from_run={config.init.from_run!r}, what={config.init.what!r}: shapes"
    f" differ ({'; '.join(lines)}{more}); the two runs must have the same options and"
    " inputs, or choose what='encoder'."
  )


def _shapes(tree: Any) -> dict[str, str]:
  return {
    "/".join(str(getattr(key, "key", key)) for key in path[1:]): str(list(leaf.shape))
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }
