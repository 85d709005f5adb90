"""The report: figures as PNG and SVG, and one HTML page that needs nothing else."""

import base64
import html
import pathlib
from collections.abc import Sequence

from msa_jax.report import errors, figures, grids, results, style, trials
from msa_jax.report.figures import Drawing
from msa_jax.report.reading import Run

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto;
  padding: 0 1rem; color: #1a1a1a; }
h1, h2, h3 { line-height: 1.2; }
h2 { border-bottom: 1px solid #ccc; padding-bottom: .2rem; margin-top: 2.5rem; }
figure { margin: 1.5rem 0; break-inside: avoid; }
figure img { max-width: 100%; height: auto; }
figcaption, .remark { color: #555; font-size: .85rem; }
table { border-collapse: collapse; font-size: .85rem; display: block;
  overflow-x: auto; }
th, td { padding: .2rem .6rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child, td.remark { text-align: left; }
td.remark { padding-top: .8rem; }
tr.own { font-weight: 600; }
thead { border-bottom: 2px solid #888; }
.gaps { background: #fff4e0; padding: .5rem 1rem; border-left: 4px solid #E69F00; }
"""


def drawings(run: Run) -> list[Drawing]:
  """Every figure that the run has something to show in."""
  made = [figures.training(run)]
  for task in run.tasks():
    made += [errors.predictions(run, task), errors.slices(run, task)]
  made += [errors.routing(run), figures.entropies(run), figures.expert_weights(run)]
  made += [figures.balance(run), *grids.drawings(run)]
  return [drawing for drawing in made if drawing is not None]


def write(
  runs: Sequence[Run],
  folder: str | pathlib.Path,
  studies: Sequence[str | pathlib.Path] = (),
) -> pathlib.Path:
  """Writes `index.html`, and `figures/<run>/<name>.png` and `.svg`.

  Args:
    runs: what to report on; tables compare them, sections show each.
    folder: made if it is not there.
    studies: folders that hold a study.csv.

  Returns:
    Path of the page.
  """
  folder = pathlib.Path(folder).expanduser()
  names = [run.name for run in runs]
  names += [pathlib.Path(study).resolve().name for study in studies]
  title = "Report on " + ", ".join(names)
  parts = [f"<h1>{html.escape(title)}</h1>"]
  parts += [_tables(runs)] if runs else []
  for study in studies:
    parts.append(_study(study, folder / "figures"))
  for number, run in enumerate(runs):
    parts.append(_section(run, folder / "figures" / f"{number}_{run.name}"))
  text = (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n<body>"
    + "\n".join(parts)
    + "</body></html>\n"
  )
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / "index.html"
  path.write_text(text)
  return path


def _section(run: Run, folder: pathlib.Path) -> str:
  parts = [f"<h2>{html.escape(run.name)}: {html.escape(run.model)}</h2>", _about(run)]
  if run.gaps:
    lines = "".join(f"<li>{html.escape(gap)}</li>" for gap in run.gaps)
    parts.append(f'<div class="gaps">Not in this report:<ul>{lines}</ul></div>')
  folder.mkdir(parents=True, exist_ok=True)
  with style.look():
    parts += [_figure(drawing, folder) for drawing in drawings(run)]
  return "\n".join(parts)


def _study(study: str | pathlib.Path, folder: pathlib.Path) -> str:
  lines, name = trials.read(study), pathlib.Path(study).resolve().name
  parts = [f"<h2>Study {html.escape(name)}</h2>"]
  for title, rows in trials.tables(lines):
    head, *body = [
      "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in row)
      for kind, row in zip(["th"] + ["td"] * len(rows), rows, strict=False)
    ]
    rest = "".join(f"<tr>{row}</tr>" for row in body)
    parts.append(
      f"<h3>{html.escape(title)}</h3><table><thead><tr>{head}</tr></thead>"
      f"<tbody>{rest}</tbody></table>"
    )
  folder = folder / f"study_{name}"
  folder.mkdir(parents=True, exist_ok=True)
  with style.look():
    parts += [_figure(drawing, folder) for drawing in trials.drawings(lines)]
  return "\n".join(parts)


def _figure(drawing: Drawing, folder: pathlib.Path) -> str:
  png, _ = style.save(drawing.figure, folder, drawing.name)
  data = base64.b64encode(png.read_bytes()).decode()
  title = html.escape(drawing.title)
  return (
    f'<figure><h3>{title}</h3><img alt="{title}" src="data:image/png;base64,{data}">'
    f"<figcaption>{html.escape(drawing.caption)}</figcaption></figure>"
  )


def _about(run: Run) -> str:
  facts = {
    "folder": str(run.path),
    "data": run.data.get("file") or run.data.get("name", "?"),
    "sha256": run.data.get("sha256", "-"),
    "seeds": run.summary.get("seeds", "?"),
    "parameters": run.summary.get("parameters", "?"),
    "selected by": run.summary.get("selected_by", "?"),
    "selected epoch": run.summary.get("selected_epoch", "?"),
  }
  lines = (f"{key}: {html.escape(str(value))}" for key, value in facts.items())
  return f'<p class="remark">{"<br>".join(lines)}</p>'


def _tables(runs: Sequence[Run]) -> str:
  parts = ["<h2>Results</h2>"]
  for task in results.tasks(runs):
    own, others = results.own_rows(runs, task), results.published_rows(runs, task)
    names = results.columns([*own, *others])
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("", *names))
    body, said = [], ""
    for kind, rows in (("own", own), ("published", others)):
      for row in rows:
        if row.remark != said:  # a heading for the rows that share a source
          said = row.remark
          body.append(
            f'<tr><td class="remark" colspan="{len(names) + 1}">'
            f"{html.escape(said)}</td></tr>"
          )
        body.append(_line(row, names, kind))
    parts.append(
      f"<h3>{html.escape(task)}</h3><table><thead><tr>{head}</tr></thead>"
      f"<tbody>{''.join(body)}</tbody></table>"
    )
    verdicts = (results.verdict(runs[0], run, task) for run in runs[1:])
    parts += [f"<p>{html.escape(line)}</p>" for line in verdicts if line]
  parts.append(
    '<p class="remark">Mean ± standard deviation over seeds. A metric is named by its'
    " protocol; <i>unstated</i> marks figures whose source does not say how zeros were"
    " counted.</p>"
  )
  return "\n".join(parts)


def _line(row: results.Row, names: Sequence[str], kind: str) -> str:
  cells = "".join(f"<td>{html.escape(row.cells.get(n, ''))}</td>" for n in names)
  return f'<tr class="{kind}"><td>{html.escape(row.name)}</td>{cells}</tr>'
