"""A random BERT of two narrow layers in a folder, and a small corpus of its tokens."""

import dataclasses
import json
import pathlib

import numpy as np
import toy

from msa_jax.text import weights
from msa_jax.text.bert import config_of
from msa_jax.typing import Corpus, Sequences

OPTIONS = {
  "model_type": "bert",
  "vocab_size": 29,
  "hidden_size": 8,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "intermediate_size": 12,
  "max_position_embeddings": 12,
  "type_vocab_size": 2,
}


def folder(path: pathlib.Path, seed: int = 0, n_layers: int = 2, **sizes) -> str:
  """Writes the encoder, of other sizes where named; its weights are random, so that
  every one is told from the others."""
  from safetensors.numpy import save_file

  random = np.random.default_rng(seed)
  options = {**OPTIONS, "num_hidden_layers": n_layers, **sizes}
  tensors = {
    name: random.normal(0.0, 0.3, shape).astype(np.float32)
    for name, (_, shape) in weights._names(config_of(options)).items()
  }
  path.mkdir(parents=True, exist_ok=True)
  (path / "config.json").write_text(json.dumps(options))
  save_file(tensors, path / "model.safetensors")
  return str(path)


def corpus(**kwargs) -> Corpus:
  """The toy corpus with token ids in place of text features: a token's id grows with
  the sentiment."""
  made = toy.corpus(**kwargs)
  random = np.random.default_rng(1)

  def tokens(split):
    text = split.modalities["text"]
    steps = text.features.shape[1]
    level = np.clip(split.labels["sentiment"] * 3 + 14, 5, 23).astype(np.int32)
    ids = level[:, None] + random.integers(-1, 2, (len(split), steps))
    ids[np.arange(steps)[None] >= text.lengths[:, None]] = 0
    given = {"tokens": ids.astype(np.int32)}
    text = Sequences(
      np.zeros((len(split), steps, 0), np.float32), text.lengths, None, given
    )
    return dataclasses.replace(split, modalities={**split.modalities, "text": text})

  splits = {name: tokens(split) for name, split in made.splits.items()}
  return dataclasses.replace(made, splits=splits)
