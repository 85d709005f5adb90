"""Studies: a table and figures drawn from their tidy csv alone."""

import collections
import csv
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from msa_jax.report import style
from msa_jax.report.figures import Drawing
from msa_jax.report.terminal import SHOWN
from msa_jax.typing import UserError

_NEEDED = ("study", "cell", "group", "axis", "x", "split", "task", "metric", "value")
_PANELS = 3
Line = Mapping[str, str]
# Cell -> metric -> values over seeds.
Figures = Mapping[str, Mapping[str, Sequence[float]]]


def is_study(folder: str | pathlib.Path) -> bool:
  """Whether a folder holds a study rather than a run."""
  return (pathlib.Path(folder).expanduser() / "study.csv").is_file()


def read(folder: str | pathlib.Path) -> list[dict[str, str]]:
  """Lines of study.csv.

  Raises:
    UserError: no lines, columns that are not a study's, or values that are no numbers.
  """
  path = pathlib.Path(folder).expanduser() / "study.csv"
  try:
    with path.open(newline="") as file:
      lines = list(csv.DictReader(file))
    if not lines or not set(_NEEDED) <= set(lines[0]):
      raise UserError(f"it needs lines and the columns {', '.join(_NEEDED)}")
    for line in lines:
      float(line["value"] or "nan"), float(line["x"] or "nan")
  except (OSError, TypeError, ValueError, csv.Error) as error:
    raise UserError(f"{path} is damaged: {error}.") from error
  return lines


def collect(lines: Sequence[Line]) -> dict[str, Figures]:
  """Task -> cell -> metric -> values over seeds, on test (else validation)."""
  splits = {line["split"] for line in lines}
  split = "test" if "test" in splits else min(splits)
  found: dict = collections.defaultdict(lambda: collections.defaultdict(dict))
  for line in lines:
    if line["split"] == split:
      values = found[line["task"]][line["cell"]].setdefault(line["metric"], [])
      values.append(float(line["value"] or "nan"))
  return found


def shown(cells: Figures) -> list[str]:
  """Metrics that tables and figures have, in the library's order."""
  known = {metric for figures in cells.values() for metric in figures}
  gates = sorted(m for m in known if m in ("router_entropy_dense_bits",))
  return [metric for metric in SHOWN if metric in known] + gates


def tables(lines: Sequence[Line]) -> list[tuple[str, list[list[str]]]]:
  """Title and rows (the first one is the head) of each task: mean ± std over seeds."""
  made = []
  for task, cells in collect(lines).items():
    metrics = shown(cells)
    rows = [["cell", *metrics]]
    for cell, figures in cells.items():
      texts = []
      for metric in metrics:
        mean, spread = _entry(figures.get(metric, [float("nan")]))
        many = len(figures.get(metric, ())) > 1
        texts.append(f"{mean:.3f} ± {spread:.3f}" if many else f"{mean:.3f}")
      rows.append([cell, *texts])
    made.append((f"{lines[0]['study']}: {task}", rows))
  return made


def drawings(lines: Sequence[Line]) -> list[Drawing]:
  """Curves of cells that have a place on an axis, bars of others; one per task."""
  places = {
    line["cell"]: (line["group"], line["axis"], float(line["x"]))
    for line in lines
    if line["axis"] and line["x"]
  }
  name, made = lines[0]["study"], []
  for number, (task, cells) in enumerate(collect(lines).items()):
    metrics = shown(cells)[:_PANELS]
    if not metrics:
      continue
    figure, axes = style.panels(len(metrics), height=3.0)
    for axis, metric in zip(axes, metrics, strict=True):
      points = {c: _entry(f[metric]) for c, f in cells.items() if metric in f}
      _curves(axis, points, places) if set(points) <= set(places) else _bars(
        axis, points
      )
      axis.set_title(metric)
    caption = "Mean and standard deviation over seeds, from study.csv."
    title = f"Study {name}: {task}"
    made.append(Drawing(f"study_{number}", title, caption, figure))
  return made


def _entry(values: Sequence[float]) -> tuple[float, float]:
  array = np.asarray(values, float)
  return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else 0.0


def _curves(axis, points, places) -> None:
  groups: dict[str, list] = collections.defaultdict(list)
  for cell, entry in points.items():
    group, label, x = places[cell]
    groups[group].append((x, *entry))
    axis.set_xlabel(label)
  for index, (group, rows) in enumerate(groups.items()):
    x, mean, spread = np.asarray(sorted(rows)).T
    drawn = {"color": style.colour(index), "marker": style.MARKERS[index % 8]}
    axis.errorbar(x, mean, spread, capsize=2, label=group, **drawn)
  axis.legend()


def _bars(axis, points) -> None:
  rows = np.arange(len(points))
  mean, spread = np.asarray(list(points.values())).T
  axis.barh(rows, mean, xerr=spread, height=0.7, color=style.colour(0))
  axis.set_yticks(rows, list(points), fontsize=7)
  axis.invert_yaxis()
