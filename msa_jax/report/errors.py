"""Figures of predictions: confusion, residuals, calibration, slices; gates by label."""

from collections.abc import Mapping

import numpy as np

from msa_jax.report import style
from msa_jax.report.figures import Drawing
from msa_jax.report.heat import heat, shown_gates
from msa_jax.report.reading import Run, expert_names, numbers
from msa_jax.typing import task_name


def regression_pair(run: Run, task: str) -> tuple[np.ndarray, np.ndarray] | None:
  """Labels and mean predictions of the labelled samples of `run.split`."""
  columns = run.predictions.get(run.split, {})
  label = f"{task_name(task)}_label"
  if label not in columns or task not in columns:
    return None
  labels, values = numbers(columns[label]), numbers(columns[task])
  known = np.isfinite(labels) & np.isfinite(values)
  return (labels[known], values[known]) if known.any() else None


def class_pair(run: Run, task: str) -> tuple[np.ndarray, np.ndarray] | None:
  """Labels [n] and probabilities [n c] of the labelled samples of `run.split`."""
  columns = run.predictions.get(run.split, {})
  classes = run.tasks()[task_name(task)].get("classes", ())
  names = [f"{task}_p_{c}" for c in classes]
  label = f"{task_name(task)}_label"
  if label not in columns or not all(name in columns for name in names):
    return None
  labels = numbers(columns[label])
  probabilities = np.stack([numbers(columns[name]) for name in names], axis=1)
  known = np.isfinite(labels) & np.isfinite(probabilities).all(axis=1)
  return (labels[known].astype(int), probabilities[known]) if known.any() else None


def confusion(labels: np.ndarray, predicted: np.ndarray, count: int) -> np.ndarray:
  """[true, predicted] counts."""
  table = np.zeros((count, count), int)
  np.add.at(table, (labels, predicted), 1)
  return table


def bins(values: np.ndarray, target: np.ndarray, count: int = 10):
  """Means of both and sizes in bins of equally many samples, by rising `values`."""
  parts = np.array_split(np.argsort(values, kind="stable"), min(count, len(values)))
  return (
    np.asarray([values[p].mean() for p in parts]),
    np.asarray([target[p].mean() for p in parts]),
    np.asarray([len(p) for p in parts]),
  )


def _draw_confusion(axis, table: np.ndarray, names) -> None:
  shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
  axis.imshow(shares, cmap=style.SEQUENTIAL, vmin=0, vmax=1)
  for i, j in np.ndindex(*table.shape):
    shade = "black" if shares[i, j] > 0.6 else "white"
    axis.text(j, i, table[i, j], ha="center", va="center", color=shade, fontsize=7)
  axis.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=7)
  axis.set_yticks(range(len(names)), names, fontsize=7)
  axis.set_xlabel("predicted")
  axis.set_ylabel("true")


def predictions(run: Run, task: str) -> Drawing | None:
  """What the predictions of a task look like against the labels."""
  kind = run.tasks()[task].get("kind")
  if kind == "regression":
    return _regression(run, task)
  return _classes(run, task) if kind == "classes" else None


def _regression(run: Run, task: str) -> Drawing | None:
  pair = regression_pair(run, task)
  if pair is None:
    return None
  labels, values = pair
  figure, axes = style.panels(4, width=2.8, columns=4)
  low, high = min(labels.min(), values.min()), max(labels.max(), values.max())
  axes[0].plot([low, high], [low, high], color="#8C8C8C", lw=1)
  axes[0].scatter(labels, values, s=8, alpha=0.5, color=style.colour(0), lw=0)
  axes[0].set_title("Prediction against label")
  axes[0].set_xlabel("label")
  axes[0].set_ylabel("prediction (seeds' mean)")
  said, true, _ = bins(values, labels)
  axes[1].plot([low, high], [low, high], color="#8C8C8C", lw=1)
  axes[1].plot(said, true, marker="o", color=style.colour(1), markersize=4)
  axes[1].set_title("Calibration, in tenths")
  axes[1].set_xlabel("mean prediction")
  axes[1].set_ylabel("mean label")
  residuals = values - labels
  axes[2].hist(residuals, bins=21, color=style.colour(0))
  axes[2].axvline(0.0, color="#8C8C8C", lw=1)
  axes[2].axvline(residuals.mean(), color=style.colour(1), lw=1.4)
  axes[2].set_title(f"Residuals, mean {residuals.mean():+.2f}")
  axes[2].set_xlabel("prediction minus label")
  axes[2].set_ylabel("samples")
  options = run.tasks()[task]
  low, high = round(options["low"]), round(options["high"])
  actual, rounded = (np.rint(np.clip(x, low, high)).astype(int) - low for x in pair)
  names = [str(step) for step in range(low, high + 1)]
  _draw_confusion(axes[3], confusion(actual, rounded, len(names)), names)
  axes[3].set_title("Rounded labels")
  caption = (
    f"{len(labels)} samples of {run.split}. Cells hold counts; shades are shares of"
    " the row. On the grey line prediction and label agree."
  )
  return Drawing(f"predictions_{task}", f"Predictions of {task}", caption, figure)


def _classes(run: Run, task: str) -> Drawing | None:
  pair = class_pair(run, task)
  if pair is None:
    return None
  labels, probabilities = pair
  chosen, sure = probabilities.argmax(axis=1), probabilities.max(axis=1)
  names = list(run.tasks()[task]["classes"])
  figure, axes = style.panels(2, width=4.0, height=3.4)
  _draw_confusion(axes[0], confusion(labels, chosen, len(names)), names)
  axes[0].set_title("Confusion")
  said, true, sizes = bins(sure, (chosen == labels).astype(float))
  axes[1].plot([0, 1], [0, 1], color="#8C8C8C", lw=1)
  axes[1].plot(said, true, marker="o", color=style.colour(1), markersize=4)
  axes[1].set_xlim(0, 1)
  axes[1].set_ylim(0, 1)
  error = float(np.sum(sizes * np.abs(said - true)) / sizes.sum())
  axes[1].set_title(f"Reliability (expected calibration error {error:.3f})")
  axes[1].set_xlabel("probability of the chosen class")
  axes[1].set_ylabel("share that is right")
  caption = f"{len(labels)} samples of {run.split}; probabilities are means over seeds."
  return Drawing(f"predictions_{task}", f"Predictions of {task}", caption, figure)


def slices(run: Run, task: str) -> Drawing | None:
  """Error by polarity, by length of the text and by which modalities are there."""
  pair = regression_pair(run, task) if _is_regression(run, task) else None
  if pair is None:
    return None
  labels, values = pair
  error = np.abs(labels - values)
  columns = run.predictions[run.split]
  known = np.isfinite(numbers(columns[f"{task}_label"]))
  known &= np.isfinite(numbers(columns[task]))
  groups: dict[str, Mapping[str, np.ndarray]] = {
    "by polarity": {
      "negative": labels < 0, "zero": labels == 0, "positive": labels > 0,
    }
  }  # fmt: skip
  if "available" in columns:
    there = np.asarray(columns["available"])[known]
    groups["by what is there"] = {name: there == name for name in sorted(set(there))}
  if "steps_text" in columns:
    groups["by length of the text"] = _by_length(numbers(columns["steps_text"])[known])
  # Where all samples are alike there is nothing to compare.
  groups = {
    t: p for t, p in groups.items() if sum(rows.any() for rows in p.values()) > 1
  }
  if not groups:
    return None
  figure, axes = style.panels(len(groups))
  for axis, (title, parts) in zip(axes, groups.items(), strict=True):
    parts = {name: rows for name, rows in parts.items() if rows.any()}
    heights = [error[rows].mean() for rows in parts.values()]
    axis.bar(range(len(parts)), heights, color=style.colour(0))
    names = [f"{name}\nn={int(rows.sum())}" for name, rows in parts.items()]
    axis.set_xticks(range(len(parts)), names, fontsize=7)
    axis.set_title(f"MAE {title}")
  caption = f"Mean absolute error of the seeds' mean prediction on {run.split}."
  return Drawing(f"slices_{task}", f"Where {task} goes wrong", caption, figure)


def _by_length(lengths: np.ndarray) -> dict[str, np.ndarray]:
  edges = np.unique(np.quantile(lengths, [0, 1 / 3, 2 / 3, 1]))
  pairs = list(zip(edges[:-1], edges[1:], strict=True))
  parts = {}
  for place, (low, high) in enumerate(pairs):
    inside = (lengths > low) | ((place == 0) & (lengths == low))
    parts[f"{low:.0f} to {high:.0f}"] = inside & (lengths <= high)
  return parts or {f"{edges[0]:.0f}": np.ones(len(lengths), bool)}


def _is_regression(run: Run, task: str) -> bool:
  return run.tasks()[task].get("kind") == "regression"


def routing(run: Run) -> Drawing | None:
  """Mean weight of every expert by kind of sample (H-GEM, figures 3 and 4)."""
  arrays = run.routing.get(run.split, {})
  gates = [key.removesuffix("/combine") for key in arrays if key.endswith("/combine")]
  gates = shown_gates(g for g in gates if arrays[f"{g}/combine"].ndim == 3)
  rows = _groups(run, arrays)
  if not gates or not rows:
    return None
  cells, names, starts = [], [], []
  for gate in gates:
    weights = arrays[f"{gate}/combine"].mean(axis=0)  # [n e]
    starts.append(len(names))
    names += [f"{gate}: {e}" for e in expert_names(run, gate, weights.shape[1])]
    cells.append(np.stack([weights[chosen].mean(axis=0) for chosen in rows.values()]))
  table = np.concatenate(cells, axis=1)
  figure = heat(table, list(rows), names, starts)
  figure.axes[0].set_title("Weight of every expert, by kind of sample")
  caption = f"Weights after selection, mean over samples of {run.split} and seeds."
  return Drawing("routing", "Expert activation", caption, figure)


def _groups(run: Run, arrays) -> dict[str, np.ndarray]:
  columns = run.predictions.get(run.split, {})
  ids = arrays.get("ids")
  if ids is None or list(map(str, ids)) != list(columns.get("id", ())):
    return {}
  groups = {f"all (n={len(ids)})": np.ones(len(ids), bool)}
  for task, options in run.tasks().items():
    if f"{task}_label" not in columns:
      continue
    labels = numbers(columns[f"{task}_label"])
    if options.get("kind") == "regression":
      parts = {"< 0": labels < 0, "= 0": labels == 0, "> 0": labels > 0}
    else:
      parts = {c: labels == i for i, c in enumerate(options.get("classes", ()))}
    groups |= {
      f"{task} {name} (n={int(rows.sum())})": rows
      for name, rows in parts.items()
      if rows.any()
    }
  return groups
