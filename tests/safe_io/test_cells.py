"""Cells that a spreadsheet would run are escaped, and come back as they were."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msa_jax.report import reading
from msa_jax.runs import prediction_files
from msa_jax.safe_io.cells import escape, unescape

FORMULAS = ("=1+1", "=cmd|' /C calc'!A0", "@SUM(A1)", "+A1", "-lqc32Zpr7M")
FORMULAS += ("-2+3+cmd|' /C calc'!D2", "\t=1", "+(1)")
PLAIN = ("-1.5", "+2", "-3g5yACwYnA$_$1", "a=b", "", "video$_$3", "neutral", "'quoted'")


@pytest.mark.parametrize("cell", FORMULAS)
def test_formulas_are_escaped(cell):
  assert escape(cell) == f"'{cell}"


@pytest.mark.parametrize("cell", PLAIN)
def test_numbers_and_names_are_not(cell):
  assert escape(cell) == cell


@given(st.text(alphabet="'=+-@a1|( \t") | st.text())
def test_what_is_escaped_comes_back(cell):
  assert unescape(escape(cell)) == cell


def test_files_of_predictions_are_escaped_and_reports_read_them_back(tmp_path):
  ids = ["=1+1", "'=1", "-abc", "-0.5", "plain"]
  columns = {"id": ids, "=head": [-0.5, 1.0, 2.0, 3.0, 4.0]}
  path = prediction_files.write_csv(tmp_path / "predictions" / "test.csv", columns)
  lines = path.read_text().splitlines()
  assert lines == ["id,'=head", "'=1+1,-0.5", "''=1,1.0", "'-abc,2.0", "-0.5,3.0"] + [
    "plain,4.0"
  ]
  gaps = []
  found = reading._csv(tmp_path, "test", gaps)
  assert found["id"] == ids
  assert found["=head"] == ["-0.5", "1.0", "2.0", "3.0", "4.0"]
  assert not gaps
