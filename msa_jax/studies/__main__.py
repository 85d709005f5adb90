"""`python -m msa_jax.studies STUDY`: trains and compares what a paper's table does.

  python -m msa_jax.studies balance --config=awf --table=optimizers \\
    --workdir=studies/awf
  python -m msa_jax.studies ablation --config=derl --table=modules \\
    --workdir=studies/derl
  python -m msa_jax.studies missing --config=hgem --also=momke \\
    --grids=conditions,random,tokens --workdir=studies/missing
  python -m msa_jax.studies low_resource --config=hgem --workdir=studies/low
  python -m msa_jax.studies leaderboard --config=awf --also=tfn \\
    --data=mosi.pkl --data=sims.pkl --workdir=studies/board
  python -m msa_jax.studies sweep --config=awf --workdir=studies/rates \\
    --sweep=optim.learning_rate=1e-3,3e-4 --sweep=model.dropout=0.1,0.2
  python -m msa_jax.studies tune --config=hgem:mosi --data=mosi.pkl \\
    --workdir=studies/tune --space=optim.learning_rate=1e-4..1e-2:log --trials=30

The seeds of `--config` are those of every system. The same command goes on where it
was stopped. `python -m msa_jax.report FOLDER` draws a study from its study.csv.
"""

import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from absl import flags, logging
from ml_collections import config_flags

from msa_jax import command
from msa_jax.config import files
from msa_jax.config.experiment import Experiment, experiment
from msa_jax.devices import stopping
from msa_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Config[:variants], e.g. hgem."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the study.")
_TABLE = flags.DEFINE_string(
  "table",
  None,
  "What to compare. balance: balance (the default), optimizers, attention."
  " ablation: the system's own, e.g. DERL's encoders, modules, layers.",
)
_ROWS = flags.DEFINE_list("rows", [], "ablation: rows of the table, all by default.")
_GRIDS = flags.DEFINE_string(
  "grids", None, "missing: patterns to evaluate, conditions,random if none is given."
)
_ALSO = flags.DEFINE_multi_string(
  "also", [], "Another system's config[:variants]; may be given again."
)
_DATA = flags.DEFINE_multi_string(
  "data", [], "Data file for every system; may be given again. None: the config's own."
)
_SWEEP = flags.DEFINE_multi_string(
  "sweep", [], "sweep: option=value,value; may be given again, for every combination."
)
_SPACE = flags.DEFINE_multi_string(
  "space",
  [],
  "tune: option=low..high, with :log or :step behind it, or option=value,value; beside"
  " the system's own space, or in its place with --space=none; may be given again.",
)
_TRIALS = flags.DEFINE_integer("trials", 20, "tune: how many settings to try in all.")
_HALVING = flags.DEFINE_integer(
  "halving",
  3,
  "tune: one in so many trials goes on to as many times the seeds; 1 = all do.",
)
STUDIES = {
  "ablation": "rows of a system's own tables (DERL 4, 5, figure 5; H-GEM 3; MoMKE)",
  "missing": "every condition and rate of missing modalities (H-GEM, figures 4, 5)",
  "low_resource": "10, 20, 50, 100 % of the training split (H-GEM 4)",
  "router_compare": "ways to combine experts, and other systems' gates (H-GEM 2)",
  "balance": "with and without B-fusion, probes, optimizers, attention (AWF)",
  "leaderboard": "systems x data files x seeds",
  "sweep": "every combination of options' values, ranked on validation",
  "tune": "a search for options' values, chosen on validation (needs Optuna)",
}
_TABLED = ("ablation", "balance")  # by --table
_SINGLE = (*_TABLED, "sweep")  # studies of one system on its own data
# Flag -> the studies that take it.
_TAKERS = {
  "table": _TABLED,
  "grids": ("missing",),
  "sweep": ("sweep",),
  "rows": ("ablation",),
}


def listing() -> str:
  """One line per study."""
  return "\n".join(f"  {name:15} {what}" for name, what in STUDIES.items())


def execute(
  name: str,
  configs: Sequence[Experiment],
  files: Sequence[str],
  workdir: str | pathlib.Path,
  table: str | None = None,
  grids: str | None = None,
  sweeps: Sequence[str] = (),
  rows: Sequence[str] = (),
  search: Any = None,
) -> str:
  """Runs a study.

  Args:
    name: one of `STUDIES`.
    configs: unresolved; the seeds of the first are those of all.
    files: data files, none = each config's own.
    workdir: folder of the study.
    table: of an ablation or balance study.
    grids: of a missing study.
    sweeps: of a sweep, see `sweep.settings`.
    rows: of an ablation's table; () = all.
    search: `search.Search` of a search.

  Returns:
    What to print.

  Raises:
    UserError: bad input, or an option that the study does not take.
  """
  from msa_jax.report import terminal
  from msa_jax.studies import ablation, balance, catalogue, robustness, runner, sweep
  from msa_jax.studies.changes import changed

  given = {"table": table, "grids": grids, "sweep": sweeps, "rows": rows}
  _check(name, configs, files, given)
  workdir = pathlib.Path(workdir).expanduser()
  if name == "ablation":
    report = ablation.study(configs[0], workdir, table or "", rows)
    return ablation.as_text(report, ablation.metrics_of(workdir, report))
  if name == "balance":
    report = balance.study(configs[0], workdir, table or "balance")
    return balance.as_text(report, ablation.metrics_of(workdir, report)[0])
  if name == "sweep":
    report = sweep.study(configs[0], workdir, sweeps)
    best = f"the best one, {workdir / report['best']}:"
    figures = terminal.evaluation(report["figures"])
    return "\n".join([sweep.as_text(report), best, figures])
  if name == "tune":
    return _tune(configs[0], files, workdir, search)
  seeds = {"replicas.seeds": configs[0].replicas.seeds}
  configs = [changed(config, seeds) for config in configs]
  if name == "missing":
    robustness.study(configs, files, workdir, grids or robustness.GRIDS)
  else:
    runner.run_trials(name, catalogue.STUDIES[name](configs, files), workdir)
  return f"study: {workdir / 'study.csv'}"


def _check(name: str, configs, files, given: dict[str, Any]) -> None:
  """Refuses options that a study does not take."""
  if name not in STUDIES:
    raise UserError(f"choose a study: {', '.join(STUDIES)}; or list.")
  if (len(configs) > 1 or files) and name in _SINGLE:
    raise UserError(f"{name} takes no --also and no --data.")
  if name == "tune" and (len(configs) > 1 or len(files) > 1):
    raise UserError("tune takes no --also, and --data once.")
  for flag, value in given.items():
    takers = _TAKERS[flag]
    if (value or value == "") and name not in takers:
      verb = "do" if len(takers) > 1 else "does"
      raise UserError(f"{name} takes no --{flag}; {' and '.join(takers)} {verb}.")


def _tune(config: Experiment, files: Sequence[str], workdir, search: Any) -> str:
  from msa_jax.report import page
  from msa_jax.studies import tune
  from msa_jax.studies.changes import changed

  for file in files:
    config = changed(config, {"data.path": file})
  report = tune.study(config, workdir, search)
  written = page.write([], workdir / "report", [workdir])
  return f"{tune.as_text(report, workdir)}\nreport: {written}"


def main(arguments: list[str]) -> None:
  """Runs one study; bad input ends with one line and exit code 2, a request to stop
  with one line and exit code 75."""
  with stopping.listening(ends_process=True):
    _main(arguments)


def _main(arguments: list[str]) -> None:
  from msa_jax.devices import compilation

  if arguments[1:] == ["list"]:
    print(listing())
    return
  compilation.configure_process()
  logging.set_verbosity(logging.WARNING)
  try:
    if len(arguments) != 2 or arguments[1] not in STUDIES:
      raise UserError(f"choose a study: {', '.join(STUDIES)}; or list.")
    if _CONFIG.value is None or _WORKDIR.value is None:
      raise UserError("a study needs --config=NAME[:variants] and --workdir.")
    own = bool(_DATA.value or _CONFIG.value.data.path)
    also = [files.for_own_data(name) if own else name for name in _ALSO.value]
    found = [_CONFIG.value, *map(files.get_config, also)]
    configs = [experiment(config) for config in found]
    options: dict[str, Any] = {"table": _TABLE.value, "grids": _GRIDS.value}
    options |= {"sweeps": _SWEEP.value, "rows": _ROWS.value}
    options["search"] = _search(arguments[1])
    print(execute(arguments[1], configs, _DATA.value, _WORKDIR.value, **options))
  except stopping.Interrupted as interruption:
    print(interruption, file=sys.stderr)
    sys.exit(stopping.EXIT_CODE)
  except (UserError, OSError, MemoryError):
    with command.one_line():
      raise


def _search(study: str) -> Any:
  """What the flags ask of a search."""
  if study != "tune":
    for flag in (_SPACE, _TRIALS, _HALVING):
      if flag.present:
        raise UserError(f"{study} takes no --{flag.name}; tune does.")
    return None
  from msa_jax.studies.search import Search

  flag = config_flags.get_config_filename(flags.FLAGS["config"])
  name = files.name_of(flag)
  return Search(name, _SPACE.value, _TRIALS.value, _HALVING.value)


def run_main(arguments: Sequence[str] | None = None) -> NoReturn:
  """`python -m msa_jax.studies` and `msa-jax studies`."""
  usage = f"{__doc__}\nStudies:\n{listing()}"
  taken = (_CONFIG, _WORKDIR, _ALSO, _DATA, _TABLE, _ROWS, _GRIDS, _SWEEP)
  taken = (*taken, _SPACE, _TRIALS, _HALVING)
  command.run(command.Program(main, usage, taken, _CONFIG), arguments)


if __name__ == "__main__":
  run_main()
