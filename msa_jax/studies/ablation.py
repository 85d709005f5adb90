"""Ablations: the same system trained with parts left out, or with other sizes.

What there is to leave out a system declares (`models.system.System.ablations`).
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from msa_jax import models
from msa_jax.config.experiment import Experiment
from msa_jax.errors import UserError
from msa_jax.models.outputs import output_specs
from msa_jax.names import held_out_split
from msa_jax.studies import runner
from msa_jax.studies.changes import changed
from msa_jax.training import selection
from msa_jax.training.run_directory import RunDirectory


def study(
  config: Experiment, workdir: str | pathlib.Path, table: str
) -> dict[str, dict[str, Any]]:
  """Trains what a table compares, each run in a folder of its own.

  Runs that are there already are resumed or reused.

  Args:
    config: not resolved.
    workdir: folder of the study; gets `<run>/`, `study.csv` and `study.json`.
    table: one of the system's `ablations`; "" = the only one that it has.

  Returns:
    Run -> `figures` (test metrics over seeds; validation if there is no test split)
    and `parameters`.

  Raises:
    UserError: unknown table.
  """
  known = models.get(config.system).ablations
  table = next(iter(known)) if not table and len(known) == 1 else table
  if table not in known:
    others = [name for name, system in models.SYSTEMS.items() if system.ablations]
    raise UserError(
      f"--table={table}: {config.system} has {', '.join(known) or 'no ablations'}"
      f" (systems with ablations: {', '.join(others)})."
    )
  workdir = pathlib.Path(workdir)
  report: dict[str, dict[str, Any]] = {}
  trials = [runner.Trial(name, changed(config, c)) for name, c in known[table].items()]
  for name, summary in runner.run_trials(f"ablation_{table}", trials, workdir).items():
    split = held_out_split(summary["splits"])
    (figures,) = summary["splits"][split].values()
    report[name] = {"figures": figures, "parameters": summary["parameters"]}
  (workdir / "study.json").write_text(json.dumps(report, indent=2))
  return report


def as_text(report: Mapping[str, Mapping[str, Any]], metric: str) -> str:
  """The comparison as lines of text.

  Args:
    report: from `study`.
    metric: the figure to show, e.g. `mae`.
  """
  width = max(len(name) for name in report)
  return "\n".join(
    f"{name:{width}} {parts['parameters']:>12,} parameters,"
    f" {metric} {figure(parts['figures'][metric])}"
    for name, parts in report.items()
  )


def figure(entry: Mapping[str, Any]) -> str:
  """Mean and, over several seeds, standard deviation of one figure."""
  spread = "" if entry["std"] is None else f" ± {entry['std']:.3f}"
  return f"{entry['mean']:.3f}{spread}"


def metric_of(workdir: str | pathlib.Path, report: Mapping[str, Any]) -> str:
  """The metric by which the study's runs were selected."""
  first = next(iter(report))
  trained = RunDirectory(pathlib.Path(workdir) / first).experiment()
  spec = trained.corpus_spec
  outputs = output_specs(trained.model, spec)
  found = selection.criterion(trained.train.monitor, spec.tasks, outputs)
  return found.terms[0][2]
