"""Configs: the options every system shares, and how a corpus completes them.

A config is a locked `ConfigDict` made by plain Python (`configs/*.py`). Resolving it
against a corpus fills `config.spec`; from then on it describes the whole program, and
that is what a run directory keeps.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections
import numpy as np

from msa_jax.data.synthetic.generator import SyntheticOptions
from msa_jax.data.transforms import dialogues, joint
from msa_jax.errors import UserError
from msa_jax.losses.prior import best_constant
from msa_jax.text import finetune
from msa_jax.text import options as text_options
from msa_jax.typing import Corpus


def base(model: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Returns the shared defaults around the options of one model.

  Args:
    model: options of the system, with its `name`.

  Returns:
    Unlocked config; `finish` locks it.
  """
  config = ml_collections.ConfigDict()
  config.model = model
  config.data = _data()
  # task: l1, mse, huber for regression; default = l1, or cross-entropy for classes
  config.loss = {"task": "default", "aux_warmup_fraction": 0.0}
  config.optim = _optim()
  config.train = {
    # What picks the epoch on validation: auto, or [weight*][task/]metric, comma
    # separated; see train/selection.py.
    "monitor": "auto",
    # val, or official: by the test split, as some released code does (with a warning)
    "selection_split": "val",
    "task_cosine": False,  # log how the tasks' gradients agree on shared parameters
    "eval_batch_size": 64,
    "checkpoint_every_seconds": 30.0,
    "steps_per_call": 100,
  }
  # What is missing; see data/missing/patterns.py for the patterns.
  config.missing = {
    "train": "none",  # e.g. dropout:0.1; drawn anew each step, but for frames, tokens
    "eval": "none",  # in validation and test, drawn once: e.g. random:0.3
    "seed": 0,  # of the masks that are drawn once
  }
  config.balance = _balance()
  config.text = text_options.defaults()
  # How several seeds are trained: at once (vmap), one after the other (sequential), or
  # as this machine does it faster (auto); see train/vmapped_stages.py.
  config.replicas = {
    "seeds": (0,),
    "mode": "auto",
    "most_at_once": 0,  # largest number in one program, to bound memory; 0 = all
  }
  # Devices: batches, replicas and banks of experts are split over as many.
  config.sharding = {"data": 1, "replica": 1, "expert": 1}
  config.spec = {
    "widths": {},
    "lengths": {},
    "ids": {},
    "tasks": {},
    "priors": {},
    "train_size": 0,  # samples of an epoch
    "sources": (),  # samples of each corpus that trains, where there are several
    "utterances": 0,  # of a dialogue; 0 = samples are utterances
    "encoder": {},  # sizes of the text encoder inside the model, where there is one
  }
  return config


def _optim() -> dict[str, Any]:
  return {
    "name": "adam",
    "learning_rate": 1e-3,
    "warmup_fraction": 0.1,  # share of all steps
    "schedule": "linear",
    "grad_clip_norm": 2.0,  # global norm; 0 = no clipping
    "weight_decay": 0.0,
    "momentum": 0.0,
    # decay of a running mean of the parameters, with which is predicted; 0 = none
    "ema_decay": 0.0,
    "epochs": 40,
    "batch_size": 32,
    "patience": 10,  # epochs without improvement on validation; 0 = never stop
  }


def _balance() -> dict[str, Any]:
  # B-fusion around any model with `encode` and `tail`; see step/balance/recipe.py.
  return {
    "enabled": False,
    "omega_init": 1.0,
    "omega_loss": "relative",  # literal: not divided by the mean gradient
    "omega_lr": "0.05/steps_per_epoch",  # a number, or a number/steps_per_epoch
    "omega_clip": (0.05, 5.0),
    "omega_norm": "none",  # sum3: the weights add up to the number of modalities
    "r_max": 10.0,  # largest ratio of gradient sizes; inf = no bound
    "target_stop_grad": True,
    "omega_grad": "autodiff",  # proportional: without second derivatives
    "g_ema": 0.0,  # decay of a running mean of the gradient sizes; 0 = none
    # auto: as the gradients scale under SGD, so do adam's and adamw's updates.
    "scale_updates_by_omega": "auto",
  }


def _data() -> dict[str, Any]:
  return {
    "path": "",  # "" = the synthetic corpus
    "format": "auto",
    # Further files to train with, each sample with the labels it has; batches draw
    # from all files equally. Validation and test are those of `path`, or of all.
    "extra_train_paths": (),
    "extra_evaluation": False,
    "pseudo_label_run": "",  # run whose predictions are the labels that training lacks
    "modalities": (),  # () = every modality of the corpus
    # MMSA's separate feature files that replace one modality of the main file, or
    # GCNet's folders of one .npy per utterance.
    "features": {"text": "", "audio": "", "vision": ""},
    "valence": False,  # ratings of valence in 1..5 become sentiment in [-3, 3]
    "sample_unit": "utterance",  # a sample; dialogue: its utterances are the steps
    "fold": 0,  # session to test on, of corpora split by session; 0 = the last
    "train_fraction": 1.0,  # of the training split, stratified; see data/transforms
    "iemocap_val": "holdout10",  # of the training dialogues, to select on; or none
    "task": "regression",  # or cls2, cls7: classes made from a sentiment label
    "standardize": ("audio", "vision"),
    "align": "none",  # pool: audio and vision at the text's steps
    "max_steps": 0,  # longest sequence kept, in steps; 0 = as long as the corpus
    "num_frame_clusters": 0,  # k-means codes of audio and vision frames; 0 = none
    "synthetic": dataclasses.asdict(SyntheticOptions()),
    # static lengths that batches of like samples are cut to; 0 = one, the corpus's
    "buckets": 0,
    "device_budget_mib": 4096,  # larger splits are streamed from the host
  }


def finish(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Locks a config, so that unknown keys are errors from here on.

  `replicas.sweep` gets an entry for every option that is a real number: the values to
  try, none to begin with.
  """
  config.replicas.sweep = _sweepable({name: config[name] for name in _SWEPT})
  return config.lock()


_SWEPT = ("model", "loss", "optim", "balance")


def _sweepable(tree: Mapping[str, Any]) -> dict[str, Any]:
  entries = {}
  for key, value in tree.items():
    if isinstance(value, Mapping | ml_collections.ConfigDict):
      if inner := _sweepable(dict(value.items())):
        entries[key] = inner
    elif isinstance(value, float):
      entries[key] = ()
  return entries


def sweep(config: ml_collections.ConfigDict) -> dict[str, tuple[float, ...]]:
  """Dotted key -> values to try, of every option that is swept.

  Raises:
    UserError: a value that is not a finite number, or one twice.
  """
  entries = config.replicas.get("sweep", ml_collections.ConfigDict()).to_dict()
  swept = {key: values for key, values in _flatten(entries).items() if values}
  for key, values in swept.items():
    numbers = all(type(v) in (int, float) and np.isfinite(v) for v in values)
    if not numbers or len(set(values)) != len(values):
      raise UserError(
        f"config.replicas.sweep.{key}={tuple(values)} must be distinct finite numbers."
      )
  return {key: tuple(float(v) for v in values) for key, values in swept.items()}


def bind(
  config: ml_collections.ConfigDict, values: Mapping[str, Any]
) -> ml_collections.ConfigDict:
  """A locked copy of a config with other values at dotted keys.

  Values may be traced: then `step.recipe.build` makes a recipe that depends on them.
  """
  config = config.copy_and_resolve_references()
  with config.unlocked(), config.ignore_type():
    for key, value in values.items():
      path, _, last = key.rpartition(".")
      get(config, path)[last] = value
  return config.lock()


def parse_variants(text: str, known: Mapping[str, Any]) -> tuple[str, ...]:
  """Splits the part of `--config=file.py:a,b` after the colon.

  Raises:
    UserError: a name that the config file does not know.
  """
  chosen = tuple(name.strip() for name in text.split(",") if name.strip())
  unknown = [name for name in chosen if name not in known]
  if unknown:
    raise UserError(
      f"--config variant {unknown[0]!r} must be one of {', '.join(sorted(known))}."
    )
  return chosen


def resolve(
  config: ml_collections.ConfigDict,
  corpus: Corpus,
  losses: Callable[[ml_collections.ConfigDict], Mapping[str, str]] | None = None,
) -> ml_collections.ConfigDict:
  """Returns a locked copy of `config`, `spec` read off the preprocessed corpus.

  Args:
    config: an unresolved config.
    corpus: preprocessed.
    losses: resolved config -> name of each task's loss; None = `config.loss.task`.
  """
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.spec = spec_of(corpus)
    if finetune.is_tuned(config):
      config.spec.encoder = _encoder(config)
      config.spec.widths.text = config.spec.encoder.width
    named = dict.fromkeys(corpus.tasks, config.loss.task)
    named = named if losses is None else losses(config)
    config.spec.priors = _priors(corpus, named)
  return config.lock()


def _encoder(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Sizes of the text encoder inside the model."""
  ids = config.spec.ids.get("text", ())
  needed = [name for name, _ in finetune.LINGUISTIC] if config.text.linguistic else []
  lacking = [name for name in ("tokens", *needed) if name not in ids]
  if lacking:
    raise UserError(
      f"config.text.finetune={config.text.finetune!r} trains an encoder of token ids,"
      f" but the corpus's text has no {', '.join(lacking)}: it needs raw text (and"
      " config.data.modalities with text), or choose config.text.input='features'."
    )
  return finetune.encoder_spec(config)


def _priors(corpus: Corpus, losses: Mapping[str, str]) -> dict[str, tuple[float, ...]]:
  """Task -> what to predict of a sample without any content."""
  labels = corpus.splits["train"].labels
  priors = {}
  for name, task in corpus.tasks.items():
    if name in labels:
      values = labels[name]
      known = np.isfinite(values) if values.dtype.kind == "f" else values >= 0
      if task.kind == "binary":
        known = known.all(axis=-1)
      priors[name] = best_constant(
        task.kind, losses[name], values, known, len(task.classes)
      )
  return priors


def check_trainable(corpus: Corpus) -> None:
  """Checks that a corpus can be trained on.

  Raises:
    UserError: the corpus has no training split, or no labels.
  """
  if "train" not in corpus.splits:
    raise UserError(
      f"{corpus.name!r} has no split 'train' (splits: {sorted(corpus.splits)})."
    )
  if not corpus.tasks:
    raise UserError(f"{corpus.name!r} has no labels to train on.")


def spec_of(corpus: Corpus) -> dict[str, Any]:
  """Shapes and meanings of a corpus: all that building a model needs to know."""
  train = corpus.splits["train"]
  names = sorted(train.modalities)
  sources = joint.source_sizes(train)
  utterances = dialogues.real(train)
  encoder = corpus.notes.get("text", {}).get("encoder", {})
  return {
    # Which encoder made the text, where one did.
    **({"text_sha256": encoder["sha256"]} if encoder else {}),
    "widths": {n: int(train.modalities[n].features.shape[-1]) for n in names},
    "lengths": {
      n: max(int(s.modalities[n].features.shape[1]) for s in corpus.splits.values())
      for n in names
    },
    "ids": {n: tuple(sorted(train.modalities[n].ids)) for n in names},
    "tasks": {
      name: {
        "kind": task.kind,
        "low": task.low,
        "high": task.high,
        "classes": tuple(task.classes),
        "protocol": task.protocol,
      }
      for name, task in corpus.tasks.items()
    },
    "train_size": joint.epoch_size(len(train), sources),
    "sources": sources,
    "utterances": 0 if utterances is None else utterances.shape[1],
  }


def get(config: ml_collections.ConfigDict, path: str) -> Any:
  """Reads a dotted path, e.g. `optim.batch_size`."""
  for key in path.split("."):
    config = config[key]
  return config


def to_json(config: ml_collections.ConfigDict) -> str:
  """Serialises a config; `from_json` gives an equal one back."""
  return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def _tuples(value: Any) -> Any:
  if isinstance(value, dict):
    return {key: _tuples(entry) for key, entry in value.items()}
  return tuple(_tuples(entry) for entry in value) if isinstance(value, list) else value


def from_json(text: str) -> ml_collections.ConfigDict:
  """Reads a config written by `to_json`.

  Raises:
    UserError: the text is not such a config.
  """
  try:
    return ml_collections.ConfigDict(_tuples(json.loads(text))).lock()
  except (ValueError, TypeError) as error:
    raise UserError(f"config.json is damaged: {error}.") from error


def differences(
  ours: ml_collections.ConfigDict,
  theirs: ml_collections.ConfigDict,
  ignore: tuple[str, ...] = (),
) -> list[str]:
  """Lists the dotted keys whose values differ, as `key: a here, b there`."""
  flat_ours, flat_theirs = _flatten(ours.to_dict()), _flatten(theirs.to_dict())
  lines = []
  for key in sorted(flat_ours.keys() | flat_theirs.keys()):
    a, b = flat_ours.get(key, "absent"), flat_theirs.get(key, "absent")
    if a != b and key not in ignore:
      lines.append(f"{key}: {a} here, {b} there")
  return lines


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  flat = {}
  for key, value in tree.items():
    if isinstance(value, Mapping) and value:
      flat.update(_flatten(value, f"{prefix}{key}."))
    else:
      flat[prefix + key] = list(value) if isinstance(value, tuple) else value
  return flat
