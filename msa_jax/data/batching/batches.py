"""From splits to batches: static shapes, everything optional masked, and one order of
samples whether they live on the device or are streamed from the host."""

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from msa_jax.data.labels import known
from msa_jax.typing import (
  Batch,
  Label,
  Modality,
  Sequences,
  Split,
  Task,
  modality_order,
)


def _fit(
  values: Shaped[np.ndarray, "n t *d"], length: int
) -> Shaped[np.ndarray, "n length *d"]:
  """Cuts or zero-pads the time axis."""
  missing = length - values.shape[1]
  if missing <= 0:
    return values[:, :length]
  padding = [(0, 0), (0, missing)] + [(0, 0)] * (values.ndim - 2)
  return np.pad(values, padding)


def _has_content(
  features: Float[np.ndarray, "n t d"], hidden: Bool[np.ndarray, "n t"]
) -> bool:
  """Whether a hidden step holds anything; in blocks, to bound the copies."""
  blocks = (slice(start, start + 128) for start in range(0, len(hidden), 128))
  return any(bool(np.any(features[rows][hidden[rows]])) for rows in blocks)


def _modality(sequences: Sequences, length: int) -> Modality:
  steps = np.arange(length)[None, :]
  mask = steps < sequences.lengths[:, None]
  lost = np.zeros_like(mask) if sequences.lost is None else _fit(sequences.lost, length)
  features = _fit(np.asarray(sequences.features), length)  # read, if they are on disk
  visible = mask & ~lost
  if _has_content(features, ~visible):
    features = np.where(visible[..., None], features, features.dtype.type(0))
  return Modality(
    features=features,
    mask=mask,
    lost=lost & mask,
    ids={name: _fit(ids, length) for name, ids in sequences.ids.items()},
    context=dict(sequences.context),
  )


def _label(values: np.ndarray | None, task: Task, shape: tuple[int, ...]) -> Label:
  """Label of samples [n], or of dialogues' utterances [n t], as `shape` says."""
  kind = np.float32 if task.kind == "regression" else np.int32
  if values is None:
    columns = (len(task.classes),) if task.kind == "binary" else ()
    return Label(np.zeros((*shape, *columns), kind), np.zeros(shape, bool))
  present = known(values)
  mask = present.reshape(*shape, -1).all(axis=-1)
  return Label(np.where(present, values, 0).astype(kind), mask)


def availability(split: Split) -> Bool[np.ndarray, "n *t m"]:
  """Which modalities each sample, or each utterance of a dialogue, has.

  Returns:
    [n m] bool, columns in `modality_order`; [n t m] if `split.available` is.
  """
  order = modality_order(split.modalities)
  lengths = np.stack([split.modalities[name].lengths for name in order], axis=-1)
  if split.available is None:
    return lengths > 0
  if split.available.ndim == 2:
    return split.available & (lengths > 0)
  step = np.arange(split.available.shape[1])[None, :, None]
  return split.available & (step < lengths[:, None, :])


def available_columns(split: Split, names: Iterable[str]) -> np.ndarray | None:
  """`split.available` for other modalities; those the split lacks are missing."""
  if split.available is None:
    return None
  old = modality_order(split.modalities)
  absent = np.zeros(split.available.shape[:-1], bool)
  columns = [
    split.available[..., old.index(name)] if name in old else absent
    for name in modality_order(names)
  ]
  return np.stack(columns, axis=-1)


def whole(
  split: Split, tasks: Mapping[str, Task], lengths: Mapping[str, int] | None = None
) -> Batch:
  """A whole split as one batch on the host; `take` picks rows of it.

  Args:
    split: host arrays, n samples.
    tasks: tasks to carry; a label the split lacks is masked for every sample.
    lengths: static number of steps per modality (cut or zero-padded to it); None or
      an absent name = as stored. Dialogues are taken as stored.

  Returns:
    A `Batch` of numpy arrays with b = n; features keep their float type and are zero
    at padded and lost steps (copied only where they were not).
  """
  order = modality_order(split.modalities)
  available = availability(split)
  if available.ndim == 3:
    # All utterances of a dialogue, also of one longer than those of the training.
    lengths = {}
  modalities = {}
  for name in order:
    sequences = split.modalities[name]
    length = (lengths or {}).get(name, int(sequences.features.shape[1]))
    modalities[name] = _modality(sequences, length)
  return Batch(
    modalities=modalities,
    available=available,
    labels={
      name: _label(split.labels.get(name), task, available.shape[:-1])
      for name, task in tasks.items()
    },
    index=np.arange(len(split), dtype=np.int32),
    sample_mask=np.ones(len(split), bool),
  )


def take(data: Batch, index: Int[Array | np.ndarray, " b"]) -> Batch:
  """Rows of a batch; an index of -1 gives a filler row, where everything is masked.

  Features become float32. Works inside `jit`.

  Args:
    data: the batch to pick from.
    index: rows.
  """
  real = jnp.asarray(index) >= 0  # [b]

  def rows(leaf):
    leaf = jnp.asarray(leaf)[jnp.maximum(index, 0)]
    shape = real.reshape(-1, *[1] * (leaf.ndim - 1))
    leaf = jnp.where(shape, leaf, jnp.zeros((), leaf.dtype))
    floating = jnp.issubdtype(leaf.dtype, jnp.floating)
    return leaf.astype(jnp.float32) if floating else leaf

  batch = jax.tree.map(rows, data)
  return batch.replace(index=jnp.where(real, batch.index, -1))


def epoch_order(
  seed: Int[Array, ""] | int,
  epoch: Int[Array, ""] | int,
  size: int,
  batch_size: int,
  shuffle: bool = True,
  sources: Sequence[int] = (),
) -> Int[Array, "steps b"]:
  """Rows of every batch of an epoch, the last batch filled with -1.

  Each sample once; with `sources`, draws alternate between them, each in random order
  and anew when it is through, until every sample of the largest was drawn once.

  Args:
    seed, epoch: decide the permutation; may be traced.
    size: number of samples.
    batch_size: rows per batch.
    shuffle: False = in the split's order.
    sources: numbers of successive rows that come from one corpus, adding up to
      `size`; () = one corpus.
  """
  order = jnp.arange(size, dtype=jnp.int32)
  if shuffle:
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(b"shuffle"))
    key = jax.random.fold_in(key, epoch)
    order = (
      _alternating(key, sources)
      if len(sources) > 1
      else jax.random.permutation(key, order)
    )
  steps = -(-len(order) // batch_size)
  filler = jnp.full((steps * batch_size - len(order),), -1, jnp.int32)
  return jnp.concatenate([order, filler]).reshape(steps, batch_size)


def _alternating(key: Key[Array, ""], sources: Sequence[int]) -> Int[Array, " n"]:
  """One row of each source in turn, as many of each as the largest has."""
  longest, start, columns = max(sources), 0, []
  for number, count in enumerate(sources):
    rows = jnp.arange(start, start + count, dtype=jnp.int32)
    own = jax.random.fold_in(key, number)
    passes = [
      jax.random.permutation(jax.random.fold_in(own, again), rows)
      for again in range(-(-longest // count))
    ]
    columns.append(jnp.concatenate(passes)[:longest])
    start += count
  return jnp.stack(columns, axis=1).reshape(-1)


def needed_bytes(split: Split) -> int:
  """Bytes of a split's features, by far the largest part of it."""
  return sum(s.features.nbytes for s in split.modalities.values())


def fits(split: Split, budget_bytes: int) -> bool:
  """Whether the split may live on the device as a whole."""
  return needed_bytes(split) <= budget_bytes


def _rows(split: Split, index: Int[np.ndarray, " b"]) -> Split:
  """Rows of a split, without what no batch carries."""
  return Split(
    ids=split.ids[index],
    modalities={
      name: Sequences(
        features=np.asarray(sequences.features[index]),
        lengths=sequences.lengths[index],
        lost=None if sequences.lost is None else sequences.lost[index],
        ids={key: ids[index] for key, ids in sequences.ids.items()},
        context={key: ids[index] for key, ids in sequences.context.items()},
      )
      for name, sequences in split.modalities.items()
    },
    labels={name: values[index] for name, values in split.labels.items()},
    available=None if split.available is None else split.available[index],
  )


def stream(
  split: Split,
  tasks: Mapping[str, Task],
  order: Int[np.ndarray, "steps b"],
  first_step: int = 0,
  lengths: Mapping[str, int] | None = None,
) -> Iterator[Batch]:
  """Batches of an epoch from the host, through a prefetching Grain pipeline.

  Only the rows of the batches under way are copied: features may be memory-mapped.

  Args:
    split, tasks, lengths: as for `whole`.
    order: as from `epoch_order`.
    first_step: where to start, so that an interrupted epoch goes on.

  Yields:
    The same batches as `take(whole(...), order[step])`.
  """

  def gather(step: int) -> Batch:
    index = order[step]
    real = index >= 0

    def fill(leaf):
      shape = real.reshape(-1, *[1] * (leaf.ndim - 1))
      leaf = np.where(shape, leaf, leaf.dtype.type(0))
      return leaf.astype(np.float32) if leaf.dtype.kind == "f" else leaf

    data = whole(_rows(split, np.maximum(index, 0)), tasks, lengths)
    return jax.tree.map(fill, data).replace(index=index.astype(np.int32))

  if first_step >= len(order):
    return
  options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
  steps = grain.MapDataset.range(first_step, len(order))
  yield from steps.map(gather).to_iter_dataset(options)
