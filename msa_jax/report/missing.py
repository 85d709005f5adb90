"""The missing-modality grid as a table on the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from msa_jax.names import FOLDS
from msa_jax.report.terminal import SHOWN, figure

_COLUMNS = 6  # metrics that fit on a line; the files have all of them


def print_grids(report: Mapping[str, Any], console: Console | None = None) -> None:
  """Prints one table per grid and task.

  Args:
    report: from `studies.missing.grid`.
    console: where to; None = the terminal.
  """
  console = Console() if console is None else console
  if not console.is_terminal:
    console.width = 160  # files and pipes have no edge to fold at
  for entry, rows in report["grids"].items():
    for task in rows[0]["figures"]:
      console.print(_table(report, entry, rows, task))
      if rows[0].get("references", {}).get(task):
        console.print(_references(entry, rows, task))
  spread = "mean ± std over training seeds"
  if folds := report.get(FOLDS):
    spread = f"mean over {folds} folds and seeds, ± std over folds; seeds"
  lines = (
    f"{report['samples']} samples of {report['split']}, masks of seed"
    f" {report['seed']}; {spread} {report['seeds']}"
  )
  console.print(lines, highlight=False)


def _table(report, entry, rows, task) -> Table:
  shown = [name for name in SHOWN if name in rows[0]["figures"][task]][:_COLUMNS]
  bounds = [name for name in shown if name in rows[0]["bayes"].get(task, {})]
  prior = any(row["without_content"] for row in rows)
  table = Table(title=f"{report['model']}, {task}, missing: {entry}")
  table.add_column("pattern", no_wrap=True)
  table.add_column("missing", justify="right")
  for name in (["prior"] if prior else []) + shown:
    table.add_column(name, justify="right", no_wrap=True)
  for name in bounds:
    table.add_column(f"Bayes {name}", justify="right")
  for row in rows:
    realised = row["realised"].get("steps", row["realised"]["entries"])
    cells = [row["pattern"], f"{realised:.3f}"]
    cells += [str(row["without_content"])] if prior else []
    cells += [figure(row["figures"][task][name]) for name in shown]
    cells += [f"{row['bayes'][task][name]:.3f}" for name in bounds]
    table.add_row(*cells)
  return table


def _references(entry, rows, task) -> Table:
  """The first metric of the constant and linear models under the same masks."""
  named = rows[0]["references"][task]
  metric = next(name for name in SHOWN if name in rows[0]["figures"][task])
  table = Table(title=f"constant and linear models, {task}, {metric}, missing: {entry}")
  table.add_column("pattern", no_wrap=True)
  for name in named:
    table.add_column(name, justify="right", no_wrap=True)
  for row in rows:
    figures = row["references"][task]
    table.add_row(row["pattern"], *[f"{figures[name][metric]:.3f}" for name in named])
  return table
