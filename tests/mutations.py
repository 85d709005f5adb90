"""Changes of the library that a test must notice, tried one at a time.

  python tests/mutations.py                     # all; some 20 seconds each
  python tests/mutations.py --only=hgem         # those whose names contain a word
  python tests/mutations.py --list

Not part of the suite. Each mutation is applied to a copy of the tree, the tests named
with it run, and one line says whether they fail (`caught`) or pass (`SURVIVES`). Ends
with 1 if one survives, no longer applies or breaks the tests' own machinery.

Some faults cannot be put back, for the options are gone that they were about: H-GEM's
`gate0.apply=input`, MMoLRE's `residual`, `query`, `shared_only` and `concat` as flags.
What these did is mutated in place.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

from mutants import MUTATIONS
from mutants.mutation import Mutation

ROOT = pathlib.Path(__file__).resolve().parents[1]
_COPIED = ("msa_jax", "configs", "tests", "setup.cfg", "pyproject.toml")


def copy_tree(folder: pathlib.Path) -> None:
  """Copies what tests need."""
  ignored = shutil.ignore_patterns("__pycache__", ".pytest_cache")
  for name in _COPIED:
    source = ROOT / name
    if source.is_dir():
      shutil.copytree(source, folder / name, ignore=ignored)
    else:
      shutil.copy(source, folder / name)


def run_tests(folder: pathlib.Path, tests: tuple[str, ...]) -> tuple[int, str]:
  """Exit code and output of pytest in the copy."""
  command = [sys.executable, "-m", "pytest", "-x", "-n", "0", "--no-header"]
  command += ["-m", "slow or not slow", *tests]
  paths = [str(folder), os.environ.get("PYTHONPATH", "")]
  environment = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    "PYTHONDONTWRITEBYTECODE": "1",
  }
  done = subprocess.run(
    command, cwd=folder, env=environment, capture_output=True, text=True, check=False
  )
  return done.returncode, done.stdout + done.stderr


def verdict(mutation: Mutation, folder: pathlib.Path) -> str:
  """Tries a mutation: `caught`, `SURVIVES`, or what went wrong."""
  path = folder / "msa_jax" / mutation.file
  original = path.read_text()
  if mutation.old not in original:
    return f"NO LONGER APPLIES: {mutation.file} has changed"
  path.write_text(original.replace(mutation.old, mutation.new))
  try:
    code, output = run_tests(folder, mutation.tests)
  finally:
    path.write_text(original)
  if code == 1:
    return "caught"
  if code == 0:
    return "SURVIVES"
  lines = output.strip().splitlines() or [""]
  return f"BROKEN: pytest ended with {code}: {lines[-1]}"


def main() -> int:
  """Runs the chosen mutations; 0 = all caught."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
  parser.add_argument("--only", default="", help="part of the names to run")
  parser.add_argument("--list", action="store_true", help="print names and stop")
  parser.add_argument("--plain", action="store_true", help="their tests, unmutated")
  options = parser.parse_args()
  chosen = [each for each in MUTATIONS if options.only in each.name]
  if options.list:
    print(*(each.name for each in chosen), sep="\n")
    return 0
  worst = 0
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    copy_tree(folder)
    if options.plain:
      files = dict.fromkeys(each.tests[0] for each in chosen)
      code, output = run_tests(folder, tuple(files))
      print(output)
      return code
    for mutation in chosen:
      start = time.monotonic()
      found = verdict(mutation, folder)
      worst = max(worst, found != "caught")
      print(f"{found:9} {time.monotonic() - start:4.0f} s  {mutation.name}", flush=True)
  return int(worst)


if __name__ == "__main__":
  sys.exit(main())
