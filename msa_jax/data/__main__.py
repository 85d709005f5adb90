"""`python -m msa_jax.data check|clips|convert|describe|features|store FILE`.

check     hash, format, shapes, counts beside the published ones, defects and leaks
clips     writes a `.npz` with features made of a folder of video or audio files
convert   writes a safe `.npz` that every later command reads
describe  what the corpus holds: tasks, splits, lengths, labels
features  writes a `.npz` with text features made of the transcripts by a pretrained
          encoder; all else is kept
store     writes a folder of records for corpora larger than memory; FILE may be
          `synthetic`, with --utterances of training
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from msa_jax import command
from msa_jax.clips import command as clips_command
from msa_jax.clips.making import PARTS
from msa_jax.data import synthetic
from msa_jax.data.readers import FORMATS, array_record, npz, read, read_lenient
from msa_jax.data.readers.check import Report, as_text, check, describe, printable
from msa_jax.errors import UserError
from msa_jax.typing import MODALITIES, Corpus, Split


class _Parser(argparse.ArgumentParser):
  def error(self, message: str) -> NoReturn:
    raise UserError(f"{message} (--help shows the use)")


def main(
  arguments: Sequence[str] | None = None, program: str = "python -m msa_jax.data"
) -> int:
  """Runs one command; returns the exit code (0, 2 when the input is at fault, 3 when
  some clips of several are)."""
  try:
    options = _parser(program).parse_args(arguments)
    if options.command == "clips":
      return clips_command.run(options, _writable(options, resumed=PARTS))
    features = dict(_feature(text) for text in options.feature)
    if options.command == "convert":
      _convert(options, features)
    elif options.command == "store":
      _store(options, features)
    elif options.command == "features":
      _text_features(options, features)
    elif options.command == "check":
      _show(check(read_lenient(options.file, options.format, features, bare_text=True)))
    else:
      _show(describe(read(options.file, options.format, features, bare_text=True)))
    sys.stdout.flush()  # what is left fails here and not at the end of the process
  except BrokenPipeError:
    raise  # `command.one_line` knows what to do
  except (UserError, OSError, MemoryError) as found:
    error = command.as_known(found)
    print("error:", printable(" ".join(str(error).split())), file=sys.stderr)
    return getattr(error, "exit_code", 2)
  return 0


def _parser(program: str) -> argparse.ArgumentParser:
  parser = _Parser(
    prog=program,
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
  clips_command.add_arguments(commands.add_parser("clips"))
  for name in ("check", "convert", "describe", "features", "store"):
    command = commands.add_parser(name)
    command.add_argument(
      "file", metavar="FILE", help="MMSA, MulT or GCNet pickle, .npz, csv or tsv"
    )
    if name == "convert":
      command.add_argument("output", metavar="OUT.npz")
      command.add_argument("--force", action="store_true", help="replace OUT.npz")
    if name == "features":
      command.add_argument("--encoder", required=True, metavar="FOLDER_OR_NAME")
      command.add_argument("--output", required=True, metavar="OUT.npz")
      command.add_argument("--max-length", type=int, default=0, metavar="TOKENS")
      command.add_argument("--context", default="0,0", metavar="BEFORE,AFTER")
      command.add_argument("--cache", default="", metavar="FOLDER")
      command.add_argument("--force", action="store_true", help="replace OUT.npz")
    if name == "store":
      command.add_argument("output", metavar="FOLDER")
      command.add_argument("--utterances", type=int, default=0, metavar="N")
    command.add_argument(
      "--format", default="auto", help=f"one of {', '.join(FORMATS)}"
    )
    command.add_argument(
      "--feature",
      action="append",
      default=[],
      metavar="MODALITY=FILE",
      help="MMSA: a pickle that replaces the features of text, audio or vision;"
      " GCNet: the folder of a modality's .npy files",
    )
  return parser


def _feature(text: str) -> tuple[str, str]:
  modality, equals, path = text.partition("=")
  if not equals or modality not in MODALITIES:
    raise UserError(
      f"--feature {text!r} is not MODALITY=FILE with one of {', '.join(MODALITIES)}"
    )
  return modality, path


def _convert(options: argparse.Namespace, features: dict[str, str]) -> None:
  output = _writable(options)
  _save(read(options.file, options.format, features), output)


def _text_features(options: argparse.Namespace, features: dict[str, str]) -> None:
  # Imported here: the other commands need neither JAX nor an encoder.
  from msa_jax.config.options import TextConfig
  from msa_jax.text import options as text_options
  from msa_jax.text.features import with_text

  output = _writable(options)
  chosen = TextConfig(
    input="encoder",
    encoder=options.encoder,
    max_length=options.max_length,
    context=_two_numbers(options.context),
    cache=options.cache,
  )
  text_options.check(chosen)
  corpus = read(options.file, options.format, features, bare_text=True)
  _save(with_text([corpus], chosen)[0], output)


def _two_numbers(text: str) -> tuple[int, ...]:
  parts = text.split(",")
  if len(parts) != 2 or not all(part.strip().isdigit() for part in parts):
    raise UserError(
      f"--context={text!r} must be two numbers, of utterances before and after: 2,1"
    )
  return tuple(map(int, parts))


def _writable(options: argparse.Namespace, resumed: str = "") -> Path:
  output = Path(options.output).expanduser().absolute()
  if output.suffix != ".npz":
    raise UserError(f"{output}: the name of the output ends in .npz")
  goes_on = bool(resumed) and output.with_name(output.name + resumed).is_dir()
  if output.exists() and not (options.force or goes_on):
    raise UserError(f"{output} exists; --force replaces it")
  if not output.parent.is_dir():
    raise UserError(f"no such folder: {output.parent}")
  return output


def _save(corpus: Corpus, output: Path) -> None:
  npz.save(corpus, output)
  print(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB)")


def _store(options: argparse.Namespace, features: dict[str, str]) -> None:
  if options.file != "synthetic":
    if options.utterances:
      raise UserError("--utterances goes with 'synthetic' only")
    array_record.store(read(options.file, options.format, features), options.output)
  elif options.utterances < 1:
    raise UserError(f"--utterances={options.utterances} must be positive")
  else:
    _store_synthetic(options.utterances, options.output)
  print(f"wrote {Path(options.output).expanduser().absolute()}")


def _store_synthetic(utterances: int, folder: str) -> None:
  world = synthetic.SyntheticOptions()
  small = synthetic.synthetic(world)
  parts: dict[str, Sequence[Callable[[], Split]]] = {
    name: [lambda one=one: one] for name, one in small.splits.items()
  }
  parts["train"] = synthetic.training_parts(world, utterances)
  notes = dict(small.notes)
  for key in ("bayes", "bayes_by_condition"):  # of the small training split
    notes[key] = {name: best for name, best in notes[key].items() if name != "train"}
  array_record.store_parts(parts, small.tasks, folder, name=small.name, notes=notes)


def _show(report: Report) -> None:
  if not sys.stdout.isatty():
    print("\n".join(as_text(report)))
    return
  # Only for people; files and pipes get plain text.
  from rich.console import Console
  from rich.table import Table
  from rich.text import Text

  def plain(text: str) -> Text:
    return Text(printable(text))  # Unlike a string it cannot hold markup.

  console = Console(highlight=False)
  facts = Table.grid("", "", padding=(0, 2))
  for name, value in report.facts:
    facts.add_row(*map(plain, (name, value)))
  console.print(facts)
  for table in report.tables:
    console.print()
    # Eleven columns fit into 80 characters without rules between them.
    drawn = Table(
      title=plain(table.title), title_justify="left", box=None, padding=(0, 1, 0, 0)
    )
    for column in table.columns:
      drawn.add_column(plain(column))
    for row in table.rows:
      drawn.add_row(*map(plain, row))
    console.print(drawn)
  for line in report.warnings:
    console.print(plain(f"warning: {line}"), style="yellow")


if __name__ == "__main__":
  with command.one_line():
    sys.exit(main())
