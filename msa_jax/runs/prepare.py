"""From a config to a clean corpus with the shapes a model needs."""

import dataclasses
from typing import Any, NamedTuple

import ml_collections
from absl import logging

from msa_jax import models
from msa_jax.config import spec as spec_lib
from msa_jax.config import validate
from msa_jax.config.experiment import Experiment, experiment
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
from msa_jax.runs import pseudo_labels
from msa_jax.text import features as text_features
from msa_jax.typing import Corpus

MEMORY = "memory"  # format of a corpus that is no file


class Inputs(NamedTuple):
  """A run's inputs.

  Attributes:
    config: resolved config.
    corpus: preprocessed corpus.
    preprocessor: what was fitted on the training split.
    description: contents of data.json.
    masks: split -> what is missing there by `config.missing`, where anything is.
  """

  config: Experiment
  corpus: Corpus
  preprocessor: preprocess.Preprocessor
  description: dict[str, Any]
  masks: dict[str, missing.Masks]


def load(config: Experiment) -> Corpus:
  """Reads the corpus that `config.data` names, as it is on disk, with the training
  splits of `config.data.extra_train_paths` added and the text that `config.text` makes.

  Raises:
    UserError: no such file, not readable, corpora that do not go together, or no
      such encoder.
  """
  options = config.data
  if options.format == MEMORY:
    raise UserError(
      "the run was trained on a corpus in memory: give the corpus again, or a file."
    )
  encoded = config.text.is_encoded
  if options.path:
    features = {name: path for name, path in options.features.items() if path}
    corpus = readers.read(options.path, options.format, features, bare_text=encoded)
  else:
    corpus = synthetic.synthetic(options.synthetic)
  if options.valence:
    corpus = ratings.valence_as_sentiment(corpus)
  if not options.extra_train_paths:
    return _with_text(config, [corpus])[0]
  others = (readers.read(path, bare_text=encoded) for path in options.extra_train_paths)
  corpora = [
    folds.by_session(corpus, options.fold, options.iemocap_val),
    *(folds.by_session(other, 0, options.iemocap_val) for other in others),
  ]
  for each in corpora:
    spec_lib.check_trainable(each)
  corpora = _with_text(config, corpora)
  chosen = [select_modalities(each, options.modalities) for each in corpora]
  return joint.join(chosen, options.extra_evaluation)


def _with_text(config: Experiment, corpora: list[Corpus]) -> list[Corpus]:
  """The corpora with text made by the encoder of `config.text`, if there is one."""
  if not config.text.is_encoded:
    return corpora
  names = config.data.modalities
  if names and "text" not in names:
    raise UserError(
      f"config.data.modalities={names} leaves out the text that"
      " config.text.input='encoder' makes; name text too, or choose 'features'."
    )
  return text_features.with_text(corpora, config.text, config.data.max_steps)


def _with_length(config: Experiment, corpus: Corpus) -> Experiment:
  """The config with the length that the corpus's texts were cut to, for later files."""
  if not (config.text.is_encoded and "text" in corpus.notes):
    return config
  return config.replace("text", max_length=corpus.notes["text"]["max_length"])


def prepare(
  config: ml_collections.ConfigDict | Experiment, corpus: Corpus | None = None
) -> Inputs:
  """Loads, preprocesses (fitted on the training split) and resolves.

  Args:
    config: not resolved.
    corpus: in memory, in place of the one that `config.data` names.

  Raises:
    UserError: bad file, or a config that contradicts the corpus.
  """
  config = experiment(config)
  if corpus is not None:
    config = config.replace("data", path="", format=MEMORY)
  validate.validate(config)
  corpus = load(config) if corpus is None else _in_memory(config, corpus)
  config = _with_length(config, corpus)
  corpus = select_modalities(cut(config, corpus), config.data.modalities)
  corpus = preprocess.derive_task(corpus, config.data.task)
  spec_lib.check_trainable(corpus)
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
  terms = models.get(config.system).terms(config.loss, spec_lib.spec_of(corpus))
  losses = {name: terms[name].loss for name in corpus.tasks}
  resolved = spec_lib.resolve(config, corpus, losses)
  return Inputs(resolved, corpus, preprocessor, description, masks)


def _in_memory(config: Experiment, corpus: Corpus) -> Corpus:
  """A corpus that was given as arrays, as `load` would have read it."""
  if config.data.valence:
    corpus = ratings.valence_as_sentiment(corpus)
  return _with_text(config, [corpus])[0]


def cut(config: Experiment, corpus: Corpus) -> Corpus:
  """Cuts a corpus of sessions without splits into some; joined corpora have them."""
  if config.data.extra_train_paths:
    return corpus
  return folds.by_session(corpus, config.data.fold, config.data.iemocap_val)


def selecting(config: Experiment, corpus: Corpus) -> Corpus:
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


def grouped(config: Experiment, corpus: Corpus) -> Corpus:
  """The corpus in the units of `config.data.sample_unit`: utterances or dialogues."""
  return dialogues.group(corpus) if config.data.sample_unit == "dialogue" else corpus


def degrade(
  config: Experiment, corpus: Corpus
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
  held_out = validate.missing_pattern(config.missing, "eval", known)
  train = validate.missing_pattern(config.missing, "train", known)
  patterns = dict.fromkeys(corpus.splits, held_out)
  patterns["train"] = train if train.stepwise else missing.NONE
  return missing.degrade(corpus, patterns, config.missing.seed, config.optim.batch_size)


def reload(
  config: Experiment, preprocessor: preprocess.Preprocessor, path: str
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


def reread(config: Experiment, path: str) -> Corpus:
  """Reads a corpus for a trained run as it is on disk: its own or another file.

  Args:
    config: the run's resolved config.
    path: file to read; "" = the run's own.

  Returns:
    The modalities and tasks that the run knows, with its numbers of classes, not
    preprocessed.
  """
  if path:
    nothing = dict.fromkeys(config.data.features, "")
    config = config.replace(
      "data", path=path, format="auto", extra_train_paths=(), features=nothing
    )
  corpus = load(config) if path else cut(config, load(config))
  _check_encoder(config, corpus)
  kept = [n for n in config.corpus_spec.widths if n in _modalities(corpus)]
  corpus = select_modalities(corpus, kept)
  if path:
    corpus = _in_terms_of(config, corpus)
  else:
    corpus = preprocess.derive_task(corpus, config.data.task)
  return grouped(config, corpus)


def _check_encoder(config: Experiment, corpus: Corpus) -> None:
  """Checks that text features are of the encoder whose features the run learned."""
  ours = config.corpus_spec.text_sha256
  theirs = corpus.notes.get("text", {}).get("encoder", {}).get("sha256", "")
  # An encoder that was trained with the run is in its checkpoints.
  if ours and theirs and ours != theirs and not config.text.is_tuned:
    raise UserError(
      f"the text features of {corpus.name!r} are of another encoder (sha256"
      f" {theirs[:12]}) than those the run was trained on ({ours[:12]})."
    )


def _in_terms_of(config: Experiment, corpus: Corpus) -> Corpus:
  """Another file with the tasks of a run; it need not have labels."""
  task = corpus.tasks.get("sentiment")
  if config.data.task != "regression" and task and task.kind == "regression":
    # Which classes there are was asked of the run's own range, not of a small file's.
    ranged = dataclasses.replace(task, low=-3.0, high=3.0)
    corpus = dataclasses.replace(corpus, tasks={**corpus.tasks, "sentiment": ranged})
    corpus = preprocess.derive_task(corpus, config.data.task)
  return relabel(corpus, dict(config.corpus_spec.tasks))


def _modalities(corpus: Corpus) -> list[str]:
  return sorted(next(iter(corpus.splits.values())).modalities)


def select_modalities(corpus: Corpus, names: tuple[str, ...] | list[str]) -> Corpus:
  """Keeps the named modalities (all if none is named).

  Raises:
    UserError: the corpus has no such modality.
  """
  known = _modalities(corpus)
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


def describe(config: Experiment, corpus: Corpus) -> dict[str, Any]:
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
