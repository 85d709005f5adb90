"""Ablations: the same system trained with parts left out, or with other sizes.

What there is to leave out a system declares (`models.system.System.ablations`).
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from msa_jax import models
from msa_jax.config.experiment import Experiment
from msa_jax.errors import UserError
from msa_jax.models.outputs import output_specs
from msa_jax.models.system import Placed, Table
from msa_jax.names import fold_folder, held_out_split
from msa_jax.report import reading, results
from msa_jax.report.terminal import SHOWN, figure, verdict
from msa_jax.runs.references import LEVEL
from msa_jax.studies import runner
from msa_jax.studies.changes import changed, changes_of
from msa_jax.training import selection
from msa_jax.training.run_directory import RunDirectory


def study(
  config: Experiment,
  workdir: str | pathlib.Path,
  table: str,
  rows: Sequence[str] = (),
) -> dict[str, dict[str, Any]]:
  """Trains what a table compares, each run in a folder of its own.

  Runs that are there already are resumed or reused.

  Args:
    config: not resolved.
    workdir: folder of the study; gets `<run>/`, `study.csv` and `study.json`.
    table: one of the system's `ablations`; "" = the only one that it has.
    rows: runs of the table to train, of all that it has; () = all.

  Returns:
    Run -> `figures` (task -> test metrics over seeds; validation if there is no test
    split), `parameters` and `compared`: task -> this run against the one that changes
    nothing, by a paired bootstrap over samples (`runs.references.compare`).

  Raises:
    UserError: unknown table or row.
  """
  chosen = _rows(config, table, rows)
  name = f"ablation_{_table_name(config, table)}"
  workdir = pathlib.Path(workdir)
  trials, whole = [], ""
  for row, given in chosen.items():
    made = changes_of(config, given)
    whole = row if not made else whole
    trials.append(_trial(row, changed(config, made), given))
  summaries = runner.run_trials(name, trials, workdir)
  report: dict[str, dict[str, Any]] = {}
  for row, summary in summaries.items():
    split = held_out_split(summary["splits"])
    report[row] = {
      "figures": summary["splits"][split],
      "parameters": summary["parameters"],
      "compared": {},
    }
    if whole and row != whole:
      report[row]["compared"] = _compared(workdir / row, workdir / whole)
  (workdir / "study.json").write_text(json.dumps(report, indent=2))
  return report


def _table_name(config: Experiment, table: str) -> str:
  known = models.get(config.system).ablations
  return next(iter(known)) if not table and len(known) == 1 else table


def _rows(config: Experiment, table: str, rows: Sequence[str]) -> Table:
  """The chosen runs of a table, in its order."""
  known = models.get(config.system).ablations
  name = _table_name(config, table)
  if name not in known:
    others = [name for name, system in models.SYSTEMS.items() if system.ablations]
    raise UserError(
      f"--table={table}: {config.system} has {', '.join(known) or 'no ablations'}"
      f" (systems with ablations: {', '.join(others)})."
    )
  unknown = [row for row in rows if row not in known[name]]
  if unknown:
    raise UserError(
      f"--rows={unknown[0]}: table {name} of {config.system} has"
      f" {', '.join(known[name])}."
    )
  return {k: v for k, v in known[name].items() if not rows or k in rows}


def _trial(name: str, config: Experiment, row: Any) -> runner.Trial:
  if not isinstance(row, Placed):
    return runner.Trial(name, config)
  return runner.Trial(name, config, row.group or config.system, row.axis, row.x)


def _compared(one: pathlib.Path, other: pathlib.Path) -> dict[str, dict[str, Any]]:
  """Paired tests of a run against another, by task, of what both predict."""
  pair = [reading.read(folder) for folder in (one, other)]
  found = {}
  for task in results.tasks(pair[:1]):
    made = results.significance(pair[0], pair[1], task)
    if made is None:
      continue
    metric, (difference, p) = made
    sign = -1 if metric == "mae" else 1
    sure = "yes" if sign * difference.estimate > 0 else "no"
    found[task] = {
      "metric": metric,
      "difference": difference.estimate,
      "interval": [difference.low, difference.high],
      "p": p,
      "better": sure if p < LEVEL else "cannot say",
    }
  return found


def as_text(report: Mapping[str, Mapping[str, Any]], metrics: Sequence[str]) -> str:
  """The comparison as lines of text.

  Args:
    report: from `study`.
    metrics: the figures to show, e.g. `mae`, of tasks that have them.
  """
  width = max(len(name) for name in report)
  whole = next((name for name, parts in report.items() if not parts["compared"]), "")
  lines = []
  for name, parts in report.items():
    said = [
      f"{task} {metric} {figure(figures[metric])}"
      for task, figures in parts["figures"].items()
      for metric in metrics
      if metric in figures
    ]
    shown = f"{parts['parameters']:>12,} parameters, {', '.join(said)}"
    lines.append(f"{name:{width}} {shown}")
    lines += [
      f"{'':{width}} {task}: {verdict(whole, found)}"
      for task, found in parts["compared"].items()
    ]
  return "\n".join(lines)


def metrics_of(workdir: str | pathlib.Path, report: Mapping[str, Any]) -> list[str]:
  """The metrics by which the study's runs were selected, in the library's order."""
  found: set[str] = set()
  for name in report:
    trained = _experiment(pathlib.Path(workdir) / name)
    spec = trained.corpus_spec
    outputs = output_specs(trained.model, spec)
    by = selection.criterion(trained.train.monitor, spec.tasks, outputs)
    found |= {term[2] for term in by.terms}
  return [name for name in SHOWN if name in found] or sorted(found)


def _experiment(folder: pathlib.Path) -> Experiment:
  """The resolved experiment of a run; of folds, of the first."""
  folds = reading.read(folder).summary.get("folds")
  return RunDirectory(folder / fold_folder(folds[0]) if folds else folder).experiment()
