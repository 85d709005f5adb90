"""From a config to a clean corpus with the shapes a model needs."""

import hashlib
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from msa_jax import arrays, models
from msa_jax.config import spec as spec_lib
from msa_jax.config import validate
from msa_jax.config.experiment import Experiment, experiment
from msa_jax.config.options import MEMORY
from msa_jax.data import labels as has_label
from msa_jax.data import missing, readers, synthetic
from msa_jax.data.readers import cleaning
from msa_jax.data.transforms import dialogues, folds, joint, ratings
from msa_jax.data.transforms.degrade import Degrade
from msa_jax.data.transforms.modalities import select_modalities
from msa_jax.data.transforms.pipeline import Pipeline
from msa_jax.data.transforms.splits import check_trainable
from msa_jax.data.transforms.transform import OTHER, OWN
from msa_jax.errors import UserError
from msa_jax.models.outputs import output_specs
from msa_jax.runs import pseudo_labels, warm_start
from msa_jax.runs.transforms import pipeline_of
from msa_jax.step import compose
from msa_jax.text import features as text_features
from msa_jax.training.run_directory import RunDirectory
from msa_jax.typing import Corpus


class Inputs(NamedTuple):
  """A run's inputs.

  Attributes:
    config: resolved config.
    corpus: preprocessed corpus.
    pipeline: what the corpus went through, fitted.
    description: contents of data.json.
    masks: split -> what is missing there by `config.missing`, where anything is.
  """

  config: Experiment
  corpus: Corpus
  pipeline: Pipeline
  description: dict[str, Any]
  masks: dict[str, missing.Masks]


def load(config: Experiment) -> Corpus:
  """Reads the corpus that `config.data` names, as it is on disk, with the training
  splits of `config.data.extra_train_paths` added and the text that `config.text` makes.

  Raises:
    UserError: no such file, not readable, corpora that do not go together, or no
      such encoder.
  """
  corpus = read_own(config)
  options, encoded = config.data, config.text.is_encoded
  if not options.extra_train_paths:
    return _with_text(config, [corpus])[0]
  others = (readers.read(path, bare_text=encoded) for path in options.extra_train_paths)
  how = (options.fold_number, options.iemocap_val, options.num_folds)
  corpora = [
    folds.split(corpus, *how),
    *(folds.by_session(other, 0, options.iemocap_val) for other in others),
  ]
  for each in corpora:
    check_trainable(each)
  corpora = _with_text(config, corpora)
  chosen = [select_modalities(each, options.modalities) for each in corpora]
  return joint.join(chosen, options.extra_evaluation)


def read_own(config: Experiment) -> Corpus:
  """The corpus of `config.data.path`, or the synthetic one, as it is on disk.

  Raises:
    UserError: as `load`.
  """
  options = config.data
  if options.format == MEMORY:
    raise UserError(
      "the run was trained on a corpus in memory, which is not stored: give it again"
      " (msa_jax.evaluate(workdir, corpus)), or a labelled file (--input)."
    )
  if options.path:
    features = {name: path for name, path in options.features.items() if path}
    corpus = readers.read(
      options.path, options.format, features, bare_text=config.text.is_encoded
    )
  elif options.recipe:
    raise UserError(
      f"config.data.recipe={options.recipe!r}: the settings are those of a data set,"
      " whose file is lacking; give it (--config.data.path=FILE), or leave the variant"
      " out to train on the synthetic corpus."
    )
  else:
    corpus = synthetic.synthetic(options.synthetic)
  return ratings.valence_as_sentiment(corpus) if options.valence else corpus


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
  about = source_of(config, corpus)
  pipeline, corpus = pipeline_of(config, pseudo_labels.fill).fit_apply(corpus)
  masks = dict(pipeline.states[Degrade.name])
  description = {**describe(config, corpus), **about}
  description["transforms"] = pipeline.describe()
  description["missing"] = {
    name: {"pattern": str(drawn.pattern), "realised": dict(drawn.realised)}
    for name, drawn in masks.items()
  }
  terms = models.get(config.system).terms(config.loss, spec_lib.spec_of(corpus))
  losses = {name: terms[name].loss for name in corpus.tasks}
  resolved = spec_lib.resolve(config, corpus, losses)
  resolved = compose.with_anchor_chosen(resolved)
  _check_labelled(resolved, corpus)
  resolved = warm_start.resolve(resolved)
  return Inputs(resolved, corpus, pipeline, description, masks)


def _check_labelled(config: Experiment, corpus: Corpus) -> None:
  """Checks that the training split has labels of every task that is predicted."""
  labels = corpus.splits["train"].labels
  for output in output_specs(config.model, config.corpus_spec):
    values = labels.get(output.name)
    if values is None or not has_label.known(values).any():
      raise UserError(
        f"{corpus.name!r}: the training split has no label of {output.name!r}, which"
        f" {config.system} is to predict; the corpus has the tasks"
        f" {sorted(corpus.tasks)}."
      )


def _in_memory(config: Experiment, corpus: Corpus) -> Corpus:
  """A corpus that was given as arrays, as `load` would have read it."""
  cleaning.check_labels(corpus)
  cleaning.check_unique_ids(corpus)
  if config.data.valence:
    corpus = ratings.valence_as_sentiment(corpus)
  corpus = _with_text(config, [corpus])[0]
  cleaning.check_structure(corpus)
  return corpus


def source_of(config: Experiment, corpus: Corpus) -> dict[str, Any]:
  """Where a corpus came from, for data.json.

  Args:
    config: of the run.
    corpus: before any transform.

  Returns:
    `source`: `file`, `memory` or `synthetic`; `raw_steps`: longest sequence of each
    modality; `sha256` of a corpus in memory.
  """
  in_memory = config.data.format == MEMORY
  about: dict[str, Any] = {
    "source": "memory" if in_memory else "file" if config.data.path else "synthetic",
    "raw_steps": {
      name: max(
        int(split.modalities[name].lengths.max(initial=0))
        for split in corpus.splits.values()
      )
      for name in next(iter(corpus.splits.values())).modalities
    },
  }
  return about | ({"sha256": content_hash(corpus)} if in_memory else {})


def content_hash(corpus: Corpus) -> str:
  """SHA-256 of a corpus's samples: ids, features, lengths and labels."""
  digest = hashlib.sha256()
  for name, split in sorted(corpus.splits.items()):
    digest.update(f"{name} {split.ids.tolist()}".encode())
    for key, each in sorted(split.modalities.items()):
      digest.update(f"{key} {each.lengths.tolist()}".encode())
      for rows in arrays.blocks(len(split)):
        digest.update(np.ascontiguousarray(each.features[rows]).tobytes())
    for key, values in sorted(split.labels.items()):
      digest.update(key.encode() + np.ascontiguousarray(values).tobytes())
  return digest.hexdigest()


def is_own(directory: RunDirectory, corpus: Corpus) -> bool:
  """Whether a corpus in memory is the one that a run was trained on."""
  about = directory.read_json("data.json")
  return about.get("source") == "memory" and about["sha256"] == content_hash(corpus)


def reload(
  config: Experiment,
  pipeline: Pipeline,
  path: str = "",
  corpus: Corpus | None = None,
  own: bool = True,
) -> Corpus:
  """Reads a corpus for a trained run, as its model expects it.

  Args:
    config: the run's resolved config.
    pipeline: the run's, fitted.
    path: file to read in place of the run's own, without `config.missing`.
    corpus: in memory, in place of a file.
    own: whether `corpus` may be the run's own; False = it is another.
  """
  read = reread(config, path, corpus)
  return pipeline.apply(read, occasion(config, path, corpus, own))


def occasion(
  config: Experiment, path: str = "", corpus: Corpus | None = None, own: bool = True
) -> str:
  """Whether what `reload` reads is the run's own corpus (`transform.OWN`) or not.

  A corpus in memory is the own one only of a run that was trained on one.
  """
  given = corpus is not None and not (own and config.data.format == MEMORY)
  return OTHER if path or given else OWN


def reread(config: Experiment, path: str = "", corpus: Corpus | None = None) -> Corpus:
  """Reads a corpus for a trained run without any transform; see `reload`.

  Raises:
    UserError: not readable, or with text features of another encoder.
  """
  options = config
  if path:
    nothing = dict.fromkeys(config.data.features, "")
    options = config.replace(
      "data", path=path, format="auto", extra_train_paths=(), features=nothing
    )
  corpus = load(options) if corpus is None else _in_memory(options, corpus)
  _check_encoder(config, corpus)
  return corpus


def _check_encoder(config: Experiment, corpus: Corpus) -> None:
  """Checks that text features are of the encoder whose features the run learned."""
  ours = config.corpus_spec.text_sha256
  text = corpus.notes.get("text", {})
  theirs = text.get("encoder", {}).get("sha256", "")
  context, read = config.corpus_spec.text_context, tuple(text.get("context", (0, 0)))
  if ours and theirs and context != read:
    raise UserError(
      f"the text features of {corpus.name!r} were made with {read[0]} utterances before"
      f" and {read[1]} after each, those the run was trained on with {context[0]} and"
      f" {context[1]}."
    )
  # An encoder that was trained with the run is in its checkpoints.
  if ours and theirs and ours != theirs and not config.text.is_tuned:
    raise UserError(
      f"the text features of {corpus.name!r} are of another encoder (sha256"
      f" {theirs[:12]}) than those the run was trained on ({ours[:12]})."
    )


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
