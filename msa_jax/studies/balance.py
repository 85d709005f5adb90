"""What B-fusion and A-fusion do: training with and without, probes, ratios, optimizers.

Source: AWF (Journal of Software 2024, 35(10):4781-4793), tables 3 and 7 to 10.
"""

import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from msa_jax.config.experiment import Experiment
from msa_jax.data.batching import batches
from msa_jax.errors import UserError
from msa_jax.models.outputs import primary_output
from msa_jax.models.system import one_loss
from msa_jax.names import held_out_split
from msa_jax.report.terminal import figure
from msa_jax.runs import prepare
from msa_jax.runs.open import open_run
from msa_jax.runs.summary import over_seeds
from msa_jax.step.objective import task_losses
from msa_jax.studies import probes, runner
from msa_jax.studies.changes import changed
from msa_jax.training import scoring
from msa_jax.training.run_directory import RunDirectory

# Weights that never move: the model alone, its gradients measured all the same.
WITHOUT = {"balance.enabled": True, "balance.omega_lr": "0"}
WITH = {"balance.enabled": True}
SGD = {
  "optim.name": "sgd",
  "optim.momentum": 0.9,
  "optim.learning_rate": 0.05,
  "optim.schedule": "cosine",
}
# Table -> name of a run -> what it changes in the config.
TABLES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
  "balance": {"with": WITH, "without": WITHOUT},
  "optimizers": {
    "with": WITH,
    "without": WITHOUT,
    "sgd_with": {**WITH, **SGD},
    "sgd_without": {**WITHOUT, **SGD},
  },
  "attention": {
    "with": WITH,
    "no_attention": {**WITH, "model.attention_fusion": False},
  },
}
RATIO_SEEDS = (0, 1, 2)
_COMPARED = "compared.json"
# Kinds of `probe_run` as the csv names them.
_PROBES = {
  "probe": "a fresh head on the features of",
  "zero_others": "the system itself with only",
}


def gradient_spread(folder: str | pathlib.Path) -> dict[str, Any]:
  """Largest over smallest g_i of each seed's last epoch, and its fusion weights.

  Args:
    folder: a run directory that was trained with `balance.enabled`.

  Returns:
    `spread`, `g_<modality>` and `omega_<modality>`, each with mean, std, values.
  """
  last: dict[int, Mapping[str, float]] = {}
  for record in RunDirectory(folder).metrics():
    last[record["seed"]] = record["train"]
  rows = []
  for figures in last.values():
    found = {
      key.removeprefix("balance/"): value
      for key, value in figures.items()
      if key.startswith(("balance/g_", "balance/omega_"))
    }
    # Modalities that the corpus lacks have no gradient and no part in the spread.
    sizes = [v for k, v in found.items() if k.startswith("g_") and v > 0]
    rows.append({"spread": max(sizes) / min(sizes), **found})
  return over_seeds(rows)


def _open(folder: str | pathlib.Path):
  """A trained run: its config, corpus, recipe and selected parameters per seed."""
  opened = open_run(folder)
  corpus = prepare.reload(opened.config, opened.pipeline)
  return opened.config, corpus, opened.recipe, opened.selected


def probe_run(folder: str | pathlib.Path) -> dict[str, Any]:
  """Table 8 of one trained run.

  Args:
    folder: its run directory.

  Returns:
    `probe` (a fresh head on frozen features) and `zero_others` (the model itself with
    one modality) -> modality -> metric -> {"mean", "std", "values"} over seeds.
  """
  config, corpus, made, selected = _open(folder)
  fresh = [
    probes.probe(config, made, params, collections, corpus, seed)
    for seed, (params, collections) in zip(config.replicas.seeds, selected, strict=True)
  ]
  alone = [
    probes.zero_others(config, made, params, collections, corpus)
    for params, collections in selected
  ]
  return {"probe": over_seeds(fresh), "zero_others": over_seeds(alone)}


def attention_ratios(
  folder: str | pathlib.Path, seeds: Sequence[int] = RATIO_SEEDS, epochs: int = 20
) -> list[dict[str, Any]]:
  """Table 10: A-fusion trained again from other seeds, everything else frozen.

  Args:
    folder: run directory of a trained AWF; its first seed is used.
    seeds: of A-fusion's fresh parameters and of shuffling.
    epochs: passes over the training split.

  Returns:
    One entry per seed: `ratio` (modality -> mean weight on the training split, sum 1)
    and `figures` (metrics on test).

  Raises:
    UserError: the run has no A-fusion.
  """
  config, corpus, made, selected = _open(folder)
  params, collections = selected[0]
  if "attention" not in params:
    raise UserError(f"{folder}: {config.system} has no A-fusion to train again.")
  lengths = dict(config.corpus_spec.lengths)
  train, test = (
    batches.whole(corpus.splits[name], corpus.tasks, lengths)
    for name in ("train", "test")
  )
  labels = scoring.label_arrays(corpus.splits["test"], corpus.tasks)
  task = primary_output(config.model, config.corpus_spec).name
  fit, read = _attention_programs(config, made, params, collections, epochs)
  entries = []
  for seed in seeds:
    attention = fit(made.init(seed).params["attention"], train, seed)
    _, alpha = jax.device_get(read(attention, train))
    outputs, _ = jax.device_get(read(attention, test))
    mean = np.asarray(alpha).mean(axis=0)
    shares = (mean / mean.sum()).tolist()
    entries.append(
      {
        "seed": seed,
        "ratio": dict(zip(train.order, shares, strict=True)),
        "figures": scoring.score(corpus.tasks, outputs, labels)[task],
      }
    )
  return entries


def _attention_programs(config, made, params, collections, epochs):
  """A-fusion around frozen parameters, compiled.

  Returns:
    `fit(attention, data, seed)` -> trained attention, and `read(attention, data)` ->
    predictions and A-fusion's weights of a whole split.
  """
  optimizer = optax.adam(config.optim.learning_rate)
  spec = config.corpus_spec
  terms = one_loss(config.loss, spec)

  def predict(attention, data, rows):
    whole = {**params, "attention": attention}
    return made.predict(whole, collections, batches.take(data, rows))

  def loss(attention, data, rows):
    output = predict(attention, data, rows)
    rows = batches.take(data, rows)
    return sum(task_losses(spec.tasks, terms, output, rows).values())

  @jax.jit
  def fit(attention, data, seed):
    def step(carry, rows):
      attention, state = carry
      gradient = jax.grad(loss)(attention, data, rows)
      updates, state = optimizer.update(gradient, state)
      return (optax.apply_updates(attention, updates), state), None

    def epoch(carry, number):
      size = len(data.sample_mask)
      order = batches.epoch_order(seed, number, size, config.optim.batch_size)
      return jax.lax.scan(step, carry, order)[0], None

    carry = (attention, optimizer.init(attention))
    return jax.lax.scan(epoch, carry, jnp.arange(epochs))[0][0]

  @jax.jit
  def read(attention, data):
    output = predict(attention, data, jnp.arange(len(data.sample_mask)))
    return dict(output.predictions), output.features["alpha"]

  return fit, read


def study(
  config: Experiment, workdir: str | pathlib.Path, table: str
) -> dict[str, Any]:
  """Trains what a table compares, each run in a folder of its own, and compares.

  Runs that are there already are resumed or reused.

  Args:
    config: an unresolved config.
    workdir: folder of the study; gets `<run>/`, `study.csv` and `study.json`.
    table: one of `TABLES`.

  Returns:
    Run -> `figures` (test metrics over seeds), `gradients` (see `gradient_spread`),
    `probes` (see `probe_run`), and for `attention` also `ratios`.

  Raises:
    UserError: unknown table, or an option that the system lacks.
  """
  if table not in TABLES:
    raise UserError(f"--table={table}: choose one of {', '.join(TABLES)}.")
  workdir = pathlib.Path(workdir)
  trials = [runner.Trial(name, changed(config, c)) for name, c in TABLES[table].items()]

  def measure(folder, summary):
    found = _compared(folder, table)
    (folder / _COMPARED).write_text(json.dumps(found, indent=2))
    return list(lines(found, summary["seeds"], folder.name))

  summaries = runner.run_trials(f"balance_{table}", trials, workdir, measure)
  report: dict[str, Any] = {}
  for name, summary in summaries.items():
    split = held_out_split(summary["splits"])
    (figures,) = summary["splits"][split].values()
    report[name] = {"figures": figures}
    report[name] |= RunDirectory(workdir / name).read_json(_COMPARED)
  RunDirectory(workdir).write_json("study.json", report)
  return report


def _compared(folder: pathlib.Path, table: str) -> dict[str, Any]:
  """What a table looks at in one trained run besides its figures."""
  found: dict[str, Any] = {"gradients": gradient_spread(folder)}
  if table == "balance":
    found["probes"] = probe_run(folder)
  if table == "attention" and folder.name == "with":
    found["ratios"] = attention_ratios(folder)
  return found


def lines(
  found: Mapping[str, Any], seeds: Sequence[int], trial: str
) -> Iterator[runner.Line]:
  """Lines of study.csv for gradients, probes and attention ratios of one run.

  Args:
    found: `gradients`, and where they were made `probes` and `ratios`.
    seeds: the run's.
    trial: name of the run, which groups its bars.
  """
  yield from runner.lines_of(found["gradients"], seeds, task="gradients", group=trial)
  for kind, modalities in found.get("probes", {}).items():
    for modality, figures in modalities.items():
      about = {"task": "one modality", "group": trial, "axis": _PROBES[kind]}
      yield from runner.lines_of(figures, seeds, x=modality, **about)
  for entry in found.get("ratios", ()):
    shares = {f"share_{name}": share for name, share in entry["ratio"].items()}
    for metric, value in {**shares, **entry["figures"]}.items():
      about = {"task": "attention trained again", "axis": "seed", "group": trial}
      about |= {"x": f"seed {entry['seed']}", "seed": entry["seed"]}
      yield {**about, "metric": metric, "value": value}


def as_text(report: Mapping[str, Any], metric: str) -> str:
  """The comparison as lines of text.

  Args:
    report: from `study`.
    metric: the figure to show, e.g. `mae`.
  """

  lines = []
  for name, parts in report.items():
    line = f"{name}: test {metric} {figure(parts['figures'][metric])}"
    line += f", largest over smallest gradient {figure(parts['gradients']['spread'])}"
    lines.append(line)
    for modality, figures in parts.get("probes", {}).get("probe", {}).items():
      lines.append(f"  probe {modality}: {metric} {figure(figures[metric])}")
    for entry in parts.get("ratios", ()):
      shares = ", ".join(f"{n} {share:.2f}" for n, share in entry["ratio"].items())
      lines.append(f"  attention {shares}: {metric} {entry['figures'][metric]:.3f}")
  return "\n".join(lines)
