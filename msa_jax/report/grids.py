"""Figures of missing-modality grids (H-GEM, figures 4 and 5; MoMKE's table)."""

import numpy as np

from msa_jax.report import style
from msa_jax.report.figures import Drawing
from msa_jax.report.heat import heat, shown_gates
from msa_jax.report.reading import Run, expert_names
from msa_jax.report.terminal import directed, headline


def drawings(run: Run) -> list[Drawing]:
  """One figure per grid: bars over conditions, a line over rates."""
  made = []
  for entry, grid in run.grids.items():
    rows = [row for row in grid.get("rows", ()) if isinstance(row, dict)]
    activation = _activation(run, entry, grid, rows)
    made += [activation] if activation else []
    tasks = rows[0].get("figures", {}) if rows else {}
    for task, figures in tasks.items():
      metric = headline(figures)
      if metric is not None:
        made.append(_draw(run, entry, grid, rows, task, metric))
  return made


def _activation(run, entry, grid, rows) -> Drawing | None:
  """Mean weight of every expert under every pattern (H-GEM, figure 4)."""
  rows = [row for row in rows if row.get("routing")]
  gates = shown_gates(rows[0]["routing"]) if rows else []
  if not gates:
    return None
  names, starts, columns = [], [], []
  for gate in gates:
    weights = [row["routing"][gate]["mean_combine"]["mean"] for row in rows]
    weights = np.asarray(weights, float)  # null, where no sample is routed, becomes NaN
    starts.append(len(names))
    names += [f"{gate}: {e}" for e in expert_names(run, gate, weights.shape[1])]
    columns.append(weights)
  patterns = [row["pattern"] for row in rows]
  figure = heat(np.concatenate(columns, axis=1), patterns, names, starts)
  figure.axes[0].set_title(f"Weight of every expert, missing: {entry}")
  caption = (
    f"Weights after selection, mean over {grid.get('samples', '?')} samples of"
    f" {grid.get('split', '?')} and over seeds; rows are what is visible or missing."
  )
  title = f"Expert activation, missing: {entry}"
  return Drawing(f"activation_{entry}", title, caption, figure)


def _draw(run, entry, grid, rows, task, metric) -> Drawing:
  figure, (axis,) = style.panels(1, width=5.6, height=3.2)
  means = [row["figures"][task][metric]["mean"] for row in rows]
  spreads = [row["figures"][task][metric]["std"] or 0.0 for row in rows]
  optimal = [row.get("bayes", {}).get(task, {}).get(metric) for row in rows]
  rates = entry not in ("conditions",) and len(rows) > 1
  where = [row["rate"] for row in rows] if rates else list(range(len(rows)))
  if rates:
    axis.errorbar(
      where, means, spreads, marker="o", color=style.colour(0), label=run.model
    )
    axis.set_xlabel("rate")
  else:
    axis.bar(where, means, yerr=spreads, color=style.colour(0), label=run.model)
    axis.set_xticks(where, [row["pattern"] for row in rows], rotation=30, ha="right")
  if None not in optimal:
    place = np.asarray(where, float)
    axis.plot(
      place,
      optimal,
      "D",
      color=style.colour(1),
      label="Bayes-optimal",
      linestyle="none",
    )
  axis.set_ylabel(metric)
  if None not in optimal:
    axis.legend(fontsize=7)
  axis.set_title(f"{task} {directed(metric)}, missing: {entry}")
  caption = (
    f"{grid.get('samples', '?')} samples of {grid.get('split', '?')}; mean and standard"
    f" deviation over training seeds; masks of seed {grid.get('seed', '?')}."
  )
  title = f"Missing modalities: {entry}"
  return Drawing(f"missing_{entry}_{task}", title, caption, figure)
