"""`python -m msa_jax.report`: reports on run and study directories.

python -m msa_jax.report runs/a runs/b --output=report   # a page and its figures
python -m msa_jax.report compare runs/a runs/b           # tables on the terminal
"""

import sys

from absl import app, flags
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from msa_jax.typing import UserError

_OUTPUT = flags.DEFINE_string("output", "report", "Folder of the page and figures.")


def compare(runs, console: Console) -> None:
  """Prints the result tables of runs, published rows and significance.

  Args:
    runs: from `reading.read`; the first is compared with each of the others.
    console: where to.
  """
  from msa_jax.report import results

  for task in results.tasks(runs):
    own, others = results.own_rows(runs, task), results.published_rows(runs, task)
    names = results.columns(own)
    # The literature's rows may state only figures of unstated protocol.
    names += [n for n in results.columns(others) if n in results.UNSTATED]
    table = Table(title=f"{task}, mean ± std over seeds")
    for name in ("", *names, "remark"):
      table.add_column(name, justify="left" if name in ("", "remark") else "right")
    for row in own:
      table.add_row(row.name, *[row.cells.get(n, "") for n in names], row.remark)
    table.add_section()
    for row in others:
      table.add_row(row.name, *[row.cells.get(n, "") for n in names], row.remark)
    console.print(table)
    for run in runs[1:]:
      if said := results.verdict(runs[0], run, task):
        console.print(said, highlight=False)


def main(arguments: list[str]) -> None:
  """Reads the runs; bad input ends with one line and exit code 2."""
  from msa_jax.report import page, reading, trials

  folders = arguments[1:]
  only_tables = folders[:1] == ["compare"]
  folders = folders[1:] if only_tables else folders
  try:
    if not folders:
      raise UserError("give one run directory or more, e.g. runs/a; or: compare A B.")
    studies = [folder for folder in folders if trials.is_study(folder)]
    runs = [reading.read(folder) for folder in folders if folder not in studies]
    if only_tables:
      console = Console()
      if not console.is_terminal:
        console.width = 240  # files and pipes have no edge to fold at
      compare(runs, console)
      for study in studies:
        for title, rows in trials.tables(trials.read(study)):
          table = Table(*rows[0], title=escape(title))
          for row in rows[1:]:
            table.add_row(*map(escape, row))
          console.print(table)
      return
    print(f"report: {page.write(runs, _OUTPUT.value, studies)}")
  except UserError as error:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
  app.run(main)
