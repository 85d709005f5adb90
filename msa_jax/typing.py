"""The types that every room of the library shares.

Axis letters, used in jaxtyping annotations and in trailing shape comments:

  b  batch (samples)            t  time steps (tokens, frames, utterances)
  d  feature width              m  modality, in the order of `modality_order`
  e  expert (router candidate)  k  selected experts
  h  attention head             c  class or output unit
  n  rows of any kind (samples of a split, flattened tokens)
  s  source steps (attention keys), u  utterances of a dialogue

Pytree structs carry their shapes in comments: jaxtyping on struct fields would
break `jax.tree.map` to values that are not arrays.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from msa_jax import arrays as arrays_lib
from msa_jax.corpus import (
  MODALITIES,
  Corpus,
  Sequences,
  Split,
  Task,
  TaskKind,
  modality_order,
)
from msa_jax.errors import UserError

__all__ = [
  "MODALITIES",
  "Batch",
  "Collections",
  "Corpus",
  "Label",
  "Metrics",
  "Modality",
  "ModelOutput",
  "Params",
  "Routing",
  "Sequences",
  "Spec",
  "Split",
  "Task",
  "TaskKind",
  "TrainState",
  "modality_order",
  "task_name",
]

Params = Mapping[str, Any]
Collections = Mapping[str, Any]
Metrics = Mapping[str, jax.Array]


def task_name(prediction: str) -> str:
  """Task of an entry of `ModelOutput.predictions`: `emotion@text` -> `emotion`.

  A model with several heads for one task calls its predictions `<task>@<head>`; all
  of them are trained and scored on the task's labels.
  """
  return prediction.partition("@")[0]


# A field of a pytree struct: a JAX or NumPy array, or whatever a tree map puts in its
# place (shapes, shardings). Hence not checked.
Leaf = Any


class Modality(flax.struct.PyTreeNode):
  """One modality of a batch; real steps come first (right padding).

  Attributes:
    features: [b t d] float; zero where `mask` is False or `lost` is True.
    mask: [b t] bool; True = real step.
    lost: [b t] bool; True = the step is real but its content was lost (a subset
      of `mask`). Models without a missing-content embedding hide such steps.
    ids: integer inputs of the same steps, each [b t]: `codes` (cluster codes of
      frames), token ids, part-of-speech tags. May be empty.
    context: integer inputs beside the steps, each [b s], of any s: `tokens` of the
      utterances before and after, which a text encoder attends to; -1 = nothing. May
      be empty.
  """

  features: Leaf
  mask: Leaf
  lost: Leaf
  ids: Mapping[str, Leaf] = dataclasses.field(default_factory=dict)
  context: Mapping[str, Leaf] = dataclasses.field(default_factory=dict)


class Label(flax.struct.PyTreeNode):
  """Labels of one task.

  Attributes:
    value: [b] float (regression) or int32 (one class), [b c] int32 (several
      yes/no classes). Utterance-level batches have [b t] in place of [b].
    mask: [b] bool; True = this sample has this label.
  """

  value: Leaf
  mask: Leaf


class Batch(flax.struct.PyTreeNode):
  """What a model reads. Static shapes; everything optional is masked, not absent.

  Attributes:
    modalities: name -> `Modality`.
    available: [b m] bool, columns in `modality_order(modalities)`; False = the
      whole modality is missing for this sample and must have no influence.
      Utterance-level batches have [b t m].
    labels: task name -> `Label`; empty for prediction.
    index: [b] int32, row in the split (-1 = filler row).
    sample_mask: [b] bool; False = filler row of the last batch.
  """

  modalities: Mapping[str, Modality]
  available: Leaf
  labels: Mapping[str, Label]
  index: Leaf
  sample_mask: Leaf

  @property
  def order(self) -> tuple[str, ...]:
    """Names of the modalities in the order of `available`'s columns."""
    return modality_order(self.modalities)

  @classmethod
  def from_arrays(
    cls,
    arrays: Mapping[str, Any],
    *,
    lengths: Mapping[str, Any] | None = None,
    labels: Mapping[str, Any] | None = None,
    available: Mapping[str, Any] | None = None,
  ) -> "Batch":
    """A batch of arrays in memory.

    >>> Batch.from_arrays({"text": x, "audio": a}, lengths={"text": [3, 5]})

    Args:
      arrays: modality -> features: [b t d]; [b d], which becomes one step; or a list
        of b arrays [t d]. NaN cells become zero, steps of NaN alone count as lost.
      lengths: modality -> [b] real steps; absent = up to the last step that is not
        all zero.
      labels: task -> float [b] (NaN = none), int [b] or int [b c] (-1 = none).
      available: modality -> [b] bool; False = missing for the sample, all of it is
        hidden.

    Raises:
      UserError: shapes that do not fit together, or a name that `arrays` lacks.
    """
    order, rows = modality_order(arrays), None
    for option, given in (("lengths", lengths), ("available", available)):
      arrays_lib.check_names(f"{option} of", given or {}, order)
    modalities, columns = {}, []
    for name in order:
      made = arrays_lib.steps(arrays[name], (lengths or {}).get(name), name)
      n, t, _ = made.features.shape
      rows = n if rows is None else rows
      arrays_lib.check_rows(name, n, rows)
      there = np.asarray((available or {}).get(name, np.ones(n, bool)), bool)
      arrays_lib.check_rows(f"available of {name}", len(there), rows)
      columns.append(there & (made.lengths > 0))
      mask = (np.arange(t) < made.lengths[:, None]) & there[:, None]
      visible = (mask & ~made.lost)[..., None]
      features = np.where(visible, made.features, 0).astype(np.float32)
      modalities[name] = Modality(features, mask, made.lost & mask)
    if rows is None:
      raise UserError("a batch needs one modality at least, e.g. {'text': x}")
    batch = cls(
      modalities=modalities,
      available=np.stack(columns, axis=-1),
      labels={
        task: _label_of(arrays_lib.labels(value, f"labels of {task}"), task, rows)
        for task, value in (labels or {}).items()
      },
      index=np.arange(rows, dtype=np.int32),
      sample_mask=np.ones(rows, bool),
    )
    return jax.tree.map(jnp.asarray, batch)


def _label_of(value: np.ndarray, task: str, rows: int) -> Label:
  arrays_lib.check_rows(f"labels of {task}", len(value), rows)
  present = np.isfinite(value) if value.dtype.kind == "f" else value >= 0
  mask = present.reshape(rows, -1).all(axis=-1)
  return Label(np.where(present, value, 0).astype(value.dtype), mask)


class Routing(flax.struct.PyTreeNode):
  """The interface between a router and its experts; what reports read.

  Attributes:
    probs: [n e] dense router distribution over the available candidates (float32).
    combine: [n e] weights given to the experts' outputs, exactly zero where an
      expert is not selected.
    logits: [n e] raw scores (float32).
    experts: names of the experts; () = numbered.
  """

  probs: Leaf
  combine: Leaf
  logits: Leaf
  experts: tuple[str, ...] = flax.struct.field(pytree_node=False, default=())


class ModelOutput(flax.struct.PyTreeNode):
  """What every model returns, whatever its flags.

  Attributes:
    predictions: task name, or `<task>@<head>` -> [b] (regression), [b c] logits (one
      class of c), or [b c 2] logits (c yes/no questions). Of dialogues [b t] in place
      of [b].
    features: name -> representation of any shape with leading b.
    routing: gate name -> `Routing`; of dialogues [b t e] in place of [n e].
    losses: name -> raw, unweighted auxiliary term that needs no label: a scalar,
      already averaged over `sample_mask`.
    text_seen: prediction -> [b] bool (of dialogues [b t]): whether text had a part in
      it, of networks that hide modalities from themselves; a prediction that is not
      named has seen whatever text the batch shows.
  """

  predictions: Mapping[str, Leaf]
  features: Mapping[str, Leaf] = dataclasses.field(default_factory=dict)
  routing: Mapping[str, Routing] = dataclasses.field(default_factory=dict)
  losses: Mapping[str, Leaf] = dataclasses.field(default_factory=dict)
  text_seen: Mapping[str, Leaf] = dataclasses.field(default_factory=dict)


class TrainState(flax.struct.PyTreeNode):
  """Everything that training changes, as data: no functions, so that states can be
  stacked, vmapped, sharded and saved.

  Attributes:
    step: [] int32, optimizer updates done.
    params: trainable variables.
    collections: every other variable a method must remember (batch statistics,
      fusion weights, pseudo-label tables).
    opt_state: the optimizer's state.
  """

  step: Leaf
  params: Leaf
  collections: Leaf
  opt_state: Leaf


@dataclasses.dataclass(frozen=True)
class Spec:
  """Shapes and meanings of a preprocessed corpus: all that building a model needs.

  Attributes:
    widths: modality -> features per step.
    lengths: modality -> steps of the longest sequence of any split.
    ids: modality -> names of its integer inputs.
    tasks: task name -> `Task`.
    priors: task name -> best constant prediction, of the training labels.
    train_size: samples of an epoch.
    sources: samples of each corpus that trains, where there are several.
    utterances: of the longest dialogue; 0 = samples are utterances.
    encoder: sizes of the text encoder inside the model (`text.bert.EncoderConfig`), or
      None.
    text_sha256: hash of the encoder that made the text features, "" if none did.
    text_context: utterances before and after that it read beside each.
  """

  widths: Mapping[str, int]
  lengths: Mapping[str, int]
  tasks: Mapping[str, Task]
  ids: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  priors: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
  train_size: int = 0
  sources: tuple[int, ...] = ()
  utterances: int = 0
  encoder: Any = None
  text_sha256: str = ""
  text_context: tuple[int, ...] = (0, 0)

  @property
  def modalities(self) -> tuple[str, ...]:
    """Names of the modalities in canonical order."""
    return modality_order(self.widths)

  def steps_per_epoch(self, batch_size: int) -> int:
    """Batches of an epoch, the last one partly filled."""
    return -(-self.train_size // batch_size)
