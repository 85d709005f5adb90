"""A study's reports, and other files of the test split in its place."""

import csv
import io
import json

from rich.console import Console

from msa_jax.report import __main__ as terminal
from msa_jax.report import page, tables


def shown(study, folder) -> tuple[str, list[bytes], str]:
  """All that is shown of a study: page, figures, what `compare` prints and exports."""
  written = page.write([], folder, [study])
  figures = [path.read_bytes() for path in sorted(folder.rglob("*.svg"))]
  console = Console(file=io.StringIO(), width=300)
  terminal.compare_study(str(study), console)
  exported = [terminal.export([], [str(study)], kind) for kind in tables.EXPORTS]
  said = "\n".join([console.file.getvalue(), *exported])
  return written.read_text(), figures, said


def disturb(run) -> None:
  """Gives a run other figures, predictions and weights of experts on the test split."""
  path = run / "summary.json"
  summary = json.loads(path.read_text())
  for part in ("splits", "routing"):
    summary[part]["test"] = _moved(summary[part]["test"])
  path.write_text(json.dumps(summary))
  path = run / "predictions" / "test.csv"
  with path.open(newline="") as file:
    lines = list(csv.DictReader(file))
  for line in lines:
    line["sentiment"] = str(-float(line["sentiment"]))
  with path.open("w", newline="") as file:
    writer = csv.DictWriter(file, lines[0])
    writer.writeheader()
    writer.writerows(lines)
  routing = {"gate": {"mean_combine": {"mean": [0.2, 0.3, 0.5]}}}
  row = {"pattern": "text", "rate": 0.0, "figures": {}, "routing": routing}
  (run / "missing").mkdir()
  grid = {"rows": [row, {**row, "pattern": "audio"}], "samples": 6, "split": "test"}
  (run / "missing" / "conditions.json").write_text(json.dumps(grid))


def _moved(tree):
  """The tree with each number changed."""
  if isinstance(tree, dict):
    return {key: _moved(value) for key, value in tree.items()}
  if isinstance(tree, list):
    return [_moved(value) for value in tree]
  return tree + 0.125 if isinstance(tree, float) else tree
