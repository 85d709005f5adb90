"""From a config to a clean corpus with the shapes a model needs."""

import dataclasses
from typing import Any, NamedTuple

import ml_collections
from absl import logging

from msa_jax import config as config_lib
from msa_jax.config import validate
from msa_jax.data import missing, readers, synthetic
from msa_jax.data.batching.batches import available_columns
from msa_jax.data.transforms import (
  dialogues,
  folds,
  joint,
  preprocess,
  ratings,
  subsample,
)
from msa_jax.data.transforms.relabel import relabel
from msa_jax.errors import UserError
from msa_jax.models import SYSTEMS
from msa_jax.runs import pseudo_labels
from msa_jax.step.recipe import task_of
from msa_jax.text import features as text_features
from msa_jax.text import finetune
from msa_jax.typing import Corpus


class Inputs(NamedTuple):
  """A run's inputs.

  Attributes:
    config: resolved config.
    corpus: preprocessed corpus.
    preprocessor: what was fitted on the training split.
    description: contents of data.json.
    masks: split -> what is missing there by `config.missing`, where anything is.
  """

  config: ml_collections.ConfigDict
  corpus: Corpus
  preprocessor: preprocess.Preprocessor
  description: dict[str, Any]
  masks: dict[str, missing.Masks]


def load(config: ml_collections.ConfigDict) -> Corpus:
  """Reads the corpus that `config.data` names, as it is on disk, with the training
  splits of `config.data.extra_train_paths` added and the text that `config.text` makes.

  Raises:
    UserError: no such file, not readable, corpora that do not go together, or no
      such encoder.
  """
  options = config.data
  encoded = text_features.is_on(config)
  if options.path:
    features = {name: path for name, path in options.features.items() if path}
    corpus = readers.read(options.path, options.format, features, bare_text=encoded)
  else:
    corpus = synthetic.synthetic(options.synthetic)
  if options.valence:
    corpus = ratings.valence_as_sentiment(corpus)
  # `--config.data.extra_train_paths=a.npz,b.npz` arrives as one string.
  paths = [path for entry in options.extra_train_paths for path in entry.split(",")]
  if not paths:
    return _with_text(config, [corpus])[0]
  others = (readers.read(path, bare_text=encoded) for path in paths)
  corpora = [
    folds.by_session(corpus, options.fold, options.iemocap_val),
    *(folds.by_session(other, 0, options.iemocap_val) for other in others),
  ]
  for each in corpora:
    config_lib.check_trainable(each)
  corpora = _with_text(config, corpora)
  chosen = [select_modalities(each, options.modalities) for each in corpora]
  return joint.join(chosen, options.extra_evaluation)


def _with_text(
  config: ml_collections.ConfigDict, corpora: list[Corpus]
) -> list[Corpus]:
  """The corpora with text made by the encoder of `config.text`, if there is one."""
  if not text_features.is_on(config):
    return corpora
  names = [name for entry in config.data.modalities for name in entry.split(",")]
  if names and "text" not in names:
    raise UserError(
      f"config.data.modalities={tuple(names)} leaves out the text that"
      " config.text.input='encoder' makes; name text too, or choose 'features'."
    )
  return text_features.with_text(corpora, config.text, config.data.max_steps)


def _with_length(
  config: ml_collections.ConfigDict, corpus: Corpus
) -> ml_collections.ConfigDict:
  """The config with the length that the corpus's texts were cut to, for later files."""
  if not (text_features.is_on(config) and "text" in corpus.notes):
    return config
  config = config.copy_and_resolve_references()
  config.text.max_length = corpus.notes["text"]["max_length"]
  return config


def prepare(config: ml_collections.ConfigDict) -> Inputs:
  """Loads, preprocesses (fitted on the training split) and resolves.

  Args:
    config: an unresolved config.

  Raises:
    UserError: bad file, or a config that contradicts the corpus.
  """
  validate.validate(config, SYSTEMS)
  corpus = load(config)
  config = _with_length(config, corpus)
  corpus = select_modalities(cut(config, corpus), config.data.modalities)
  corpus = preprocess.derive_task(corpus, config.data.task)
  config_lib.check_trainable(corpus)
  corpus = subsample.shrink(corpus, config.data.train_fraction)
  if config.data.pseudo_label_run:
    corpus = pseudo_labels.fill(corpus, config.data.pseudo_label_run)
  corpus = grouped(config, selecting(config, corpus))
  corpus, masks = degrade(config, corpus)
  preprocessor = preprocess.fit(corpus, config.data)
  corpus = preprocess.apply(preprocessor, corpus)
  description = describe(config, corpus)
  description["missing"] = {
    name: {"pattern": str(drawn.pattern), "realised": dict(drawn.realised)}
    for name, drawn in masks.items()
  }
  return Inputs(
    config_lib.resolve(config, corpus, _losses),
    corpus,
    preprocessor,
    description,
    masks,
  )


def _losses(config: ml_collections.ConfigDict) -> dict[str, str]:
  """Task -> name of its loss, as the system says."""
  terms = SYSTEMS[config.model.name].terms(config)
  return {name: terms[name].loss for name in config.spec.tasks}


def cut(config: ml_collections.ConfigDict, corpus: Corpus) -> Corpus:
  """Cuts a corpus of sessions without splits into some; joined corpora have them."""
  if config.data.extra_train_paths:
    return corpus
  return folds.by_session(corpus, config.data.fold, config.data.iemocap_val)


def selecting(config: ml_collections.ConfigDict, corpus: Corpus) -> Corpus:
  """The corpus with the split that selects epochs as `valid`.

  `config.train.selection_split` is `val`, or `official`: the test split, with a
  warning, as some released code has it. Its figures are not comparable with any other.

  Raises:
    UserError: another value, or no test split.
  """
  chosen = config.train.selection_split
  if chosen == "val":
    return corpus
  if chosen != "official" or "test" not in corpus.splits:
    raise UserError(
      f"config.train.selection_split={chosen!r} must be val, or official where"
      f" there is a"
      f" test split ({corpus.name!r} has {', '.join(corpus.splits)})."
    )
  logging.warning(
    "config.train.selection_split='official' selects epochs on the test split:"
    " the figures"
    " overstate what the model can do, and serve to compare with such results only."
  )
  splits = {**corpus.splits, "valid": corpus.splits["test"]}
  notes = {**corpus.notes, "selected_on": "test"}
  return dataclasses.replace(corpus, splits=splits, notes=notes)


def grouped(config: ml_collections.ConfigDict, corpus: Corpus) -> Corpus:
  """The corpus in the units of `config.data.sample_unit`: utterances or dialogues."""
  return dialogues.group(corpus) if config.data.sample_unit == "dialogue" else corpus


def degrade(
  config: ml_collections.ConfigDict, corpus: Corpus
) -> tuple[Corpus, dict[str, missing.Masks]]:
  """Applies what `config.missing` draws once: all of validation and test, and the
  lost steps of training.

  Args:
    config: a run's.
    corpus: its corpus, not preprocessed.

  Raises:
    UserError: a pattern that does not fit the corpus.
  """
  known = _modalities(corpus)
  held_out = validate.missing_pattern(config, "eval", known)
  train = validate.missing_pattern(config, "train", known)
  patterns = dict.fromkeys(corpus.splits, held_out)
  patterns["train"] = train if train.stepwise else missing.NONE
  return missing.degrade(corpus, patterns, config.missing.seed, config.optim.batch_size)


def reload(
  config: ml_collections.ConfigDict, preprocessor: preprocess.Preprocessor, path: str
) -> Corpus:
  """Reads a corpus for a trained run: its own (`path` empty) or another file.

  Args:
    config: the run's resolved config.
    preprocessor: the run's.
    path: file to read in place of the run's own, without `config.missing`.
  """
  corpus = reread(config, path)
  corpus = corpus if path else degrade(config, corpus)[0]
  return preprocess.apply(preprocessor, corpus)


def reread(config: ml_collections.ConfigDict, path: str) -> Corpus:
  """Reads a corpus for a trained run as it is on disk: its own or another file.

  Args:
    config: the run's resolved config.
    path: file to read; "" = the run's own.

  Returns:
    The modalities and tasks that the run knows, with its numbers of classes, not
    preprocessed.
  """
  if path:
    config = config.copy_and_resolve_references()
    with config.unlocked():
      config.data.update({"path": path, "format": "auto", "extra_train_paths": ()})
      config.data.features = {name: "" for name in config.data.features}
  corpus = load(config) if path else cut(config, load(config))
  _check_encoder(config, corpus)
  kept = [n for n in config.spec.widths if n in _modalities(corpus)]
  corpus = select_modalities(corpus, kept)
  if path:
    corpus = _in_terms_of(config, corpus)
  else:
    corpus = preprocess.derive_task(corpus, config.data.task)
  return grouped(config, corpus)


def _check_encoder(config: ml_collections.ConfigDict, corpus: Corpus) -> None:
  """Checks that text features are of the encoder whose features the run learned."""
  ours = config.spec.get("text_sha256", "")
  theirs = corpus.notes.get("text", {}).get("encoder", {}).get("sha256", "")
  # An encoder that was trained with the run is in its checkpoints.
  if ours and theirs and ours != theirs and not finetune.is_tuned(config):
    raise UserError(
      f"the text features of {corpus.name!r} are of another encoder (sha256"
      f" {theirs[:12]}) than those the run was trained on ({ours[:12]})."
    )


def _in_terms_of(config: ml_collections.ConfigDict, corpus: Corpus) -> Corpus:
  """Another file with the tasks of a run; it need not have labels."""
  task = corpus.tasks.get("sentiment")
  if config.data.task != "regression" and task and task.kind == "regression":
    # Which classes there are was asked of the run's own range, not of a small file's.
    ranged = dataclasses.replace(task, low=-3.0, high=3.0)
    corpus = dataclasses.replace(corpus, tasks={**corpus.tasks, "sentiment": ranged})
    corpus = preprocess.derive_task(corpus, config.data.task)
  tasks = {name: task_of(entry) for name, entry in config.spec.tasks.items()}
  return relabel(corpus, tasks)


def _modalities(corpus: Corpus) -> list[str]:
  return sorted(next(iter(corpus.splits.values())).modalities)


def select_modalities(corpus: Corpus, names: tuple[str, ...] | list[str]) -> Corpus:
  """Keeps the named modalities (all if none is named).

  Raises:
    UserError: the corpus has no such modality.
  """
  known = _modalities(corpus)
  # `--config.data.modalities=text,audio` arrives as one string.
  names = [name for entry in names for name in entry.split(",")]
  unknown = set(names) - set(known)
  if unknown:
    raise UserError(
      f"config.data.modalities={tuple(names)}: the corpus has no"
      f" {', '.join(sorted(unknown))} (it has {', '.join(known)})."
    )
  if not names:
    return corpus
  splits = {
    key: dataclasses.replace(
      split,
      modalities={n: split.modalities[n] for n in known if n in names},
      available=available_columns(split, names),
    )
    for key, split in corpus.splits.items()
  }
  return dataclasses.replace(corpus, splits=splits)


def describe(config: ml_collections.ConfigDict, corpus: Corpus) -> dict[str, Any]:
  """Contents of data.json: file hash, sizes, sign counts, what the reader noted."""
  description: dict[str, Any] = {"name": corpus.name, "notes": dict(corpus.notes)}
  if config.data.path:
    file = corpus.notes["file"]
    description |= {"file": file["name"], "sha256": file["sha256"]}
  flat = {key: dialogues.utterances(split) for key, split in corpus.splits.items()}
  description["splits"] = {
    key: {"samples": len(split), "labels": _label_counts(split)}
    for key, split in flat.items()
  }
  return description


def _label_counts(split) -> dict[str, dict[str, int]]:
  counts = {}
  for name, values in split.labels.items():
    if values.dtype.kind == "f":
      signs = {"negative": values < 0, "zero": values == 0, "positive": values > 0}
      counts[name] = {sign: int(chosen.sum()) for sign, chosen in signs.items()}
    elif values.ndim == 1:
      counts[name] = {
        f"class_{c}": int((values == c).sum()) for c in sorted(set(values.tolist()))
      }
    else:
      counts[name] = {
        f"yes_{c}": int((values[:, c] == 1).sum()) for c in range(values.shape[1])
      }
  return counts
