"""What a system's modules sow of samples: maps between steps, histograms of gates."""

from collections.abc import Iterator

import jax
import numpy as np
from matplotlib.figure import Figure

from msa_jax import models
from msa_jax.models.system import Look
from msa_jax.report import style
from msa_jax.report.figures import Drawing
from msa_jax.report.inspection import Inside, row_of
from msa_jax.report.reading import Run

SAMPLES = 64  # of a histogram


def looks_of(run: Run) -> tuple[Look, ...]:
  """What the run's system lets a report look at; nothing of an unknown one."""
  system = models.SYSTEMS.get(run.model)
  return () if system is None else system.looks


def drawings(run: Run, sample: str = "") -> list[Drawing]:
  """One figure for each of the system's looks that its modules fill.

  Args:
    run: a trained run; its data file must be there.
    sample: id of the sample whose maps are shown; "" = the one with the most steps.

  Raises:
    UserError: the run or its data cannot be read, or there is no such sample.
  """
  inside = Inside(run)
  row = row_of(inside.split.ids, inside.data, sample)
  others = [i for i in range(len(inside.split)) if i != row][: SAMPLES - 1]
  rows = [row, *others]
  batch, sown = inside.sown(rows)
  masks = {name: np.asarray(each.mask) for name, each in batch.modalities.items()}
  sample, made = inside.split.ids[row], []
  shown = {
    "map": (_maps, f"Weights between the steps of each modality, {sample}"),
    "histogram": (_histograms, f"All units at the real steps of {len(rows)} samples"),
  }
  for number, look in enumerate(looks_of(run)):
    found = list(_leaves(sown, look, masks))
    if not found:
      continue
    draw, caption = shown[look.kind]
    caption = f"{caption} of {run.split}, first seed."
    made.append(Drawing(f"look_{number}", look.title, caption, draw(found, masks)))
  return made


def _leaves(sown, look: Look, masks) -> Iterator[tuple[str, str, np.ndarray]]:
  """Name of the module, modality, and values of everything sown that a look is of."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(sown):
    names = [str(entry.key) for entry in path if hasattr(entry, "key")]
    module = next((name for name in names if look.module in name), "")
    modality = next((name for name in names if name in masks), "")
    if module and modality and names[-1] == look.leaf:
      yield module, modality, np.asarray(leaf, np.float64)


def _maps(found, masks) -> Figure:
  figure, axes = style.panels(len(found), width=3.2, height=3.0)
  for axis, (module, modality, values) in zip(axes, found, strict=True):
    real = int(masks[modality][0].sum())
    shown = values[0, :real, :real]
    axis.set_title(f"{module}, {modality}")
    if not real:
      axis.set_axis_off()
      continue
    image = axis.imshow(shown, cmap=style.SEQUENTIAL, vmin=0)
    axis.set_xlabel("key: step")
    axis.set_ylabel("query: step")
    axis.figure.colorbar(image, ax=axis, shrink=0.7)
  return figure


def _histograms(found, masks) -> Figure:
  figure, axes = style.panels(len(found), width=3.2, height=2.4)
  for axis, (module, modality, values) in zip(axes, found, strict=True):
    mask = masks[modality]
    real = values[:, : mask.shape[1]][mask].ravel()
    axis.hist(real, bins=np.linspace(0, 1, 31), color=style.colour(0))
    axis.set_title(f"{module}, {modality}")
    if len(real):
      axis.axvline(real.mean(), color=style.colour(1), lw=1.4)
      axis.set_xlabel(f"gate, mean {real.mean():.2f}")
  return figure
