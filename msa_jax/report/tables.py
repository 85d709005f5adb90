"""Result tables for the eye and for the paper: terminal, LaTeX, Markdown, csv."""

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence

from rich.markup import escape
from rich.table import Table

from msa_jax.metrics import METRICS, better
from msa_jax.report.results import ResultTable, Row
from msa_jax.safe_io import cells as safe_cells

# Metrics as papers write them; others keep their name.
DISPLAY = {
  "mae": "MAE", "corr": "Corr", "acc5": "Acc-5", "acc7": "Acc-7",
  "acc2_non0": "Acc-2 (neg/pos)", "f1_non0": "F1 (neg/pos)",
  "acc2_has0": "Acc-2 (neg/non-neg)", "f1_has0": "F1 (neg/non-neg)",
  "acc2_sims": "Acc-2", "f1_sims": "F1", "acc3_sims": "Acc-3", "acc5_sims": "Acc-5",
  "wa": "WA", "ua": "UA", "f1_weighted": "F1 (weighted)", "f1_macro": "F1 (macro)",
  "acc": "Acc", "f1": "F1", "wacc": "WAcc",
}  # fmt: skip
_NUMBER = re.compile(r"\s*([-+]?\d*\.?\d+)")
_LATEX = str.maketrans(
  {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
  }
)
_NAME_WIDTH = 26  # of a row on the terminal; longer names are folded


def fitted(table: ResultTable, width: int) -> Iterator[Table]:
  """A table's columns in as many tables as a terminal needs to cut no cell.

  Remarks have marks, `[1]`, and are listed by `notes`.

  Args:
    table: what to show.
    width: of the terminal, in characters.
  """
  rows, marks = _rows(table), _marks(table)
  names = [_marked(row, marks) for row in rows]
  head = min(max(map(len, names), default=0), _NAME_WIDTH) + 4
  groups: list[list[str]] = [[]]
  room = width - head
  for name in table.names:
    needs = max([len(name), *(len(row.cells.get(name, "")) for row in rows)]) + 3
    if groups[-1] and needs > room:
      groups.append([])
      room = width - head
    groups[-1].append(name)
    room -= needs
  for group in groups:
    yield _of_columns(table, group, marks)


def _of_columns(table: ResultTable, names: Sequence[str], marks) -> Table:
  shown = Table(title=escape(table.title))
  shown.add_column("", max_width=_NAME_WIDTH, overflow="fold")
  for name in names:
    shown.add_column(name, justify="right", no_wrap=True)
  for rows in table.blocks:
    for row in rows:
      if any(name in row.cells for name in names) or not row.cells:
        cells = [row.cells.get(name, "") for name in names]
        shown.add_row(*map(escape, [_marked(row, marks), *cells]))
    shown.add_section()
  return shown


def notes(table: ResultTable) -> list[str]:
  """The remarks of a table's rows, each once: `[1] mosi; their source`."""
  return [f"[{number}] {remark}" for remark, number in _marks(table).items()]


def _rows(table: ResultTable) -> list[Row]:
  return [row for block in table.blocks for row in block]


def _marks(table: ResultTable) -> dict[str, int]:
  remarks = dict.fromkeys(row.remark for row in _rows(table) if row.remark)
  return {remark: number for number, remark in enumerate(remarks, 1)}


def _marked(row: Row, marks) -> str:
  return f"{row.name} [{marks[row.remark]}]" if row.remark else row.name


def latex(table: ResultTable) -> str:
  """A booktabs table: best own figure of each column bold, `±` as a subscript."""
  best, marks = _best(table), _marks(table)
  lines = [
    f"% {table.title}; needs \\usepackage{{booktabs}}",
    f"\\begin{{tabular}}{{l{'r' * len(table.names)}}}",
    "\\toprule",
    " & ".join(["", *(_latex(DISPLAY.get(n, n)) for n in table.names)]) + r" \\",
  ]
  for block in table.blocks:
    if block:
      lines.append("\\midrule")
    for row in block:
      cells = [
        _latex_cell(row.cells.get(n, ""), (id(row), n) in best) for n in table.names
      ]
      mark = f"$^{{{marks[row.remark]}}}$" if row.remark else ""
      lines.append(" & ".join([_latex(row.name) + mark, *cells]) + r" \\")
  lines += ["\\bottomrule", "\\end{tabular}"]
  lines += [f"% {note}" for note in notes(table)]
  return "\n".join(lines) + "\n"


def _latex(text: str) -> str:
  return text.translate(_LATEX)


def _latex_cell(cell: str, is_best: bool) -> str:
  if not cell:
    return "--"
  mean, _, spread = cell.partition(" ± ")
  shown = f"\\textbf{{{_latex(mean)}}}" if is_best else _latex(mean)
  return shown + (f"$_{{\\pm {_latex(spread)}}}$" if spread else "")


def markdown(table: ResultTable) -> str:
  """A table in Markdown: best own figure of each column bold, remarks below."""
  best, marks = _best(table), _marks(table)
  lines = [
    f"**{table.title}**",
    "",
    "| | " + " | ".join(DISPLAY.get(n, n) for n in table.names) + " |",
    "|---" * (len(table.names) + 1) + "|",
  ]
  for row in _rows(table):
    cells = [row.cells.get(name, "") for name in table.names]
    cells = [
      f"**{cell}**" if (id(row), name) in best else cell
      for name, cell in zip(table.names, cells, strict=True)
    ]
    lines.append(
      "| " + " | ".join([_marked(row, marks).replace("|", "\\|"), *cells]) + " |"
    )
  lines += ["", *(f"{note}  " for note in notes(table))]
  return "\n".join(lines) + "\n"


def csv_text(table: ResultTable) -> str:
  """A row per system: `mean` and `std` of every metric in columns of their own."""
  stream = io.StringIO()
  writer = csv.writer(stream, lineterminator="\n")
  columns = [f"{name}{part}" for name in table.names for part in ("", "_std")]
  writer.writerow(["name", *columns, "remark"])
  for row in _rows(table):
    parts = [row.cells.get(name, "").partition(" ± ") for name in table.names]
    figures = [part for mean, _, spread in parts for part in (mean, spread)]
    writer.writerow(
      [safe_cells.escape(row.name), *figures, safe_cells.escape(row.remark)]
    )
  return stream.getvalue()


EXPORTS: dict[str, Callable[[ResultTable], str]] = {
  "latex": latex,
  "markdown": markdown,
  "csv": csv_text,
}


def _best(table: ResultTable) -> set[tuple[int, str]]:
  """(identity of the row, metric) of the best figures of the first block."""
  found = set()
  for name in table.names:
    if name not in METRICS or not table.blocks:
      continue
    values = {id(row): _mean(row.cells.get(name, "")) for row in table.blocks[0]}
    known = [value for value in values.values() if value is not None]
    if known:
      top = (min if better(name) == "min" else max)(known)
      found |= {(row, name) for row, value in values.items() if value == top}
  return found


def _mean(cell: str) -> float | None:
  match = _NUMBER.match(cell)
  return float(match[1]) if match else None
