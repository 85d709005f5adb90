"""How every figure looks: colour-blind safe, readable in print and in grey."""

import pathlib
from collections.abc import Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

# Okabe and Ito (2008): tell apart with any common colour vision, and in this order
# also by brightness for the first few.
COLOURS = (
  "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000",
  "#8C8C8C",
)  # fmt: skip
MARKERS = "osD^vPX*"
SEQUENTIAL = "cividis"
# Of legends on coloured areas.
ON_COLOUR = {"frameon": True, "framealpha": 0.9, "edgecolor": "none"}

_RULES: dict[Any, Any] = {  # matplotlib annotates the names one by one
  "font.size": 9,
  "axes.titlesize": 10,
  "axes.titlelocation": "left",
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.grid": False,
  "legend.frameon": False,
  "text.parse_math": False,  # names of samples and files have dollars: a$_$1
  "svg.hashsalt": "msa_jax",
  "figure.constrained_layout.use": True,
}


def colour(index: int) -> str:
  """Colour of the i-th thing; they repeat after eight."""
  return COLOURS[index % len(COLOURS)]


def line(index: int) -> str:
  """Style of the i-th line; it changes where the colours begin again."""
  return ("-", "--", ":")[index // len(COLOURS) % 3]


def look():
  """The context in which figures are made and saved."""
  return rc_context(_RULES)


def panels(count: int, width: float = 3.4, height: float = 2.6, columns: int = 3):
  """A figure with `count` axes in rows of `columns`.

  Returns:
    The figure and its axes, a list.
  """
  columns = min(count, columns)
  rows = -(-count // columns)
  figure = Figure(figsize=(width * columns + 0.6, height * rows + 0.3))
  grid = figure.subplots(rows, columns, squeeze=False)
  axes = list(grid.flat)
  for unused in axes[count:]:
    unused.set_axis_off()
  return figure, axes[:count]


def save(figure: Figure, folder: pathlib.Path, name: str) -> Sequence[pathlib.Path]:
  """Writes `<name>.png` and `<name>.svg`; the same figure gives the same bytes."""
  paths = [folder / f"{name}.{kind}" for kind in ("png", "svg")]
  for path in paths:
    when = {"Date": None} if path.suffix == ".svg" else None
    figure.savefig(path, dpi=144, metadata=when)
  return paths
