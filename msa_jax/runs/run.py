"""Whole runs: train all seeds into a run directory, evaluate it, predict with it."""

import pathlib
import signal
import threading
import time
from contextlib import contextmanager
from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh

from msa_jax import config as config_lib
from msa_jax.data import missing
from msa_jax.data.transforms import dialogues, preprocess
from msa_jax.devices import processes, sharding
from msa_jax.errors import UserError
from msa_jax.runs import prediction_files, prepare, schedule, summary, sweep
from msa_jax.step import recipe
from msa_jax.train import feed as feed_lib
from msa_jax.train import loop, scoring, selection
from msa_jax.train.checkpoint import load_best
from msa_jax.train.compiled_stages import CompiledStages
from msa_jax.train.run_directory import RunDirectory
from msa_jax.typing import Collections, Corpus, Params

_PREPROCESSING = "preprocessing.npz"


def default_workdir(config: ml_collections.ConfigDict) -> pathlib.Path:
  """`runs/<model>-<data>-<time>`: a fresh folder for runs nobody named."""
  data = pathlib.Path(config.data.path).stem if config.data.path else "synthetic"
  stamp = time.strftime("%Y%m%d-%H%M%S")
  return pathlib.Path("runs") / f"{config.model.name}-{data}-{stamp}"


@contextmanager
def _stop_signal():
  """Yields a function that says whether SIGTERM or SIGINT has come."""
  came = threading.Event()
  previous = {}
  if threading.current_thread() is threading.main_thread():
    for number in (signal.SIGTERM, signal.SIGINT):
      previous[number] = signal.signal(number, lambda *_: came.set())
  try:
    yield came.is_set
  finally:
    for number, handler in previous.items():
      # None = not set from Python, as the one that JAX sets in a job of several.
      signal.signal(number, handler or signal.SIG_DFL)


def make_feeds(
  config: ml_collections.ConfigDict, corpus: Corpus, mesh: Mesh | None = None
) -> dict[str, feed_lib.Feed]:
  """Feeds of every split, on the device, or every device of a mesh, where they fit."""
  budget = config.data.device_budget_mib * 2**20
  lengths = config.spec.lengths.to_dict()
  # Systems that read padding as their originals did need all of it, and joint corpora
  # have an order of their own.
  n_buckets = config.data.get("buckets", 0)
  padded = config.model.get("compat", "none") != "none"
  if padded or len(config.spec.get("sources", ())) > 1:
    n_buckets = 0
  return {
    name: feed_lib.make_feed(split, corpus.tasks, lengths, budget, n_buckets, mesh)
    for name, split in corpus.splits.items()
  }


def train(
  config: ml_collections.ConfigDict, workdir: str | pathlib.Path
) -> dict[str, Any]:
  """Trains every seed of `config.replicas.seeds`, or resumes; writes the run directory.

  Args:
    config: an unresolved config.
    workdir: folder of the run; one that holds this run already is resumed.

  Returns:
    The contents of summary.json.

  Raises:
    UserError: bad input, another run in the folder, a diverging loss.
    loop.Interrupted: SIGTERM or Ctrl-C came; everything is saved.
  """
  with processes.all_or_none():
    prepared = prepare.prepare(config)
  config, corpus = prepared.config, prepared.corpus
  labels = None
  if "valid" in corpus.splits:
    labels = scoring.label_arrays(corpus.splits["valid"], corpus.tasks)
  tracks = [  # fails early on an unknown metric
    selection.tracks(config, stage, labels) for stage in recipe.stages_of(config)
  ]
  recipe.build(config)  # and on what the system refuses, before there is a folder
  processes.check_same(
    "they must have the same --config and the same data.",
    [config_lib.to_json(config), prepared.description],
  )
  mesh = sharding.make_mesh(config)
  sharding.check_processes(mesh)
  root = RunDirectory(workdir)
  settings = sweep.settings(config, labels is not None)
  runs = [sweep.directory(root, setting) for setting in settings]
  _begin_all(root, zip(runs, settings, strict=True), config, prepared)
  feeds = make_feeds(config, corpus, mesh)
  seeds = config.replicas.seeds
  replicas = [
    loop.Replica(seed, run, setting)
    for run, setting in zip(runs, settings, strict=True)
    for seed in seeds
  ]
  with _stop_signal() as stop_requested:
    flat = schedule.train(config, replicas, feeds, labels or {}, root, stop_requested)
  trained = [flat[k : k + len(seeds)] for k in range(0, len(flat), len(seeds))]
  if not settings[0]:
    return _conclude(root, config, corpus, feeds, trained[0])
  ranking = sweep.ranked(settings, trained, next(iter(tracks[-1].values())))
  best = [sweep.name(setting) for setting in settings].index(ranking[0]["name"])
  chosen = sweep.bound(config, settings[best])
  written = _conclude(runs[best], chosen, corpus, feeds, trained[best])
  written["sweep"] = {"best": ranking[0]["name"], "settings": ranking}
  root.write_json("summary.json", written)
  return written


def _begin_all(root, settings, config, prepared) -> None:
  """Makes the folder of a run and of each setting of its sweep, in all processes or
  in none."""
  with processes.all_or_none():
    _begin(root, config, prepared)
    for run, setting in settings:
      if setting:
        _begin(run, sweep.bound(config, setting), prepared)
  with processes.all_or_none():
    processes.await_shared(root.config_path)


def _begin(run, config, prepared) -> None:
  """Makes a run directory, or checks that it holds this run."""
  run.create(config, prepared.description)
  if not processes.is_primary():
    return
  preprocess.save(prepared.preprocessor, run.path / _PREPROCESSING)
  for name, masks in prepared.masks.items():
    split = prepared.corpus.splits[name]
    path = run.path / "predictions" / f"missing_{name}.npz"
    missing.save(path, split, {str(masks.pattern): missing.arrays(masks)})


def _conclude(run, config, corpus, feeds, trained) -> dict[str, Any]:
  """Final figures. The test split is read here, once, with what validation selected."""
  mesh = sharding.make_mesh(config)
  system = sharding.shard_recipe(recipe.build(config), mesh)
  predictor = feed_lib.Predictor(system, config.train.eval_batch_size, mesh=mesh)
  selected = [
    sharding.replicate(jax.device_get((one.params, one.collections)), mesh)
    for one in trained
  ]
  predictions = {
    split: [predictor(*chosen, feeds[split]) for chosen in selected]
    for split in ("valid", "test")
    if split in feeds
  }
  return summary.write(run, config, corpus, predictions, trained)


def restore(
  run: RunDirectory, config: ml_collections.ConfigDict
) -> list[tuple[Params, Collections]]:
  """Selected parameters of every seed of a run.

  Raises:
    UserError: a seed has not finished, or its checkpoint is damaged.
  """
  one = sharding.on_one_device(config)
  params, collections = CompiledStages(one).final_shapes()
  return [
    load_best(run.best(seed), params, collections) for seed in config.replicas.seeds
  ]


def evaluate(workdir: str | pathlib.Path, path: str = "") -> dict[str, Any]:
  """Scores a trained run again: on its own corpus, or on another labelled file.

  Args:
    workdir: folder of the run.
    path: another file to evaluate on; "" = the run's own.

  Returns:
    split -> task -> metric -> {"mean", "std", "values"}, also written to
    evaluation.json.

  Raises:
    UserError: no such run, no such file, or a file without labels.
  """
  run = RunDirectory(workdir).chosen()
  config = run.config()
  preprocessor = preprocess.load(run.path / _PREPROCESSING)
  corpus = prepare.reload(config, preprocessor, path)
  labelled = {
    name: split
    for name, split in corpus.splits.items()
    if scoring.label_arrays(split, corpus.tasks) and (path or name != "train")
  }
  if not labelled:
    raise UserError(f"{path} has no labels to evaluate on; use --mode=predict.")
  system = recipe.build(config)
  predictor = feed_lib.Predictor(system, config.train.eval_batch_size)
  chosen = restore(run, config)
  feeds = make_feeds(config, corpus)
  report = {}
  for name, split in labelled.items():
    targets = scoring.label_arrays(split, corpus.tasks)
    predictions = [predictor(*seed, feeds[name]) for seed in chosen]
    scoring.without_content(predictions[0], targets, name)
    report[name] = summary.over_seeds(
      [scoring.score(config, p.outputs, targets) for p in predictions]
    )
  run.write_json("evaluation.json", {"file": path or "own", "splits": report})
  return report


def predict(
  workdir: str | pathlib.Path, path: str, output: str | pathlib.Path
) -> pathlib.Path:
  """Predicts every sample of a file, labelled or not, into a csv file.

  Args:
    workdir: folder of the run.
    path: any supported file.
    output: csv to write: id, prediction (mean over seeds), one column per seed,
      class names and probabilities for classes, and the mean gate weights.

  Raises:
    UserError: no such run or file, or `output` cannot be written.
  """
  run = RunDirectory(workdir).chosen()
  config = run.config()
  corpus = prepare.reload(config, preprocess.load(run.path / _PREPROCESSING), path)
  system = recipe.build(config)
  predictor = feed_lib.Predictor(system, config.train.eval_batch_size)
  chosen = restore(run, config)
  columns: prediction_files.Columns = {}
  for name, feed in make_feeds(config, corpus).items():
    per_seed = [predictor(*seed, feed) for seed in chosen]
    scoring.without_content(per_seed[0], {}, name)
    ids = dialogues.utterances(corpus.splits[name]).ids
    part = {"id": ids, "split": [name] * len(ids)}
    part |= prediction_files.prediction_columns(config, per_seed, config.replicas.seeds)
    part |= prediction_files.gate_columns(per_seed)
    for key, column in part.items():
      columns[key] = [*columns.get(key, ()), *column]
  return prediction_files.write_csv(pathlib.Path(output), columns)
