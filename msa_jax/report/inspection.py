"""Looks into a trained system: attention of a sample before and after selection.

Source: H-GEM (Computer Systems & Applications 2026, 35(3)), figure 2, equations 3, 4.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from msa_jax import models
from msa_jax.config.aliases import upgrade
from msa_jax.data.batching import batches
from msa_jax.errors import UserError
from msa_jax.layers.masking import hide_unavailable
from msa_jax.report import style
from msa_jax.report.figures import Drawing
from msa_jax.report.reading import Run, at
from msa_jax.runs import prepare
from msa_jax.runs.open import open_run
from msa_jax.step import compose, ema
from msa_jax.typing import Batch


class Attention(NamedTuple):
  """Attention of one sample between its real steps, mean over heads.

  Attributes:
    sample: its id.
    split: where it is from.
    steps: modality of each step, those of one modality together.
    before: of all keys; a row sums to 1.
    after: of the keys that each head selects.
    kept: keys that a query keeps, in each head.
  """

  sample: str
  split: str
  steps: Sequence[str]
  before: Float[np.ndarray, "t t"]
  after: Float[np.ndarray, "t t"]
  kept: int


class Inside:
  """A trained run, its held-out split, and what its modules sow of some samples.

  Attributes:
    config: of the run.
    split: `run.split`, preprocessed.
    data: all of it as one batch, on the host.
  """

  def __init__(self, run: Run):
    """Opens a run and reads its data.

    Raises:
      UserError: the run or its data cannot be read.
    """
    opened = open_run(run.path)
    self.config = opened.config
    params, collections = ema.predicting(*opened.selected[0])
    corpus = prepare.reload(self.config, opened.pipeline)
    self.split = corpus.splits[run.split]
    lengths = dict(self.config.corpus_spec.lengths)
    self.data = batches.whole(self.split, corpus.tasks, lengths)
    model = compose.networks(self.config).outer
    variables = {"params": params, **collections}
    self._apply = jax.jit(
      lambda batch: model.apply(
        variables, batch, train=False, mutable=["intermediates"]
      )[1]
    )

  def sown(self, rows: Sequence[int]) -> tuple[Batch, Any]:
    """The batch of some rows as the network reads it, and what its modules sow of it,
    by the run's first seed."""
    batch = batches.take(self.data, jnp.asarray(rows))
    batch = hide_unavailable(batch, keep_lost=True)
    return batch, self._apply(batch).get("intermediates", {})


def selecting_module(run: Run) -> str:
  """Name of the module whose attention keeps the top k of its keys; "" = none."""
  system = models.SYSTEMS.get(run.model)
  model = at(upgrade(run.config), "model")
  return system.attention(model) if system is not None and model else ""


def attention(run: Run, sample: str = "") -> Attention:
  """Attention of the first selecting layer for one sample, by the run's first seed.

  Args:
    run: a trained run; its data file must be there.
    sample: id in `run.split`; "" = the one with the most steps.

  Raises:
    UserError: the run or its data cannot be read, there is no such sample, or the
      model has no attention that selects.
  """
  module = selecting_module(run)
  if not module:
    raise UserError(f"{run.model} has no top-k attention over all its steps.")
  inside = Inside(run)
  row = row_of(inside.split.ids, inside.data, sample)
  before, after = _first_selection(inside.sown([row])[1], module)
  # A key that no query and no head gives any weight is padding.
  real = np.any(before > 0, axis=(0, 1))
  order = inside.config.corpus_spec.modalities
  split = inside.split
  steps, chosen = by_modality(real, order)
  index = np.ix_(chosen, chosen)
  return Attention(
    str(split.ids[row]),
    run.split,
    steps,
    before.mean(axis=0)[index].astype(float),
    after.mean(axis=0)[index].astype(float),
    int(np.count_nonzero(after, axis=-1).max()),
  )


def by_modality(
  real: Bool[np.ndarray, " s"], order: Sequence[str]
) -> tuple[list[str], np.ndarray]:
  """Modalities and positions of the real tokens, sorted by modality and then time.

  Args:
    real: of tokens that come step by step, all modalities of a step together.
    order: modalities within a step.
  """
  positions = np.flatnonzero(real)
  columns = positions % len(order)
  sort = np.argsort(columns, kind="stable")
  return [order[int(column)] for column in columns[sort]], positions[sort]


def _first_selection(sown, module: str):
  """Weights [h t s] before and after the selection of the first layer of a module."""
  layers: dict[str, dict[str, np.ndarray]] = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(sown):
    names = [str(entry.key) for entry in path if hasattr(entry, "key")]
    layers.setdefault("/".join(names[:-1]), {})[names[-1]] = np.asarray(leaf)[0]
  first = min(
    name for name in layers if module in name and "weights_all" in layers[name]
  )
  return layers[first]["weights_all"], layers[first]["weights"]


def row_of(ids: np.ndarray, data: Batch, sample: str) -> int:
  """Row of a sample by its id; "" = the one with the most steps.

  Raises:
    UserError: there is no such id.
  """
  if sample:
    places = np.flatnonzero(np.asarray(ids).astype(str) == sample)
    if not len(places):
      raise UserError(f"--sample={sample}: no such id in the run's split.")
    return int(places[0])
  steps = sum(np.asarray(m.mask).sum(axis=-1) for m in data.modalities.values())
  # Selection shows in long samples: k counts from the longest length.
  return int(np.argmax(steps))


def drawing(run: Run, found: Attention) -> Drawing:
  """Attention before and after selection, as two maps (H-GEM, figure 2)."""
  figure, axes = style.panels(2, width=4.4, height=4.2)
  count, most = len(found.steps), float(found.before.max())
  edges = [i for i in range(1, count) if found.steps[i] != found.steps[i - 1]]
  spans = list(zip([0, *edges], [*edges, count], strict=True))
  middles = [(low + high - 1) / 2 for low, high in spans]
  names = [f"{found.steps[low]} ({high - low})" for low, high in spans]
  shown = (("before selection", found.before), ("after selection", found.after))
  for axis, (title, weights) in zip(axes, shown, strict=True):
    image = axis.imshow(weights, cmap=style.SEQUENTIAL, vmin=0, vmax=most)
    for edge in edges:
      axis.axhline(edge - 0.5, color="white", lw=1)
      axis.axvline(edge - 0.5, color="white", lw=1)
    axis.set_xticks(middles, names, fontsize=7)
    axis.set_yticks(middles, names, fontsize=7, rotation=90, va="center")
    axis.set_xlabel("key: steps of each modality")
    share = float(weights.sum(axis=1).mean())
    axis.set_title(f"{title}: {share:.0%} of the weight")
  axes[0].set_ylabel("query")
  axes[0].figure.colorbar(image, ax=axes, label="weight, mean over heads", shrink=0.7)
  if found.kept >= count:
    all_kept = " It has no more steps than the k keys to keep: all are kept."
  else:
    all_kept = ""
  caption = (
    f"The first layer that selects its keys, on {found.sample} of {found.split}, first"
    " seed."
    f" Each of {count} queries keeps up to {found.kept} keys in every head.{all_kept}"
  )
  title = f"Top-k attention of sample {found.sample}"
  return Drawing("attention", title, caption, figure)
