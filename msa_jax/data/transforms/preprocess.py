"""What is fitted on the training split and then applied to every corpus of a run:
standardisation, alignment to the text's steps, cluster codes of frames."""

import dataclasses
import json
import os
import zipfile
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from msa_jax.config.options import DataConfig
from msa_jax.data.batching.batches import available_columns
from msa_jax.data.lazy import map_rows
from msa_jax.data.readers.fields import blocks
from msa_jax.errors import UserError
from msa_jax.typing import Corpus, Sequences, Split, Task, modality_order

ALIGNMENTS = ("none", "pool")
TASKS = ("regression", "cls2", "cls7")
_ANCHOR = "text"  # the modality whose steps the others are aligned to
_LLOYD_ROWS, _LLOYD_ROUNDS = 20_000, 20


_DAMAGE = (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile)


@dataclasses.dataclass(frozen=True)
class Preprocessor:
  """Fitted on a training split, stored with the run.

  Attributes:
    widths: feature width of every modality the run knows.
    align: `none`, or `pool` (audio and vision at the text's steps).
    max_steps: longest text kept; 0 = all of it.
    mean, scale: modality -> [d]; values become (x - mean) * scale. Constant columns
      have scale 0. Modalities without an entry stay as they are.
    centroids: modality -> [k d] cluster centres; the code k means padding or lost.
    unseen: modalities that the training split had no content of; the model learned
      nothing from them, so they stay unavailable in later corpora too.
    anchor_steps: most steps that a sample without text is pooled to; 0 = no bound.
  """

  widths: Mapping[str, int]
  align: str
  max_steps: int
  mean: Mapping[str, Float[np.ndarray, " d"]]
  scale: Mapping[str, Float[np.ndarray, " d"]]
  centroids: Mapping[str, Float[np.ndarray, "k d"]]
  unseen: tuple[str, ...] = ()
  anchor_steps: int = 0


def fit(corpus: Corpus, options: DataConfig) -> Preprocessor:
  """Fits on the training split, over real steps only.

  Args:
    corpus: has a split `train`.
    options: `config.data`: `align`, `max_steps`, `standardize` (modalities), `codes`
      (number of clusters of audio and vision frames; 0 = none).

  Raises:
    UserError: unknown alignment, or a negative number.
  """
  if options.align not in ALIGNMENTS:
    raise UserError(f"config.data.align={options.align!r} must be one of {ALIGNMENTS}.")
  modalities = corpus.splits["train"].modalities
  mean, scale = {}, {}
  for name in modality_order(modalities):
    if name in options.standardize:
      mean[name], scale[name] = _moments(modalities[name])
  fitted = Preprocessor(
    widths={name: s.features.shape[-1] for name, s in modalities.items()},
    align=options.align,
    max_steps=options.max_steps,
    mean=mean,
    scale=scale,
    centroids={},
    unseen=tuple(
      name
      for name in modality_order(modalities)
      if not visible_steps(modalities[name]).any()
    ),
    anchor_steps=_anchor_steps(modalities, options.max_steps),
  )
  if not options.num_frame_clusters:
    return fitted
  train, _ = _split(fitted, corpus.splits["train"])
  centroids = {
    name: _centroids(sequences, options.num_frame_clusters)
    for name, sequences in train.modalities.items()
    if name != _ANCHOR and visible_steps(sequences).any()
  }
  return dataclasses.replace(fitted, centroids=centroids)


def apply(preprocessor: Preprocessor, corpus: Corpus) -> Corpus:
  """Returns the corpus as the run's model expects it.

  Modalities that the run never saw are left out; those it knows and the corpus lacks,
  or that it had no training content of, are unavailable. All this is told in `notes`,
  as are truncated samples.

  Raises:
    UserError: a modality of another width.
  """
  splits, truncated, notes = {}, {}, dict(corpus.notes)
  for name, split in corpus.splits.items():
    splits[name], truncated[name] = _split(preprocessor, split)
  found = set(next(iter(corpus.splits.values())).modalities)
  known = set(preprocessor.widths)
  for key, names in (
    ("left_out_modalities", found - known),
    ("lacking_modalities", known - found),
    ("untrained_modalities", found & set(preprocessor.unseen)),
  ):
    if names:
      notes[key] = sorted(names)
  if any(truncated.values()):
    notes["truncated_texts"] = {"max_steps": preprocessor.max_steps, **truncated}
  return dataclasses.replace(corpus, splits=splits, notes=notes)


def _anchor_steps(modalities: Mapping[str, Sequences], max_steps: int) -> int:
  # Samples without text must not make the sequences longer than those with text.
  known = modalities[_ANCHOR].features.shape[1] if _ANCHOR in modalities else 0
  return min(max_steps, known) if max_steps and known else max_steps or known


def _split(preprocessor: Preprocessor, split: Split) -> tuple[Split, int]:
  """One split, and how many texts were cut."""
  modalities, truncated = {}, 0
  for name, width in preprocessor.widths.items():
    sequences = split.modalities.get(name, _absent(split, width))
    if sequences.features.shape[-1] != width:
      raise UserError(
        f"{name} has {sequences.features.shape[-1]} features per step; the run was"
        f" trained on {width}."
      )
    if name in preprocessor.unseen:
      sequences = _absent(split, width)
    modalities[name] = _standardized(preprocessor, name, sequences)
  longest = preprocessor.max_steps
  if longest and _ANCHOR in modalities:
    truncated = int((modalities[_ANCHOR].lengths > longest).sum())
    modalities[_ANCHOR] = _cut(modalities[_ANCHOR], longest)
  if preprocessor.align == "pool":
    anchor = np.zeros(len(split), np.int32)
    if _ANCHOR in modalities:
      anchor = modalities[_ANCHOR].lengths
    for name in modalities:
      if name != _ANCHOR:
        modalities[name] = pool(modalities[name], anchor, preprocessor.anchor_steps)
  for name, centroids in preprocessor.centroids.items():
    ids = {**modalities[name].ids, "codes": _codes(modalities[name], centroids)}
    modalities[name] = dataclasses.replace(modalities[name], ids=ids)
  available = available_columns(split, modalities)
  return dataclasses.replace(
    split, modalities=modalities, available=available
  ), truncated


def _absent(split: Split, width: int) -> Sequences:
  available = split.available
  # Dialogues share their steps between modalities.
  steps = 1 if available is None or available.ndim == 2 else available.shape[1]
  shape = (len(split), steps, width)
  return Sequences(np.zeros(shape, np.float32), np.zeros(len(split), np.int32))


def visible_steps(sequences: Sequences) -> Bool[np.ndarray, "n t"]:
  """Steps that are real and kept their content."""
  steps = np.arange(sequences.features.shape[1])[None, :]
  real = steps < sequences.lengths[:, None]
  return real if sequences.lost is None else real & ~sequences.lost


def _moments(sequences: Sequences) -> tuple[np.ndarray, np.ndarray]:
  visible = visible_steps(sequences)
  count = max(int(visible.sum()), 1)
  # Two passes in float64: raw acoustic features reach 1e5 with small spreads.
  rows = list(blocks(len(visible)))
  kept = (sequences.features[r][visible[r]].astype(np.float64) for r in rows)
  mean = sum(values.sum(axis=0) for values in kept) / count
  kept = (sequences.features[r][visible[r]].astype(np.float64) for r in rows)
  variance = sum(((values - mean) ** 2).sum(axis=0) for values in kept) / count
  deviation = np.sqrt(variance)
  varies = deviation > 1e-6 * np.maximum(np.abs(mean), 1e-6)
  scale = np.where(varies, 1.0 / np.where(varies, deviation, 1.0), 0.0)
  return mean, scale


def _standardized(
  preprocessor: Preprocessor, name: str, sequences: Sequences
) -> Sequences:
  if name not in preprocessor.mean:
    return sequences
  mean, scale = preprocessor.mean[name], preprocessor.scale[name]
  visible = visible_steps(sequences)

  def standard(rows, values):
    return np.where(visible[rows][..., None], (values - mean) * scale, 0.0)

  steps = sequences.features.shape[1]
  features = map_rows(sequences.features, steps, np.float32, standard)
  return dataclasses.replace(sequences, features=features)


def _cut(sequences: Sequences, longest: int) -> Sequences:
  return Sequences(
    features=sequences.features[:, :longest],
    lengths=np.minimum(sequences.lengths, longest).astype(np.int32),
    lost=None if sequences.lost is None else sequences.lost[:, :longest],
    ids={name: ids[:, :longest] for name, ids in sequences.ids.items()},
  )


def pool(
  sequences: Sequences, anchor: Int[np.ndarray, " n"], longest: int = 0
) -> Sequences:
  """Masked adaptive mean pooling to as many steps as the anchor has (H-GEM, row 12).

  Segment s of a sample with L frames and T anchor steps averages the frames
  floor(s L / T) .. floor((s + 1) L / T) - 1, at least one: with fewer frames than
  steps they repeat. Lost frames do not count; a segment of lost frames only is lost.
  Ids are those of a segment's first frame.

  Args:
    sequences: the modality to pool.
    anchor: steps to pool to; 0 = no anchor, keep at most `longest` segments.
    longest: greatest number of segments; 0 = no bound.
  """
  frames = sequences.lengths.astype(np.int64)
  bound = longest or max(int(frames.max(initial=0)), 1)
  steps = np.where(anchor > 0, anchor, np.minimum(frames, bound))
  steps = np.where(frames > 0, steps, 0)  # [n]
  width = max(int(steps.max(initial=0)), 1)
  segment = np.arange(width)[None, :]
  share = np.maximum(steps, 1)[:, None]
  start = segment * frames[:, None] // share  # [n t]
  end = np.maximum(start + 1, (segment + 1) * frames[:, None] // share)
  end = np.minimum(end, sequences.features.shape[1])
  start = np.minimum(start, end)
  real = segment < steps[:, None]
  visible = visible_steps(sequences)
  counts = _segment_sums(visible[..., None].astype(np.int32), start, end)  # [n s 1]

  def mean(rows, values):
    values = np.where(visible[rows][..., None], values, 0.0).astype(np.float64)
    sums = _segment_sums(values, start[rows], end[rows])
    seen = real[rows][..., None] & (counts[rows] > 0)
    return np.where(seen, sums / np.maximum(counts[rows], 1), 0.0)

  features = map_rows(sequences.features, width, np.float32, mean)
  lost = real & (counts[..., 0] == 0)
  first = np.minimum(start, sequences.features.shape[1] - 1)
  return Sequences(
    features,
    steps.astype(np.int32),
    lost if lost.any() else None,
    ids={
      name: np.where(real, np.take_along_axis(ids, first, axis=1), 0).astype(np.int32)
      for name, ids in sequences.ids.items()
    },
  )


def _segment_sums(
  values: Num[np.ndarray, "n t d"],
  start: Int[np.ndarray, "n s"],
  end: Int[np.ndarray, "n s"],
) -> Num[np.ndarray, "n s d"]:
  total = np.cumsum(values, axis=1)
  total = np.concatenate([np.zeros_like(total[:, :1]), total], axis=1)
  pick = np.arange(len(values))[:, None]
  return total[pick, end] - total[pick, start]


def _centroids(sequences: Sequences, k: int) -> Float[np.ndarray, "k d"]:
  """Lloyd's k-means on a fixed subsample of visible frames, from k-means++ seeds.

  With fewer than k distinct frames some centroids coincide.
  """
  rows, steps = np.nonzero(visible_steps(sequences))
  random = np.random.default_rng(0)
  chosen = random.permutation(len(rows))[:_LLOYD_ROWS]
  frames = np.zeros((len(chosen), sequences.features.shape[-1]))
  for part in blocks(len(chosen)):
    where = chosen[part]
    read, place = np.unique(rows[where], return_inverse=True)
    frames[part] = sequences.features[read][place, steps[where]]
  centroids = _spread_seeds(frames, k, random)
  for _ in range(_LLOYD_ROUNDS):
    nearest = _nearest(frames, centroids)
    sums = np.zeros_like(centroids)
    np.add.at(sums, nearest, frames)
    counts = np.bincount(nearest, minlength=k)[:, None]
    # An empty cluster keeps its centre.
    centroids = np.where(counts > 0, sums / np.maximum(counts, 1), centroids)
  return centroids


def _spread_seeds(
  frames: Float[np.ndarray, "n d"], k: int, random: np.random.Generator
) -> Float[np.ndarray, "k d"]:
  """k-means++ (Arthur and Vassilvitskii 2007): far frames are likelier seeds."""
  chosen = [int(random.integers(len(frames)))]
  distance = ((frames - frames[chosen[0]]) ** 2).sum(axis=1)
  while len(chosen) < k:
    edges = np.cumsum(distance)
    row = np.searchsorted(edges, random.random() * edges[-1], side="right")
    chosen.append(min(int(row), len(frames) - 1))
    distance = np.minimum(distance, ((frames - frames[chosen[-1]]) ** 2).sum(axis=1))
  return frames[chosen]


def _nearest(
  frames: Num[np.ndarray, "n d"], centroids: Float[np.ndarray, "k d"]
) -> Int[np.ndarray, " n"]:
  cross = frames.astype(np.float64) @ centroids.T
  return np.argmin((centroids**2).sum(axis=1)[None, :] - 2.0 * cross, axis=1)


def _codes(
  sequences: Sequences, centroids: Float[np.ndarray, "k d"]
) -> Int[np.ndarray, "n t"]:
  visible = visible_steps(sequences)
  codes = np.full(visible.shape, len(centroids), np.int32)
  for rows in blocks(len(codes)):
    seen = visible[rows]
    codes[rows][seen] = _nearest(sequences.features[rows][seen], centroids)
  return codes


def save(preprocessor: Preprocessor, path: str | os.PathLike) -> None:
  """Writes the fitted numbers as a plain `.npz`."""
  arrays = {
    f"{kind}/{name}": value
    for kind in ("mean", "scale", "centroids")
    for name, value in getattr(preprocessor, kind).items()
  }
  settings = {
    "widths": dict(preprocessor.widths),
    "align": preprocessor.align,
    "max_steps": preprocessor.max_steps,
    "unseen": list(preprocessor.unseen),
    "anchor_steps": preprocessor.anchor_steps,
  }
  np.savez(path, settings=np.asarray(json.dumps(settings)), **arrays)


def load(path: str | os.PathLike) -> Preprocessor:
  """Reads what `save` wrote.

  Raises:
    UserError: not there, or damaged.
  """
  try:
    with np.load(path, allow_pickle=False) as file:
      arrays = dict(file)
    settings = json.loads(str(arrays.pop("settings")))
    settings["unseen"] = tuple(settings["unseen"])
    parts: dict[str, dict] = {"mean": {}, "scale": {}, "centroids": {}}
    for key, value in arrays.items():
      kind, _, name = key.partition("/")
      parts[kind][name] = value
    return Preprocessor(**settings, **parts)
  except _DAMAGE as error:
    raise UserError(f"{path} cannot be read: {error}.") from error


def derive_task(corpus: Corpus, task: str) -> Corpus:
  """Turns the sentiment regression into classes (H-GEM, row 24).

  Args:
    corpus: any corpus.
    task: `regression` (as it is), `cls2` (negative, positive; zeros have no label),
      `cls7` (clipped to [-3, 3], rounded half to even).

  Raises:
    UserError: unknown task, no sentiment regression to derive it from, or `cls7` of
      scores in another range than [-3, 3].
  """
  if task not in TASKS:
    raise UserError(f"config.data.task={task!r} must be one of {TASKS}.")
  if task == "regression":
    return corpus
  known = corpus.tasks.get("sentiment")
  if known is None or known.kind != "regression":
    raise UserError(
      f"config.data.task={task!r} needs a sentiment regression; {corpus.name!r} has"
      f" {sorted(corpus.tasks)}."
    )
  if task == "cls7" and (known.low, known.high) != (-3.0, 3.0):
    raise UserError(
      f"config.data.task='cls7' needs scores in [-3, 3]; those of {corpus.name!r} are"
      f" in [{known.low:g}, {known.high:g}]: choose regression or cls2."
    )
  classes = {
    "cls2": ("negative", "positive"),
    "cls7": tuple(str(value) for value in range(-3, 4)),
  }[task]
  splits = {}
  for name, split in corpus.splits.items():
    labels = dict(split.labels)
    if "sentiment" in labels:
      labels["sentiment"] = _classes(labels["sentiment"], task)
    splits[name] = dataclasses.replace(split, labels=labels)
  tasks = {
    **corpus.tasks,
    "sentiment": Task("classes", classes=classes, protocol="classes"),
  }
  return dataclasses.replace(corpus, splits=splits, tasks=tasks)


def _classes(values: Float[np.ndarray, " n"], task: str) -> Int[np.ndarray, " n"]:
  known = np.isfinite(values)
  numbers = np.where(known, values, 0.0)
  if task == "cls2":
    return np.where(known & (numbers != 0), numbers > 0, -1).astype(np.int32)
  rounded = np.rint(np.clip(numbers, -3, 3)) + 3
  return np.where(known, rounded, -1).astype(np.int32)
