"""`python -m msa_jax.main`: trains, evaluates or predicts from the command line.

  python -m msa_jax.main --config=hgem:mosi --config.data.path=mosi.pkl --workdir=runs/a
  python -m msa_jax.main --mode=evaluate --workdir=runs/a
  python -m msa_jax.main --mode=predict --workdir=runs/a --input=new.pkl

`msa-jax train|evaluate|predict` is the same, with one mode each.
"""

import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import flags, logging
from ml_collections import config_flags

from msa_jax import command
from msa_jax.devices import stopping
from msa_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Config[:variants], e.g. hgem, hgem:mosi or my_config.py."
)
_MODE = flags.DEFINE_enum(
  "mode", "train", ["train", "evaluate", "predict"], "train, evaluate or predict."
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Run directory. Training makes one under runs/ if none is given."
)
_MISSING = flags.DEFINE_string(
  "missing", "", "With evaluate: a grid of missing modalities, conditions,random."
)
_EXPERTS = flags.DEFINE_bool(
  "experts", False, "With evaluate: what each expert and each gate's choice is worth."
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", "", "Several processes: host:port of the first, or auto."
)
_COUNT = flags.DEFINE_integer("process_count", 0, "How many, unless auto.")
_INDEX = flags.DEFINE_integer("process_index", -1, "Of this one, unless auto.")
_INPUT = flags.DEFINE_string(
  "input", "", "File to predict or evaluate; predict takes clips, or a folder of them."
)
_OUTPUT = flags.DEFINE_string("output", "predictions.csv", "Where predict writes.")
_OTHER = flags.DEFINE_boolean(
  "allow-other-extractor", False, "Predict clips with another extractor's version."
)
_REPORT = flags.DEFINE_string(
  "report", "", "With predict of clips: an HTML page to write, of what counted in each."
)
_FORCE = flags.DEFINE_bool("force", False, "Replace predictions that are there.")


def main(arguments: list[str]) -> None:
  """Does what the flags ask for; bad input ends with one line and exit code 2, a
  request to stop with one line and exit code 75."""
  with stopping.listening(ends_process=True) as stop:
    _main(arguments, stop)


def _main(arguments: list[str], stop: stopping.StopRequest) -> None:
  # Imported here, and what a mode needs there: a wrong flag is answered before JAX
  # starts, and a training loads nothing of the rest.
  from msa_jax.devices import compilation, processes

  compilation.configure_process()
  logging.set_verbosity(logging.WARNING)  # Orbax tells of every file otherwise
  try:
    command.refuse_strays(arguments[1:])
    processes.join(_COORDINATOR.value, _COUNT.value, _INDEX.value, stop)
    say = print if processes.is_primary() else lambda *_, **__: None
    if _MISSING.value and _MODE.value != "evaluate":
      raise UserError("--missing needs --mode=evaluate; to train, --config.missing.*.")
    if _EXPERTS.value and (_MODE.value != "evaluate" or _MISSING.value):
      raise UserError("--experts needs --mode=evaluate, without --missing.")
    if _MODE.value == "train":
      _train(say)
    elif _WORKDIR.value is None:
      raise UserError(f"--mode={_MODE.value} needs --workdir, the folder of a run.")
    elif _MODE.value == "evaluate":
      _evaluate(_WORKDIR.value, say)
    else:
      _predict(_WORKDIR.value, say)
  except stopping.Interrupted as interruption:
    say(interruption, file=sys.stderr)
    sys.exit(stopping.EXIT_CODE)
  except (UserError, OSError, MemoryError) as error:
    if not isinstance(error, UserError):
      processes.abort_process(error)  # the others wait for this one
    with command.one_line():
      raise
  except Exception as error:
    processes.abort_process(error)
    raise


Say = Callable[..., None]  # `print`, in the process that speaks


def _train(say: Say) -> None:
  from msa_jax.config.experiment import experiment
  from msa_jax.report import terminal
  from msa_jax.runs import run

  if _CONFIG.value is None:
    raise UserError(
      "training needs --config=NAME[:variants], e.g. --config=hgem or a file."
    )
  if _COORDINATOR.value and not _WORKDIR.value:
    raise UserError("several processes need --workdir, a folder they all share.")
  config = experiment(_CONFIG.value)
  workdir = _WORKDIR.value or run.default_workdir(config)
  say(terminal.training(run.train(config, workdir), workdir))


def _evaluate(workdir: str, say: Say) -> None:
  from msa_jax.report import terminal
  from msa_jax.report.missing import print_grids
  from msa_jax.runs import run
  from msa_jax.studies import experts
  from msa_jax.studies.missing import grid

  if _MISSING.value:
    print_grids(grid(workdir, _MISSING.value, _INPUT.value))
  elif _EXPERTS.value:
    say(experts.as_text(experts.measure(workdir, _INPUT.value)))
  else:
    evaluation = run.score(workdir, _INPUT.value)
    say(terminal.evaluation(evaluation.splits))
    evaluation.keep()


def _predict(workdir: str, say: Say) -> None:
  from msa_jax.clips import listing
  from msa_jax.runs import run

  if not _INPUT.value:
    raise UserError("--mode=predict needs --input, the file to predict.")
  output = pathlib.Path(_OUTPUT.value)
  if output.exists() and not _FORCE.value:
    raise UserError(f"{output} exists; --force replaces it, --output=FILE keeps it.")
  if listing.is_clips(_INPUT.value):
    sys.exit(_predict_clips(workdir))
  say(f"predictions: {run.predict(workdir, _INPUT.value, output)}")


def _predict_clips(workdir: str) -> int:
  """Predicts clips; returns the exit code."""
  from msa_jax.clips import command as clips_command
  from msa_jax.runs import clip_predictions

  report = pathlib.Path(_REPORT.value).expanduser()
  if _REPORT.value and report.exists() and not _FORCE.value:
    raise UserError(f"{report} exists; --force replaces it.")
  made = clip_predictions.predict(workdir, _INPUT.value, _OUTPUT.value, _OTHER.value)
  for line in made.differences:
    print(f"another extractor: {line}", file=sys.stderr)
  print(f"predictions: {_OUTPUT.value}")
  if _REPORT.value:
    from msa_jax.report import clips as clips_report

    print(f"report: {clips_report.write(made, report)}")
  clips_command.say_noted(made.corpus.notes["clips"]["noted"])
  return clips_command.say_failed(made.outcomes, made.failed)


USES = {
  "train": (
    "Trains a system; the same command goes on where it was stopped.",
    (_CONFIG, _WORKDIR, _COORDINATOR, _COUNT, _INDEX),
  ),
  "evaluate": (
    "Scores a trained run again, on its own corpus or on another labelled file.",
    (_WORKDIR, _INPUT, _MISSING, _EXPERTS, _CONFIG),
  ),
  "predict": (
    "Predicts every sample of a file, or every clip, with a trained run, into a csv"
    " file.",
    (_WORKDIR, _INPUT, _OUTPUT, _FORCE, _OTHER, _REPORT, _CONFIG),
  ),
}


def run_mode(mode: str, arguments: Sequence[str]) -> NoReturn:
  """`msa-jax <mode>`, a key of `USES`."""
  usage, taken = USES[mode]
  usage = f"msa-jax {mode} [flags]\n\n{usage}"
  program = command.Program(main, usage, taken, _CONFIG)
  command.run(program, [*arguments, f"--mode={mode}"])


def run_main() -> NoReturn:
  """`python -m msa_jax.main`."""
  taken = (_CONFIG, _MODE, _WORKDIR, _INPUT, _OUTPUT, _FORCE, _OTHER, _REPORT)
  taken = (*taken, _MISSING, _EXPERTS, _COORDINATOR, _COUNT, _INDEX)
  command.run(command.Program(main, __doc__ or "", taken, _CONFIG))


if __name__ == "__main__":
  run_main()
