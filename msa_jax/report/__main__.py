"""`python -m msa_jax.report`: reports on run and study directories.

python -m msa_jax.report runs/a runs/b --output=report   # a page and its figures
python -m msa_jax.report compare runs/a runs/b           # tables on the terminal
"""

from collections.abc import Sequence
from typing import NoReturn

from absl import flags, logging
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from msa_jax import command
from msa_jax.errors import UserError

_OUTPUT = flags.DEFINE_string("output", "report", "Folder of the page and figures.")
_SAMPLE = flags.DEFINE_string(
  "sample",
  "",
  "Id of the sample whose attention is shown; the longest if none is given.",
)
_UNEQUAL = flags.DEFINE_bool(
  "unequal", False, "With compare: test also runs of which only one sees the dialogue."
)


def compare(runs, console: Console, unequal: bool = False) -> None:
  """Prints the result tables of runs, published rows and significance.

  Args:
    runs: from `reading.read`; the first is compared with each of the others.
    console: where to.
    unequal: see `results.significance`.
  """
  from msa_jax.report import results

  for task in results.tasks(runs):
    own, others = results.local_rows(runs, task), results.published_rows(runs, task)
    names = results.columns(own)
    # The literature's rows may state only figures of unstated protocol.
    names += [n for n in results.columns(others) if n in results.UNSTATED]
    console.print(_table(f"{task}, mean ± std over seeds", names, (own, others)))
    _print_verdicts(runs, task, console, unequal)


def compare_study(folder: str, console: Console, unequal: bool = False) -> None:
  """Prints the tables of a study, published rows, significance and what is damaged.

  Args:
    folder: of the study.
    console: where to.
    unequal: see `results.significance`.
  """
  from msa_jax.report import results
  from msa_jax.report import studies as studies_lib

  lines = studies_lib.read(folder)
  runs, gaps = studies_lib.runs(folder, lines)
  board = lines[0]["study"] == "leaderboard"
  sweep = studies_lib.is_sweep(lines)
  if sweep and (ranking := studies_lib.ranking(folder, gaps)):
    blocks = [rows for _, rows in ranking.blocks]
    console.print(_table(ranking.title, ranking.names, blocks))
  for table in studies_lib.result_tables(lines, runs):
    if not (board and table.task in results.tasks(runs)):
      blocks = [rows for _, rows in table.blocks]
      console.print(_table(table.title, table.names, blocks))
  if board:  # in full, beside all that is published of the corpora
    compare(runs, console, unequal)
  elif not sweep:
    for task in results.tasks(runs):
      _print_verdicts(runs, task, console, unequal)
  _print_gaps(gaps, console)


def _print_gaps(gaps, console: Console) -> None:
  for gap in gaps:
    console.print(f"not there: {gap}", highlight=False, markup=False)


def _table(title: str, names, blocks) -> Table:
  table = Table(title=escape(title))
  for name in ("", *names, "remark"):
    table.add_column(name, justify="left" if name in ("", "remark") else "right")
  for rows in blocks:
    for row in rows:
      cells = [row.name, *[row.cells.get(n, "") for n in names], row.remark]
      table.add_row(*map(escape, cells))
    table.add_section()
  return table


def _print_verdicts(runs, task: str, console: Console, unequal: bool) -> None:
  from msa_jax.report import results

  for run in runs[1:]:
    if said := results.verdict(runs[0], run, task, unequal):
      console.print(said, highlight=False, markup=False)


def main(arguments: list[str]) -> None:
  """Reads the runs; bad input ends with one line and exit code 2."""
  from msa_jax.report import page, reading
  from msa_jax.report import studies as studies_lib

  logging.set_verbosity(logging.WARNING)  # Orbax tells of every file otherwise
  folders = arguments[1:]
  only_tables = folders[:1] == ["compare"]
  folders = folders[1:] if only_tables else folders
  with command.one_line():
    if not folders:
      raise UserError("give one run directory or more, e.g. runs/a; or: compare A B.")
    studies = [folder for folder in folders if studies_lib.is_study(folder)]
    runs = [reading.read(folder) for folder in folders if folder not in studies]
    if only_tables:
      console = Console()
      if not console.is_terminal:
        console.width = 240  # files and pipes have no edge to fold at
      compare(runs, console, _UNEQUAL.value)
      _print_gaps([f"{run.name}: {g}" for run in runs for g in run.gaps], console)
      for study in studies:
        compare_study(study, console, _UNEQUAL.value)
      return
    print(f"report: {page.write(runs, _OUTPUT.value, studies, _SAMPLE.value)}")


def run_main(arguments: Sequence[str] | None = None) -> NoReturn:
  """`python -m msa_jax.report` and `msa-jax report`."""
  program = command.Program(main, __doc__ or "", (_OUTPUT, _SAMPLE, _UNEQUAL))
  command.run(program, arguments)


if __name__ == "__main__":
  run_main()
