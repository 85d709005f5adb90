"""Whole runs: train all seeds into a run directory, evaluate it, predict with it."""

import contextlib
import functools
import os
import pathlib
import time
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from msa_jax.config.experiment import Experiment, experiment, to_json
from msa_jax.data import missing
from msa_jax.data.transforms import dialogues
from msa_jax.data.transforms import pipeline as pipeline_lib
from msa_jax.devices import processes, sharding, stopping
from msa_jax.errors import UserError
from msa_jax.models.outputs import output_specs
from msa_jax.runs import (
  folds,
  prediction_files,
  prepare,
  references,
  schedule,
  summary,
)
from msa_jax.runs.feeds import feeds_of, make_feeds
from msa_jax.runs.open import PREPROCESSING, OpenRun, open_run, restore
from msa_jax.step import compose
from msa_jax.training import feed as feed_lib
from msa_jax.training import loop, scoring, selection
from msa_jax.training.compiled_stages import mesh_of
from msa_jax.training.run_directory import (
  Listener,
  RunDirectory,
  fold_folders,
  only_warn,
)
from msa_jax.typing import Corpus

__all__ = [
  "default_workdir",
  "evaluate",
  "feeds_of",
  "make_feeds",
  "predict",
  "predicted_columns",
  "restore",
  "score",
  "train",
]


def default_workdir(config: Experiment, corpus: Corpus | None = None) -> pathlib.Path:
  """`runs/<model>-<data>-<time>`: a fresh folder for runs nobody named."""
  unnamed = "synthetic" if corpus is None else corpus.name
  data = pathlib.Path(config.data.path).stem if config.data.path else unnamed
  stamp = time.strftime("%Y%m%d-%H%M%S")
  return pathlib.Path("runs") / f"{config.system}-{data}-{stamp}"


def train(
  config: ml_collections.ConfigDict | Experiment,
  workdir: str | pathlib.Path,
  corpus: Corpus | None = None,
  listener: Listener | None = None,
) -> dict[str, Any]:
  """Trains every seed of `config.replicas.seeds`, or resumes; writes the run directory.

  With `config.data.fold` = `all` a run for every fold, see `runs.folds`.

  Args:
    config: of a config file, not resolved.
    workdir: folder of the run; one that holds this run already is resumed.
    corpus: in memory, in place of the file that `config.data.path` names.
    listener: is told the record of every epoch, as metrics.jsonl has it.

  Returns:
    The contents of summary.json; with `repeated` where the run had finished before and
    nothing was trained.

  Raises:
    UserError: bad input, another run in the folder or another process that trains
      there, a finished run of other code, a diverging loss.
    stopping.Interrupted: SIGTERM or Ctrl-C came; everything is saved.
  """
  config = experiment(config)
  if config.data.is_cross_validated:
    one = functools.partial(train, listener=listener)
    return folds.train(one, config, workdir, corpus)
  with stopping.listening() as stop:
    try:
      return _train(config, RunDirectory(workdir, listener), corpus, stop)
    except KeyboardInterrupt:
      if not stop.requested():
        raise
    raise stopping.Interrupted("stopped; the same call goes on from what is saved.")


def _train(config, run, corpus, stop) -> dict[str, Any]:
  with contextlib.ExitStack() as held:
    with processes.all_or_none():
      there = run.path.exists()
      if there:  # known before data are read
        held.enter_context(run.locked())
      prepared = prepare.prepare(config, corpus)
    config, corpus = prepared.config, prepared.corpus
    labels = None
    if "valid" in corpus.splits:
      labels = scoring.label_arrays(corpus.splits["valid"], corpus.tasks)
    outputs = output_specs(config.model, config.corpus_spec)
    for stage in compose.stages_of(config):  # fails early on an unknown metric
      selection.tracks(stage, config.corpus_spec.tasks, outputs, labels)
    compose.build(config)  # and on what the system refuses, before there is a folder
    processes.check_same(
      "they must have the same --config and the same data.",
      [to_json(config), prepared.description],
    )
    mesh = mesh_of(config)
    sharding.check_processes(mesh)
    with processes.all_or_none():
      if not there:
        held.enter_context(run.locked())
      done = _begin(run, prepared)
    with processes.all_or_none():
      processes.await_shared(run.config_path)
    feeds = feeds_of(config, corpus, mesh)
    replicas = [loop.Replica(seed, run) for seed in config.replicas.seeds]
    linear = functools.partial(references.fit_text, config, corpus)
    trained = schedule.train(config, replicas, feeds, labels or {}, run, stop, linear)
    if done is not None and done["parameter_hash"] == summary.hashes(trained):
      return {**done, "repeated": True}
    return _conclude(run, config, corpus, feeds, trained)


def _begin(run: RunDirectory, prepared: prepare.Inputs) -> dict[str, Any] | None:
  """Makes a run directory, or checks that it holds this run; gives the summary of one
  that has finished, which is not written again."""
  done = summary.of_finished(run, prepared.config)
  if done is not None:
    run.check_source(prepared.config.system)
  run.create(prepared.config, prepared.description, finished=done is not None)
  if not processes.is_primary():
    return done
  if done is None or not (run.path / PREPROCESSING).exists():
    pipeline_lib.save(prepared.pipeline, run.path / PREPROCESSING)
  for name, masks in prepared.masks.items():
    path = run.path / "predictions" / f"missing_{name}.npz"
    if done is None or not path.exists():
      split = prepared.corpus.splits[name]
      missing.save(path, split, {str(masks.pattern): missing.arrays(masks)})
  return done


def _conclude(run, config, corpus, feeds, trained) -> dict[str, Any]:
  """Final figures. The test split is read here, once, with what validation selected."""
  mesh = mesh_of(config)
  system = sharding.shard_recipe(compose.build(config), mesh)
  predictor = feed_lib.Predictor(system, config.train.eval_batch_size, mesh=mesh)
  selected = [
    sharding.replicate(jax.device_get((one.params, one.collections)), mesh)
    for one in trained
  ]
  predictions = {
    split: [predictor(params, rest, feeds[split]) for params, rest in selected]
    for split in ("valid", "test")
    if split in feeds
  }
  fitted = references.fit(config, corpus)
  if processes.is_primary():
    references.save(run.path, fitted)
  return summary.write(run, config, corpus, predictions, trained, fitted)


class Evaluation(NamedTuple):
  """Figures of a trained run on a corpus.

  Attributes:
    directory: of the run.
    file: what it was evaluated on.
    splits: split -> task -> metric -> {"mean", "std", "values"}.
  """

  directory: RunDirectory
  file: str
  splits: dict[str, Any]

  def keep(self) -> None:
    """Writes evaluation.json; a warning where it cannot be written."""
    about = {"file": self.file, "splits": self.splits}
    with only_warn("the figures are not kept"):
      self.directory.write_json("evaluation.json", about)


def evaluate(
  workdir: str | pathlib.Path, path: str = "", corpus: Corpus | None = None
) -> dict[str, Any]:
  """Scores a trained run again and keeps the figures; see `score`.

  Returns:
    split -> task -> metric -> {"mean", "std", "values"}, also written to
    evaluation.json, if the folder of the run can be written.
  """
  evaluation = score(workdir, path, corpus)
  evaluation.keep()
  return evaluation.splits


def score(
  workdir: str | pathlib.Path, path: str = "", corpus: Corpus | None = None
) -> Evaluation:
  """Scores a trained run again: on its own corpus, or on another labelled one.

  Args:
    workdir: folder of the run.
    path: another file to evaluate on; "" = the run's own.
    corpus: in memory, in place of a file; the run's own, if it was trained on it.

  Raises:
    UserError: no such run, no such file, or a file without labels.
  """
  if runs := fold_folders(workdir):
    each = [score(folder, path, corpus) for folder in runs.values()]
    together = folds.combine([one.splits for one in each])
    return Evaluation(RunDirectory(workdir), each[0].file, together)
  opened = open_run(workdir)
  own = corpus is None or prepare.is_own(opened.directory, corpus)
  other = bool(path) or not own
  corpus = prepare.reload(opened.config, opened.pipeline, path, corpus, own)
  labelled = {
    name: split
    for name, split in corpus.splits.items()
    if scoring.label_arrays(split, corpus.tasks) and (other or name != "train")
  }
  if not labelled:
    name = path or corpus.name
    raise UserError(f"{name} has no labels to evaluate on; predict it instead.")
  feeds = opened.feeds(corpus)
  report = {}
  for name, split in labelled.items():
    targets = scoring.label_arrays(split, corpus.tasks)
    predictions = opened.predictions(feeds[name])
    scoring.without_content(predictions[0], targets, name)
    report[name] = summary.over_seeds(
      [scoring.score(corpus.tasks, p.outputs, targets) for p in predictions]
    )
  file = path or (corpus.name if other else "own")
  return Evaluation(opened.directory, file, report)


def predict(
  workdir: str | pathlib.Path, path: str, output: str | pathlib.Path
) -> pathlib.Path:
  """Predicts every sample of a file, labelled or not, into a csv file.

  Args:
    workdir: folder of the run.
    path: any supported file.
    output: csv to write, with the columns of `predicted_columns`.

  Raises:
    UserError: no such run or file, or `output` cannot be written.
  """
  predicted_columns(workdir, path, output=output)
  return pathlib.Path(output).expanduser()


def predicted_columns(
  workdir: str | pathlib.Path,
  path: str = "",
  corpus: Corpus | None = None,
  output: str | os.PathLike | None = None,
) -> prediction_files.Columns:
  """Predicts every sample of a file, or of a corpus in memory.

  Args:
    workdir: folder of the run.
    path: any supported file.
    corpus: in place of a file.
    output: csv to write, or None.

  Returns:
    Columns of equal length: id, split, prediction (mean over seeds), one column per
    seed, class names and probabilities for classes, and the mean gate weights.

  Raises:
    UserError: no such run or file, or `output` cannot be written.
  """
  opened = open_run(workdir)
  corpus = prepare.reload(opened.config, opened.pipeline, path, corpus, own=False)
  columns = columns_of(opened, corpus)
  if output is not None:
    prediction_files.write_csv(pathlib.Path(output), prediction_files.rounded(columns))
  return columns


def columns_of(opened: OpenRun, corpus: Corpus) -> prediction_files.Columns:
  """Columns of `predicted_columns` of a corpus that went through the pipeline."""
  config = opened.config
  columns: prediction_files.Columns = {}
  for name, feed in opened.feeds(corpus).items():
    per_seed = opened.predictions(feed)
    scoring.without_content(per_seed[0], {}, name)
    ids = dialogues.utterances(corpus.splits[name]).ids
    part = {"id": ids, "split": np.full(len(ids), name)}
    part |= prediction_files.prediction_columns(
      config.corpus_spec.tasks, per_seed, config.replicas.seeds
    )
    part |= prediction_files.gate_columns(per_seed)
    for key, column in part.items():
      columns[key] = np.append(columns[key], column) if key in columns else column
  return columns
