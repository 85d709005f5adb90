"""Results as plain text tables."""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

from msa_jax.metrics import METRICS, better
from msa_jax.names import held_out_split

# Figures that a table shows, in this order; the rest is in the JSON files.
SHOWN = (
  "mae", "corr", "acc2_has0", "acc2_non0", "f1_non0", "acc5", "acc7",
  "acc2_sims", "f1_sims", "acc3_sims", "acc5_sims",
  "wa", "ua", "f1_weighted", "f1_macro", "acc", "f1", "wacc",
)  # fmt: skip


# Stands over figures that are of no data set.
SYNTHETIC = (
  "SYNTHETIC CORPUS: generated samples, not to be set beside published figures"
)


def headline(figures: Mapping[str, Any]) -> str | None:
  """The metric that is shown of a task where there is room for one."""
  return next((name for name in ("mae", "wa", "f1") if name in figures), None)


def directed(metric: str) -> str:
  """A metric's name and where it is better, if it has a direction."""
  if metric not in METRICS:
    return metric
  return f"{metric} ({'lower' if better(metric) == 'min' else 'higher'} is better)"


def figure(entry: Mapping[str, Any]) -> str:
  """Mean ± standard deviation over seeds; a dash where there is no figure."""
  if entry["mean"] is None or math.isnan(entry["mean"]):
    return "-"
  spread = "" if entry["std"] is None else f" ± {entry['std']:.3f}"
  return f"{entry['mean']:.3f}{spread}"


def evaluation(splits: Mapping[str, Any]) -> str:
  """One line per split and task: the named figures, mean ± standard deviation."""
  lines = []
  for split, tasks in splits.items():
    for task, figures in tasks.items():
      shown = [f"{name} {figure(figures[name])}" for name in SHOWN if name in figures]
      lines.append(f"{split} {task}: " + ", ".join(shown))
  return "\n".join(lines)


def training(summary: Mapping[str, Any], workdir: str | pathlib.Path) -> str:
  """What a finished training run says: figures, distance from optimal, where."""
  if "folds" in summary:
    return "\n".join(
      [
        f"{summary['model']}: {summary['parameters']:,} parameters, folds"
        f" {summary['folds']}, seeds {summary['seeds']}; mean over both ± deviation"
        " over folds",
        evaluation(summary["splits"]),
        f"run directories: {workdir}/fold_*",
      ]
    )
  epochs = ", ".join(
    f"{best} of {last}"
    for best, last in zip(summary["selected_epoch"], summary["epochs"], strict=True)
  )
  lines = [
    f"{summary['model']}: {summary['parameters']:,} parameters,"
    f" seeds {summary['seeds']}, epoch {epochs} by {summary['selected_by']}",
    *(["nothing was trained: the run had finished"] if "repeated" in summary else []),
    *([SYNTHETIC] if summary.get("corpus", {}).get("synthetic") else []),
    evaluation(summary["splits"]),
  ]
  for split, bayes in (summary.get("bayes") or {}).items():
    lines.append(
      f"{split}: Bayes-optimal mae {bayes['mae']:.3f};"
      f" this run is at {bayes['mae_ratio']:.3f} times that"
    )
  lines += _references(summary)
  lines += _entropies(summary["routing"])
  lines.append(f"run directory: {workdir}")
  return "\n".join(lines)


# Figures of a reference, which has no spread: a few of each protocol.
_FEW = ("mae", "corr", "acc2_non0", "acc2_sims", "wa", "ua", "acc", "f1")
# What a comparison is with.
AGAINST = {
  "linear_text": "linear on text",
  "linear_all": "linear on all modalities",
  "linear_text_context": "linear on text and its dialogue's mean",
  "linear_all_context": "linear on all modalities and their dialogue's means",
  "text_head": "its own text-only head",
}


def reference(name: str) -> str:
  """What a reference is, in words."""
  return AGAINST.get(name, name)


def _references(summary: Mapping[str, Any]) -> list[str]:
  """Constant and linear models of the held-out split, and who is better."""
  tables = summary.get("references") or {}
  split = held_out_split(tables)
  lines = []
  for task, named in tables.get(split, {}).items():
    for name, figures in named.items():
      shown = [f"{key} {figures[key]:.3f}" for key in _FEW if key in figures]
      lines.append(f"{split} {task}, {reference(name)}: {', '.join(shown)}")
  for task, others in (summary.get("compared") or {}).get(split, {}).items():
    lines += [
      f"{split} {task}: {verdict(name, found)}" for name, found in others.items()
    ]
  return lines


def verdict(name: str, found: Mapping[str, Any]) -> str:
  """`better than linear on text: yes (mae -0.031, 95 % -0.050 to -0.012, p = 0.002)`.

  Args:
    name: of what a run was compared with.
    found: an entry of `compared` in summary.json.
  """
  low, high = found["interval"]
  return (
    f"better than {reference(name)}: {found['better']} ({found['metric']}"
    f" {found['difference']:+.3f}, 95 % {low:+.3f} to {high:+.3f},"
    f" p = {found['p']:.3f})"
  )


def _entropies(routing: Mapping[str, Any]) -> list[str]:
  gates = routing.get("test") or routing.get("valid") or {}
  figures = [
    f"{gate} {f['router_entropy_dense_nats']['mean']:.3f}"
    f" ({f['router_entropy_dense_normalised']['mean']:.3f})"
    for gate, f in gates.items()
    # Gates that an ablation leaves out route nothing: NaN, in files null.
    if math.isfinite(f["router_entropy_dense_nats"]["mean"])
  ]
  title = "router entropy in nats (share of the maximum): "
  return [title + ", ".join(figures)] if figures else []
