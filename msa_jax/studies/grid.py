"""The runner that all studies share: cells -> runs in folders -> one tidy csv.

A study is data: a list of cells, each a config with a name. Running the same study
again goes on where it stopped: finished cells are read, the one that was interrupted
is resumed by its own checkpoints.
"""

import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections
from absl import logging

from msa_jax import config as config_lib
from msa_jax.train import run, tables
from msa_jax.train.rundir import RunDirectory
from msa_jax.typing import UserError

_DONE = "cell.json"


class Cell(NamedTuple):
  """One run of a study.

  Attributes:
    name: of its folder, unique in the study.
    config: unresolved.
    group: the line it belongs to in a figure; "" = none.
    axis: what `x` is; "" = the cell has no place on an axis.
    x: its place there.
  """

  name: str
  config: ml_collections.ConfigDict
  group: str = ""
  axis: str = ""
  x: float = 0.0


def execute(
  study: str, cells: Sequence[Cell], workdir: str | pathlib.Path
) -> dict[str, dict[str, Any]]:
  """Trains every cell in `workdir/<name>` and writes `workdir/study.csv`.

  The csv has a line for each cell, split, task, metric and seed; it is written after
  every cell, so that what is finished can be looked at.

  Args:
    study: its name, for the csv.
    cells: in the order to train them.
    workdir: folder of the study.

  Returns:
    Cell -> contents of its summary.json.

  Raises:
    UserError: two cells of one name, bad input, or a folder with another run.
    loop.Interrupted: everything is saved; the same call goes on.
  """
  names = [cell.name for cell in cells]
  if len(set(names)) < len(names):
    twice = next(name for name in names if names.count(name) > 1)
    raise UserError(f"this study has two cells {twice!r}: give each system once.")
  workdir = pathlib.Path(workdir).expanduser()
  summaries: dict[str, dict[str, Any]] = {}
  lines: list[dict[str, Any]] = []
  for number, cell in enumerate(cells, 1):
    logging.warning("%s: cell %d of %d, %s", study, number, len(cells), cell.name)
    summaries[cell.name] = _train(cell, workdir / cell.name)
    lines += tidy(study, cell, summaries[cell.name])
    columns = {key: [line[key] for line in lines] for key in lines[0]}
    tables.write_csv(workdir / "study.csv", columns)
  return summaries


def _train(cell: Cell, folder: pathlib.Path) -> dict[str, Any]:
  """Trains a cell, or reads it if it has been."""
  text = config_lib.to_json(cell.config)
  digest = hashlib.sha256(text.encode()).hexdigest()
  directory = RunDirectory(folder)
  try:
    if json.loads((folder / _DONE).read_text()) == {"config_sha256": digest}:
      return directory.read_json("summary.json")
  except (OSError, ValueError):
    pass  # not finished, or damaged: the run itself knows how to go on
  run.train(cell.config, folder)
  directory.write_json(_DONE, {"config_sha256": digest})
  # From the file, so that a cell gives the same lines now and when it is read again.
  return directory.read_json("summary.json")


def tidy(
  study: str, cell: Cell, summary: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
  """Lines of the csv for one cell: task metrics, and entropies of gates.

  Args:
    study: its name.
    cell: the cell.
    summary: contents of its summary.json.
  """
  fixed = {
    "study": study,
    "cell": cell.name,
    "group": cell.group,
    "axis": cell.axis,
    "x": cell.x if cell.axis else "",
    "model": summary["model"],
    "parameters": summary["parameters"],
  }
  for split in summary["splits"]:
    routing = {
      f"gate {gate}": {
        name: figure for name, figure in figures.items() if "entropy" in name
      }
      for gate, figures in summary["routing"].get(split, {}).items()
    }
    for task, figures in {**summary["splits"][split], **routing}.items():
      for metric, figure in figures.items():
        for seed, value in zip(summary["seeds"], figure["values"], strict=True):
          about = {"split": split, "task": task, "metric": metric, "seed": seed}
          yield {**fixed, **about, "value": value}
