"""What the experts of a trained run are worth: without one, and with exchanged gates.

  python -m msa_jax.main --mode=evaluate --workdir=runs/a --experts

A gate can be sure of itself and change nothing, so entropy alone says little. Here the
trained network predicts the held-out split again with one expert of a gate taken away,
for each in turn (the gate chooses among the others), and with each sample given the
decision that the gate made of another. What that costs is what the expert, and the
choice, are worth. Nothing is trained, and one program predicts all of it.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from msa_jax.errors import UserError
from msa_jax.metrics import better
from msa_jax.metrics.routing import routing_metrics
from msa_jax.metrics.specialisation import kinds_of, label_information, weights_by_kind
from msa_jax.report.terminal import figure, headline
from msa_jax.runs import prepare
from msa_jax.runs.open import OpenRun, open_run
from msa_jax.runs.summary import over_seeds
from msa_jax.step.interventions import (
  COLLECTION,
  Intervention,
  gates_of,
  with_interventions,
)
from msa_jax.step.recipe import example_batch
from msa_jax.training import feed as feed_lib
from msa_jax.training import scoring
from msa_jax.training.run_directory import only_warn
from msa_jax.typing import Corpus

FILE = "experts.json"
Experts = Mapping[str, tuple[str, ...]]  # gate -> its experts


class Change(NamedTuple):
  """What is done to one gate.

  Attributes:
    gate: its name; "" = nothing is done.
    kind: `whole` (nothing), `without` an expert, or `exchanged` decisions.
    expert: that is taken away.
  """

  gate: str = ""
  kind: str = "whole"
  expert: str = ""


def measure(workdir: str | pathlib.Path, path: str = "") -> dict[str, Any]:
  """Measures a trained run, and keeps what was measured in `experts.json`.

  Args:
    workdir: folder of the run.
    path: another labelled file; "" = the run's own. Its test split is evaluated,
      without one its validation split, else the first that has labels.

  Returns:
    `model`, `file`, `split`, `seeds`, `gates` (gate -> `experts`,
    `information_nats`, over seeds, `label_information_nats`, `by_kind`: kind -> mean
    weight of every expert, over samples and seeds) and `rows`: `gate`, `kind`,
    `expert`, `figures` (task -> metric -> mean, std, values over seeds), `worse` (the
    same, of how much worse each is than that of the whole network) and `changed`
    (task -> mean absolute change of a prediction, likewise).

  Raises:
    UserError: no such run or file, no labels, or a system without gates over experts.
  """
  opened = open_run(workdir)
  own = not path
  corpus = prepare.reload(opened.config, opened.pipeline, path, None, own)
  name = _held_out(corpus, path)
  gates = _gates(opened)
  if not gates:
    raise UserError(
      f"--experts: {opened.config.system} has no gates that choose experts for a"
      " sample."
    )
  labels = scoring.label_arrays(corpus.splits[name], corpus.tasks)
  feed = opened.feeds(corpus)[name]
  predictor = feed_lib.Predictor(
    with_interventions(opened.recipe), opened.config.train.eval_batch_size
  )
  changes = [Change(), *_changes(gates)]
  predicted = {
    change: [
      predictor(params, {**rest, COLLECTION: _arrays(gates, change)}, feed)
      for params, rest in opened.selected
    ]
    for change in changes
  }
  whole = predicted[changes[0]]
  report = {
    "model": opened.config.system,
    "file": path or "own",
    "split": name,
    "seeds": list(opened.config.replicas.seeds),
    "gates": {gate: _of_gate(gate, gates, whole, corpus, labels) for gate in gates},
    "rows": [
      _row(change, each, whole, corpus, labels) for change, each in predicted.items()
    ],
  }
  with only_warn("the figures are not kept"):
    opened.directory.write_json(FILE, report)
  return report


def _held_out(corpus: Corpus, path: str) -> str:
  labelled = [
    n for n, s in corpus.splits.items() if scoring.label_arrays(s, corpus.tasks)
  ]
  if not labelled:
    raise UserError(f"{path or corpus.name} has no labels to evaluate on.")
  return min(labelled, key=lambda n: (n != "test", n != "valid", n == "train"))


def _gates(opened: OpenRun) -> dict[str, tuple[str, ...]]:
  params, collections = opened.selected[0]
  batch = example_batch(opened.config.corpus_spec)
  return gates_of(opened.recipe, params, collections, batch)


def _changes(gates: Experts) -> list[Change]:
  changes = []
  for gate, experts in gates.items():
    changes += [Change(gate, "without", expert) for expert in experts]
    changes.append(Change(gate, "exchanged"))
  return changes


def _arrays(gates: Experts, change: Change) -> dict[str, Intervention]:
  return {
    gate: Intervention(
      jnp.asarray([(gate, expert) != (change.gate, change.expert) for expert in names]),
      jnp.asarray(gate == change.gate and change.kind == "exchanged"),
    )
    for gate, names in gates.items()
  }


def _of_gate(gate, gates: Experts, whole, corpus: Corpus, labels) -> dict[str, Any]:
  routing = [predictions.routing[gate] for predictions in whole]
  found = [routing_metrics({gate: each})[gate] for each in routing]
  about = {
    "experts": list(gates[gate]),
    "router_entropy_normalised": over_seeds(
      [each["router_entropy_dense_normalised"] for each in found]
    ),
    "information_nats": over_seeds([each["information_dense_nats"] for each in found]),
  }
  task = next(name for name in corpus.tasks if name in labels)
  target = labels[task]
  kinds = kinds_of(target.values, target.mask, corpus.tasks[task].classes)
  shares = [weights_by_kind(each.combine, kinds) for each in routing]
  about["by_kind"] = {
    kind: np.mean([share[kind] for share in shares], axis=0).tolist()
    for kind in kinds
    if all(kind in share for share in shares)
  }
  about["label_information_nats"] = over_seeds(
    [label_information(each.combine, kinds) for each in routing]
  )
  return about


def _row(
  change: Change,
  predicted: Sequence[feed_lib.Predictions],
  whole: Sequence[feed_lib.Predictions],
  corpus: Corpus,
  labels,
) -> dict[str, Any]:
  scores = [scoring.score(corpus.tasks, p.outputs, labels) for p in predicted]
  before = [scoring.score(corpus.tasks, p.outputs, labels) for p in whole]
  moved = [
    {
      task: float(np.mean(np.abs(ours.outputs[task] - theirs.outputs[task])))
      for task in ours.outputs
    }
    for ours, theirs in zip(predicted, whole, strict=True)
  ]
  return {
    **change._asdict(),
    "figures": over_seeds(scores),
    "worse": over_seeds(list(map(_worse, scores, before))),
    "changed": over_seeds(moved),
  }


def _worse(scores: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
  """Task -> metric -> how much worse, whichever direction is better."""
  return {
    task: {
      metric: (-1.0 if better(metric) == "max" else 1.0)
      * (value - before[task][metric])
      for metric, value in figures.items()
    }
    for task, figures in scores.items()
  }


def as_text(report: Mapping[str, Any]) -> str:
  """Gates and interventions as lines of text; `report` is from `measure`."""
  lines = []
  for gate, about in report["gates"].items():
    said = {
      "entropy (share of the maximum)": about["router_entropy_normalised"],
      "information": about["information_nats"],
      "of the label": about["label_information_nats"],
    }
    shown = ", ".join(f"{name} {figure(entry)}" for name, entry in said.items())
    lines.append(f"{gate}: {shown} nats")
  for row in report["rows"]:
    for task, figures in row["worse"].items():
      metric = headline(figures)
      if metric is None:
        continue
      if row["kind"] == "whole":
        said = figure(row["figures"][task][metric])
        lines.append(f"{report['split']} {task}: {metric} {said}")
        continue
      what = f"without {row['expert']}" if row["expert"] else "decisions exchanged"
      lines.append(
        f"  {row['gate']}, {what}: {metric} worse by {figure(figures[metric])}"
      )
  return "\n".join(lines)
