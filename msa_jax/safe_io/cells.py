"""Cells of csv files that a spreadsheet would take for formulas.

An id or a class of somebody's file ends up in predictions.csv, and `=cmd|...` is run by
the program that opens it. Such cells are written with an apostrophe in front, which
spreadsheets do not show and our own readers take away.
"""

import re

# A sign in front of a digit is a number, or an id of YouTube's; before a letter, or
# with a call further on, it is a formula.
_FORMULA = re.compile(r"'*(?:[=@\t\r]|[+-](?:[^\W\d_]|.*[|(!]))", re.DOTALL)


def escape(cell: str) -> str:
  """The cell as it may be written; `unescape` gives it back."""
  return f"'{cell}" if _FORMULA.match(cell) else cell


def unescape(cell: str) -> str:
  """The cell that `escape` was given."""
  return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
