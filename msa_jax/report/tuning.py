"""A search for options' values (`msa-jax tune`): its tables and figures."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from msa_jax.report import results, style
from msa_jax.report.figures import Drawing
from msa_jax.report.results import ResultTable
from msa_jax.report.terminal import figure

_MARKS = {"whole": ("o", "with all seeds"), "stopped": ("v", "stopped after fewer")}
_SLICES = 12


def is_search(lines: Sequence[Mapping[str, str]]) -> bool:
  """Whether a study is a search."""
  return lines[0]["study"] == "tune"


def about(folder: str | pathlib.Path) -> str:
  """The config file that was chosen, whose head says how; "" where there is none."""
  try:
    return (pathlib.Path(folder).expanduser() / "chosen.py").read_text()
  except (OSError, ValueError):
    return ""


def table(report: Mapping[str, Any]) -> ResultTable:
  """Every trial, best first: state, figure, seeds, values.

  Args:
    report: from `studies.ranked`.
  """
  options = list(dict.fromkeys(p for e in report["ranking"] for p in e["changes"]))
  names = ["state", report["selected_by"], "seeds", *options]
  rows = []
  for place, entry in enumerate(report["ranking"], 1):
    cells = {name: str(value) for name, value in entry["changes"].items()}
    cells["state"] = entry["state"]
    shown = figure({"mean": entry["valid"], "std": entry["std"]})
    cells[report["selected_by"]] = entry["diverged"][:60] or shown
    cells["seeds"] = str(len(entry["seeds"]))
    own = " (the config's own values)" if entry["name"] == report.get("own") else ""
    rows.append(results.Row(f"{place}. {entry['name']}{own}", cells, ""))
  return ResultTable("trials by validation", names, [rows])


def drawings(report: Mapping[str, Any]) -> list[Drawing]:
  """Course of the search, importances, and the figure over each option's values.

  Args:
    report: from `studies.ranked`.
  """
  makers = (_course, _importances, _slices)
  return [drawn for make in makers if (drawn := make(report)) is not None]


def _known(report: Mapping[str, Any], state: str) -> list[Mapping[str, Any]]:
  return [
    entry
    for entry in report["ranking"]
    if entry["state"] == state and entry["valid"] is not None
  ]


def _number(entry: Mapping[str, Any]) -> int:
  return int(entry["name"].rpartition("-")[2])


def _course(report: Mapping[str, Any]) -> Drawing | None:
  whole = sorted(_known(report, "whole"), key=_number)
  if not whole:
    return None
  figure, axes = style.panels(1, width=5.6, height=2.8)
  for index, (state, (mark, said)) in enumerate(_MARKS.items()):
    entries = _known(report, state)
    x, y = [_number(e) for e in entries], [e["valid"] for e in entries]
    axes[0].plot(
      x, y, mark, color=style.colour(index), label=said, markersize=4, alpha=0.8
    )
  # The first of the ranking is the best, whichever direction is better.
  rises = report["ranking"][0]["valid"] >= max(e["valid"] for e in whole)
  reached = np.maximum if rises else np.minimum
  best = reached.accumulate([e["valid"] for e in whole])
  axes[0].step([_number(e) for e in whole], best, where="post", color="#8C8C8C", lw=1)
  axes[0].set_xlabel("trial")
  axes[0].set_ylabel(report["selected_by"])
  axes[0].legend(fontsize=7)
  caption = "Each trial's mean over the seeds it trained; the line is the best so far."
  return Drawing("tune_course", "Course of the search", caption, figure)


def _importances(report: Mapping[str, Any]) -> Drawing | None:
  shares = dict(report["importances"])
  if not shares:
    return None
  names = list(shares)
  figure, axes = style.panels(1, width=5.6, height=0.7 + 0.24 * len(names))
  axes[0].barh(range(len(names)), [shares[n] for n in names], color=style.colour(0))
  axes[0].set_yticks(range(len(names)), names, fontsize=7)
  axes[0].invert_yaxis()
  axes[0].set_xlabel("importance")
  caption = (
    "PED-ANOVA: how much the values of an option in good trials differ from those in"
    " all; shares add up to 1. Of few trials it is a hint."
  )
  return Drawing("tune_importances", "Importance of the options", caption, figure)


def _slices(report: Mapping[str, Any]) -> Drawing | None:
  entries = {state: _known(report, state) for state in _MARKS}
  ordered = [*report["importances"], *report["space"]]
  there = {path for group in entries.values() for e in group for path in e["changes"]}
  options = [path for path in dict.fromkeys(ordered) if path in there][:_SLICES]
  if not options:
    return None
  figure, axes = style.panels(len(options), width=2.9, height=2.0)
  for axis, path in zip(axes, options, strict=True):
    _draw_slice(axis, path, report["space"].get(path, ""), entries)
    axis.set_title(path, fontsize=8)
  axes[0].set_ylabel(report["selected_by"], fontsize=8)
  axes[0].legend(fontsize=6)
  caption = "Each point is a trial, most important option first."
  return Drawing("tune_slices", "Trials by each option's value", caption, figure)


def _draw_slice(axis, path: str, space: str, entries) -> None:
  values = [e["changes"][path] for group in entries.values() for e in group]
  numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
  labels = sorted(set(map(str, values)))
  for index, (state, (mark, said)) in enumerate(_MARKS.items()):
    group = entries[state]
    found = [entry["changes"][path] for entry in group]
    x = found if numeric else [labels.index(str(value)) for value in found]
    y = [entry["valid"] for entry in group]
    axis.plot(x, y, mark, color=style.colour(index), label=said, markersize=4)
  if not numeric:
    axis.set_xticks(range(len(labels)), labels, fontsize=7)
  elif space.endswith(":log"):
    axis.set_xscale("log")
