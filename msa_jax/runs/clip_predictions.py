"""Predictions of a trained run for clips: their features are made as the run's were."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from msa_jax.clips import making
from msa_jax.clips.extraction import Outcome
from msa_jax.runs import prediction_files, prepare, run
from msa_jax.runs.open import OpenRun, open_run
from msa_jax.typing import Corpus


class Predicted(NamedTuple):
  """What was predicted.

  Attributes:
    columns: as of `run.predicted_columns`; a row for each clip that could be read.
    failed: csv file of those that could not; None = all could.
    outcomes: of every clip.
    differences: of the extractors from those of the run, one line each.
    corpus: of the clips that could be read, before any transform.
    opened: the run.
  """

  columns: prediction_files.Columns
  failed: Path | None
  outcomes: Sequence[Outcome]
  differences: Sequence[str]
  corpus: Corpus
  opened: OpenRun


def predict(
  workdir: str | os.PathLike,
  path: str | os.PathLike,
  output: str | os.PathLike,
  allow_other_extractor: bool = False,
) -> Predicted:
  """Predicts a clip, a folder of clips, or the clips that a csv file names.

  Args:
    workdir: folder of a run that was trained on clips.
    path: of the clips.
    output: csv to write; clips that fail are listed in `<its name>.failed.csv`.
    allow_other_extractor: whether extractors of another version than the run's will do.

  Raises:
    UserError: no such run or clips, a run that was trained on something else, another
      extractor, or no clip that can be read.
  """
  opened = open_run(workdir)
  notes = opened.directory.read_json("data.json")["notes"]
  read = making.read(path, notes, allow_other_extractor)
  columns = columns_of(opened, read.corpus)
  output = Path(output).expanduser()
  prediction_files.write_csv(output, prediction_files.rounded(columns))
  failed = output.with_name(f"{output.stem}.failed.csv")
  wrong = making.write_failed(read.outcomes, failed)
  return Predicted(
    *(columns, failed if wrong else None, read.outcomes, read.differences),
    *(read.corpus, opened),
  )


def columns_of(opened: OpenRun, corpus: Corpus) -> prediction_files.Columns:
  """Predictions of a corpus that went through no transform yet."""
  made = prepare.reload(opened.config, opened.pipeline, corpus=corpus, own=False)
  return run.columns_of(opened, made)
