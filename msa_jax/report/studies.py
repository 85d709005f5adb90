"""Studies: tables and figures drawn from their tidy csv alone."""

import collections
import csv
import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from msa_jax.errors import UserError
from msa_jax.report import reading, results, style
from msa_jax.report.figures import Drawing
from msa_jax.report.reading import Run
from msa_jax.report.results import ResultTable
from msa_jax.report.terminal import SHOWN, directed, figure
from msa_jax.safe_io import cells

_NEEDED = ("study", "trial", "group", "axis", "x", "split", "task", "metric", "value")
_PANELS = 6
_RANKED = ("name", "valid", "std", "seeds", "diverged")
_GATE = "gate "
_ENTROPIES = ("router_entropy_dense_bits", "router_entropy_dense_normalised")
Line = Mapping[str, str]


@dataclasses.dataclass
class Part:
  """Lines of a study that one table and one figure show.

  Attributes:
    task: what was scored.
    axis: what tells places apart; "" = only trials differ.
    rows: label -> metric -> values over seeds.
    places: label -> group, place on the axis.
  """

  task: str
  axis: str
  rows: dict[str, dict[str, list[float]]] = dataclasses.field(default_factory=dict)
  places: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)

  @property
  def title(self) -> str:
    """The task, and by what its rows differ."""
    return f"{self.task} by {self.axis}" if self.axis else self.task

  def metrics(self) -> list[str]:
    """Names in the library's order; of what has none of its metrics, all."""
    known = dict.fromkeys(name for row in self.rows.values() for name in row)
    return [name for name in SHOWN if name in known] or list(known)

  def numeric(self) -> bool:
    """Whether all places are numbers, so that curves can be drawn."""
    return bool(self.axis) and all(_is_number(x) for _, x in self.places.values())


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
      lines = [
        {k: cells.unescape(v) if isinstance(v, str) else v for k, v in line.items()}
        for line in csv.DictReader(file)
      ]
    if not lines or not set(_NEEDED) <= set(lines[0]):
      raise UserError(f"it needs lines and the columns {', '.join(_NEEDED)}")
    for line in lines:
      if any(line[name] is None for name in _NEEDED):
        raise UserError("it has a torn line")
      float(line["value"] or "nan")
  except (OSError, TypeError, ValueError, csv.Error) as error:
    raise UserError(f"{path} is damaged: {error}.") from error
  return lines


def trials(lines: Sequence[Line]) -> list[str]:
  """Names of the study's trials, in its order."""
  return list(dict.fromkeys(line["trial"] for line in lines))


def collect(lines: Sequence[Line]) -> list[Part]:
  """What there is to show, of the test split (else of validation).

  Gates are gathered into one part, whose places are the gates; so are the heads of a
  task that answer for one condition each.
  """
  split = _split(lines)
  chosen = [_gate(line) for line in lines if line["split"] == split]
  chosen = [line for line in chosen if line is not None]
  seen = collections.defaultdict(set)
  for line in chosen:
    seen[line["task"], line["axis"], line["trial"]].add(line["x"])
  parts: dict[tuple[str, str], Part] = {}
  for line in chosen:
    key = (line["task"], line["axis"])
    part = parts.setdefault(key, Part(*key))
    several = len(seen[*key, line["trial"]]) > 1
    label = f"{line['trial']}: {line['x']}" if several else line["trial"]
    values = part.rows.setdefault(label, {}).setdefault(line["metric"], [])
    values.append(float(line["value"] or "nan"))
    part.places[label] = (line["group"] or line["trial"], line["x"])
  for part in parts.values():
    empty = [label for label, row in part.rows.items() if not _any_finite(row.values())]
    for label in empty:  # gates that a trial leaves out
      del part.rows[label], part.places[label]
  return [part for part in parts.values() if part.rows]


def _split(lines: Sequence[Line]) -> str:
  """The split that is shown."""
  splits = {line["split"] for line in lines}
  return "test" if "test" in splits else min(splits)


def _gate(line: Line) -> Line | None:
  if not line["task"].startswith(_GATE):
    task, at, condition = line["task"].partition("@")
    if not at:
      return line
    return {**line, "task": task, "axis": "head of condition", "x": condition}
  if line["metric"] not in _ENTROPIES or "@" in line["task"]:
    return None  # gates of conditions are those of all samples on a part of them
  name = line["task"].removeprefix(_GATE)
  return {**line, "task": "router entropy", "axis": "gate", "x": name, "group": ""}


def tables(lines: Sequence[Line]) -> list[tuple[str, list[list[str]]]]:
  """Title and rows (the first one is the head) of each part: mean ± std over seeds."""
  made = []
  for part in collect(lines):
    metrics = part.metrics()
    rows = [["trial", *metrics]]
    for label, figures in part.rows.items():
      rows.append([label, *[_text(figures.get(metric, ())) for metric in metrics]])
    made.append((f"{lines[0]['study']}: {part.title}, {_split(lines)}", rows))
  return made


def result_tables(lines: Sequence[Line], runs: Sequence[Run]) -> list[ResultTable]:
  """Tables of a study; the first one has the published rows beside its own.

  Args:
    lines: of study.csv.
    runs: its trials, as far as they can be read; they tell the corpus.
  """
  published = results.study_rows(lines[0]["study"], runs)
  made = []
  for part, (title, (head, *rows)) in zip(collect(lines), tables(lines), strict=True):
    names = head[1:]
    own = [
      results.Row(row[0], dict(zip(names, row[1:], strict=True)), "") for row in rows
    ]
    place = names.index("f1_non0") + 1 if "f1_non0" in names else len(names)
    names[place:place] = [n for n in results.columns(published) if n not in names]
    made.append(ResultTable(title, names, (own, published), part.task))
    published = []
  return made


def is_sweep(lines: Sequence[Line]) -> bool:
  """Whether a study tries settings: the test split judges none but the best one's."""
  return lines[0]["study"] in ("sweep", "tune")


def ranked(
  folder: str | pathlib.Path, gaps: list[str], *needed: str
) -> dict[str, Any] | None:
  """study.json of a study that tries settings.

  Args:
    folder: of the study.
    gaps: gets a line where the file is absent or damaged.
    needed: keys of the ranking's entries, beside those of every such study.
  """
  path = pathlib.Path(folder).expanduser() / "study.json"
  try:
    report = json.loads(path.read_text())
    for entry in report["ranking"]:
      _ = dict(entry["changes"]), [entry[key] for key in (*_RANKED, *needed)]
    _ = report["selected_by"]
    return report
  except FileNotFoundError:
    gaps.append("study.json is absent: the study has not finished")
  except (OSError, ValueError, KeyError, TypeError) as error:
    gaps.append(f"study.json is damaged ({type(error).__name__})")
  return None


def ranking(folder: str | pathlib.Path, gaps: list[str]) -> ResultTable | None:
  """Settings of a sweep from best to worst by validation; see `ranked`."""
  report = ranked(folder, gaps)
  if report is None:
    return None
  criterion, rows = report["selected_by"], []
  for place, entry in enumerate(report["ranking"], 1):
    shown = figure({"mean": entry["valid"], "std": entry["std"]})
    cells = {criterion: "diverged" if entry["diverged"] else shown}
    rows.append(results.Row(f"{place}. {entry['name']}", cells, ""))
  return ResultTable("settings by validation", [criterion], [rows])


def runs(
  folder: str | pathlib.Path, lines: Sequence[Line]
) -> tuple[list[Run], list[str]]:
  """Run directories of a study's trials, and a line for each part that is not there."""
  found, gaps = [], []
  for trial in trials(lines):
    try:
      run = reading.read(pathlib.Path(folder).expanduser() / trial)
    except UserError as error:
      gaps.append(f"{trial}: {error}")
      continue
    found.append(run)
    gaps += [f"{trial}: {gap}" for gap in run.gaps]
  return found, gaps


def _text(values: Sequence[float]) -> str:
  mean, spread = _entry(values)
  if math.isnan(mean):
    return ""
  return f"{mean:.3f} ± {spread:.3f}" if len(values) > 1 else f"{mean:.3f}"


def drawings(lines: Sequence[Line]) -> list[Drawing]:
  """One figure per part: curves over numbers, else points with deviations."""
  name, made = lines[0]["study"], []
  for number, part in enumerate(collect(lines)):
    metrics = [m for m in part.metrics() if _finite(part, m)][:_PANELS]
    if not metrics or len(part.rows) == 1 and not part.numeric():
      continue  # one point compares nothing
    groups = list(dict.fromkeys(group for group, _ in part.places.values()))
    if part.numeric():
      figure, axes = style.panels(len(metrics), height=2.8)
      for axis, metric in zip(axes, metrics, strict=True):
        _curves(axis, part, metric, groups)
    else:
      count = len(part.rows)
      figure, axes = style.panels(len(metrics), width=3.9, height=0.9 + 0.21 * count)
      for place, (axis, metric) in enumerate(zip(axes, metrics, strict=True)):
        _points(axis, part, metric, groups, named=place % 3 == 0)
    for axis, metric in zip(axes, metrics, strict=True):
      axis.set_title(directed(metric))
    if part.numeric() and len(groups) > 1:
      axes[0].legend(fontsize=7)
    seeds = max(len(values) for row in part.rows.values() for values in row.values())
    caption = f"One seed on {_split(lines)}, from study.csv."
    if seeds > 1:
      caption = (
        f"Mean and standard deviation over {seeds} seeds on {_split(lines)}, from"
        " study.csv."
      )
      if not part.numeric():
        caption += " Small grey points are single seeds."
    title = f"Study {name}: {part.title}"
    made.append(Drawing(f"study_{number}", title, caption, figure))
  sizes = _parameters(lines)
  return [*made, sizes] if sizes else made


def _parameters(lines: Sequence[Line]) -> Drawing | None:
  """Parameters over the axis of trials that have places on one, if they differ."""
  points: dict[str, dict[float, float]] = {}
  axes = {line["axis"] for line in lines if line["axis"]}
  for line in lines:
    size, x = line.get("parameters", ""), line["x"]
    if line["axis"] and _is_number(x) and _is_number(size):
      points.setdefault(line["group"], {})[float(x)] = float(size)
  sizes = {size for curve in points.values() for size in curve.values()}
  if len(axes) != 1 or len(sizes) < 2:
    return None
  figure, (axis,) = style.panels(1, width=4.4, height=2.8)
  for index, (group, curve) in enumerate(points.items()):
    x, y = zip(*sorted(curve.items()), strict=True)
    drawn = {"color": style.colour(index), "marker": style.MARKERS[index % 8]}
    axis.plot(x, y, label=group, markersize=4, lw=1.4, **drawn)
  axis.set_yscale("log")
  axis.set_xlabel(axes.pop())
  axis.set_title("parameters")
  if len(points) > 1:
    axis.legend(fontsize=7)
  title = f"Study {lines[0]['study']}: parameters"
  caption = "Trainable numbers of each trial, from study.csv."
  return Drawing("study_parameters", title, caption, figure)


def _finite(part: Part, metric: str) -> bool:
  return _any_finite(row.get(metric, ()) for row in part.rows.values())


def _any_finite(columns) -> bool:
  return any(math.isfinite(value) for values in columns for value in values)


def _is_number(text: str) -> bool:
  try:
    return math.isfinite(float(text))
  except ValueError:
    return False


def _entry(values: Sequence[float]) -> tuple[float, float]:
  """Mean and standard deviation of the finite ones."""
  array = np.asarray([value for value in values if math.isfinite(value)], float)
  if not len(array):
    return math.nan, math.nan
  return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else 0.0


def _curves(axis, part: Part, metric: str, groups: Sequence[str]) -> None:
  for index, group in enumerate(groups):
    rows = sorted(
      (float(part.places[label][1]), *_entry(figures.get(metric, ())))
      for label, figures in part.rows.items()
      if part.places[label][0] == group
    )
    x, mean, spread = np.asarray(rows).T
    drawn = {"color": style.colour(index), "marker": style.MARKERS[index % 8]}
    axis.errorbar(
      x, mean, spread, capsize=2, label=group, markersize=4, lw=1.4, **drawn
    )
  axis.set_xlabel(part.axis)
  tried = sorted({float(x) for _, x in part.places.values()})
  if len(tried) <= 6:  # no half layers between one and two
    axis.set_xticks(tried)


def _points(axis, part: Part, metric: str, groups: Sequence[str], named: bool) -> None:
  """A row for each label; rows of one place together, coloured by group."""
  by_place = len({x for _, x in part.places.values()}) > 1
  labels = list(part.rows)
  if by_place:  # the same condition of all systems side by side
    order = list(dict.fromkeys(x for _, x in part.places.values()))
    labels.sort(key=lambda label: order.index(part.places[label][1]))
  names, last = [], None
  for row, label in enumerate(labels):
    group, place = part.places[label]
    values = part.rows[label].get(metric, ())
    index = groups.index(group) if by_place else 0
    mean, spread = _entry(values)
    if len(values) > 1:
      axis.plot(values, [row + 0.25] * len(values), ".", color="#8C8C8C", markersize=3)
    marker = style.MARKERS[index % 8]
    drawn = {"color": style.colour(index), "fmt": marker, "markersize": 5}
    axis.errorbar(mean, row, xerr=spread, capsize=2, **drawn)
    if by_place and place != last and row:
      axis.axhline(row - 0.5, color="#DDDDDD", lw=0.6)
    names.append(f"{place}  {group}" if by_place else label)
    last = place
  axis.set_yticks(range(len(labels)), names if named else [""] * len(names), fontsize=7)
  axis.set_ylim(len(labels) - 0.5, -0.5)
  axis.grid(axis="x", color="#EEEEEE")
  axis.locator_params(axis="x", nbins=4)  # long numbers run into each other
