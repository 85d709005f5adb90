"""The tiny BERT with a vocabulary, and a corpus of transcripts."""

import json
import pathlib

import numpy as np
import tiny_encoder

from msa_jax.config.options import TextConfig
from msa_jax.typing import Corpus, Sequences, Split, Task

PIECES = (
  "[PAD] [UNK] [CLS] [SEP] [MASK] a bad good film was not great ##er ##ly , . it ' s"
)
VOCABULARY = PIECES.split()
TEXTS = {
  "train": ["a good film", "it was not great", "Bad.", "it's a badly bad film, not"],
  "test": ["good", "", "a film was a film was a film was a film was bad"],
}


def folder(path: pathlib.Path, **sizes) -> str:
  """Writes the tiny encoder with a tokenizer."""
  tiny_encoder.folder(path, **sizes)
  (path / "vocab.txt").write_text("\n".join(VOCABULARY))
  kind = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
  (path / "tokenizer_config.json").write_text(json.dumps(kind))
  return str(path)


def group(path: str, **changes) -> TextConfig:
  """`config.text` for an encoder, its features kept beside it."""
  values = {"input": "encoder", "encoder": path, "cache": f"{path}/cache"}
  return TextConfig(**{**values, **changes})


def corpus(audio: bool = True) -> Corpus:
  """Transcripts with sentiment and, as is asked, a step of audio each."""
  splits = {}
  for name, texts in TEXTS.items():
    n = len(texts)
    sound = Sequences(np.ones((n, 1, 2), np.float32), np.ones(n, np.int32))
    splits[name] = Split(
      ids=np.array([f"v{i}$_${name}" for i in range(n)]),
      modalities={"audio": sound} if audio else {},
      labels={"sentiment": np.linspace(-1, 1, n, dtype=np.float32)},
      raw_text=np.array(texts),
    )
  return Corpus("tiny", splits, {"sentiment": Task("regression", -3.0, 3.0)})
