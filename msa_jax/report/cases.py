"""Where runs differ: consecutive samples, what is true and what each run says."""

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from msa_jax.report import results, style
from msa_jax.report.figures import Drawing
from msa_jax.report.reading import Run

LENGTH = 16  # samples of a strip
MOST = 6  # runs of one strip


def drawing(runs: Sequence[Run], task: str) -> Drawing | None:
  """The stretch of samples in which the runs differ most (MoMKE's case study).

  Args:
    runs: of the same samples; others are left out. The first gives their order, which
      is that of the dialogue where a sample is one.
    task: of classes, or a regression, whose signs are shown.

  Returns:
    None where there are no two runs with the task, or where they say the same.
  """
  kept, columns = [], []
  for run in runs[:MOST]:
    found = results.decisions(run, task, kept[0] if kept else run)
    if found is not None:
      kept.append(run)
      columns.append(found)
  if len(kept) < 2:
    return None
  ids, truth, names = columns[0].ids, columns[0].truth, columns[0].names
  said = np.stack([each.said for each in columns])  # [run n]
  start = _start(said, truth)
  if start is None:
    return None
  part = slice(start, start + LENGTH)
  rows = np.concatenate([truth[None, part], said[:, part]])
  figure = _strip(rows, ["truth", *[run.name for run in kept]], names, ids[part])
  caption = (
    f"{rows.shape[1]} samples of {kept[0].split} in a row, where the runs differ most;"
    " a cross marks what is wrong. Mean over seeds."
  )
  return Drawing(f"cases_{task}", f"Cases of {task}", caption, figure)


def _start(said: np.ndarray, truth: np.ndarray) -> int | None:
  """First of the samples, in a row, of which most are told apart; None = none is."""
  differ = (np.any(said != said[:1], axis=0) & (truth >= 0)).astype(int)
  if not differ.any():
    return None
  length = min(LENGTH, len(differ))
  return int(np.convolve(differ, np.ones(length, int), "valid").argmax())


def _strip(rows, labels, names, ids) -> Figure:
  figure, (axis,) = style.panels(1, width=0.42 * rows.shape[1] + 2.0, height=2.2)
  shown = ListedColormap([style.colour(i) for i in range(len(names))])
  kept = np.where(rows < 0, np.nan, rows)
  axis.imshow(kept, cmap=shown, vmin=-0.5, vmax=len(names) - 0.5, aspect="auto")
  for i, j in np.ndindex(*rows.shape):
    if rows[i, j] >= 0:
      wrong = i > 0 and 0 <= rows[0, j] != rows[i, j]
      text = f"{names[rows[i, j]][:3]}{' ×' if wrong else ''}"
      axis.text(j, i, text, ha="center", va="center", color="white", fontsize=6)
  axis.set_yticks(range(len(labels)), labels, fontsize=7)
  axis.set_xticks(range(len(ids)), ids, rotation=60, ha="right", fontsize=6)
  return figure
