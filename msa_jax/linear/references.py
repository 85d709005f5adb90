"""What a system's figures stand beside: the constant, and linear models of the same
pooled features.

  constant              the training labels' best constant
  linear_text           ridge, or logistic regression, on the mean of the text's steps
  linear_all            the same on the means of all modalities
  linear_text_context,  of dialogues: the dialogue's mean beside each utterance, since a
  linear_all_context    system sees it too

Penalties are chosen on validation, features standardised on training.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from msa_jax.linear import logistic, ridge
from msa_jax.linear.pooling import Design, Pooled, design, matrix
from msa_jax.typing import Task

# Most training rows that are fitted, drawn with a fixed seed from larger corpora, and
# most columns for which as many are taken: solving grows with the cube of the smaller.
MOST_ROWS, WIDE, MOST_WIDE_ROWS = 20_000, 4096, 4096


class Reference(NamedTuple):
  """A fitted reference of one task.

  Attributes:
    task, kind: name and kind of the task.
    design: of its features; None = a constant.
    weights: [k c], c = 1 for regression, classes, or questions.
    bias: [c].
    penalty: alpha of a ridge, C of a logistic regression; 0 of the constant.
  """

  task: str
  kind: str
  design: Design | None
  weights: np.ndarray
  bias: np.ndarray
  penalty: float


class Labelled(NamedTuple):
  """Pooled rows, and by task the labels [n ...] and which rows have one [n]."""

  pooled: Pooled
  labels: Mapping[str, tuple[np.ndarray, np.ndarray]]


def fit(
  tasks: Mapping[str, Task],
  train: Labelled,
  valid: Labelled | None,
  constants: Mapping[str, Sequence[float]],
) -> dict[str, dict[str, Reference]]:
  """Fits the references of every task that training has labels of.

  Args:
    tasks: by name.
    train, valid: rows to fit, and to choose the penalty on; without the latter by
      cross-validation.
    constants: task -> best constant, as `losses.prior.best_constant` has it.

  Returns:
    Task -> name -> reference, in the order above.
  """
  found: dict[str, dict[str, Reference]] = {}
  for task, (_, known) in train.labels.items():
    kind = tasks[task].kind
    if not known.any():
      continue
    bias = np.asarray(constants[task], float)
    own = {"constant": Reference(task, kind, None, np.zeros((0, 1)), bias, 0.0)}
    for name, (modalities, context) in _designs(train.pooled).items():
      made = design(train.pooled, modalities, context)
      if made.names:
        own[name] = _fitted(tasks[task], task, made, train, valid)
    found[task] = own
  return found


def _designs(pooled: Pooled) -> dict[str, tuple[tuple[str, ...], bool]]:
  """Name -> modalities, and whether the dialogue's mean is there."""
  there = tuple(name for name, seen in pooled.seen.items() if seen.any())
  found: dict[str, tuple[tuple[str, ...], bool]] = {}
  if "text" in there:
    found["linear_text"] = (("text",), False)
  if set(there) - {"text"}:
    found["linear_all"] = (there, False)
  if pooled.dialogue is not None:
    found |= {f"{name}_context": (names, True) for name, (names, _) in found.items()}
  return found


def _fitted(
  task: Task, name: str, made: Design, train: Labelled, valid: Labelled | None
) -> Reference:
  x, y = _rows(made, train, name)
  most = MOST_WIDE_ROWS if x.shape[1] > WIDE else MOST_ROWS
  if len(x) > most:
    chosen = np.sort(np.random.default_rng(0).choice(len(x), most, replace=False))
    x, y = x[chosen], y[chosen]
  held_out = None
  if valid is not None and name in valid.labels and valid.labels[name][1].any():
    held_out = _rows(made, valid, name)
  if task.kind == "regression":
    line = ridge.fit(x, y.astype(float), held_out)
    weights, bias, penalty = line.weights[:, None], np.array([line.bias]), line.alpha
  else:
    model = logistic.fit(x, y, len(task.classes), held_out)
    weights, bias, penalty = model
  return Reference(name, task.kind, made, weights, bias, penalty)


def _rows(made: Design, data: Labelled, task: str) -> tuple[np.ndarray, np.ndarray]:
  values, known = data.labels[task]
  return matrix(made, data.pooled)[known], values[known]


def predict(reference: Reference, pooled: Pooled) -> np.ndarray:
  """Predictions of rows as `ModelOutput.predictions` has them, flat: [n], logits [n c],
  or [n c 2] of questions."""
  rows = len(next(iter(pooled.seen.values())))
  if reference.design is None:
    values = np.broadcast_to(reference.bias, (rows, len(reference.bias)))
    if reference.kind == "binary":
      return values.reshape(rows, -1, 2)
  else:
    values = matrix(reference.design, pooled) @ reference.weights + reference.bias
    if reference.kind == "binary":
      return np.stack([np.zeros_like(values), values], axis=-1)
  return values[:, 0] if reference.kind == "regression" else values


def save(path: pathlib.Path, references: Mapping[str, Mapping[str, Reference]]) -> None:
  """Writes fitted references into one npz file."""
  arrays: dict[str, Any] = {}
  about = []
  for task, named in references.items():
    for name, one in named.items():
      key, made = str(len(about)), one.design
      entry: dict[str, Any] = {"task": task, "name": name, "kind": one.kind}
      entry["penalty"] = one.penalty
      arrays |= {f"{key}/weights": one.weights, f"{key}/bias": one.bias}
      if made is not None:
        entry |= {"names": made.names, "context": made.context}
        entry["indicators"] = made.indicators
        for modality in made.names:
          arrays[f"{key}/mean/{modality}"] = made.means[modality]
          arrays[f"{key}/scale/{modality}"] = made.scales[modality]
      about.append(entry)
  arrays["about"] = np.array(json.dumps(about))
  np.savez_compressed(path, **arrays)


def load(path: pathlib.Path) -> dict[str, dict[str, Reference]]:
  """Reads what `save` has written; empty where there is no such file."""
  if not path.exists():
    return {}
  found: dict[str, dict[str, Reference]] = {}
  with np.load(path, allow_pickle=False) as arrays:
    for key, entry in enumerate(json.loads(str(arrays["about"]))):
      made = None
      if "names" in entry:
        names = tuple(entry["names"])
        made = Design(
          names,
          entry["context"],
          {name: arrays[f"{key}/mean/{name}"] for name in names},
          {name: arrays[f"{key}/scale/{name}"] for name in names},
          tuple(entry["indicators"]),
        )
      one = Reference(
        entry["task"],
        entry["kind"],
        made,
        arrays[f"{key}/weights"],
        arrays[f"{key}/bias"],
        entry["penalty"],
      )
      found.setdefault(one.task, {})[entry["name"]] = one
  return found
