"""`python -m msa_jax.report`: reports on run and study directories.

python -m msa_jax.report runs/a runs/b --output=report   # a page and its figures
python -m msa_jax.report compare runs/a runs/b           # tables on the terminal
python -m msa_jax.report compare runs/a runs/b --export=latex   # for a paper
"""

import pathlib
from collections.abc import Sequence
from typing import NoReturn

from absl import flags, logging
from rich.console import Console

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
_PUBLISHED = flags.DEFINE_bool(
  "published", True, "With compare: rows of the literature; --nopublished for none."
)
_EXPORT = flags.DEFINE_string(
  "export", "", "With compare: print latex, markdown or csv in place of tables."
)
_FORCE = flags.DEFINE_bool("force", False, "Replace the page that is there.")


def compare(
  runs, console: Console, unequal: bool = False, published: bool = True
) -> None:
  """Prints the result tables of runs, published rows and significance.

  Args:
    runs: from `reading.read`; the first is compared with each of the others.
    console: where to.
    unequal: see `results.significance`.
    published: whether rows of the literature stand beside them.
  """
  from msa_jax.report import results

  for task in results.tasks(runs):
    _print(_of_runs(runs, task, published), console)
    _print_verdicts(runs, task, console, unequal)


def _of_runs(runs, task: str, published: bool):
  from msa_jax.report import results

  own = results.local_rows(runs, task)
  others = results.published_rows(runs, task) if published else []
  names = results.columns(own)
  # The literature's rows may state only figures of unstated protocol.
  names += [n for n in results.columns(others) if n in results.UNSTATED]
  return results.ResultTable(f"{task}, mean ± std over seeds", names, (own, others))


def compare_study(
  folder: str, console: Console, unequal: bool = False, published: bool = True
) -> None:
  """Prints the tables of a study, published rows, significance and what is damaged.

  Args:
    folder: of the study.
    console: where to.
    unequal, published: see `compare`.
  """
  from msa_jax.report import results
  from msa_jax.report import studies as studies_lib

  lines = studies_lib.read(folder)
  runs, gaps = studies_lib.runs(folder, lines)
  board = lines[0]["study"] == "leaderboard"
  if studies_lib.is_sweep(lines):
    runs = []  # the test split judges no setting
    if ranking := studies_lib.ranking(folder, gaps):
      _print(ranking, console)
  for table in studies_lib.result_tables(lines, runs):
    if not (board and table.task in results.tasks(runs)):
      _print(table, console)
  if board:  # in full, beside all that is published of the corpora
    compare(runs, console, unequal, published)
  else:
    for task in results.tasks(runs):
      _print_verdicts(runs, task, console, unequal)
  _print_gaps(gaps, console)


def export(runs, studies: Sequence[str], kind: str, published: bool = True) -> str:
  """The result tables of runs and studies as text.

  Args:
    runs: from `reading.read`.
    studies: folders of studies, whose runs have tables of their own.
    kind: key of `tables.EXPORTS`.
    published: see `compare`.

  Raises:
    UserError: an unknown kind.
  """
  from msa_jax.report import results, tables
  from msa_jax.report import studies as studies_lib

  if kind not in tables.EXPORTS:
    raise UserError(f"--export={kind!r} must be one of {', '.join(tables.EXPORTS)}.")
  groups, made = [runs] if runs else [], []
  for folder in studies:
    lines = studies_lib.read(folder)
    if not studies_lib.is_sweep(lines):
      groups.append(studies_lib.runs(folder, lines)[0])
    elif ranking := studies_lib.ranking(folder, []):  # settings have no test figures
      made.append(ranking)
  made += [
    _of_runs(group, task, published)
    for group in groups
    for task in results.tasks(group)
  ]
  text = tables.EXPORTS[kind]
  return "\n".join(text(table) for table in made)


def _print_gaps(gaps, console: Console) -> None:
  for gap in gaps:
    console.print(f"not there: {gap}", highlight=False, markup=False)


def _print(table, console: Console) -> None:
  from msa_jax.report import tables

  for part in tables.fitted(table, console.width):
    console.print(part)
  for note in tables.notes(table):
    console.print(note, highlight=False, markup=False)


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
    if _EXPORT.value:
      if not only_tables:
        raise UserError(
          "--export goes with compare: report compare A B --export=latex."
        )
      print(export(runs, studies, _EXPORT.value, _PUBLISHED.value), end="")
      return
    if only_tables:
      console = Console()
      if not console.is_terminal:
        console.width = 240  # files and pipes have no edge to fold at
      compare(runs, console, _UNEQUAL.value, _PUBLISHED.value)
      _print_gaps([f"{run.name}: {g}" for run in runs for g in run.gaps], console)
      for study in studies:
        compare_study(study, console, _UNEQUAL.value, _PUBLISHED.value)
      return
    there = pathlib.Path(_OUTPUT.value).expanduser() / "index.html"
    if there.exists() and not _FORCE.value:
      raise UserError(f"{there} exists; --force replaces it, --output=FOLDER keeps it.")
    print(f"report: {page.write(runs, _OUTPUT.value, studies, _SAMPLE.value)}")


def run_main(arguments: Sequence[str] | None = None) -> NoReturn:
  """`python -m msa_jax.report` and `msa-jax report`."""
  taken = (_OUTPUT, _SAMPLE, _FORCE, _UNEQUAL, _PUBLISHED, _EXPORT)
  program = command.Program(main, __doc__ or "", taken)
  command.run(program, arguments)


if __name__ == "__main__":
  run_main()
