"""Trains one seed: epochs on the device, selection on validation only, checkpoints."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from msa_jax import metrics
from msa_jax.data import batches
from msa_jax.metrics.routing import routing_metrics
from msa_jax.train import compilation, scoring
from msa_jax.train.checkpoint import ResumePoint, save_best
from msa_jax.train.feed import Feed, Predictor, Steps
from msa_jax.train.progress import TrainingProgress
from msa_jax.train.recipe import Recipe
from msa_jax.train.rundir import RunDirectory
from msa_jax.typing import Collections, Params, TrainState, UserError


class Interrupted(Exception):
  """Training stopped on request after saving; the message says how to go on."""


class Diverged(UserError):
  """The loss became infinite or NaN; the message names the step."""


@dataclasses.dataclass
class Position:
  """Where a seed's training stands; everything the loop knows besides arrays.

  Attributes:
    epoch: finished epochs.
    step: steps done in the epoch in progress.
    sums: running sums of the step metrics of that epoch.
    best_value, best_epoch: validation figure (greater is better) and number of the
      selected epoch so far.
    seconds: training time so far.
    finished: no more epochs to do.
  """

  epoch: int = 0
  step: int = 0
  sums: dict[str, float] = dataclasses.field(default_factory=dict)
  best_value: float | None = None
  best_epoch: int = 0
  seconds: float = 0.0
  finished: bool = False


@dataclasses.dataclass(frozen=True)
class Programs:
  """The compiled pieces that all seeds of a run share."""

  recipe: Recipe
  steps: Steps
  predictor: Predictor


def make_programs(config: ml_collections.ConfigDict, recipe: Recipe) -> Programs:
  """Wraps a recipe's functions; they compile at their first call."""
  per_epoch = -(-config.spec.train_size // config.optim.batch)
  capacity = min(config.train.steps_per_call, per_epoch)
  return Programs(
    recipe, Steps(recipe, capacity), Predictor(recipe, config.train.eval_batch)
  )


def fit(
  config: ml_collections.ConfigDict,
  programs: Programs,
  feeds: Mapping[str, Feed],
  labels: Mapping[str, Any],
  seed: int,
  run: RunDirectory,
  stop_requested: Callable[[], bool] = lambda: False,
) -> tuple[Params, Collections, Position]:
  """Trains one seed to its end, or resumes it.

  Args:
    config: a resolved config.
    programs: from `make_programs`.
    feeds: split name -> feed; needs `train`, selects on `valid` if there is one.
    labels: task name -> validation labels, as `scoring.score` takes them.
    seed: initialisation, shuffling and dropout all derive from it.
    run: where checkpoints and metrics.jsonl go.
    stop_requested: asked after every call of the step program.

  Returns:
    The selected parameters and collections, and the final position.

  Raises:
    Interrupted: on request, after saving.
    Diverged: the loss is not finite.
  """
  run.best(seed).parent.mkdir(parents=True, exist_ok=True)
  saver = ResumePoint(run.last(seed))
  try:
    state, best, position = _start(programs.recipe, seed, saver)
    run.rewind_metrics(seed, position.epoch)
    session = _Session(config, programs, feeds, labels, seed, run, saver)
    state, best = session.train(state, best, position, stop_requested)
  finally:
    saver.close()
  save_best(run.best(seed), best["params"], best["collections"])
  return best["params"], best["collections"], position


def _start(recipe: Recipe, seed: int, saver: ResumePoint):
  state = jax.jit(recipe.init, compiler_options=compilation.options())(seed)
  best = _snapshot(state)
  saved = saver.restore({"state": state, "best": best})
  if saved is None:
    return state, best, Position()
  tree, position = saved
  return tree["state"], tree["best"], Position(**position)


def _snapshot(state: TrainState) -> dict[str, Any]:
  # Copies: the state's own buffers are donated to the next step.
  return jax.tree.map(
    jnp.copy, {"params": state.params, "collections": state.collections}
  )


@dataclasses.dataclass
class _Session:
  """One seed's training, the parts that do not change."""

  config: ml_collections.ConfigDict
  programs: Programs
  feeds: Mapping[str, Feed]
  labels: Mapping[str, Any]
  seed: int
  run: RunDirectory
  saver: ResumePoint

  def train(self, state, best, position, stop_requested):
    """Runs epochs until the last one or until validation stops improving."""
    options = self.config.optim
    per_epoch = -(-self.feeds["train"].size // options.batch)
    total = per_epoch * options.epochs
    done = position.epoch * per_epoch + position.step
    started, saved_at = time.monotonic() - position.seconds, time.monotonic()
    figures: dict[str, float] = {}
    with TrainingProgress(f"seed {self.seed}", total, done) as progress:
      while not position.finished:
        state, epoch_done = self._advance(state, position)
        position.seconds = time.monotonic() - started
        figures["loss"] = position.sums["loss"] / position.step
        if epoch_done:
          best, shown = self._close_epoch(state, best, position)
          figures.update(shown)
        done = position.epoch * per_epoch + position.step
        progress.update(done, figures)
        stop = stop_requested() and not position.finished
        due = time.monotonic() - saved_at > self.config.train.checkpoint_every_seconds
        if stop or due or position.finished:
          saved_at = time.monotonic()
          self._save(done, state, best, position)
        if stop:
          raise Interrupted(
            f"stopped after step {done} of {total} of seed {self.seed}; the same"
            " command goes on from there."
          )
    return state, best

  def _save(self, done, state, best, position):
    tree = {"state": state, "best": best}
    self.saver.save(done, tree, dataclasses.asdict(position))

  def _advance(self, state, position):
    """Runs the next steps of the epoch; returns the state and whether it is over."""
    order = np.asarray(
      batches.epoch_order(
        self.seed, position.epoch, self.feeds["train"].size, self.config.optim.batch
      )
    )
    state, figures = self.programs.steps(
      state, self.feeds["train"], order, position.step, self.seed
    )
    finite = np.isfinite(figures["loss"]) & np.isfinite(figures["gradient_norm"])
    if not finite.all():
      bad = position.step + int(np.argmin(finite))
      raise Diverged(
        f"the loss or its gradient is not finite at step {bad + 1} of epoch"
        f" {position.epoch + 1} (seed {self.seed}): lower the learning rate"
        f" (config.optim.lr_*) or the clip norm ({self.config.optim.clip=})."
      )
    for name, values in figures.items():
      previous = position.sums.get(name, 0.0)
      # Only scalars are averaged over the epoch.
      if values.ndim == 1:
        position.sums[name] = previous + float(values.sum(dtype=np.float64))
    position.step += len(finite)
    return state, position.step == len(order)

  def _close_epoch(self, state, best, position):
    """Validates, selects, logs; returns the selected snapshot and figures to show."""
    record: dict[str, Any] = {"seed": self.seed, "epoch": position.epoch + 1}
    record["train"] = {k: v / position.step for k, v in position.sums.items()}
    figures: dict[str, float] = {}
    improved = True  # without a validation split the last epoch is taken
    if "valid" in self.feeds:
      predictions = self.programs.predictor(
        state.params, state.collections, self.feeds["valid"]
      )
      record["valid"] = scoring.score(self.config, predictions.outputs, self.labels)
      record["routing"] = routing_metrics(predictions.routing)
      record["without_content"] = scoring.without_content(predictions, self.labels)
      task, name = scoring.selection(self.config)
      value = metrics.selection_value(record["valid"][task], name)
      improved = position.best_value is None or value > position.best_value
      figures[f"valid {name}"] = record["valid"][task][name]
      figures.update(scoring.shown_entropy(record["routing"]))
      if improved:
        position.best_value = value
    position.epoch += 1
    if improved:
      position.best_epoch = position.epoch
      best = _snapshot(state)
    record["selected"] = bool(improved)
    record["seconds"] = round(position.seconds, 3)
    self.run.append_metrics(record)
    position.step, position.sums = 0, {}
    options = self.config.optim
    stale = position.epoch - position.best_epoch
    patience = options.patience if "valid" in self.feeds else 0
    position.finished = position.epoch >= options.epochs or (0 < patience <= stale)
    return best, figures
