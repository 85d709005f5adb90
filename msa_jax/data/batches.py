"""From splits to batches: static shapes, everything optional masked, and one order of
samples whether they live on the device or are streamed from the host."""

import zlib
from collections.abc import Iterator, Mapping

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Shaped

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


def _modality(sequences: Sequences, length: int) -> Modality:
  steps = np.arange(length)[None, :]
  mask = steps < sequences.lengths[:, None]
  lost = np.zeros_like(mask) if sequences.lost is None else _fit(sequences.lost, length)
  return Modality(
    features=_fit(sequences.features, length),
    mask=mask,
    lost=lost & mask,
    ids={name: _fit(ids, length) for name, ids in sequences.ids.items()},
  )


def _label(values: np.ndarray | None, task: Task, size: int) -> Label:
  kind = np.float32 if task.kind == "regression" else np.int32
  if values is None:
    shape = (size, len(task.classes)) if task.kind == "binary" else (size,)
    return Label(np.zeros(shape, kind), np.zeros(size, bool))
  present = np.isfinite(values) if values.dtype.kind == "f" else values >= 0
  mask = present.reshape(size, -1).all(axis=1)
  return Label(np.where(present, values, 0).astype(kind), mask)


def whole(
  split: Split, tasks: Mapping[str, Task], lengths: Mapping[str, int] | None = None
) -> Batch:
  """A whole split as one batch on the host; `take` picks rows of it.

  Args:
    split: host arrays, n samples.
    tasks: tasks to carry; a label the split lacks is masked for every sample.
    lengths: static number of steps per modality (cut or zero-padded to it); None =
      as stored.

  Returns:
    A `Batch` of numpy arrays with b = n; features keep their float type.
  """
  order = modality_order(split.modalities)
  modalities = {}
  for name in order:
    sequences = split.modalities[name]
    length = lengths[name] if lengths else sequences.features.shape[1]
    modalities[name] = _modality(sequences, length)
  return Batch(
    modalities=modalities,
    available=np.stack([split.modalities[n].lengths > 0 for n in order], axis=1),
    labels={
      name: _label(split.labels.get(name), task, len(split))
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
) -> Int[Array, "steps b"]:
  """Rows of every batch of an epoch: each sample once, the last batch filled with -1.

  Args:
    seed, epoch: decide the permutation; may be traced.
    size: number of samples.
    batch_size: rows per batch.
    shuffle: False = in the split's order.
  """
  order = jnp.arange(size, dtype=jnp.int32)
  if shuffle:
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(b"shuffle"))
    order = jax.random.permutation(jax.random.fold_in(key, epoch), order)
  steps = -(-size // batch_size)
  filler = jnp.full((steps * batch_size - size,), -1, jnp.int32)
  return jnp.concatenate([order, filler]).reshape(steps, batch_size)


def needed_bytes(split: Split) -> int:
  """Bytes of a split's features, by far the largest part of it."""
  return sum(s.features.nbytes for s in split.modalities.values())


def fits(split: Split, budget_bytes: int) -> bool:
  """Whether the split may live on the device as a whole."""
  return needed_bytes(split) <= budget_bytes


class _Rows:
  """Random access to the batches of an epoch, for Grain."""

  def __init__(self, data: Batch, order: Int[np.ndarray, "steps b"], first: int):
    self._data, self._order, self._first = data, order, first

  def __len__(self) -> int:
    return len(self._order) - self._first

  def __getitem__(self, step: int) -> Batch:
    index = self._order[step + self._first]
    real = index >= 0
    rows = np.where(real, index, 0)

    def pick(leaf):
      leaf = leaf[rows]
      leaf[~real] = 0
      return leaf.astype(np.float32) if leaf.dtype.kind == "f" else leaf

    batch = jax.tree.map(pick, self._data)
    return batch.replace(index=np.where(real, batch.index, -1).astype(np.int32))


def stream(
  split: Split,
  tasks: Mapping[str, Task],
  order: Int[np.ndarray, "steps b"],
  first_step: int = 0,
  lengths: Mapping[str, int] | None = None,
) -> Iterator[Batch]:
  """Batches of an epoch from the host, through a prefetching Grain pipeline.

  Args:
    split, tasks, lengths: as for `whole`.
    order: as from `epoch_order`.
    first_step: where to start, so that an interrupted epoch goes on.

  Yields:
    The same batches as `take(whole(...), order[step])`.
  """
  source = _Rows(whole(split, tasks, lengths), np.asarray(order), first_step)
  if not len(source):
    return
  options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
  yield from grain.MapDataset.source(source).to_iter_dataset(options)
