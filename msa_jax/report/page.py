"""The report: figures as PNG and SVG, and one HTML page that needs nothing else."""

import base64
import html
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from msa_jax.errors import UserError
from msa_jax.report import (
  cases,
  errors,
  experts,
  figures,
  grids,
  results,
  style,
  tuning,
)
from msa_jax.report import studies as studies_lib
from msa_jax.report.figures import Drawing
from msa_jax.report.reading import Run

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto;
  padding: 0 1rem; color: #1a1a1a; }
h1, h2, h3 { line-height: 1.2; }
h2 { border-bottom: 1px solid #ccc; padding-bottom: .2rem; margin-top: 2.5rem; }
figure { margin: 1.5rem 0; break-inside: avoid; }
figure img { max-width: 100%; height: auto; }
figcaption, .remark { color: #555; font-size: .85rem; }
div.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: .78rem; }
th, td { padding: .12rem .45rem; text-align: right; white-space: nowrap; }
th { white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child, td.remark { text-align: left; }
td.remark { padding-top: .8rem; white-space: normal; }
@media print { div.table { overflow-x: visible; } }
tr.own { font-weight: 600; }
thead { border-bottom: 2px solid #888; }
pre { background: #f6f6f6; padding: .5rem 1rem; white-space: pre-wrap; }
.gaps { background: #fff4e0; padding: .5rem 1rem; border-left: 4px solid #E69F00; }
"""


# What a figure of damaged files raises; it is told on the page in place of the figure.
_DAMAGE = (AttributeError, IndexError, KeyError, TypeError, ValueError)


def drawings(
  run: Run, gaps: list[str] | None = None, sample: str = ""
) -> list[Drawing]:
  """Every figure that the run has something to show in.

  Args:
    run: the run.
    gaps: gets a line for each figure that cannot be drawn.
    sample: id of the sample whose attention is shown; "" = the longest.
  """
  makers: list[tuple[str, Callable[[], Any]]] = [
    ("training curves", lambda: figures.training(run))
  ]
  for task in run.tasks():
    makers += [
      (f"predictions of {task}", lambda task=task: errors.predictions(run, task)),
      (f"error slices of {task}", lambda task=task: errors.slices(run, task)),
    ]
  makers += [
    ("routing", lambda: errors.routing(run)),
    ("attention of a sample", lambda: _attention(run, sample)),
    ("what modules do with a sample", lambda: _looks(run, sample)),
    ("router entropy", lambda: figures.entropies(run)),
    ("worth of the experts", lambda: experts.drawings(run)),
    ("expert load", lambda: figures.expert_weights(run)),
    ("balance", lambda: figures.balance([run])),
    ("agreement of the tasks", lambda: figures.agreement(run)),
    ("missing modalities", lambda: grids.drawings(run)),
  ]
  gaps = [] if gaps is None else gaps
  if run.config and not run.tasks():
    gaps.append("figures of its tasks: config.json names none")
  return _made(makers, gaps)


def _made(makers, gaps: list[str]) -> list[Drawing]:
  found: list[Drawing] = []
  for name, make in makers:
    try:
      drawn = make()
    except (UserError, *_DAMAGE) as error:
      said = str(error) if isinstance(error, UserError) else repr(error)
      gaps.append(f"{name} cannot be drawn: {' '.join(said.split())}")
      continue
    drawn = drawn if isinstance(drawn, list) else [drawn]
    found += [drawing for drawing in drawn if drawing is not None]
  return found


def _attention(run: Run, sample: str) -> Drawing | None:
  # Imported here: only this figure needs JAX and the run's data.
  from msa_jax.report import inspection

  if not inspection.selecting_module(run):
    return None
  return inspection.drawing(run, inspection.attention(run, sample))


def _looks(run: Run, sample: str) -> list[Drawing]:
  from msa_jax.report import looks

  return looks.drawings(run, sample) if looks.looks_of(run) and run.summary else []


def write(
  runs: Sequence[Run],
  folder: str | pathlib.Path,
  studies: Sequence[str | pathlib.Path] = (),
  sample: str = "",
) -> pathlib.Path:
  """Writes `index.html`, and `figures/<run>/<name>.png` and `.svg`.

  Args:
    runs: what to report on; tables compare them, sections show each.
    folder: made if it is not there.
    studies: folders that hold a study.csv.
    sample: id of the sample whose attention is shown; "" = the longest.

  Returns:
    Path of the page.
  """
  folder = pathlib.Path(folder).expanduser()
  names = [run.name for run in runs]
  names += [pathlib.Path(study).resolve().name for study in studies]
  title = "Report on " + ", ".join(names)
  parts = [f"<h1>{html.escape(title)}</h1>"]
  parts += ["<h2>Results</h2>", _tables(runs)] if runs else []
  if len(runs) > 1:
    parts.append(_cases(runs, folder / "figures"))
  for number, study in enumerate(studies):
    parts.append(_study(study, folder / "figures" / f"study_{number}"))
  for number, run in enumerate(runs):
    own = folder / "figures" / f"{number}_{run.name}"
    parts.append(_section(run, own, sample))
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


def _cases(runs: Sequence[Run], folder: pathlib.Path) -> str:
  gaps: list[str] = []
  folder.mkdir(parents=True, exist_ok=True)
  with style.look():
    shown = [_figure(drawing, folder) for drawing in _made(_of_cases(runs), gaps)]
  return "\n".join([_gaps(gaps), *shown])


def _of_cases(runs: Sequence[Run]) -> list[tuple[str, Callable[[], Any]]]:
  """A strip for each task, without heads that answer for one condition each."""
  tasks = [task for task in results.tasks(runs) if "@" not in task]
  return [(f"cases of {t}", lambda t=t: cases.drawing(runs, t)) for t in tasks]


def _section(run: Run, folder: pathlib.Path, sample: str) -> str:
  head = f"<h2>{html.escape(run.name)}: {html.escape(run.model)}</h2>"
  folder.mkdir(parents=True, exist_ok=True)
  gaps = list(run.gaps)
  with style.look():
    shown = [_figure(drawing, folder) for drawing in drawings(run, gaps, sample)]
  return "\n".join([head, _about(run), _gaps(gaps), *shown])


def _gaps(gaps: Sequence[str]) -> str:
  lines = "".join(f"<li>{html.escape(gap)}</li>" for gap in gaps)
  said = f'<div class="gaps">Not in this report:<ul>{lines}</ul></div>'
  return said if gaps else ""


def _study(study: str | pathlib.Path, folder: pathlib.Path) -> str:
  path = pathlib.Path(study).expanduser().resolve()
  lines = studies_lib.read(path)
  runs, gaps = studies_lib.runs(path, lines)
  parts = [f"<h2>Study {html.escape(path.name)}</h2>"]
  if tuning.is_search(lines):
    return "\n".join([*parts, *_search(path, lines, folder, gaps)])
  tested = runs
  if studies_lib.is_sweep(lines):
    tested = []  # the test split judges no setting
    if ranking := studies_lib.ranking(path, gaps):
      parts.append(_table(ranking, "setting"))
  board = lines[0]["study"] == "leaderboard" and bool(runs)
  for table in studies_lib.result_tables(lines, tested):
    if not (board and table.task in results.tasks(tested)):
      parts.append(_table(table, "trial"))
  if board:  # in full, beside all that is published of the corpora
    parts.append(_tables(tested))
  else:
    for task in results.tasks(tested):
      parts += _verdicts(tested, task)
  makers = [
    ("the study's figures", lambda: studies_lib.drawings(lines)),
    ("balance", lambda: figures.balance(runs)),
  ]
  makers += _of_cases(tested)
  for run in tested:
    makers.append((run.name, lambda run=run: _of_trial(run)))
  folder.mkdir(parents=True, exist_ok=True)
  with style.look():
    shown = [_figure(drawing, folder) for drawing in _made(makers, gaps)]
  parts += [_gaps(gaps), *shown]
  parts.append(
    '<p class="remark">All figures of one trial: python -m msa_jax.report'
    f" {html.escape(str(path))}/TRIAL</p>"
  )
  return "\n".join(parts)


def _search(path, lines, folder: pathlib.Path, gaps: list[str]) -> list[str]:
  """What there is of a search: how it went and what it chose, of validation alone."""
  parts, report = [], studies_lib.ranked(path, gaps, "state")
  if report is not None:
    parts.append(f"<pre>{html.escape(tuning.about(path))}</pre>")
    parts.append(_table(tuning.table(report), "trial"))
    folder.mkdir(parents=True, exist_ok=True)
    with style.look():
      drawn = _made([("the search", lambda: tuning.drawings(report))], gaps)
      parts += [_figure(drawing, folder) for drawing in drawn]
  parts += [_table(each, "trial") for each in studies_lib.result_tables(lines, [])]
  return [*parts, _gaps(gaps)]


def _of_trial(run: Run) -> list[Drawing]:
  """What a study's csv does not hold: experts' weights under missing modalities."""
  return [
    drawing._replace(
      name=f"{run.name}_{drawing.name}", title=f"{run.name}: {drawing.title}"
    )
    for drawing in grids.drawings(run)
    if drawing.name.startswith("activation")
  ]


def _figure(drawing: Drawing, folder: pathlib.Path) -> str:
  png, _ = style.save(drawing.figure, folder, drawing.name)
  data = base64.b64encode(png.read_bytes()).decode()
  width = 100 * drawing.figure.get_figwidth()  # letters of one size in all figures
  title = html.escape(drawing.title)
  return (
    f'<figure><h3>{title}</h3><img alt="{title}" style="width: {width:.0f}px"'
    f' src="data:image/png;base64,{data}">'
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
  parts = []
  for task in results.tasks(runs):
    own, others = results.local_rows(runs, task), results.published_rows(runs, task)
    names = results.columns([*own, *others])
    parts.append(_table(results.ResultTable(task, names, (own, others))))
    parts += _verdicts(runs, task)
  parts.append(
    '<p class="remark">Mean ± standard deviation over seeds. A metric is named by its'
    " protocol; <i>unstated</i> marks figures whose source does not say how zeros were"
    " counted.</p>"
  )
  return "\n".join(parts)


def _verdicts(runs: Sequence[Run], task: str) -> list[str]:
  """The first run against each of the others, over the samples that both have."""
  said = (results.verdict(runs[0], run, task) for run in runs[1:])
  return [f"<p>{html.escape(line)}</p>" for line in said if line]


def _table(table: results.ResultTable, corner: str = "") -> str:
  """Rows by block; those that share a remark stand under it."""
  names = table.names
  heads = (html.escape(name).replace("_", "_<wbr>") for name in (corner, *names))
  head = "".join(f"<th>{name}</th>" for name in heads)
  body, said = [], ""
  for kind, rows in zip(("own", "published"), table.blocks, strict=False):
    for row in rows:
      if row.remark != said:
        said = row.remark
        body.append(
          f'<tr><td class="remark" colspan="{len(names) + 1}">'
          f"{html.escape(said)}</td></tr>"
        )
      body.append(_line(row, names, kind))
  return (
    f'<h3>{html.escape(table.title)}</h3><div class="table"><table>'
    f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
  )


def _line(row: results.Row, names: Sequence[str], kind: str) -> str:
  cells = "".join(f"<td>{html.escape(row.cells.get(n, ''))}</td>" for n in names)
  return f'<tr class="{kind}"><td>{html.escape(row.name)}</td>{cells}</tr>'
