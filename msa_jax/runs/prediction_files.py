"""Per-sample files of a run: predictions as csv, gate probabilities as npz."""

import csv
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from msa_jax.data.batching import batches
from msa_jax.data.transforms import dialogues
from msa_jax.errors import of_system
from msa_jax.safe_io import cells, durable
from msa_jax.training.feed import Predictions
from msa_jax.training.run_directory import RunDirectory
from msa_jax.typing import Split, Task, modality_order, task_name

Columns = dict[str, Any]  # name -> sequence or array, all of one length


def _softmax(logits: np.ndarray) -> np.ndarray:
  weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
  return weights / weights.sum(axis=-1, keepdims=True)


def mean_prediction(task: Task, per_seed: Sequence[np.ndarray]) -> np.ndarray:
  """Mean over seeds: labels [n], or probabilities of classes or of a yes [n c].

  Args:
    task: what is predicted.
    per_seed: what each seed says: labels, or logits [n c] or [n c 2].
  """
  values = np.stack(per_seed).astype(np.float64)
  if task.kind == "regression":
    return values.mean(axis=0)
  mean = _softmax(values).mean(axis=0)
  return mean if task.kind == "classes" else mean[..., 1]


def prediction_columns(
  tasks: Mapping[str, Task],
  per_seed: Sequence[Predictions],
  seeds: Sequence[int],
) -> Columns:
  """Columns of a task's predictions; the mean over seeds comes first.

  Regression: `<task>`, `<task>_seed_<s>` and the polarity `<task>_class`. Classes:
  the name of the most probable class and one probability per class (mean over
  seeds). Binary: one probability per question.

  Args:
    tasks: of the run.
    per_seed: predictions of each seed.
    seeds: the seeds, for the column names.
  """
  columns: Columns = {}
  for name in per_seed[0].outputs:
    task = tasks[task_name(name)]
    values = [p.outputs[name] for p in per_seed]
    mean = mean_prediction(task, values)
    if task.kind == "regression":
      columns[name] = mean
      sign = np.sign(mean).astype(int)
      columns[f"{name}_class"] = np.asarray(["neutral", "positive", "negative"])[sign]
      columns |= {
        f"{name}_seed_{s}": v.astype(np.float64)
        for s, v in zip(seeds, values, strict=True)
      }
      continue
    if task.kind == "classes":
      columns[name] = np.asarray(task.classes)[mean.argmax(axis=-1)]
    columns |= {f"{name}_p_{c}": mean[:, i] for i, c in enumerate(task.classes)}
  return columns


def _content_columns(data: Split) -> Columns:
  if not data.modalities:  # utterances of dialogues
    return {}
  order = modality_order(data.modalities)
  present = batches.availability(data)  # [n m]
  available = [
    "+".join(name for name, there in zip(order, row, strict=True) if there)
    for row in present
  ]
  steps = {f"steps_{name}": data.modalities[name].lengths for name in order}
  return {"available": available, **steps}


def gate_columns(per_seed: Sequence[Predictions]) -> Columns:
  """Columns `<gate>_<expert>`: weight given to each expert, mean over seeds.

  Experts without names are numbered from 0.
  """
  columns: Columns = {}
  for gate, first in per_seed[0].routing.items():
    weights = np.mean([p.routing[gate].combine for p in per_seed], axis=0)
    names = first.experts or range(weights.shape[1])
    columns |= {
      f"{gate}_{name}": column.astype(np.float64)
      for name, column in zip(names, weights.T, strict=True)
    }
  return columns


def rounded(columns: Columns) -> Columns:
  """Columns as a csv file has them: six digits of every prediction and weight."""
  return {
    name: [f"{value:.6g}" for value in column]
    if isinstance(column, np.ndarray) and column.dtype == np.float64
    else column
    for name, column in columns.items()
  }


def write_predictions(
  run: RunDirectory,
  tasks: Mapping[str, Task],
  seeds: Sequence[int],
  split: str,
  data: Split,
  labels: Mapping[str, Any],
  per_seed: Sequence[Predictions],
) -> None:
  """Writes predictions/<split>.csv: id, what is there, labels, predictions per seed.

  `available` names the sample's modalities (`text+audio`), `steps_<modality>` counts
  their steps: what error slices are made of.
  """
  data = dialogues.utterances(data)
  columns: Columns = {"id": data.ids, **_content_columns(data)}
  for name, target in labels.items():
    shape = (len(data), -1)
    for i, column in enumerate(target.values.reshape(shape).T):
      suffix = "" if target.values.ndim == 1 else f"_{i}"
      columns[f"{name}_label{suffix}"] = [
        v if owned else "" for v, owned in zip(column, target.mask, strict=True)
      ]
  columns |= rounded(prediction_columns(tasks, per_seed, seeds))
  write_csv(run.path / "predictions" / f"{split}.csv", columns)


def write_routing(
  run: RunDirectory,
  split: str,
  data: Split,
  per_seed: Sequence[Predictions],
  seeds: Sequence[int],
) -> None:
  """Writes routing/<split>.npz; nothing for models without gates.

  Arrays: `ids`, `seeds`, `<gate>/probs|combine|logits` [seed n e] and, where the
  router names its experts, `<gate>/experts` [e] strings.
  """
  arrays: dict[str, Any] = {}
  for gate, first in per_seed[0].routing.items():
    for kind in ("probs", "combine", "logits"):
      each = [getattr(p.routing[gate], kind) for p in per_seed]
      arrays[f"{gate}/{kind}"] = np.stack(each)
    if first.experts:
      arrays[f"{gate}/experts"] = np.asarray(first.experts)
  if not arrays:
    return
  data = dialogues.utterances(data)
  with durable.replacing(run.path / "routing" / f"{split}.npz") as partial:
    np.savez_compressed(partial, ids=data.ids, seeds=np.asarray(seeds), **arrays)


def _escaped(cell: Any) -> Any:
  return cells.escape(str(cell)) if isinstance(cell, str) else cell


def write_csv(path: pathlib.Path, columns: Columns) -> pathlib.Path:
  """Writes columns of equal length; what a spreadsheet would run is escaped, and a
  reader never sees half of the file.

  Raises:
    UserError: the file cannot be written.
  """
  path = path.expanduser()
  try:
    with durable.replacing(path) as partial, partial.open("w", newline="") as file:
      writer = csv.writer(file)
      writer.writerow(map(cells.escape, columns))
      for row in zip(*columns.values(), strict=True):
        writer.writerow([_escaped(cell) for cell in row])
  except OSError as error:
    raise of_system(error, f"{path} cannot be written") from error
  return path
