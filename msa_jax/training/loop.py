"""Trains seeds: epochs on the device, selection on validation only, checkpoints."""

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from msa_jax.config.experiment import Experiment
from msa_jax.data.transforms import joint
from msa_jax.devices import processes
from msa_jax.devices.stopping import Interrupted, Pace, StopRequest
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

_WORTH_SECONDS = 5.0  # of training that are saved before a program is compiled


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
  stop: StopRequest | None = None,
) -> list[TrainResult]:
  """Trains seeds to their end, or resumes them.

  Args:
    config: resolved.
    programs: for as many seeds at once as there are replicas.
    feeds: split name -> feed; needs `train`, selects on `valid` if there is one.
    labels: task name -> validation labels, as `scoring.score` takes them.
    replicas: the seeds; initialisation, shuffling and dropout derive from them.
    saver: the checkpoint to resume from; closed at the end.
    stop: read after every call of the step program; None = never asks.

  Raises:
    stopping.Interrupted: on request, after saving.
    Diverged: the loss is not finite.
  """
  stop = StopRequest() if stop is None else stop
  session = _TrainLoop(config, programs, feeds, labels, replicas, saver, stop)
  try:
    state, best, position = session.start()
    for replica, course in zip(replicas, position.courses, strict=True):
      replica.run.rewind_metrics(replica.seed, course.epoch)
    state, best = session.train(state, best, position)
  finally:
    saver.close()
  stop.hold(False)
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
  stop: StopRequest

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
    self.pace = Pace(self.config.train.steps_per_call)
    self.warm: set[tuple[str, int]] = set()  # programs that have been compiled

  def start(self) -> tuple[TrainState, Snapshots, LoopState]:
    """The beginning, or where the last checkpoint was made."""

    def read(saved):
      position = LoopState.read(saved)
      state, best = self.programs.shapes(position.stage, self.seeds)
      return position, {"state": state, "best": best}

    saved = self.saver.restore(read)
    if saved is None:
      position = LoopState([SeedProgress() for _ in self.seeds])
      return *self.programs.begin(self.seeds), position
    tree, position = saved
    return tree["state"], tree["best"], position

  def train(self, state, best, position):
    """Runs epochs until the last one or until validation stops improving."""
    epochs = sum(stage.epochs for stage in self.programs.stages)
    total, done = self.per_epoch * epochs, self._done(position)
    started, saved_at = time.monotonic() - position.seconds, time.monotonic()
    figures: dict[str, float] = {}
    with TrainingProgress(self.title, total, done, epochs) as progress:
      while not position.finished:
        if position.step < self.per_epoch:
          state = self._advance(state, position)
        position.seconds = time.monotonic() - started
        figures["loss"] = self._shown_loss(position)
        closing = position.step == self.per_epoch
        waited = time.monotonic() - saved_at
        due = waited > self.config.train.checkpoint_every_seconds
        if closing and ("close", position.stage) not in self.warm:
          due = due or waited > _WORTH_SECONDS  # whoever stops a compiler loses nothing
        stop, due = self._agreed(due)
        if stop or due:
          saved_at = time.monotonic()
          self._save(state, best, position)
        if stop:
          raise Interrupted(
            f"stopped after step {self._done(position)} of {total} of {self.title};"
            " the same command goes on from there."
          )
        if closing:
          with self._compiled("close", position.stage):
            state, best = self._close_epoch(state, best, position, figures)
          progress.end_epoch(position.epoch, figures, position.seconds)
        progress.update(self._done(position), figures)
    self._save(state, best, position)
    return state, best

  def _done(self, position) -> int:
    return position.epoch * self.per_epoch + position.step

  def _agreed(self, due: bool) -> tuple[bool, bool]:
    """Whether to stop and to save; also settles how many steps come next. A signal
    reaches one process, and each has a clock of its own."""
    mine = (self.stop.requested(), due, -self.pace.steps)
    asked, overdue, fewest = processes.highest(*mine)
    self.pace.steps = -fewest
    return bool(asked), bool(overdue)

  def _save(self, state, best, position) -> None:
    for run in {replica.run.path: replica.run for replica in self.replicas}.values():
      run.sync_metrics()
    tree = {"state": state, "best": best}
    self.saver.save(self._done(position), tree, dataclasses.asdict(position))

  @contextmanager
  def _compiled(self, program: str, stage: int) -> Iterator[None]:
    """Runs a program, which compiles at its first call: a stop need not wait then."""
    self.stop.hold((program, stage) in self.warm)
    yield
    self.warm.add((program, stage))
    self.stop.hold(True)

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
    if ("steps", position.stage) not in self.warm:
      self.pace.restart()
    began = time.monotonic()
    with self._compiled("steps", position.stage):
      state, figures = self.programs.advance(
        position.stage,
        state,
        feed,
        orders,
        position.step,
        self.seeds,
        active,
        self.pace.steps,
      )
    self.pace.measured(len(figures[0]["loss"]), time.monotonic() - began)
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
      terms = np.append(sums.get(name, 0.0), values).astype(np.float64)
      # One after the other: the sum does not depend on where a call has ended.
      sums[name] = float(np.add.accumulate(terms)[-1])
