"""The missing-modality grid: one trained run under every condition and rate.

  python -m msa_jax.main --mode=evaluate --workdir=runs/a --missing=conditions,random

Nothing is trained, and one program predicts all of it: masks are its arguments. Every
run sees the same masks of the same samples (by `config.missing.seed`). On the synthetic
corpus the Bayes-optimal figures under the same masks stand beside the run's.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from msa_jax.config.experiment import Experiment
from msa_jax.data import missing
from msa_jax.data.batching import batches
from msa_jax.data.synthetic import posterior
from msa_jax.data.transforms.degrade import Degrade
from msa_jax.errors import UserError
from msa_jax.metrics.routing import routing_metrics
from msa_jax.names import FOLDS
from msa_jax.runs import prediction_files, prepare, references
from msa_jax.runs.folds import averaged, combine
from msa_jax.runs.open import OpenRun, open_run
from msa_jax.runs.summary import over_seeds
from msa_jax.text.features import encoder_of
from msa_jax.training import feed as feed_lib
from msa_jax.training import scoring
from msa_jax.training.run_directory import RunDirectory, fold_folders, only_warn
from msa_jax.typing import MODALITIES, Corpus, Split, modality_order, task_name

# Figures of `bayes.optimum` by the task and metric that they bound.
_BOUNDS = {
  "mae": ("sentiment", "mae"),
  "acc2_non0": ("sentiment", "acc2_non0"),
  "acc2_has0": ("sentiment", "acc2_has0"),
  "emotion_accuracy": ("emotion", "wa"),
}


class _Opened(NamedTuple):
  """A trained run and the split to evaluate it on.

  Attributes:
    run: the run.
    corpus: that one split, as the pipeline has it before anything is missing.
    name: of the split.
    occasion: whether the corpus is the run's own.
    text: what makes the corpus's text, to lose words of it.
  """

  run: OpenRun
  corpus: Corpus
  name: str
  occasion: str
  text: missing.Source

  def processed(self, split: Split) -> Corpus:
    """The split after the rest of the run's pipeline."""
    corpus = dataclasses.replace(self.corpus, splits={self.name: split})
    return self.run.pipeline.after(Degrade.name).apply(corpus, self.occasion)

  def feed(self, split: Split) -> feed_lib.Feed:
    """A feed of the split, after the rest of the run's pipeline."""
    return self.run.feeds(self.processed(split))[self.name]

  def references(self, split: Split) -> dict[str, Any]:
    """Figures of the run's references on the split; empty where it has none."""
    fitted = references.load(self.run.directory.path)
    if not fitted:
      return {}
    split = self.processed(split).splits[self.name]
    labels = scoring.label_arrays(split, self.corpus.tasks)
    try:
      pooled = references.pool(self.run.config, split)
    except UserError:  # the encoder that made their text is no longer there
      return {}
    return references.rows(fitted, self.corpus.tasks, pooled, labels)


def _open(workdir: str | pathlib.Path, path: str) -> _Opened:
  opened = open_run(workdir)
  occasion = prepare.occasion(opened.config, path)
  corpus = prepare.reread(opened.config, path)
  corpus = opened.pipeline.before(Degrade.name).apply(corpus, occasion)
  labelled = [
    n for n, s in corpus.splits.items() if scoring.label_arrays(s, corpus.tasks)
  ]
  if not labelled:
    raise UserError(f"{path} has no labels to evaluate on; use --mode=predict.")
  # False sorts first: test, else valid, else whatever else there is, train last.
  name = min(labelled, key=lambda n: (n != "test", n != "valid", n == "train"))
  corpus = dataclasses.replace(corpus, splits={name: corpus.splits[name]})
  text = missing.source_of(corpus, encoder_of(opened.config.text))
  return _Opened(opened, corpus, name, occasion, text)


def grid(workdir: str | pathlib.Path, wanted: str, path: str = "") -> dict[str, Any]:
  """Evaluates a trained run under missing-modality patterns.

  Args:
    workdir: folder of the run. For each entry of `wanted` it gets, under `missing/`,
      `<entry>.json` (the rows below), `<entry>.csv` (one line per pattern, metric and
      seed) and `<entry>.npz` (masks and predictions).
    wanted: what `data.missing.grids` reads, e.g. `conditions,random`.
    path: another labelled file; "" = the run's own. Its test split is evaluated,
      without one its validation split, else the first that has labels.

  Returns:
    `model`, `file`, `split`, `samples`, `seed` (of the masks), `n_programs` (compiled
    for all of it) and `grids`: entry -> rows with `pattern`, `protocol`, `visible`,
    `rate`, `realised`, `without_content`, `figures` (task -> metric -> mean, std,
    values over seeds), `bayes` (task -> metric -> value, where it is known),
    `references` (task -> constant or linear model of the run -> metric -> value) and
    `routing` (gate -> `mean_combine`, `router_entropy_dense_normalised`, likewise).

    Of a folder of folds, the means over all of them.

  Raises:
    UserError: no such run or file, no labels, or an entry that does not fit.
  """
  if runs := fold_folders(workdir):
    return _over_folds(workdir, [grid(run, wanted, path) for run in runs.values()])
  opened = _open(workdir, path)
  split, config = opened.corpus.splits[opened.name], opened.run.config
  present = batches.availability(split)
  seen = np.any(present, axis=tuple(range(present.ndim - 1)))  # [m]
  order = modality_order(split.modalities)
  names = [name for name, some in zip(order, seen, strict=True) if some]
  grids = missing.grids(wanted, names)
  for entry, patterns in grids.items():
    missing.check(patterns[-1], opened.corpus, opened.text, f"--missing={entry}: ")
  optimal = _optimal(config, opened.name) if not path else lambda masks: {}
  report: dict[str, Any] = {
    "model": config.system,
    "file": path or "own",
    "split": opened.name,
    "samples": len(split),
    "seed": config.missing.seed,
    "seeds": list(config.replicas.seeds),
    "grids": {},
  }
  folder = RunDirectory(pathlib.Path(workdir) / "missing")
  complete = opened.feed(split)
  for entry, patterns in grids.items():
    rows, arrays = [], {}
    for pattern in patterns:
      row, arrays[str(pattern)] = _evaluate(opened, complete, pattern, optimal)
      rows.append(row)
    report["grids"][entry] = rows
    with only_warn("the grid is not kept"):
      missing.save(folder.path / f"{_stem(entry)}.npz", split, arrays)
      _write(folder, report, entry)
  return {**report, "n_programs": opened.run.predictor.n_programs}


def _stem(entry: str) -> str:
  return entry.replace(":", "_")


def _write(folder: RunDirectory, report: Mapping[str, Any], entry: str) -> None:
  about = {key: value for key, value in report.items() if key != "grids"}
  rows = report["grids"][entry]
  folder.write_json(f"{_stem(entry)}.json", {**about, "rows": rows})
  prediction_files.write_csv(folder.path / f"{_stem(entry)}.csv", _tidy(report, rows))


def _over_folds(
  workdir: str | pathlib.Path, reports: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
  """The grids of all folds as one, figures as `runs.folds.train` has them; written
  beside the folds' own."""
  first = reports[0]
  report = {
    **first,
    "samples": sum(each["samples"] for each in reports),
    "n_programs": sum(each["n_programs"] for each in reports),
    FOLDS: len(reports),
    "grids": {},
  }
  folder = RunDirectory(pathlib.Path(workdir) / "missing")
  for entry in first["grids"]:
    of_folds = [each["grids"][entry] for each in reports]
    rows = []
    for same in zip(*of_folds, strict=True):
      shares = [row["realised"] for row in same]
      rows.append(
        {
          **same[0],
          "realised": {
            name: float(np.mean([share[name] for share in shares]))
            for name in shares[0]
          },
          "without_content": sum(row["without_content"] for row in same),
          "figures": combine([row["figures"] for row in same]),
          "routing": combine([row["routing"] for row in same]),
          "bayes": {},
          "references": averaged([row["references"] for row in same]),
        }
      )
    report["grids"][entry] = rows
    _write(folder, report, entry)
  return report


def _evaluate(opened: _Opened, complete: feed_lib.Feed, pattern, optimal):
  """One row of a grid, and the arrays to keep of it."""
  config, split = opened.run.config, opened.corpus.splits[opened.name]
  masks = missing.draw(pattern, split, config.missing.seed, config.optim.batch_size)
  hidden = missing.apply(split, masks, opened.text)
  if masks.lost:
    feed = opened.feed(hidden)
  else:
    feed = feed_lib.with_available(complete, masks.available)
  predictions = [_without_heads(each) for each in opened.run.predictions(feed)]
  tasks = opened.corpus.tasks
  labels = scoring.label_arrays(split, tasks)
  row = {
    "pattern": str(pattern),
    "protocol": pattern.protocol,
    "visible": list(pattern.visible),
    "rate": pattern.rate,
    "realised": dict(masks.realised),
    "without_content": scoring.without_content(predictions[0], labels),
    "figures": over_seeds(
      [scoring.score(tasks, p.outputs, labels) for p in predictions]
    ),
    "bayes": optimal(masks),
    "references": opened.references(hidden),
    "routing": _routing(predictions),
  }
  outputs = {
    f"predictions_{task}": np.stack([p.outputs[task] for p in predictions])
    for task in predictions[0].outputs
  }
  return row, {**missing.arrays(masks), **outputs}


def _routing(predictions: Sequence[feed_lib.Predictions]) -> dict[str, Any]:
  """Gate -> mean weight and entropy of its experts, over samples; over seeds."""
  kept = ("mean_combine", "router_entropy_dense_normalised")
  found = [routing_metrics(each.routing) for each in predictions]
  return over_seeds(
    [
      {gate: {name: figures[name] for name in kept} for gate, figures in each.items()}
      for each in found
    ]
  )


def _without_heads(predictions: feed_lib.Predictions) -> feed_lib.Predictions:
  """Leaves out a task's heads where the task itself is predicted.

  Heads of conditions (MoMKE's) say little under masks that are not their own.
  """
  outputs = {
    name: values
    for name, values in predictions.outputs.items()
    if name == task_name(name) or task_name(name) not in predictions.outputs
  }
  return predictions._replace(outputs=outputs)


def _optimal(config: Experiment, name: str):
  """Returns masks -> Bayes-optimal figures: task -> metric -> value.

  Empty for corpora of files, and for tasks derived from the synthetic labels.
  """
  derived = config.data.task != "regression" or config.data.sample_unit == "dialogue"
  if config.data.path or config.data.num_folds or derived:
    return lambda masks: {}
  corpus = prepare.load(config)
  if "bayes" not in corpus.notes:
    return lambda masks: {}
  # As the corpus was drawn: the run may read only some of its modalities.
  split = corpus.splits[name]
  options = config.data.synthetic
  likelihoods = posterior.log_likelihoods(options, split)
  order = modality_order(config.corpus_spec.widths)

  def figures(masks: missing.Masks) -> dict[str, dict[str, float]]:
    available = np.zeros((len(split), len(MODALITIES)), bool)
    for column, modality in enumerate(order):
      available[:, MODALITIES.index(modality)] = masks.available[:, column]
    known = likelihoods
    if masks.lost:
      hidden = missing.apply(split, masks._replace(available=available))
      known = posterior.log_likelihoods(options, hidden)
    found: dict[str, dict[str, float]] = {}
    best = posterior.optimum_under(options, split, available, known)
    for key, (task, metric) in _BOUNDS.items():
      if key in best:
        found.setdefault(task, {})[metric] = best[key]
    return found

  return figures


def _tidy(report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]):
  """Columns of the csv: one line per pattern, task, metric and seed."""
  lines = []
  for row in rows:
    realised = row["realised"].get("steps", row["realised"]["entries"])
    fixed = {
      "model": report["model"],
      "split": report["split"],
      "protocol": row["protocol"],
      "pattern": row["pattern"],
      "rate": row["rate"],
      "realised_rate": realised,
      "samples": report["samples"],
      "without_content": row["without_content"],
    }
    for task, figures in row["figures"].items():
      for metric, figure in figures.items():
        optimum = row["bayes"].get(task, {}).get(metric, "")
        lines += [
          {
            **fixed,
            "task": task,
            "metric": metric,
            "seed": seed,
            "value": value,
            "bayes": optimum,
          }
          for seed, value in zip(report["seeds"], figure["values"], strict=True)
        ]
  return {key: [line[key] for line in lines] for key in lines[0]}
