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
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import flax.struct
import jax
import numpy as np

# The field's three modalities in the papers' order. Everything with a modality
# axis (`Batch.available`, gate probabilities) follows it.
MODALITIES = ("text", "audio", "vision")

Params = Mapping[str, Any]
Collections = Mapping[str, Any]
Metrics = Mapping[str, jax.Array]


def modality_order(names: Iterable[str]) -> tuple[str, ...]:
  """Returns `names` in canonical order: text, audio, vision, then the rest.

  Mappings come back from `jax.jit` with sorted keys, so code that needs an order
  must ask for this one and never rely on that of a mapping.
  """
  names = set(names)
  known = [name for name in MODALITIES if name in names]
  return (*known, *sorted(names - set(MODALITIES)))


def task_name(prediction: str) -> str:
  """Task of an entry of `ModelOutput.predictions`: `emotion@text` -> `emotion`.

  A model with several heads for one task calls its predictions `<task>@<head>`; all
  of them are trained and scored on the task's labels.
  """
  return prediction.partition("@")[0]


# A field of a pytree struct: a JAX or NumPy array, or whatever a tree map puts in its
# place (shapes, shardings). Hence not checked.
Leaf = Any


@flax.struct.dataclass
class Modality:
  """One modality of a batch; real steps come first (right padding).

  Attributes:
    features: [b t d] float; zero where `mask` is False or `lost` is True.
    mask: [b t] bool; True = real step.
    lost: [b t] bool; True = the step is real but its content was lost (a subset
      of `mask`). Models without a missing-content embedding hide such steps.
    ids: integer inputs of the same steps, each [b t]: `codes` (cluster codes of
      frames), token ids, part-of-speech tags. May be empty.
  """

  features: Leaf
  mask: Leaf
  lost: Leaf
  ids: Mapping[str, Leaf] = dataclasses.field(default_factory=dict)


@flax.struct.dataclass
class Label:
  """Labels of one task.

  Attributes:
    value: [b] float (regression) or int32 (one class), [b c] int32 (several
      yes/no classes). Utterance-level batches have [b t] in place of [b].
    mask: [b] bool; True = this sample has this label.
  """

  value: Leaf
  mask: Leaf


@flax.struct.dataclass
class Batch:
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


@flax.struct.dataclass
class Routing:
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


@flax.struct.dataclass
class ModelOutput:
  """What every model returns, whatever its flags.

  Attributes:
    predictions: task name, or `<task>@<head>` -> [b] (regression), [b c] logits (one
      class of c), or [b c 2] logits (c yes/no questions). Of dialogues [b t] in place
      of [b].
    features: name -> representation of any shape with leading b.
    routing: gate name -> `Routing`; of dialogues [b t e] in place of [n e].
    losses: name -> raw, unweighted auxiliary term that needs no label: a scalar,
      already averaged over `sample_mask`.
  """

  predictions: Mapping[str, Leaf]
  features: Mapping[str, Leaf] = dataclasses.field(default_factory=dict)
  routing: Mapping[str, Routing] = dataclasses.field(default_factory=dict)
  losses: Mapping[str, Leaf] = dataclasses.field(default_factory=dict)


@flax.struct.dataclass
class TrainState:
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


TaskKind = Literal["regression", "classes", "binary"]


@dataclasses.dataclass(frozen=True)
class Task:
  """What a label means; comes from the corpus, never from a data set's name.

  Attributes:
    kind: `regression` (one real number), `classes` (one of several, label is an
      index), `binary` (several independent yes/no questions, label [b c]).
    low, high: range of a regression label.
    classes: names of the classes or questions; empty for regression.
    protocol: family of metrics: `mosi`, `sims`, `classes`, `emotions`.
  """

  kind: TaskKind
  low: float = 0.0
  high: float = 0.0
  classes: tuple[str, ...] = ()
  protocol: str = "mosi"


@dataclasses.dataclass(frozen=True)
class Sequences:
  """One modality of a whole split, on the host.

  Attributes:
    features: [n t d] float16 or float32, real steps first, zeros after them; lazy
      where the corpus is read from disk a few samples at a time.
    lengths: [n] int32, number of real steps (0 = modality absent for the sample).
    lost: [n t] bool or None, real steps without content (None = none).
    ids: name -> [n t] int32.
  """

  features: Any  # np.ndarray or data.lazy.LazyFeatures
  lengths: np.ndarray
  lost: np.ndarray | None = None
  ids: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Split:
  """One named split of a corpus, on the host.

  Attributes:
    ids: [n] str, unique within the corpus, e.g. `video$_$clip`.
    modalities: name -> `Sequences`; every split of a corpus has the same names.
    labels: task name -> [n] float32, [n] int32 or [n c] int32. NaN (float) or -1
      (int) = this sample has no such label. Empty for data to predict on.
    raw_text: [n] str or None.
    groups: [n] str, video or dialogue of each sample, or None.
    extras: name -> [n ...] arrays that travel along unread by models (speaker,
      session, tokenised text, the synthetic corpus's latent variables).
    available: [n m] or, for utterances of dialogues, [n t m] bool, columns in
      `modality_order`; False = the modality is missing for this sample or utterance,
      whatever its lengths say. None = lengths alone decide.
  """

  ids: np.ndarray
  modalities: Mapping[str, Sequences]
  labels: Mapping[str, np.ndarray]
  raw_text: np.ndarray | None = None
  groups: np.ndarray | None = None
  extras: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  available: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.ids)


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Named splits with one meaning.

  Attributes:
    name: short name for titles and reports (nothing branches on it).
    splits: split name (`train`, `valid`, `test`; `predict` for unlabelled files)
      -> `Split`.
    tasks: task name -> `Task`. `sentiment` and `emotion` are the usual names.
    notes: what the reader found and did (non-finite cells per modality, absent
      modalities, ...), JSON-serialisable; ends up in the run's data.json.
  """

  name: str
  splits: Mapping[str, Split]
  tasks: Mapping[str, Task]
  notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


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

  @property
  def modalities(self) -> tuple[str, ...]:
    """Names of the modalities in canonical order."""
    return modality_order(self.widths)

  def steps_per_epoch(self, batch_size: int) -> int:
    """Batches of an epoch, the last one partly filled."""
    return -(-self.train_size // batch_size)
