"""Which transforms a run's corpus goes through, and in which order."""

from collections.abc import Callable

from msa_jax.config.experiment import Experiment
from msa_jax.data.transforms.align import Align, MaxSteps
from msa_jax.data.transforms.degrade import Degrade
from msa_jax.data.transforms.dialogues import Group
from msa_jax.data.transforms.folds import Fold
from msa_jax.data.transforms.kmeans import FrameClusters
from msa_jax.data.transforms.modalities import MatchModalities, SelectModalities
from msa_jax.data.transforms.pipeline import Pipeline
from msa_jax.data.transforms.pseudo_labels import PseudoLabels
from msa_jax.data.transforms.relabel import Relabel
from msa_jax.data.transforms.screen import Screen
from msa_jax.data.transforms.splits import CheckTrainable, SelectionSplit
from msa_jax.data.transforms.standardize import Standardize
from msa_jax.data.transforms.subsample import Subsample
from msa_jax.data.transforms.tasks import DeriveTask
from msa_jax.data.transforms.transform import Transform
from msa_jax.linear import value
from msa_jax.text.features import encoder_of
from msa_jax.typing import Corpus


def pipeline_of(
  config: Experiment, fill: Callable[[Corpus, str], Corpus] | None = None
) -> Pipeline:
  """The pipeline that a run's options ask for, not fitted.

  Args:
    config: of a run, resolved or not.
    fill: gives a corpus the labels of another run (`runs.pseudo_labels.fill`); needed
      to fit, not to replay.
  """
  data, lost = config.data, config.missing
  # Joined corpora have been split, each by its sessions.
  joined = bool(data.extra_train_paths)
  fold, num_folds = (0, 0) if joined else (data.fold_number, data.num_folds)
  dialogues = data.sample_unit == "dialogue"
  entries: tuple[Transform | None, ...] = (
    Fold(fold, data.iemocap_val, num_folds),
    SelectModalities(data.modalities),
    DeriveTask(data.task),
    CheckTrainable(),
    Subsample(data.train_fraction),
    PseudoLabels(data.pseudo_label_run, fill) if data.pseudo_label_run else None,
    Relabel(),
    SelectionSplit(config.train.selection_split, data.iemocap_val == "none"),
    Screen(data.screen_level, value.moments, value.of, value.FEWEST)
    if data.screen_level
    else None,
    Group() if dialogues else None,
    Degrade(
      *(lost.train, lost.eval, lost.seed, config.optim.batch_size),
      encode=encoder_of(config.text),
    ),
    MatchModalities(),
    Standardize(data.standardize),
    MaxSteps(data.max_steps) if data.max_steps else None,
    Align(data.align, data.max_steps),
    FrameClusters(data.num_frame_clusters) if data.num_frame_clusters else None,
  )
  return Pipeline(tuple(entry for entry in entries if entry is not None))
