"""A sweep: every combination of some options' values, ranked on validation.

  python -m msa_jax.studies sweep --config=awf --workdir=studies/rates \\
    --sweep=optim.learning_rate=1e-3,3e-4 --sweep=model.dropout=0.1,0.2

Validation alone ranks: study.csv has no figures of the test split, and only those of
the best setting are printed.
"""

import hashlib
import itertools
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from msa_jax.config import validate
from msa_jax.config.experiment import Experiment
from msa_jax.errors import UserError
from msa_jax.metrics import better
from msa_jax.models.outputs import output_specs
from msa_jax.models.system import Changes
from msa_jax.report.terminal import figure
from msa_jax.runs import prepare
from msa_jax.step import compose
from msa_jax.studies import runner
from msa_jax.studies.changes import changed, parse_values
from msa_jax.training import scoring, selection
from msa_jax.training.run_directory import RunDirectory
from msa_jax.training.selection import Criterion
from msa_jax.typing import Spec

# What decides which figures validation gives, and of which samples: settings that
# differ in it cannot be ranked. An entry covers the options below it.
FIXED = (
  *("train.monitor", "train.selection_split", "replicas.seeds", "spec"),
  *("model.name", "model.task", "model.tasks", "missing.eval", "missing.seed"),
  *("data.path", "data.format", "data.task", "data.valence", "data.sample_unit"),
  *("data.fold", "data.iemocap_val", "data.extra_train_paths"),
  *("data.extra_evaluation", "data.synthetic"),
)
_RESHAPES = ("data", "text", "missing")  # sections that change what a network reads
_LONGEST = 100  # letters of a folder's name


def settings(config: Experiment, sweeps: Sequence[str]) -> list[Changes]:
  """Every combination of the swept values.

  Args:
    config: unresolved.
    sweeps: `option=value,value` each, with the option's dotted key.

  Raises:
    UserError: nothing is swept, no such option, a value of another type, or an option
      that settings may not differ in.
  """
  values: dict[str, tuple[Any, ...]] = {}
  for entry in sweeps:
    path, equals, text = entry.partition("=")
    path = path.strip().removeprefix("config.")
    if not equals or path in values:
      raise UserError(
        f"--sweep={entry}: give option=value,value once for each option, e.g."
        " optim.learning_rate=1e-3,3e-4."
      )
    refuse_fixed(path, f"--sweep={entry}")
    try:
      values[path] = parse_values(config, path, text)
    except UserError as error:
      raise UserError(f"--sweep={entry}: {error}") from None
  if not values:
    raise UserError("sweep needs --sweep=option=value,value, once or more.")
  return [
    dict(zip(values, chosen, strict=True))
    for chosen in itertools.product(*values.values())
  ]


def refuse_fixed(path: str, entry: str) -> None:
  """Refuses an option that trials may not differ in.

  Args:
    path: its dotted key.
    entry: the flag that names it.

  Raises:
    UserError: it is one of `FIXED`, or below one.
  """
  if any(path == fixed or path.startswith(f"{fixed}.") for fixed in FIXED):
    raise UserError(
      f"{entry}: {path} decides what validation measures; settings that"
      f" differ in it cannot be ranked (nor in any of {', '.join(FIXED)})."
    )


def trial_name(setting: Changes) -> str:
  """Name of a setting, and of its folder: `optim.learning_rate=0.001,model.depth=2`."""
  name = ",".join(f"{path}={_written(value)}" for path, value in setting.items())
  plain = name.replace("/", "_")
  if len(plain) <= _LONGEST and plain == name:
    return name
  digest = hashlib.sha256(name.encode()).hexdigest()
  return f"{plain[:_LONGEST]}-{digest[:8]}"


def _written(value: Any) -> str:
  return "+".join(map(_written, value)) if isinstance(value, tuple) else str(value)


def trials(config: Experiment, chosen: Sequence[Changes]) -> list[runner.Trial]:
  """A trial for each setting; one numeric option is the axis of a curve."""
  path, value = next(iter(chosen[0].items()))
  numeric = isinstance(value, int | float) and not isinstance(value, bool)
  axis = path if numeric and len(chosen[0]) == 1 else ""
  return [
    runner.Trial(
      trial_name(setting),
      changed(config, setting),
      config.system if axis else "",
      axis,
      float(setting[path]) if axis else 0.0,
    )
    for setting in chosen
  ]


def study(
  config: Experiment, workdir: str | pathlib.Path, sweeps: Sequence[str]
) -> dict[str, Any]:
  """Trains every setting in a folder named after it, and ranks them.

  Settings that are there already are resumed or reused.

  Args:
    config: unresolved.
    workdir: folder of the study; gets `<setting>/`, `study.csv` (of validation, best
      setting first) and `study.json`.
    sweeps: see `settings`.

  Returns:
    `selected_by` (the criterion), `best` (a name) and `ranking`, best first, each with
    `name`, `changes`, `valid` (mean over seeds; None where the loss diverged or the
    figure is undefined), `std`, `seeds` (the figure of each) and `diverged` (why, or
    "").

  Raises:
    UserError: bad input, no validation split, or every setting diverged.
    stopping.Interrupted: everything is saved; the same call goes on.
  """
  chosen = settings(config, sweeps)
  workdir = pathlib.Path(workdir).expanduser()
  made = trials(config, chosen)
  criterion = _check(config, made, chosen[0])
  asked = {"splits": ("valid",), "may_diverge": True}
  summaries = runner.run_trials("sweep", made, workdir, **asked)
  rows = ranked(chosen, summaries, criterion)
  if rows[0]["valid"] is None:
    raise UserError(
      "sweep: no setting has a validation figure:"
      f" {rows[0]['diverged'] or f'{criterion} is undefined'}"
    )
  by_name = {trial.name: trial for trial in made}
  # The csv again, with the best first.
  in_order = [by_name[row["name"]] for row in rows]
  runner.run_trials("sweep", in_order, workdir, **asked)
  report = {
    "study": "sweep",
    "selected_by": f"valid {criterion}",
    "best": rows[0]["name"],
    "ranking": rows,
  }
  RunDirectory(workdir).write_json("study.json", report)
  return {**report, "figures": summaries[rows[0]["name"]]["splits"]}


def _check(
  config: Experiment, made: Sequence[runner.Trial], swept: Changes
) -> Criterion:
  """The figure that ranks; refuses what could not be trained or ranked."""
  check_selection(config, "a sweep")
  for trial in made:
    validate.validate(trial.config)
  found, spec = ranked_by(config, "sweep")
  if not reshapes(swept):
    for trial in made:
      compose.build(trial.config.replace(spec=spec))
  return found


def reshapes(paths: Iterable[str]) -> bool:
  """Whether an option among these may change what a network reads."""
  return any(path.partition(".")[0] in _RESHAPES for path in paths)


def check_selection(config: Experiment, study: str) -> None:
  """Refuses runs that the test split selects.

  Raises:
    UserError: `config.train.selection_split` is not validation.
  """
  if config.train.selection_split != "val":
    raise UserError(
      f"config.train.selection_split={config.train.selection_split!r}: {study} ranks"
      " on validation; it must be 'val'."
    )


def ranked_by(config: Experiment, study: str) -> tuple[Criterion, Spec]:
  """The validation figure that ranks settings, and what their corpus is.

  Args:
    config: unresolved.
    study: for the message.

  Raises:
    UserError: bad input, or no validation split.
  """
  prepared = prepare.prepare(config)
  corpus, resolved = prepared.corpus, prepared.config
  if "valid" not in corpus.splits:
    raise UserError(
      f"{study} ranks settings on validation, and {corpus.name!r} has no split 'valid'"
      f" (it has {', '.join(corpus.splits)}); give data with one."
    )
  labels = scoring.label_arrays(corpus.splits["valid"], corpus.tasks)
  spec = resolved.corpus_spec
  outputs = output_specs(resolved.model, spec)
  found = selection.criterion(config.train.monitor, spec.tasks, outputs, labels)
  return found, spec


def ranked(
  chosen: Sequence[Changes],
  summaries: Mapping[str, Mapping[str, Any]],
  criterion: Criterion,
) -> list[dict[str, Any]]:
  """Settings from best to worst by their mean validation figure over seeds.

  Args:
    chosen: the settings.
    summaries: trial -> contents of its summary.json, or `{"diverged": message}`.
    criterion: what the figure is. One metric is shown with its own sign; several are
      the mean that `Criterion.value` maximises.

  Returns:
    The entries of `ranking`, see `study`.
  """
  sign = shown_sign(criterion)
  rows = []
  for setting in chosen:
    summary = summaries[trial_name(setting)]
    figures = [sign * value for value in values_of(summary, criterion)]
    why = summary.get("diverged", "")
    rows.append(row_of(trial_name(setting), setting, figures, why))

  def order(row: Mapping[str, Any]) -> float:
    return -math.inf if row["valid"] is None else sign * row["valid"]

  return sorted(rows, key=order, reverse=True)


def row_of(
  name: str, changes: Changes, figures: Sequence[float], why: str = ""
) -> dict[str, Any]:
  """An entry of `ranking`, see `study`.

  Args:
    name, changes: of the trial.
    figures: of its seeds.
    why: it diverged.
  """
  known = bool(figures) and all(map(math.isfinite, figures))
  several = known and len(figures) > 1
  return {
    "name": name,
    "changes": dict(changes),
    "valid": float(np.mean(figures)) if known else None,
    "std": float(np.std(figures, ddof=1)) if several else None,
    "seeds": figures,
    "diverged": why,
  }


def shown_sign(criterion: Criterion) -> float:
  """-1 where a single metric is shown of which smaller is better, else 1."""
  terms = criterion.terms
  return -1.0 if len(terms) == 1 and better(terms[0][2]) == "min" else 1.0


def values_of(summary: Mapping[str, Any], criterion: Criterion) -> list[float]:
  """The figure of each seed, greater is better; none of a trial that diverged."""
  if "diverged" in summary:
    return []
  valid = summary["splits"]["valid"]
  values = []
  for place in range(len(summary["seeds"])):
    scores: dict[str, dict[str, float]] = {}
    for _, task, metric in criterion.terms:
      value = valid[task][metric]["values"][place]
      scores.setdefault(task, {})[metric] = math.nan if value is None else value
    values.append(criterion.value(scores))
  return values


def as_text(report: Mapping[str, Any]) -> str:
  """The ranking as lines of text; `report` is from `study`."""
  lines = [f"settings by {report['selected_by']}:"]
  for place, row in enumerate(report["ranking"], 1):
    said = "diverged" if row["diverged"] else "undefined"
    said = said if row["valid"] is None else figure({**row, "mean": row["valid"]})
    lines.append(f"  {place}. {row['name']}: {said}")
  return "\n".join(lines)
