"""Figures of what a run's experts are worth (`msa-jax evaluate --experts`)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from msa_jax.report import style
from msa_jax.report.figures import Drawing
from msa_jax.report.reading import Run
from msa_jax.report.terminal import headline


def drawings(run: Run) -> list[Drawing]:
  """Cost of taking experts away and of exchanging decisions; experts by kind."""
  if not run.experts:
    return []
  gates = run.experts["gates"]
  rows = [row for row in run.experts["rows"] if row["kind"] != "whole"]
  tasks = rows[0]["worse"] if rows else {}
  made = [
    _worth(run, gates, rows, task, metric)
    for task, figures in tasks.items()
    if (metric := headline(figures))
  ]
  return [*made, _by_kind(run, gates)]


def _worth(
  run: Run,
  gates: Mapping[str, Any],
  rows: Sequence[Mapping[str, Any]],
  task: str,
  metric: str,
) -> Drawing:
  figure, axes = style.panels(len(gates), width=3.2, height=2.8)
  for axis, (gate, about) in zip(axes, gates.items(), strict=True):
    own = [row for row in rows if row["gate"] == gate]
    names = [
      f"without\n{row['expert']}" if row["expert"] else "decisions\nexchanged"
      for row in own
    ]
    worse = [row["worse"][task][metric] for row in own]
    means = [entry["mean"] for entry in worse]
    spreads = [entry["std"] or 0.0 for entry in worse]
    colours = [style.colour(0 if row["expert"] else 1) for row in own]
    axis.bar(range(len(own)), means, yerr=spreads, color=colours, capsize=2)
    axis.axhline(0.0, color="#8C8C8C", lw=0.8)
    axis.set_xticks(range(len(own)), names, fontsize=7)
    known = about["information_nats"]["mean"]
    axis.set_title(f"{gate}: information {known:.2f} nats")
  axes[0].set_ylabel(f"{metric} worse by")
  caption = (
    f"On {run.experts['split']}, mean and deviation over {len(run.experts['seeds'])}"
    " seeds. Without an expert the gate chooses among the others; exchanged, every"
    " sample gets the decision made of another. Near zero, the expert or the choice is"
    " worth nothing, however sure the gate is."
  )
  return Drawing(f"experts_{task}", f"Worth of the experts: {task}", caption, figure)


def _by_kind(run: Run, gates: Mapping[str, Any]) -> Drawing:
  figure, axes = style.panels(len(gates), width=3.2, height=2.6)
  for axis, (gate, about) in zip(axes, gates.items(), strict=True):
    kinds, experts = about["by_kind"], about["experts"]
    bottom = np.zeros(len(kinds))
    for index, expert in enumerate(experts):
      share = np.asarray([weights[index] for weights in kinds.values()])
      drawn = {"color": style.colour(index), "label": expert}
      axis.bar(range(len(kinds)), share, bottom=bottom, **drawn)
      bottom = bottom + share
    axis.set_xticks(range(len(kinds)), list(kinds), fontsize=7)
    known = about["label_information_nats"]["mean"]
    axis.set_title(f"{gate}: of the label {known:.3f} nats")
    axis.legend(fontsize=6, loc="lower left", **style.ON_COLOUR)
  axes[0].set_ylabel("mean weight")
  caption = (
    f"Weights after selection by kind of sample, on {run.experts['split']}, means over"
    " seeds; the title says how much the expert tells of the kind."
  )
  return Drawing("experts_by_kind", "Experts by kind of sample", caption, figure)
