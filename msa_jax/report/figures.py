"""Figures of training: curves, entropies, expert weights, fusion weights.

Every function takes a `Run` and returns a `Drawing`, or None where the run has nothing
to draw.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from msa_jax.report import style
from msa_jax.report.reading import Run, expert_names
from msa_jax.typing import modality_order


class Drawing(NamedTuple):
  """A figure, its title and what it shows, in words."""

  name: str
  title: str
  caption: str
  figure: Figure


Series = Mapping[int, tuple[np.ndarray, np.ndarray]]  # seed -> epochs, values


def series(run: Run, *path: str) -> dict[int, tuple[np.ndarray, np.ndarray]]:
  """One figure of metrics.jsonl over epochs, by seed.

  Args:
    run: the run.
    path: keys into a line, e.g. `"valid", "sentiment", "mae"`.
  """
  found: dict[int, list[tuple[int, Any]]] = {}
  for record in run.epochs:
    value: Any = record
    for key in path:
      value = value.get(key) if isinstance(value, Mapping) else None
    if value is not None:
      found.setdefault(record["seed"], []).append((record["epoch"], value))
  return {
    seed: (np.asarray([e for e, _ in rows]), np.asarray([v for _, v in rows], float))
    for seed, rows in sorted(found.items())
  }


def band(lines: Series) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Epochs, and mean, least and greatest value over the seeds that got so far."""
  last = max(int(epochs.max()) for epochs, _ in lines.values())
  values = np.full((len(lines), last), np.nan)
  for row, (epochs, figures) in enumerate(lines.values()):
    values[row, epochs - 1] = figures
  known = ~np.all(np.isnan(values), axis=0)
  values, epochs = values[:, known], np.arange(1, last + 1)[known]
  return (
    epochs,
    np.nanmean(values, axis=0),
    np.nanmin(values, axis=0),
    np.nanmax(values, axis=0),
  )


def _draw_band(axis, lines: Series, index: int, label: str) -> None:
  epochs, mean, low, high = band(lines)
  drawn = {"color": style.colour(index), "linestyle": style.line(index)}
  axis.plot(epochs, mean, label=label, linewidth=1.6, **drawn)
  if len(lines) > 1:
    axis.fill_between(epochs, low, high, color=style.colour(index), alpha=0.2, lw=0)
  axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def training(run: Run) -> Drawing | None:
  """Training loss and the validation figures that matter, with bands over seeds."""
  shown: list[tuple[str, tuple[str, ...]]] = [("training loss", ("train", "loss"))]
  for task, options in run.tasks().items():
    names = {"regression": ("mae", "corr"), "classes": ("wa", "ua")}
    for name in names.get(options.get("kind", ""), ("f1",)):
      shown.append((f"validation {name}, {task}", ("valid", task, name)))
  found = [(title, lines) for title, path in shown if (lines := series(run, *path))]
  if not found:
    return None
  figure, axes = style.panels(len(found))
  for axis, (title, lines) in zip(axes, found, strict=True):
    _draw_band(axis, lines, 0, "")
    axis.set_title(title)
    axis.set_xlabel("epoch")
  seeds = len(found[0][1])
  caption = (
    f"Mean over {seeds} seeds, the band from the least to the greatest; seeds that"
    " stopped early are no longer in the last epochs' mean."
  )
  return Drawing(
    "training", "Training curves", caption if seeds > 1 else "One seed.", figure
  )


def _gates(run: Run) -> list[str]:
  names: dict[str, None] = {}
  for record in run.epochs:
    names |= dict.fromkeys(record.get("routing") or {})
  return list(names)


_ROUTING = (
  (
    "router_entropy_dense_normalised",
    "Router entropy on validation",
    "entropy / log(experts)",
  ),
  ("information_dense_nats", "Information of sample and expert", "nats"),
)


def entropies(run: Run) -> Drawing | None:
  """How undecided each gate is, and how much its choice depends on the sample, over
  epochs."""
  gates = _gates(run)
  figure, axes = style.panels(2, width=4.4, height=3.0)
  drawn = 0
  for axis, (name, title, unit) in zip(axes, _ROUTING, strict=True):
    for index, gate in enumerate(gates):
      lines = series(run, "routing", gate, name)
      if lines:
        _draw_band(axis, lines, index, gate)
        drawn += 1
    axis.set_xlabel("epoch")
    axis.set_ylabel(unit)
    axis.set_title(title)
  if not drawn:
    return None
  axes[0].set_ylim(0, 1.05)
  axes[1].set_ylim(bottom=0)
  if len(gates) <= 12:
    axes[0].legend(fontsize=7, ncols=2)
  caption = (
    "Left: mean over samples of the entropy of the gate's distribution before"
    " selection, as a share of its maximum: 1 = no preference, 0 = always one expert."
    " Right: the entropy of the mean distribution minus that mean, in nats: 0 = every"
    " sample is routed alike, log(experts) = each surely and all experts used."
  )
  return Drawing("entropies", "Router entropy over training", caption, figure)


def expert_weights(run: Run) -> Drawing | None:
  """Mean weight of every expert of every gate over epochs, stacked (expert load)."""
  gates = {g: s for g in _gates(run) if (s := _weights(run, g)) is not None}
  if not gates:
    return None
  figure, axes = style.panels(len(gates))
  for axis, (gate, (epochs, weights)) in zip(axes, gates.items(), strict=True):
    names = expert_names(run, gate, weights.shape[1])
    colours = [style.colour(index) for index in range(len(names))]
    axis.stackplot(epochs, weights.T, labels=names, colors=colours, alpha=0.85)
    axis.set_title(gate)
    axis.set_ylim(0, max(1.0, float(weights.sum(axis=1).max())))
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(names) <= 8:
      axis.legend(fontsize=6, loc="lower left", **style.ON_COLOUR)
  caption = "Mean over validation samples and seeds of the weights after selection."
  return Drawing("expert_weights", "Expert load over training", caption, figure)


def _weights(run: Run, gate: str) -> tuple[np.ndarray, np.ndarray] | None:
  """Epochs and mean weights [epoch e] of a gate, over seeds."""
  by_epoch: dict[int, list[Sequence[float]]] = {}
  for record in run.epochs:
    weights = ((record.get("routing") or {}).get(gate) or {}).get("mean_combine")
    if weights and None not in weights:
      by_epoch.setdefault(record["epoch"], []).append(weights)
  if not by_epoch:
    return None
  epochs = sorted(by_epoch)
  return np.asarray(epochs), np.asarray([np.mean(by_epoch[e], axis=0) for e in epochs])


def balance(runs: Sequence[Run]) -> Drawing | None:
  """Gradient sizes g_i and shares of the fusion weights (AWF, figures 1 and 4 to 6).

  Args:
    runs: drawn side by side, with one scale; those without such figures are left out.
  """
  shown = [(run, names) for run in runs if (names := _balanced(run))]
  if not shown:
    return None
  count = len(shown)
  figure, axes = style.panels(2 * count, width=3.8, height=2.6, columns=count)
  highest = 0.0
  for place, (run, names) in enumerate(shown):
    upper, lower = axes[place], axes[count + place]
    omegas, epochs = [], np.zeros(0)
    for index, name in enumerate(names):
      lines = series(run, "train", f"balance/g_{name}")
      _draw_band(upper, lines, index, name)
      highest = max(highest, float(band(lines)[3].max()))
      epochs, mean, _, _ = band(series(run, "train", f"balance/omega_{name}"))
      omegas.append(mean)
    shares = np.asarray(omegas) / np.sum(omegas, axis=0)
    bottoms = np.cumsum(shares, axis=0) - shares
    for index, name in enumerate(names):
      drawn = {"color": style.colour(index), "label": name}
      lower.bar(epochs, shares[index], bottom=bottoms[index], **drawn)
    said = f"{run.name}: " if count > 1 else ""
    upper.set_title(f"{said}gradient size g")
    lower.set_title(f"{said}shares of the fusion weights")
    lower.set_ylim(0, 1)
    lower.set_xlabel("epoch")
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
  for upper in axes[:count]:
    upper.set_ylim(0, 1.05 * highest or None)
  axes[0].legend(fontsize=7)
  axes[count].legend(fontsize=7, loc="lower left", **style.ON_COLOUR)
  caption = (
    "Above: mean absolute gradient of each modality's last linear layer, mean per epoch"
    " (bands: least to greatest seed); B-fusion draws the curves together. Below: each"
    " modality's weight as a share of all. Modalities without data are left out."
  )
  return Drawing("balance", "Balance of modalities", caption, figure)


_COSINES = {"task_cosine_epoch/": "mean of an epoch", "task_cosine/": "of a batch"}


def agreement(run: Run) -> Drawing | None:
  """Cosines of the tasks' gradients on what they share, over epochs (MMoLRE)."""
  names: dict[str, None] = {}
  for record in run.epochs:
    keys = record.get("train") or {}
    names |= dict.fromkeys(k for k in keys if k.startswith(tuple(_COSINES)))
  groups = list(dict.fromkeys(name.split("/", 1)[1] for name in names))
  if not groups:
    return None
  figure, axes = style.panels(len(groups))
  for axis, group in zip(axes, groups, strict=True):
    for index, (kind, label) in enumerate(_COSINES.items()):
      if lines := series(run, "train", f"{kind}{group}"):
        _draw_band(axis, lines, index, label)
    axis.axhline(0.0, color="#8C8C8C", lw=1)
    axis.set_ylim(-1, 1)
    axis.set_title(group)
    axis.set_xlabel("epoch")
  axes[0].legend(fontsize=7)
  caption = (
    "1: both tasks ask the shared parameters for the same change; 0: for unrelated"
    " ones; below: they are in conflict. Gradients of single batches are mostly noise;"
    " bands from the least to the greatest seed."
  )
  return Drawing("agreement", "Agreement of the tasks' gradients", caption, figure)


def _balanced(run: Run) -> list[str]:
  """Modalities with a gradient in the run's log."""
  sizes: dict[str, float] = {}
  for record in run.epochs:
    for key, value in (record.get("train") or {}).items():
      if key.startswith("balance/g_") and value is not None:
        name = key.removeprefix("balance/g_")
        sizes[name] = max(sizes.get(name, 0.0), value)
  order = modality_order(sizes)
  return [name for name in order if sizes[name] > 0]
