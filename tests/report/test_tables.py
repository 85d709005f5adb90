"""Result tables on terminals of any width and in a paper's source."""

import csv
import io

import pytest
from rich.console import Console

from msa_jax.report import tables
from msa_jax.report.results import Row

OWN = (
  Row("runs/a_b", {"mae": "0.912 ± 0.013", "corr": "0.701 ± 0.004"}, "hgem, 5 seeds"),
  Row("runs/b", {"mae": "0.933", "corr": "0.712"}, "lf_dnn, 1 seed"),
)
OTHERS = (
  Row("Self-MM", {"mae": "0.713", "acc2_unstated": "0.850"}, "its paper"),
  Row("MISA & kin", {"mae": "0.783"}, "its paper"),
)
TABLE = tables.ResultTable(
  "sentiment, mean ± std", ("mae", "corr", "acc2_unstated"), (OWN, OTHERS)
)


def _shown(width):
  stream = io.StringIO()
  console = Console(file=stream, width=width)
  for part in tables.fitted(TABLE, width):
    console.print(part)
  return stream.getvalue()


@pytest.mark.parametrize("width", [44, 60, 80, 200])
def test_a_narrow_terminal_gets_more_tables_and_loses_no_character(width):
  shown = _shown(width)
  assert "…" not in shown
  assert max(map(len, shown.splitlines())) <= width
  for row in (*OWN, *OTHERS):
    assert all(cell in shown for cell in row.cells.values())
  assert shown.count("0.912 ± 0.013") == 1
  assert (shown.count("sentiment, mean") > 1) == (width < 80)


def test_each_remark_is_told_once():
  assert tables.notes(TABLE) == [
    "[1] hgem, 5 seeds",
    "[2] lf_dnn, 1 seed",
    "[3] its paper",
  ]
  assert "Self-MM [3]" in _shown(80) and "MISA & kin [3]" in _shown(80)


def test_latex_is_a_booktabs_table_with_the_best_own_figures_bold():
  text = tables.latex(TABLE)
  lines = text.splitlines()
  assert lines[1] == r"\begin{tabular}{lrrr}"
  assert r" & MAE & Corr & acc2\_unstated \\" in lines
  assert r"runs/a\_b$^{1}$ & \textbf{0.912}$_{\pm 0.013}$ & 0.701$_{\pm 0.004}$" in text
  assert r"runs/b$^{2}$ & 0.933 & \textbf{0.712} & -- \\" in lines
  assert r"MISA \& kin$^{3}$ & 0.783 & -- & -- \\" in lines  # not ours: not bold
  assert [lines.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [
    *(1, 2, 1)
  ]


def test_markdown_has_the_same_columns_in_every_row():
  text = tables.markdown(TABLE)
  rows = [line for line in text.splitlines() if line.startswith("|")]
  assert {line.count("|") for line in rows} == {5}
  assert "| runs/b [2] | 0.933 | **0.712** |  |" in rows


def test_csv_has_means_and_deviations_in_columns_of_their_own():
  first, *rest = csv.DictReader(io.StringIO(tables.csv_text(TABLE)))
  assert (first["mae"], first["mae_std"], first["corr"]) == ("0.912", "0.013", "0.701")
  assert rest[0]["mae_std"] == "" and rest[1]["acc2_unstated"] == "0.850"
