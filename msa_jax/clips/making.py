"""From clips to a corpus: a file for training, or in memory for prediction."""

import contextlib
import csv
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from msa_jax.clips import assembly, extraction, extractor, listing, recipe
from msa_jax.clips.extraction import Outcome
from msa_jax.clips.listing import Listing
from msa_jax.clips.recipe import Recipe, Toolbox
from msa_jax.data.readers import npz
from msa_jax.errors import UserError, of_system
from msa_jax.safe_io import cells, durable
from msa_jax.typing import Corpus

ALIGNMENTS = ("none", assembly.WORDS)
PARTS = ".parts"  # ends the name of the folder of parts, beside the corpus
EXIT_CODE = 3  # some clips failed, the others are done


class Made(NamedTuple):
  """What a call made.

  Attributes:
    files: corpora that were written.
    failed: csv file of the clips that failed; None = none did.
    outcomes: of every clip.
    tools: that were used.
    noted: id -> what is not as expected of clips that could be read.
  """

  files: Sequence[Path]
  failed: Path | None
  outcomes: Sequence[Outcome]
  tools: Toolbox
  noted: Mapping[str, Sequence[str]]


def workers_of(asked: int) -> int:
  """Clips at once: as asked, or one for each core, four at most."""
  return asked or extractor.cores()


def make(
  found: Listing, chosen: Recipe, output: Path, align: str = "none", workers: int = 0
) -> Made:
  """Writes the corpus of clips; a call that was stopped goes on where it was.

  What is made of each clip is kept in `<output>.parts` until no clip fails any more.

  Args:
    found: the clips.
    chosen: the extractors.
    output: `.npz` to write; what failed is listed in `<its name>.failed.csv`.
    align: `none`, or `words`: `<its name>.words.npz` is written too.
    workers: clips at once; 0 = one for each core, four at most.

  Raises:
    UserError: an extractor is not there, no clip can be read, or a file cannot be
      written.
  """
  if align not in ALIGNMENTS:
    raise UserError(f"--align={align!r} must be one of {', '.join(ALIGNMENTS)}")
  tools = recipe.build(chosen)
  folder = output.with_name(output.name + PARTS)
  failed = output.with_name(f"{output.stem}.failed.csv")
  try:
    outcomes = extraction.extract_all(found.items, tools, folder, workers_of(workers))
    wrong = write_failed(outcomes, failed)
    files, noted = [], {}
    for kind in dict.fromkeys(("none", align)):
      path = output if kind == "none" else output.with_name(f"{output.stem}.{kind}.npz")
      with _padding(folder) as padded:
        corpus = assembly.assemble(found.corpus, outcomes, tools, padded, kind)
        npz.save(corpus, path)
        noted = corpus.notes["clips"]["noted"]
      files.append(path)
    if not wrong:
      shutil.rmtree(folder)
  except OSError as error:
    raise of_system(error, f"{output} cannot be made") from error
  return Made(files, failed if wrong else None, outcomes, tools, noted)


@contextlib.contextmanager
def _padding(folder: Path) -> Iterator[Path]:
  """A folder for padded arrays, on the disk of the parts."""
  with tempfile.TemporaryDirectory(prefix="padded_", dir=folder) as made:
    yield Path(made)


def write_failed(outcomes: Sequence[Outcome], path: Path) -> int:
  """Lists the clips that failed; an older list of none is removed.

  Returns:
    How many did.
  """
  wrong = [each for each in outcomes if each.reason]
  if not wrong:
    path.unlink(missing_ok=True)
    return 0
  with durable.replacing(path) as partial, partial.open("w", newline="") as stream:
    writer = csv.writer(stream)
    writer.writerow(("id", "path", "reason"))
    for each in wrong:
      row = (each.item.id, each.item.path, each.reason)
      writer.writerow([cells.escape(_shown(cell)) for cell in row])
  return len(wrong)


def _shown(text: object) -> str:
  # Names of files need not be text.
  return str(text).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


class Read(NamedTuple):
  """Clips to predict, as a corpus in memory, and what became of each."""

  corpus: Corpus
  outcomes: Sequence[Outcome]
  differences: Sequence[str]


def read(
  path: str | os.PathLike, notes: Mapping[str, Any], allow_other: bool = False
) -> Read:
  """The clips of a path with the features of a run's own extractors.

  Args:
    path: of a clip, a folder of clips, or a csv file that names clips.
    notes: of the run's corpus, which was made of clips.
    allow_other: whether extractors of another version will do.

  Raises:
    UserError: the run was not trained on clips, an extractor is not there or another,
      or no clip can be read.
  """
  stored = notes.get("clips")
  if not isinstance(stored, dict):
    raise UserError(
      f"{path} is a clip or names clips, but the run was not trained on a corpus that"
      " `python -m msa_jax.data clips` made: it takes features."
    )
  found = listing.of_input(path)
  tools = recipe.build(recipe.of_notes(stored))
  differences = recipe.check_same(stored, tools, allow_other)
  align = str(stored.get("align", "none"))
  with tempfile.TemporaryDirectory(prefix="msa_jax_clips_") as folder:
    root = Path(folder)
    outcomes = extraction.extract_all(found.items, tools, root / "parts", workers_of(0))
    corpus = assembly.assemble(found.corpus, outcomes, tools, root, align)
    corpus = _in_memory(corpus)
  return Read(corpus, outcomes, differences)


def _in_memory(corpus: Corpus) -> Corpus:
  """The corpus without the files that its features are in."""
  splits = {
    name: dataclasses.replace(
      split,
      modalities={
        key: dataclasses.replace(each, features=np.array(each.features))
        for key, each in split.modalities.items()
      },
    )
    for name, split in corpus.splits.items()
  }
  return dataclasses.replace(corpus, splits=splits)
