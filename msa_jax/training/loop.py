"""Trains seeds: epochs on the device, selection on validation only, checkpoints."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from msa_jax.config.experiment import Experiment
from msa_jax.data.transforms import joint
from msa_jax.devices import processes
from msa_jax.errors import UserError
from msa_jax.metrics.routing import routing_metrics
from msa_jax.models.outputs import output_specs
from msa_jax.training import scoring, selection
from msa_jax.training.checkpoint import ResumePoint, save_best
from msa_jax.training.compiled_stages import CompiledStages, Snapshots
from msa_jax.training.feed import Feed
from msa_jax.training.progress import TrainingProgress
from msa_jax.training.run_directory import RunDirectory
from msa_jax.typing import Collections, Params, TrainState


class Interrupted(Exception):
  """Training stopped on request after saving; the message says how to go on."""


class Diverged(UserError):
  """The loss became infinite or NaN; the message names the step."""


@dataclasses.dataclass
class SeedProgress:
  """How far one seed has come.

  Attributes:
    epoch: finished epochs, over all stages.
    start: of these, how many before the stage in progress.
    sums: running sums of the step metrics of the epoch in progress.
    values: track -> best validation figure of the stage (greater is better).
    epochs: track -> number of the epoch that reached it.
    over: the stage has ended for this seed.
  """

  epoch: int = 0
  start: int = 0
  sums: dict[str, float] = dataclasses.field(default_factory=dict)
  values: dict[str, float] = dataclasses.field(default_factory=dict)
  epochs: dict[str, int] = dataclasses.field(default_factory=dict)
  over: bool = False

  def stale(self) -> int:
    """Epochs of the stage since any track improved."""
    return self.epoch - max([self.start, *self.epochs.values()])

  def next_stage(self) -> None:
    """Starts a stage."""
    self.start, self.values, self.epochs = self.epoch, {}, {}
    self.over = False


@dataclasses.dataclass
class LoopState:
  """Where training stands; everything the loop knows besides arrays.

  Seeds that are trained at once go through stages and steps together.

  Attributes:
    courses: one per seed.
    stage: index of the stage in progress.
    epoch: finished epochs of the seed that has had most.
    step: steps done in the epoch in progress.
    seconds: training time so far.
    finished: nothing left to do.
  """

  courses: list[SeedProgress]
  stage: int = 0
  epoch: int = 0
  step: int = 0
  seconds: float = 0.0
  finished: bool = False

  @classmethod
  def read(cls, saved: Mapping[str, Any]) -> "LoopState":
    """The inverse of `dataclasses.asdict`."""
    courses = [SeedProgress(**course) for course in saved["courses"]]
    return cls(**{**saved, "courses": courses})


class TrainResult(NamedTuple):
  """What came of one seed.

  Attributes:
    params, collections: selected.
    best_epoch: that the first track of the last stage selected.
    value: validation figure of that epoch (greater is better); None = not validated.
    epoch: epochs trained.
    seconds: training time, of all that were trained at once.
    together: how many these were.
  """

  params: Params
  collections: Collections
  best_epoch: int
  value: float | None
  epoch: int
  seconds: float
  together: int = 1


class Replica(NamedTuple):
  """One training.

  Attributes:
    seed: what initialisation, shuffling and dropout derive from.
    run: where its files go.
  """

  seed: int
  run: RunDirectory

  def __str__(self):
    return f"seed {self.seed}"


def fit(
  config: Experiment,
  programs: CompiledStages,
  feeds: Mapping[str, Feed],
  labels: Mapping[str, Any],
  replicas: Sequence[Replica],
  saver: ResumePoint,
  stop_requested: Callable[[], bool] = lambda: False,
) -> list[TrainResult]:
  """Trains seeds to their end, or resumes them.

  Args:
    config: resolved.
    programs: for as many seeds at once as there are replicas.
    feeds: split name -> feed; needs `train`, selects on `valid` if there is one.
    labels: task name -> validation labels, as `scoring.score` takes them.
    replicas: the seeds; initialisation, shuffling and dropout derive from them.
    saver: the checkpoint to resume from; closed at the end.
    stop_requested: asked after every call of the step program.

  Raises:
    Interrupted: on request, after saving.
    Diverged: the loss is not finite.
  """
  session = _TrainLoop(config, programs, feeds, labels, replicas, saver)
  try:
    state, best, position = session.start()
    for replica, course in zip(replicas, position.courses, strict=True):
      replica.run.rewind_metrics(replica.seed, course.epoch)
    state, best = session.train(state, best, position, stop_requested)
  finally:
    saver.close()
  chosen = programs.selected(best, state)
  track = next(iter(programs.stages[-1].tracks))
  return [
    _finish(replica, course, one, track, position)
    for replica, course, one in zip(replicas, position.courses, chosen, strict=True)
  ]


def _finish(replica, course, chosen, track, position) -> TrainResult:
  """Saves what a seed's training came to."""
  chosen = processes.on_host(chosen)
  save_best(replica.run.best(replica.seed), *chosen)
  facts = {
    "best_epoch": course.epochs.get(track, course.epoch),
    "value": course.values.get(track),
    "epoch": course.epoch,
    "seconds": position.seconds,
    "together": len(position.courses),
  }
  replica.run.write_json(replica.run.trained(replica.seed), facts)
  return TrainResult(*chosen, **facts)


@dataclasses.dataclass
class _TrainLoop:
  """The parts of a training that do not change."""

  config: Experiment
  programs: CompiledStages
  feeds: Mapping[str, Feed]
  labels: Mapping[str, Any]
  replicas: Sequence[Replica]
  saver: ResumePoint

  def __post_init__(self):
    self.seeds = [replica.seed for replica in self.replicas]
    labels = self.labels if "valid" in self.feeds else None
    spec = self.config.corpus_spec
    outputs = output_specs(self.config.model, spec)
    self.tracks = [
      selection.tracks(stage, spec.tasks, outputs, labels)
      for stage in self.programs.stages
    ]
    self.sources, self.tasks = spec.sources, spec.tasks
    size = joint.epoch_size(self.feeds["train"].size, self.sources)
    self.per_epoch = -(-size // self.config.optim.batch_size)
    few = self.replicas[:3]
    more = [f"{len(self.replicas) - 3} more"] if len(self.replicas) > 3 else []
    self.title = "; ".join([*map(str, few), *more])

  def start(self) -> tuple[TrainState, Snapshots, LoopState]:
    """The beginning, or where the last checkpoint was made."""

    def shapes(position):
      state, best = self.programs.shapes(position["stage"], self.seeds)
      return {"state": state, "best": best}

    saved = self.saver.restore(shapes)
    if saved is None:
      position = LoopState([SeedProgress() for _ in self.seeds])
      return *self.programs.begin(self.seeds), position
    tree, position = saved
    return tree["state"], tree["best"], LoopState.read(position)

  def train(self, state, best, position, stop_requested):
    """Runs epochs until the last one or until validation stops improving."""
    total = self.per_epoch * sum(stage.epochs for stage in self.programs.stages)
    done = position.epoch * self.per_epoch + position.step
    started, saved_at = time.monotonic() - position.seconds, time.monotonic()
    figures: dict[str, float] = {}
    with TrainingProgress(self.title, total, done) as progress:
      while not position.finished:
        state = self._advance(state, position)
        position.seconds = time.monotonic() - started
        figures["loss"] = self._shown_loss(position)
        done += position.step - done % self.per_epoch
        if position.step == self.per_epoch:
          state, best = self._close_epoch(state, best, position, figures)
        progress.update(done, figures)
        waited = time.monotonic() - saved_at
        due = waited > self.config.train.checkpoint_every_seconds
        # A signal reaches one process, and each has a clock of its own.
        stop, due = processes.any_of(stop_requested(), due)
        stop = stop and not position.finished
        if stop or due or position.finished:
          saved_at = time.monotonic()
          tree = {"state": state, "best": best}
          self.saver.save(done, tree, dataclasses.asdict(position))
        if stop:
          raise Interrupted(
            f"stopped after step {done} of {total} of {self.title}; the same command"
            " goes on from there."
          )
    return state, best

  def _shown_loss(self, position) -> float:
    losses = [c.sums["loss"] for c in position.courses if not c.over]
    return float(np.mean(losses)) / position.step if losses else float("nan")

  def _advance(self, state, position):
    """Runs the next steps of the epoch."""
    feed, batch = self.feeds["train"], self.config.optim.batch_size
    orders = [
      feed.order(seed, course.epoch, batch, sources=self.sources)
      for seed, course in zip(self.seeds, position.courses, strict=True)
    ]
    active = [not course.over for course in position.courses]
    state, figures = self.programs.advance(
      position.stage,
      state,
      feed,
      orders,
      position.step,
      self.seeds,
      active,
    )
    for replica, course, measured in zip(
      self.replicas, position.courses, figures, strict=True
    ):
      if not course.over:
        self._check_finite(replica, course, measured, position.step)
        _add(course.sums, measured)
    position.step += len(figures[0]["loss"])
    return state

  def _check_finite(self, replica, course, figures, first) -> None:
    finite = np.isfinite(figures["loss"]) & np.isfinite(figures["gradient_norm"])
    if finite.all():
      return
    bad = first + int(np.argmin(finite))
    raise Diverged(
      f"the loss or its gradient is not finite at step {bad + 1} of epoch"
      f" {course.epoch + 1} (seed {replica.seed}): lower the learning rate"
      f" (config.optim.learning_rate) or the clip norm"
      f" ({self.config.optim.grad_clip_norm=})."
    )

  def _close_epoch(self, state, best, position, figures):
    """Validates, selects, logs; starts the next stage where one has ended."""
    index = position.stage
    active = [not course.over for course in position.courses]
    state = self.programs.end_epoch(index, state, active)
    predicted: Sequence[Any] = [None] * len(self.seeds)
    if "valid" in self.feeds:
      predicted = self.programs.predict(index, state, self.feeds["valid"])
    improved = []
    for replica, course, predictions in zip(
      self.replicas, position.courses, predicted, strict=True
    ):
      if course.over:
        improved.append(dict.fromkeys(self.tracks[index], False))
        continue
      record = self._record(replica, course, position)
      improved.append(self._validate(record, course, predictions, index, figures))
      replica.run.append_metrics(record)
      course.sums = {}
    best = self.programs.keep(index, best, state, improved)
    position.epoch, position.step = position.epoch + 1, 0
    if all(course.over for course in position.courses):
      if index + 1 == len(self.programs.stages):
        position.finished = True
      else:
        position.stage += 1
        state, best = self.programs.enter(position.stage, best, state)
        for course in position.courses:
          course.next_stage()
    return state, best

  def _record(self, replica, course, position) -> dict[str, Any]:
    """What metrics.jsonl says of an epoch before it is validated."""
    record: dict[str, Any] = {"seed": replica.seed, "epoch": course.epoch + 1}
    if len(self.programs.stages) > 1:
      record["stage"] = self.programs.stages[position.stage].name
    record["train"] = {k: v / position.step for k, v in course.sums.items()}
    record["seconds"] = round(position.seconds, 3)
    return record

  def _validate(self, record, course, predictions, index, figures) -> dict[str, bool]:
    """Scores an epoch into `record` and `course`; which tracks it improved."""
    tracks, stage = self.tracks[index], self.programs.stages[index]
    course.epoch += 1
    improved = dict.fromkeys(tracks, True)  # without validation the last is taken
    if predictions is not None:
      record["valid"] = scoring.score(self.tasks, predictions.outputs, self.labels)
      record["routing"] = routing_metrics(predictions.routing)
      record["without_content"] = scoring.without_content(predictions, self.labels)
      for track, criterion in tracks.items():
        value = criterion.value(record["valid"])
        previous = course.values.get(track)
        improved[track] = previous is None or value > previous
        if improved[track]:
          course.values[track] = value
      figures.update(next(iter(tracks.values())).figures(record["valid"]))
      figures.update(scoring.shown_entropy(record["routing"]))
    for track in tracks:
      if improved[track]:
        course.epochs[track] = course.epoch
    record["selected"] = any(improved.values())
    if len(tracks) > 1:
      record["improved"] = [track for track in tracks if improved[track]]
    stale = 0 < stage.patience <= course.stale()
    course.over = course.epoch - course.start >= stage.epochs or stale
    return improved


def _add(sums: dict[str, float], figures: Mapping[str, np.ndarray]) -> None:
  """Adds the metrics of some steps to running sums, over scalars only."""
  for name, values in figures.items():
    if values.ndim == 1:
      previous = sums.get(name, 0.0)
      sums[name] = previous + float(values.sum(dtype=np.float64))
