"""Small corpora's shapes and random batches, for the contract tests."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from msa_jax.config.options import DataConfig
from msa_jax.data.synthetic.generator import ALONE
from msa_jax.step.recipe import example_batch
from msa_jax.typing import Batch, Label, Modality, Spec, Task, TaskKind

ROWS = 7  # odd: the signs of an absolute error never cancel
STEPS = 5


def example_spec(unit: str = "utterance", kind: TaskKind = "regression") -> Spec:
  """Shapes of a small corpus: text, audio with cluster codes, vision, one label.

  Args:
    unit: what a sample is, `utterance` or `dialogue`.
    kind: of the label: `regression`, `classes` or `binary`.
  """
  names = () if kind == "regression" else ("calm", "glad", "sad")
  return Spec(
    widths={"text": 6, "audio": 3, "vision": 4},
    lengths={"text": STEPS, "audio": STEPS, "vision": STEPS},
    ids={"text": (), "audio": ("codes",), "vision": ()},
    tasks={"sentiment": Task(kind, -3.0, 3.0, names)},
    train_size=32,
    utterances=STEPS if unit == "dialogue" else 0,
  )


def spec_for(data: DataConfig) -> Spec:
  """The example's shapes for a system's config, with the labels of one modality that
  its own synthetic corpus has."""
  spec = example_spec(data.sample_unit)
  alone = [name for name in data.synthetic.tasks if name in ALONE.values()]
  tasks = {**spec.tasks, **dict.fromkeys(alone, spec.tasks["sentiment"])}
  return dataclasses.replace(spec, tasks=tasks)


def random_batch(spec: Spec, seed: int = 0, size: int = ROWS) -> Batch:
  """Labelled samples of random content and lengths, everything available.

  Args:
    spec: shapes.
    seed: of the content.
    size: rows.
  """
  random = np.random.default_rng(seed)
  batch = example_batch(spec, size)
  shared = random.integers(2, STEPS + 1, size)  # dialogues share their steps
  modalities = {}
  for name in batch.order:
    modality = batch.modalities[name]
    t = modality.mask.shape[1]
    length = shared if spec.utterances else random.integers(2, t + 1, size)
    mask = np.arange(t) < np.minimum(length, t)[:, None]
    features = random.normal(size=modality.features.shape) * mask[..., None]
    ids = {
      key: jnp.asarray(random.integers(0, 9, mask.shape) * mask, jnp.int32)
      for key in modality.ids
    }
    modalities[name] = Modality(
      jnp.asarray(features, jnp.float32), jnp.asarray(mask), modality.lost, ids
    )
  batch = batch.replace(modalities=modalities)
  if spec.utterances:
    real = modalities[batch.order[0]].mask
    batch = batch.replace(available=batch.available & real[..., None])
  return batch.replace(labels=_labels(spec, batch, random))


def _labels(spec: Spec, batch: Batch, random: np.random.Generator) -> dict[str, Label]:
  labels = {}
  for name, task in spec.tasks.items():
    shape = batch.labels[name].value.shape
    if task.kind == "regression":
      value = jnp.asarray(random.uniform(task.low, task.high, shape), jnp.float32)
    else:
      top = 2 if task.kind == "binary" else len(task.classes)
      value = jnp.asarray(random.integers(0, top, shape), jnp.int32)
    labels[name] = Label(value, jnp.any(batch.available, axis=-1))
  return labels
