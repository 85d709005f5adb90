"""Opens a finished run for everything that reads one."""

import os
from collections.abc import Sequence
from typing import NamedTuple

from msa_jax.config.experiment import Experiment
from msa_jax.data.transforms import pipeline as pipeline_lib
from msa_jax.data.transforms.pipeline import Pipeline
from msa_jax.errors import UserError
from msa_jax.runs.feeds import feeds_of
from msa_jax.runs.transforms import pipeline_of
from msa_jax.step import compose
from msa_jax.step.recipe import Recipe
from msa_jax.training import feed as feed_lib
from msa_jax.training.checkpoint import load_best
from msa_jax.training.compiled_stages import CompiledStages
from msa_jax.training.run_directory import RunDirectory, fold_folders
from msa_jax.typing import Collections, Corpus, Params

PREPROCESSING = "preprocessing.npz"


class OpenRun(NamedTuple):
  """A finished run.

  Attributes:
    directory: its folder.
    config: its resolved options.
    pipeline: what its corpus went through, fitted; `prepare.reload` reads with it.
    recipe: the system.
    selected: parameters and collections of every seed.
    predictor: one program for all seeds and feeds.
  """

  directory: RunDirectory
  config: Experiment
  pipeline: Pipeline
  recipe: Recipe
  selected: Sequence[tuple[Params, Collections]]
  predictor: feed_lib.Predictor

  def feeds(self, corpus: Corpus) -> dict[str, feed_lib.Feed]:
    """Feeds of a corpus that went through the pipeline, by split."""
    return feeds_of(self.config, corpus)

  def predictions(self, feed: feed_lib.Feed) -> list[feed_lib.Predictions]:
    """Every seed's predictions of a feed."""
    return [self.predictor(*chosen, feed) for chosen in self.selected]


def open_run(workdir: str | os.PathLike) -> OpenRun:
  """Opens a finished run.

  Raises:
    UserError: no such run, a folder of folds, a seed that has not finished, or a
      damaged file.
  """
  if found := fold_folders(workdir):
    raise UserError(
      f"--workdir={workdir} holds a run for each fold; give one of them:"
      f" {', '.join(map(str, found.values()))}."
    )
  directory = RunDirectory(workdir)
  config = directory.experiment()
  pipeline = pipeline_lib.load(
    directory.path / PREPROCESSING,
    pipeline_of(config).transforms,
    config.corpus_spec.tasks,
  )
  recipe = compose.build(config)
  predictor = feed_lib.Predictor(recipe, config.train.eval_batch_size)
  selected = restore(directory, config)
  return OpenRun(directory, config, pipeline, recipe, selected, predictor)


def restore(run: RunDirectory, config: Experiment) -> list[tuple[Params, Collections]]:
  """Selected parameters of every seed of a run.

  Raises:
    UserError: a seed has not finished, or its checkpoint is damaged.
  """
  params, collections = CompiledStages(config, on_one_device=True).final_shapes()
  return [
    load_best(run.best(seed), params, collections) for seed in config.replicas.seeds
  ]
