"""Heat maps of experts' weights, which several figures share."""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from msa_jax.report import style

_WIDEST = 24  # columns that stay readable on a page; more gates go below


def shown_gates(gates: Iterable[str]) -> list[str]:
  """Gates of all samples before those of one condition (`gate@condition`), if any."""
  gates = list(gates)
  return [gate for gate in gates if "@" not in gate] or gates


def heat(
  table: Float[np.ndarray, "r e"],
  rows: Sequence[str],
  columns: Sequence[str],
  starts: Sequence[int] = (),
) -> Figure:
  """A table of weights in [0, 1], with their numbers.

  Args:
    table: weights; NaN = nothing to show.
    rows, columns: names.
    starts: columns at which the next gate begins. Gates are not torn apart where the
      table is too wide and goes on below.
  """
  starts = sorted({0, *starts})
  ends = [*starts[1:], len(columns)]
  panels: list[list[tuple[int, int]]] = [[]]
  for start, end in zip(starts, ends, strict=True):
    if panels[-1] and end - panels[-1][0][0] > _WIDEST:
      panels.append([])
    panels[-1].append((start, end))
  widest = max(gates[-1][1] - gates[0][0] for gates in panels)
  size = (max(4.0, 0.42 * widest), 0.3 * len(rows) + 1.6)
  figure, axes = style.panels(len(panels), *size, columns=1)
  for axis, gates in zip(axes, panels, strict=True):
    chosen = slice(gates[0][0], gates[-1][1])
    edges = [start - chosen.start for start, _ in gates[1:]]
    image = _panel(axis, table[:, chosen], rows, columns[chosen], edges)
  figure.colorbar(image, ax=axes, label="mean weight", shrink=0.8 / len(panels))
  return figure


def _panel(axis, table, rows, columns, edges):
  image = axis.imshow(table, cmap=style.SEQUENTIAL, vmin=0, vmax=1, aspect="auto")
  for i, j in np.ndindex(*table.shape):
    if np.isfinite(table[i, j]):
      shade = "black" if table[i, j] > 0.6 else "white"
      text = f"{table[i, j]:.2f}"
      axis.text(j, i, text, ha="center", va="center", color=shade, fontsize=6)
  for edge in edges:
    axis.axvline(edge - 0.5, color="white", lw=2)
  axis.set_xticks(range(len(columns)), columns, rotation=60, ha="right", fontsize=7)
  axis.set_yticks(range(len(rows)), rows, fontsize=7)
  return image
