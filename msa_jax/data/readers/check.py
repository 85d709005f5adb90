"""What is in a file, and what a careful user would want to know before training."""

import collections
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from msa_jax.data.readers.published import SHA256, Published, Signs, nearest
from msa_jax.data.transforms.folds import WHOLE
from msa_jax.typing import Corpus, Split, Task, modality_order

_USUAL = ("train", "valid", "test")
_SHOWN = 3
_FOUND = {
  "non_finite_cells": "NaN or infinite cells, read as zero",
  "lost_steps": "steps without any finite cell, read as lost",
  "cells_past_length": "non-zero cells after the stated length, read as zero",
  "left_padded_samples": "left-padded samples, moved to the front",
}


class Table(NamedTuple):
  """Rows of text under a title."""

  title: str
  columns: tuple[str, ...]
  rows: list[tuple[str, ...]]


class Report(NamedTuple):
  """What a command prints: named facts, tables, and things to look at."""

  facts: list[tuple[str, str]]
  tables: list[Table]
  warnings: list[str]


def sign_counts(corpus: Corpus, task: str = "sentiment") -> dict[str, Signs]:
  """Negative, zero and positive labels per split that has this regression task."""
  counts = {}
  for name, split in corpus.splits.items():
    value = split.labels.get(task)
    if value is not None and corpus.tasks[task].kind == "regression":
      signs = ((value < 0).sum(), (value == 0).sum(), (value > 0).sum())
      counts[name] = Signs(*map(int, signs))
  return counts


def check(corpus: Corpus) -> Report:
  """The report of `python -m msa_jax.data check` on what `read_lenient` gave."""
  file = corpus.notes["file"]
  known = SHA256.get(file["sha256"], "not one of the published MMSA files")
  facts = [
    ("file", f"{file['name']} ({file['bytes'] / 1e6:.1f} MB)"),
    ("sha256", file["sha256"]),
    ("published", known),
    ("format", str(corpus.notes.get("format", "unknown"))),
  ]
  if "converted_from" in corpus.notes:
    facts.append(("converted from", str(corpus.notes["converted_from"]["name"])))
  if corpus.notes.get("padding_cut"):
    cuts = corpus.notes["padding_cut"].items()
    cut = (f"{name} {steps['from']} to {steps['to']} steps" for name, steps in cuts)
    facts.append(("padding cut", ", ".join(cut)))
  tables = [_modality_table(corpus)]
  for name, task in corpus.tasks.items():
    if name == "sentiment" and task.kind == "regression":
      table, more = _sentiment_table(corpus)
      tables.insert(0, table)
      facts += more
    else:
      tables.append(_label_table(corpus, name, task))
  if not corpus.tasks:
    tables.insert(0, _size_table(corpus))
  return Report(facts, tables, warnings(corpus))


def describe(corpus: Corpus) -> Report:
  """The report of `python -m msa_jax.data describe`: meaning rather than defects."""
  facts = [("name", corpus.name), ("splits", ", ".join(corpus.splits))]
  for name, task in corpus.tasks.items():
    detail = (
      f"regression in [{task.low:g}, {task.high:g}]"
      if task.kind == "regression"
      else f"{task.kind}: {', '.join(task.classes)}"
    )
    facts.append((f"task {name}", f"{detail}; metrics of {task.protocol!r}"))
  first = next(iter(corpus.splits.values()))
  for key, value in first.extras.items():
    facts.append((f"extra {key}", f"{value.dtype} {list(value.shape[1:])} per sample"))
  if first.raw_text is not None:
    facts.append(("first sentence", " ".join(first.raw_text[0].split())[:70]))
  tables = [_size_table(corpus), _modality_table(corpus)]
  tables += [_label_table(corpus, name, task) for name, task in corpus.tasks.items()]
  return Report(facts, tables, [])


def _size_table(corpus: Corpus) -> Table:
  rows = []
  for name, split in corpus.splits.items():
    words = "-"
    if split.raw_text is not None:
      words = f"{np.mean([len(text.split()) for text in split.raw_text]):.1f}"
    rows.append((name, str(len(split)), _videos(split), words))
  return Table("splits", ("split", "samples", "videos", "words, mean"), rows)


def _videos(split: Split) -> str:
  return "-" if split.groups is None else str(len(np.unique(split.groups)))


def _sentiment_table(corpus: Corpus) -> tuple[Table, list[tuple[str, str]]]:
  counts = sign_counts(corpus)
  published = nearest(counts, corpus.tasks["sentiment"].protocol)
  rows = []
  for name, split in corpus.splits.items():
    ours = counts.get(name)
    theirs = None if published is None else published.splits.get(name)
    numbers = ("-",) * 3 if ours is None else tuple(map(str, ours))
    row = (name, str(len(split)), *numbers, _videos(split))
    rows.append((*row, *_comparison(ours, theirs)))
  title = "published" if published is None else f"published {published.name}"
  columns = ("split", "samples", "negative", "zero", "positive", "videos")
  table = Table("sentiment labels", (*columns, title, ""), rows)
  return table, [] if published is None else [_standing(corpus, counts, published)]


def _comparison(ours: Signs | None, theirs: Signs | None) -> tuple[str, str]:
  if theirs is None:
    return "-", ""
  text = f"{theirs.total}: {'/'.join(map(str, theirs))}"
  return text, "equal" if ours == theirs else "differs"


def _standing(
  corpus: Corpus, counts: Mapping[str, Signs], published: Published
) -> tuple[str, str]:
  if dict(counts) == dict(published.splits):
    return "counts", f"those of {published.name}"
  sizes = tuple(len(corpus.splits[name]) for name in _USUAL if name in corpus.splits)
  if sizes in published.circulating:
    return "counts", f"{published.name} by {published.circulating[sizes]}"
  if published.splits.keys() <= counts.keys():
    official = tuple(signs.total for signs in published.splits.values())
    if sizes == official:
      return "counts", f"sizes of {published.name}, but other labels"
  return "counts", f"differ from {published.name}, the nearest published corpus"


def _modality_table(corpus: Corpus) -> Table:
  rows = []
  found = corpus.notes.get("non_finite_cells", {})
  for modality in modality_order(next(iter(corpus.splits.values())).modalities):
    for name, split in corpus.splits.items():
      one = split.modalities[modality]
      n, t, d = one.features.shape
      present = one.lengths[one.lengths > 0]
      low, middle, mean, high = ("-",) * 4
      if len(present):
        low, high = str(present.min()), str(present.max())
        middle, mean = f"{np.median(present):g}", f"{present.mean():.1f}"
      lost = 0 if one.lost is None else int(one.lost.sum())
      bad = found.get(modality, {}).get(name, 0)
      shape = f"[{n} {t} {d}]"
      cells = (shape, str(one.features.dtype), low, middle, mean, high)
      rows.append((modality, name, *cells, str(n - len(present)), str(lost), str(bad)))
  columns = ("modality", "split", "shape", "type", "min", "med", "mean", "max")
  columns += ("absent", "lost", "inf/nan")
  return Table(
    "modalities (lengths of samples that have it; lost steps; cells)", columns, rows
  )


def _label_table(corpus: Corpus, name: str, task: Task) -> Table:
  rows = []
  for split_name, split in corpus.splits.items():
    value = split.labels.get(name)
    if value is None:
      continue
    if task.kind == "regression":
      value = value[np.isfinite(value)]
      numbers = (value.mean(), value.std(), np.median(value)) if len(value) else ()
      cells = (str(len(value)), *(f"{number:.3f}" for number in numbers))
    else:
      known = value >= 0
      labelled = known if task.kind == "classes" else known.any(-1)
      counts = (
        [(value == index).sum() for index in range(len(task.classes))]
        if task.kind == "classes"
        else (value == 1).sum(0)
      )
      cells = (str(labelled.sum()), *map(str, counts))
    rows.append((split_name, *cells))
  classes = task.classes or ("mean", "std", "median")
  return Table(f"labels of {name}", ("split", "labelled", *classes), rows)


def warnings(corpus: Corpus) -> list[str]:
  """Everything in a corpus that deserves a second look, one sentence each."""
  notes = corpus.notes
  lines = [
    f"{modality} is unavailable: no sample has it, or it never changes"
    for modality in notes.get("unavailable_modalities", ())
  ]
  for key, meaning in _FOUND.items():
    lines += [
      f"{modality}: {meaning}: {_counts(where)}"
      for modality, where in notes.get(key, {}).items()
    ]
  for modality, where in notes.get("absent_samples", {}).items():
    if modality not in notes.get("unavailable_modalities", ()):
      lines.append(f"{modality} is absent in {_counts(where)} samples")
  if notes.get("repeated_ids_numbered"):
    lines.append(f"{notes['repeated_ids_numbered']} repeated ids were numbered")
  lines += _repeated(corpus)
  lines += _unlabelled(corpus)
  return lines


def _counts(where: Mapping[str, Any]) -> str:
  return ", ".join(f"{name} {count}" for name, count in where.items())


def _repeated(corpus: Corpus) -> list[str]:
  lines = []
  for name, split in corpus.splits.items():
    counts = collections.Counter(split.ids.tolist())
    twice = [sample for sample, count in counts.items() if count > 1]
    if twice:
      lines.append(f"{len(twice)} ids occur twice in {name}: {_some(twice)}")
  for what, attribute in (("ids", "ids"), ("videos", "groups")):
    places: dict[str, set[str]] = {}
    for name, split in corpus.splits.items():
      value = getattr(split, attribute)
      for sample in () if value is None else np.unique(value).tolist():
        places.setdefault(sample, set()).add(name)
    shared = [sample for sample, names in places.items() if len(names) > 1]
    if shared:
      names = [name for name in corpus.splits if any(name in places[s] for s in shared)]
      lines.append(
        f"leak: {len(shared)} {what} are in more than one split"
        f" ({', '.join(names)}): {_some(shared)}"
      )
  return lines


def _some(names: list[str]) -> str:
  return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _unlabelled(corpus: Corpus) -> list[str]:
  lines = []
  if not corpus.tasks:
    return ["no labels: this file can be predicted on, not trained on"]
  missing = [name for name in _USUAL if name not in corpus.splits]
  if missing and set(corpus.splits) != {WHOLE}:
    lines.append(f"no split named {', '.join(missing)}; training needs train and valid")
  for name, split in corpus.splits.items():
    for task in corpus.tasks:
      value = split.labels.get(task)
      if value is None:
        lines.append(f"{name} has no labels of {task}")
        continue
      known = np.isfinite(value) & (value != -1 if value.dtype.kind == "i" else True)
      absent = len(value) - int(known.reshape(len(value), -1).any(1).sum())
      if absent == len(value) and name == "train":
        lines.append(f"train has no label of {task}: it cannot be trained on")
      elif absent:
        lines.append(f"{absent} samples of {name} have no label of {task}")
  return lines


def printable(text: str) -> str:
  """Text of a file as a terminal can safely show it: no control characters."""
  return "".join(letter if letter.isprintable() else "?" for letter in text)


def as_text(report: Report) -> Iterable[str]:
  """The report as plain lines, columns aligned."""
  width = max(len(name) for name, _ in report.facts)
  for name, value in report.facts:
    yield printable(f"{name:<{width}}  {value}")
  for table in report.tables:
    lines = [table.columns, *table.rows]
    columns = len(table.columns)
    lines = [(*map(printable, line), *("",) * (columns - len(line))) for line in lines]
    widths = [max(len(line[column]) for line in lines) for column in range(columns)]
    yield ""
    yield table.title
    for line in lines:
      cells = (f"{cell:<{size}}" for cell, size in zip(line, widths, strict=True))
      yield ("  " + "  ".join(cells)).rstrip()
  if report.warnings:
    yield ""
  for line in report.warnings:
    yield printable(f"warning: {line}")
