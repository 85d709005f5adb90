"""Result tables: runs, published rows beside them, and how surely runs differ."""

import csv
import dataclasses
import importlib.resources
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from msa_jax.metrics import METRICS
from msa_jax.metrics.bootstrap import Comparison, paired
from msa_jax.names import FOLDS
from msa_jax.report.errors import class_pair, regression_pair
from msa_jax.report.reading import Run, at, numbers
from msa_jax.report.terminal import SHOWN, figure, reference
from msa_jax.report.terminal import verdict as verdict_on
from msa_jax.typing import task_name

# Sign counts (negative, zero, positive) of the official test splits, by which a corpus
# is known to be tested as in publications.
OFFICIAL = {
  "mosi": (379, 30, 277),
  "mosei": (1350, 1025, 2284),
  "sims": (248, 69, 140),
  "simsv2": (488, 123, 423),
}
# What the published figures of a corpus are of, where it is not sentiment.
TASKS = {"iemocap": "emotion"}
# Figures of the literature whose protocol no source states.
UNSTATED = ("acc2_unstated", "f1_unstated", "entropy_unstated")
_BY_QUESTION = ("acc_", "f1_")


# Of published figures that were chosen by the split that they are of.
SELECTED_ON_TEST = "SELECTED ON TEST"


class Published(NamedTuple):
  """One row of `published.csv`: a figure of somebody's table.

  The deviation over seeds is None where the source gives none.
  """

  corpus: str
  model: str
  setting: str
  metric: str
  value: float
  source: str
  deviation: float | None = None

  @property
  def text(self) -> str:
    """The figure as tables show it."""
    spread = "" if self.deviation is None else f" ± {self.deviation:.3f}"
    return f"{self.value:.3f}{spread}"


class Row(NamedTuple):
  """A line of a result table: name, cells by metric, remarks."""

  name: str
  cells: Mapping[str, str]
  remark: str


class ResultTable(NamedTuple):
  """A table of figures.

  Attributes:
    title: what it is of.
    names: metrics, in the order of the columns.
    blocks: groups of rows; own rows come first, published ones after them.
    task: what was scored, of a study's table.
  """

  title: str
  names: Sequence[str]
  blocks: Sequence[Sequence[Row]]
  task: str = ""


def published() -> list[Published]:
  """Figures of the literature with their source; shares are in [0, 1]."""
  rows = _table("published.csv")
  return [
    Published(
      **{
        **row,
        "value": float(row["value"]),
        "deviation": float(row["deviation"]) if row["deviation"] else None,
      }
    )
    for row in rows
  ]


def protocol_of(source: str) -> str:
  """How a source measured, from `sources.csv`; "" if it is unknown.

  What was chosen by the test split bears `SELECTED_ON_TEST` in front.
  """
  for row in _table("sources.csv"):
    if source.startswith(row["source"]):
      badge = f"{SELECTED_ON_TEST}; " if row["selection"] == "test" else ""
      return badge + row["protocol"]
  return ""


def _table(name: str) -> list[dict[str, str]]:
  """Lines of a csv file of this package."""
  text = (importlib.resources.files("msa_jax.report") / name).read_text()
  return list(csv.DictReader(text.splitlines()))


def study_rows(study: str, runs: Sequence[Run]) -> list[Row]:
  """Published rows of the table that a study repeats, with what differs.

  Args:
    study: its name in study.csv, e.g. `ablation_fusion`.
    runs: its trials, as far as they can be read.
  """
  own = {corpus: remark for corpus, remark in map(corpus_of, runs) if corpus}
  grouped: dict[tuple[str, str, str], dict[str, str]] = {}
  for line in _table("published_studies.csv"):
    if line["study"] == study:
      key = (line["corpus"], line["source"], line["row"])
      grouped.setdefault(key, {})[line["metric"]] = f"{float(line['value']):.3f}"
  rows = []
  for (corpus, source, name), cells in grouped.items():
    differs = own.get(corpus, f"another corpus than this study's: {corpus}")
    notes = [corpus, source, protocol_of(source), differs]
    rows.append(Row(name, cells, "; ".join(note for note in notes if note)))
  return rows


def corpus_of(run: Run) -> tuple[str, str]:
  """The published corpus that a run is about, and what differs.

  Returns:
    Name (`""` if it is none), and a remark, empty where the test split has the
    official sign counts.
  """
  counts = at(run.data, "splits", "test", "labels", "sentiment")
  signs = tuple(counts.get(s, -1) for s in ("negative", "zero", "positive"))
  for name, official in OFFICIAL.items():
    if signs == official:
      return name, ""
  called = str(run.data.get("name", "")).lower().replace("_", "").replace("-", "")
  for name in ("mosei", "mosi", "simsv2", "sims", "iemocap"):
    if name in called:
      size = at(run.data, "splits", "test").get("samples", "?")
      return name, f"another test split (n={size}) than the published figures"
  return "", ""


def local_rows(runs: Sequence[Run], task: str) -> list[Row]:
  """One row per run: mean ± standard deviation over seeds on its test split."""
  rows = []
  for run in runs:
    figures = run.summary.get("splits", {}).get(run.split, {}).get(task, {})
    questions = _questions(run, task)
    cells = {
      name: figure(figures[name])
      for name in figures
      if (name in METRICS or name in questions)
      and not isinstance(figures[name]["mean"], list)
    }
    seeds = len(run.summary.get("seeds", ()))
    remark = f"{run.model}, {seeds} seeds, {run.split}, {run.unit}"
    if folds := run.summary.get(FOLDS):
      remark += f", {len(folds)} folds (deviation over them)"
    if at(run.data, "notes").get("bayes"):
      remark += ", synthetic corpus"
    if cells:
      rows.append(Row(run.name, cells, remark))
    rows += reference_rows(run, task)
    bayes = (run.summary.get("bayes") or {}).get(run.split, {})
    if task == "sentiment" and bayes:
      cells = {n: f"{v:.3f}" for n, v in bayes.items() if n in METRICS}
      rows.append(Row("Bayes-optimal", cells, "the least error possible"))
  return rows


def reference_rows(run: Run, task: str) -> list[Row]:
  """The constant and linear models that were fitted beside a run."""
  rows = []
  compared = at(run.summary, "compared", run.split, task)
  for name, figures in at(run.summary, "references", run.split, task).items():
    cells = {
      key: f"{value:.3f}"
      for key, value in figures.items()
      if key in METRICS and isinstance(value, int | float)
    }
    found = at(compared, name)
    remark = f"{run.name}: {verdict_on(name, found)}" if found else "the best constant"
    if run.summary.get(FOLDS):
      remark = f"{run.name}: mean over folds"
    rows.append(Row(reference(name), cells, remark))
  found = at(compared, "text_head")
  if found:
    remark = f"{run.name}: {verdict_on('text_head', found)}"
    rows.append(Row(reference("text_head"), {}, remark))
  return rows


def published_rows(runs: Sequence[Run], task: str) -> list[Row]:
  """The literature's rows on the corpora of the runs, with what differs."""
  rows, seen = [], set()
  for run in runs:
    corpus, remark = corpus_of(run)
    if not corpus or corpus in seen or task != TASKS.get(corpus, "sentiment"):
      continue
    seen.add(corpus)
    grouped: dict[tuple[str, str, str], dict[str, str]] = {}
    for entry in published():
      if entry.corpus == corpus:
        key = (entry.source, entry.model, entry.setting)
        grouped.setdefault(key, {})[entry.metric] = entry.text
    for (source, model, setting), cells in grouped.items():
      notes = [corpus, source, protocol_of(source), remark]
      name = f"{model} ({setting})" if setting else model
      rows.append(Row(name, cells, "; ".join(note for note in notes if note)))
  return sorted(rows, key=lambda row: row.remark)  # rows of one source together


def columns(rows: Sequence[Row]) -> list[str]:
  """Metrics that any row has, in the order tables show them."""
  known = dict.fromkeys(name for row in rows for name in row.cells)
  place = SHOWN.index("f1_non0") + 1  # next to those whose protocol is stated
  order = (*SHOWN[:place], *UNSTATED, *SHOWN[place:])
  first = [name for name in order if name in known]
  rest = [n for n in known if n not in METRICS and n not in first]
  return first + [n for n in rest if n.startswith(_BY_QUESTION)]


def _questions(run: Run, task: str) -> set[str]:
  """Figures of each question, where a task asks several (IEMOCAP's four emotions)."""
  options = run.tasks().get(task, {})
  asked = options.get("classes", ()) if options.get("kind") == "binary" else ()
  return {f"{kind}{name}" for kind in _BY_QUESTION for name in asked}


def tasks(runs: Sequence[Run]) -> list[str]:
  """Tasks that any of the runs was scored on."""
  names: dict[str, None] = {}
  for run in runs:
    names |= dict.fromkeys(run.summary.get("splits", {}).get(run.split, {}))
  return list(names)


def significance(
  first: Run, second: Run, task: str, unequal: bool = False
) -> tuple[str, Comparison] | None:
  """Paired bootstrap over the samples that both runs predicted.

  The mean predictions over seeds are compared: by absolute error for regression, by
  accuracy for classes.

  Args:
    first, second: the runs.
    task: what they predict, or one head's prediction of it (`emotion@a`).
    unequal: compare also runs of which only one sees the dialogue around an utterance.

  Returns:
    Name of the metric and the comparison, first minus second; None where the runs
    do not have the same labelled samples, or do not see as much of them.
  """
  if not all(task_name(task) in run.tasks() for run in (first, second)):
    return None
  if first.unit != second.unit and not unequal:
    return None
  ids = [
    list(run.predictions.get(run.split, {}).get("id", ())) for run in (first, second)
  ]
  if not ids[0] or sorted(ids[0]) != sorted(ids[1]):
    return None
  # Utterances of dialogues stand in another order than those of the file.
  second = _ordered(second, ids[0])
  kind = first.tasks()[task_name(task)].get("kind")
  if kind == "regression":
    pairs = [regression_pair(run, task) for run in (first, second)]
    metric, name = _mae, "mae"
  else:
    pairs = [class_pair(run, task) for run in (first, second)]
    metric, name = _accuracy, "wa"
  ours, theirs = pairs
  if ours is None or theirs is None:
    return None
  (labels, one), (others, two) = ours, theirs
  if labels.shape != others.shape or not np.array_equal(labels, others):
    return None
  return name, paired(metric, one, two, labels)


def _ordered(run: Run, ids: Sequence[str]) -> Run:
  """The run with its predictions in an order of ids."""
  columns = run.predictions[run.split]
  place = {name: row for row, name in enumerate(columns["id"])}
  rows = [place[name] for name in ids]
  moved = {name: [column[row] for row in rows] for name, column in columns.items()}
  return dataclasses.replace(run, predictions={**run.predictions, run.split: moved})


class Decisions(NamedTuple):
  """What a run decides of samples, next to what is true.

  Attributes:
    ids: [n].
    truth: [n] index into `names`; -1 = no label, or one of zero, which has no sign.
    said: [n] the same of the mean prediction over seeds.
    names: of classes, or of the signs of a regression.
  """

  ids: Sequence[str]
  truth: np.ndarray
  said: np.ndarray
  names: Sequence[str]


_SIGNS = ("negative", "positive")


def decisions(run: Run, task: str, like: Run) -> Decisions | None:
  """A run's decisions on the held-out samples, in the order of another run.

  Returns:
    None where a run lacks the task or they have other samples, or of yes/no questions.
  """
  ids = list(like.predictions.get(like.split, {}).get("id", ()))
  own = list(run.predictions.get(run.split, {}).get("id", ()))
  options = run.tasks().get(task, {})
  if not ids or sorted(ids) != sorted(own) or options.get("kind") == "binary":
    return None
  columns = _ordered(run, ids).predictions[run.split]
  if f"{task}_label" not in columns or task not in columns:
    return None
  labels = numbers(columns[f"{task}_label"])
  if options.get("kind") == "regression":
    said = _signs(numbers(columns[task]))
    return Decisions(ids, _signs(labels), said, _SIGNS)
  names = list(options.get("classes", ()))
  said = np.asarray([names.index(each) for each in columns[task]])
  truth = np.where(np.isfinite(labels), labels, -1).astype(int)
  return Decisions(ids, truth, said, names)


def _signs(values: np.ndarray) -> np.ndarray:
  """Index into `_SIGNS`; -1 where there is none."""
  return np.where(np.isnan(values) | (values == 0), -1, values > 0)


def _mae(values: np.ndarray, labels: np.ndarray) -> float:
  return float(np.mean(np.abs(values - labels)))


def _accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
  return float(np.mean(probabilities.argmax(axis=1) == labels))


def verdict(first: Run, second: Run, task: str, unequal: bool = False) -> str | None:
  """The comparison of two runs in a sentence; None where it cannot be made.

  See `significance`; what is refused is said.
  """
  try:
    result = significance(first, second, task, unequal)
    if result is None and significance(first, second, task, unequal=True):
      return (
        f"{task}: {first.name} ({first.unit}) and {second.name} ({second.unit}) do not"
        " see the same; --unequal compares them all the same."
      )
  except ValueError as error:  # a cell of predictions that is no number
    return f"{task}: {first.name} and {second.name} cannot be compared: {error}."
  if result is None:
    return None
  name, comparison = result
  difference = comparison.difference
  unlike = "" if first.unit == second.unit else f" ({first.unit}; {second.unit})"
  return (
    f"{task}: {first.name} minus {second.name}{unlike}, {name} of the seeds' mean"
    f" prediction: {difference.estimate:+.4f}, 95 % interval {difference.low:+.4f} to"
    f" {difference.high:+.4f}, p = {comparison.p_value:.3f} (paired bootstrap over"
    " samples)"
  )
