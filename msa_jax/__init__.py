"""Multimodal sentiment analysis and emotion recognition in JAX and Flax.

>>> import msa_jax
>>> model = msa_jax.models.HGEM()  # a plain Flax module
>>> batch = msa_jax.Batch.from_arrays({"text": x, "audio": a})
>>> corpus = msa_jax.load_corpus("mosi.pkl")  # or Corpus.from_arrays(...)
>>> summary = msa_jax.train("hgem:mosi", corpus, "runs/a")
>>> predictor = msa_jax.Predictor("runs/a")

Names are imported when they are first used: importing the package takes no time.
"""

import importlib

TYPE_CHECKING = False  # Importing `typing` would take longer than all the rest.
if TYPE_CHECKING:
  from typing import Any

  from msa_jax import layers, models, testing, train_state
  from msa_jax.api import evaluate, predict, train
  from msa_jax.config.files import get_config
  from msa_jax.data.readers import read as load_corpus
  from msa_jax.models.registry import register
  from msa_jax.runs.predictor import Predictor
  from msa_jax.typing import Batch, Corpus

  __version__: str

# Name -> module and attribute; no attribute = the module itself.
_FACE = {
  "Batch": ("typing", "Batch"),
  "Corpus": ("typing", "Corpus"),
  "Predictor": ("runs.predictor", "Predictor"),
  "evaluate": ("api", "evaluate"),
  "get_config": ("config.files", "get_config"),
  "layers": ("layers", ""),
  "load_corpus": ("data.readers", "read"),
  "models": ("models", ""),
  "predict": ("api", "predict"),
  "register": ("models.registry", "register"),
  "testing": ("testing", ""),
  "train": ("api", "train"),
  "train_state": ("train_state", ""),
}

__all__ = [
  "Batch",
  "Corpus",
  "Predictor",
  "__version__",
  "evaluate",
  "get_config",
  "layers",
  "load_corpus",
  "models",
  "predict",
  "register",
  "testing",
  "train",
  "train_state",
]


def __getattr__(name: str) -> "Any":
  if name == "__version__":
    value = importlib.import_module("importlib.metadata").version("msa_jax")
  elif name in _FACE:
    module, attribute = _FACE[name]
    value = importlib.import_module(f"msa_jax.{module}")
    value = getattr(value, attribute) if attribute else value
  else:
    raise AttributeError(f"module 'msa_jax' has no attribute {name!r}")
  globals()[name] = value
  return value


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
