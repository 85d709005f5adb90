"""`python -m msa_jax.data clips FOLDER --output=OUT.npz`."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from msa_jax.clips import listing, making
from msa_jax.clips.recipe import AUTO, NONE, Recipe
from msa_jax.devices import stopping
from msa_jax.errors import UserError

_LICENCES = {
  "egemaps": "openSMILE's licence is for research and non-commercial use only"
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The command's arguments."""
  add = parser.add_argument
  add("file", metavar="FOLDER", help="folder of clips, of any depth")
  add("--labels", default="", metavar="CSV", help="names of clips, labels, transcripts")
  add("--output", required=True, metavar="OUT.npz")
  add("--force", action="store_true", help="replace OUT.npz")
  what = f"NAME or NAME:ARGUMENT, {NONE} or {AUTO} (what is installed)"
  add("--text", default=AUTO, metavar="NAME", help=f"{what}: encoder[:FOLDER]")
  add("--audio", default=AUTO, metavar="NAME", help=f"{what}: sound, whisper, egemaps")
  add("--vision", default=AUTO, metavar="NAME", help=f"{what}: faces")
  add("--speech", default=AUTO, metavar="NAME", help=f"{what}: whisper[:FOLDER]")
  add("--times", default="spread", metavar="NAME", help="of words: spread, sphinx")
  add("--align", default="none", help="words: write OUT.words.npz too")
  add("--split", default="", metavar="A,B,C", help="shares of train, valid and test")
  add("--workers", type=int, default=0, metavar="N", help="clips at once")
  add("--max-seconds", type=float, default=1800.0, metavar="S")


def run(options: argparse.Namespace, output: Path) -> int:
  """Runs the command.

  Args:
    options: parsed.
    output: absolute path of the corpus.

  Returns:
    The exit code: 0, `making.EXIT_CODE` where some clips failed, or that of a stop.

  Raises:
    UserError: the input is at fault.
  """
  folder = Path(options.file).expanduser().absolute()
  if options.labels:
    labels = Path(options.labels).expanduser().absolute()
    found = listing.of_list(folder, labels, _shares(options.split))
  else:
    found = listing.of_folder(folder)
  parts = {name: getattr(options, name) for name in ("text", "audio", "vision")}
  chosen = Recipe(parts, options.speech, options.times, options.max_seconds)
  if options.workers < 0 or not options.max_seconds > 0:
    raise UserError("--workers and --max-seconds must be positive")
  for name in parts.values():
    if warning := _LICENCES.get(name.partition(":")[0]):
      print(f"note: {warning}", file=sys.stderr)
  try:
    made = making.make(found, chosen, output, options.align, options.workers)
  except KeyboardInterrupt:
    print("stopped; the same command does what is left", file=sys.stderr)
    return stopping.EXIT_CODE
  return report(made)


def _shares(text: str) -> dict[str, float] | None:
  if not text:
    return None
  try:
    shares = [float(part) for part in text.split(",")]
  except ValueError:
    shares = []
  if len(shares) != 3 or min(shares) < 0 or shares[0] <= 0:
    raise UserError(
      f"--split={text!r} must be the shares of train, valid and test, such as 70,15,15"
    )
  return dict(zip(("train", "valid", "test"), shares, strict=True))


def report(made: making.Made) -> int:
  """Says what was made; returns the exit code."""
  for line in made.tools.left_out:
    print(f"left out: {line}", file=sys.stderr)
  for name, tool in made.tools.extractors.items():
    about = tool.about
    print(f"{name}: {about.name} {about.version}, {about.width} wide ({about.licence})")
  for path in made.files:
    print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")
  say_noted(made.noted)
  return say_failed(made.outcomes, made.failed)


def say_noted(noted: Mapping[str, Sequence[str]]) -> None:
  """One line for each thing that clips lack, with the first of them."""
  lacking: dict[str, list[str]] = {}
  for name, lines in noted.items():
    for line in lines:
      lacking.setdefault(line, []).append(name)
  for line, names in lacking.items():
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    print(f"noted: {line} ({', '.join(names[:2])}{more})", file=sys.stderr)


def say_failed(outcomes, failed: Path | None) -> int:
  """One line for each clip that failed; returns the exit code."""
  wrong = [each for each in outcomes if each.reason]
  for each in wrong:
    print(f"failed: {each.item.id}: {each.reason}", file=sys.stderr)
  if not wrong:
    return 0
  print(
    f"{len(wrong)} of {len(outcomes)} clips failed, listed in {failed}; the others are"
    " done",
    file=sys.stderr,
  )
  return making.EXIT_CODE
