"""What a corpus adds to an experiment: shapes, tasks, best constants."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from msa_jax.config.experiment import Experiment
from msa_jax.config.options import TextConfig
from msa_jax.data import labels as has_label
from msa_jax.data.transforms import dialogues, joint
from msa_jax.errors import UserError
from msa_jax.losses.prior import best_constant
from msa_jax.text import finetune
from msa_jax.typing import Corpus, Spec


def resolve(
  config: Experiment, corpus: Corpus, losses: Mapping[str, str]
) -> Experiment:
  """The experiment with the `spec` of a preprocessed corpus.

  Args:
    config: unresolved.
    corpus: preprocessed.
    losses: name of each task's loss.
  """
  spec = spec_of(corpus)
  if config.text.is_tuned:
    encoder = finetune.encoder_sizes(config.text)
    _check_ids(config.text, spec)
    widths = {**spec.widths, "text": encoder.width}
    spec = dataclasses.replace(spec, encoder=encoder, widths=widths)
  spec = dataclasses.replace(spec, priors=_priors(corpus, losses))
  return config.replace(spec=spec)


def _check_ids(text: TextConfig, spec: Spec) -> None:
  """Checks that the text has the ids that the encoder inside the model reads."""
  ids = spec.ids.get("text", ())
  needed = [name for name, _ in finetune.LINGUISTIC] if text.linguistic else []
  lacking = [name for name in ("tokens", *needed) if name not in ids]
  if lacking:
    raise UserError(
      f"config.text.finetune={text.finetune!r} trains an encoder of token ids,"
      f" but the corpus's text has no {', '.join(lacking)}: it needs raw text (and"
      " config.data.modalities with text), or choose config.text.input='features'."
    )


def _priors(corpus: Corpus, losses: Mapping[str, str]) -> dict[str, tuple[float, ...]]:
  """Task -> what to predict of a sample without any content."""
  labels = corpus.splits["train"].labels
  priors = {}
  for name, task in corpus.tasks.items():
    if name in labels:
      values = labels[name]
      known = has_label.known(values)
      if task.kind == "binary":
        known = np.all(known, axis=-1)
      priors[name] = best_constant(
        task.kind, losses[name], values, known, len(task.classes)
      )
  return priors


def spec_of(corpus: Corpus) -> Spec:
  """Shapes and meanings of a corpus."""
  train = corpus.splits["train"]
  names = sorted(train.modalities)
  sources = joint.source_sizes(train)
  utterances = dialogues.real(train)
  text = corpus.notes.get("text", {})
  return Spec(
    widths={n: int(train.modalities[n].features.shape[-1]) for n in names},
    lengths={
      n: max(int(s.modalities[n].features.shape[1]) for s in corpus.splits.values())
      for n in names
    },
    ids={n: tuple(sorted(train.modalities[n].ids)) for n in names},
    tasks=dict(corpus.tasks),
    train_size=joint.epoch_size(len(train), sources),
    sources=sources,
    utterances=0 if utterances is None else utterances.shape[1],
    text_sha256=text.get("encoder", {}).get("sha256", ""),
    text_context=tuple(text.get("context", (0, 0))),
  )
