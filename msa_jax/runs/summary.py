"""Final figures of a run: summary.json, predictions as csv, gate probabilities."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from msa_jax.config.experiment import Experiment
from msa_jax.devices import processes
from msa_jax.errors import UserError
from msa_jax.metrics.bootstrap import mean_interval
from msa_jax.metrics.routing import routing_metrics
from msa_jax.models.outputs import output_specs
from msa_jax.models.with_anchor import ANCHOR, SCALE
from msa_jax.runs import prediction_files, references
from msa_jax.step import compose, ema
from msa_jax.training import scoring, selection
from msa_jax.training.feed import Predictions
from msa_jax.training.loop import TrainResult
from msa_jax.training.run_directory import RunDirectory
from msa_jax.typing import Corpus, Params


def over_seeds(scores: Sequence[Any]) -> Any:
  """Turns one tree of figures per seed into one of {"mean", "std", "values"}.

  The standard deviation is that of a sample (n - 1); None for a single seed. Numbers
  of several seeds also get `interval`, the 95 % bootstrap interval of their mean
  (`metrics.bootstrap.mean_interval`); None where one is not finite.
  """
  first = scores[0]
  if isinstance(first, Mapping):
    return {key: over_seeds([score[key] for score in scores]) for key in first}
  values = np.asarray(scores, float)
  report = {
    "mean": values.mean(axis=0).tolist(),
    "std": values.std(axis=0, ddof=1).tolist() if len(scores) > 1 else None,
    "values": values.tolist(),
  }
  if values.ndim == 1 and len(values) > 1:
    report["interval"] = _interval(values)
  return report


def _interval(values: np.ndarray) -> list[float] | None:
  if not np.isfinite(values).all():
    return None
  _, low, high = mean_interval(values)
  return [low, high]


def parameter_hash(params: Params) -> str:
  """SHA-256 over names, shapes and bytes of all parameters: equal means identical."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    array = np.asarray(leaf)
    digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
    digest.update(array.tobytes())
  return digest.hexdigest()


def parameter_count(params: Params) -> int:
  """Number of trainable numbers."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))


_FIELDS = {
  *("parameter_hash", "splits", "routing", "without_content", "bayes"),
  *("anchor", "references"),
}


def hashes(trained: Sequence[TrainResult]) -> list[str]:
  """`parameter_hash` of every seed."""
  return [parameter_hash(one.params) for one in trained]


def of_finished(run: RunDirectory, config: Experiment) -> dict[str, Any] | None:
  """Contents of summary.json, if a run has finished with the config's seeds and all
  that it is to leave is there.

  A file that is damaged, or of a version that wrote less, is as good as none.
  """
  seeds = config.replicas.seeds
  try:
    found = run.read_json("summary.json")
    if found["seeds"] != list(seeds) or not set(found) >= _FIELDS:
      return None
    if bool(found["references"]) != config.train.references:
      return None
    files = [f"predictions/{split}.csv" for split in found["splits"]]
    files += [
      f"routing/{split}.npz" for split, gates in found["routing"].items() if gates
    ]
  except (UserError, KeyError, TypeError, AttributeError):
    return None
  files += [run.trained(seed) for seed in seeds]
  return found if all((run.path / name).exists() for name in files) else None


def write(
  run: RunDirectory,
  config: Experiment,
  corpus: Corpus,
  predictions: Mapping[str, Sequence[Predictions]],
  trained: Sequence[TrainResult],
  fitted: references.Fitted | None = None,
) -> dict[str, Any]:
  """Scores all seeds and writes summary.json, predictions/ and routing/.

  Args:
    run: the run directory.
    config: resolved.
    corpus: gives ids, labels and, where known, the Bayes-optimal figures.
    predictions: split name -> one `Predictions` per seed.
    trained: what came of each seed.
    fitted: references to stand beside the figures; None = none.

  Returns:
    The contents of summary.json.
  """
  seeds, spec = list(config.replicas.seeds), config.corpus_spec
  summary = {
    **_training(config, corpus, trained),
    "splits": {},
    "routing": {},
    "without_content": {},
  }
  for split, per_seed in predictions.items():
    data = corpus.splits[split]
    labels = scoring.label_arrays(data, corpus.tasks)
    scores = [scoring.score(spec.tasks, p.outputs, labels) for p in per_seed]
    summary["splits"][split] = over_seeds(scores)
    summary["routing"][split] = over_seeds(
      [routing_metrics(p.routing) for p in per_seed]
    )
    summary["without_content"][split] = scoring.without_content(
      per_seed[0], labels, split
    )
    if processes.is_primary():
      prediction_files.write_predictions(
        run, spec.tasks, seeds, split, data, labels, per_seed
      )
      prediction_files.write_routing(run, split, data, per_seed, seeds)
  outputs = {split: [p.outputs for p in each] for split, each in predictions.items()}
  summary |= references.report(fitted or {}, config, corpus, outputs)
  summary["anchor"] = _anchor(spec.tasks, trained, outputs)
  summary["bayes"] = _bayes(summary, corpus)
  run.write_json("summary.json", summary)
  return summary


def _training(
  config: Experiment, corpus: Corpus, trained: Sequence[TrainResult]
) -> dict[str, Any]:
  """What was trained, on what, and what selected its epoch."""
  spec, judge = config.corpus_spec, corpus.notes.get("selected_on", "valid")
  chosen = "nothing: the last epoch"
  if "valid" in corpus.splits:
    labelled = scoring.label_arrays(corpus.splits["valid"], corpus.tasks)
    last, outputs = compose.stages_of(config)[-1], output_specs(config.model, spec)
    tracks = selection.tracks(last, spec.tasks, outputs, labelled)
    chosen = ", ".join(f"{judge} {each}" for each in tracks.values())
  return {
    "model": config.system,
    "corpus": {"name": corpus.name, "synthetic": "bayes" in corpus.notes},
    "seeds": list(config.replicas.seeds),
    "parameters": parameter_count(trained[0].params),
    "parameter_hash": hashes(trained),
    "selected_by": chosen,
    "selected_epoch": [one.best_epoch for one in trained],
    "epochs": [one.epoch for one in trained],
    "train_seconds": [round(one.seconds, 2) for one in trained],
    "trained_together": [one.together for one in trained],
    **({"init": _origin(config)} if config.init.from_run else {}),
  }


def _origin(config: Experiment) -> dict[str, Any]:
  """Which run the parameters started from."""
  return {
    "from_run": config.init.from_run,
    "what": config.init.what,
    "parameter_hash": list(config.init.parameter_hash),
  }


def _anchor(tasks, trained, outputs) -> dict[str, Any] | None:
  """The learned scales of an anchored system, and how much it corrects by split."""
  kept = [ema.predicting(one.params, one.collections)[0] for one in trained]
  if ANCHOR not in kept[0]:
    return None
  scales = [
    {
      name.removeprefix(SCALE): float(value)
      for name, value in params[ANCHOR].items()
      if name.startswith(SCALE)
    }
    for params in kept
  ]
  corrections = {
    split: references.correction(tasks, each) for split, each in outputs.items()
  }
  return {"scale": over_seeds(scales), "correction": corrections}


def _bayes(summary: Mapping[str, Any], corpus: Corpus) -> dict[str, Any] | None:
  """How far from optimal, where the corpus knows what is optimal (synthetic data)."""
  known = corpus.notes.get("bayes")
  if not known:
    return None
  report = {}
  for split, figures in summary["splits"].items():
    reached = figures.get("sentiment", {}).get("mae")
    if split in known and reached and "mae" in known[split]:
      optimal = known[split]["mae"]
      report[split] = dict(known[split]) | {"mae_ratio": reached["mean"] / optimal}
  return report or None
