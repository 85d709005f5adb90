"""Train on arrays in memory; no file is written first."""

import numpy as np

import msa_jax

random = np.random.default_rng(0)


def samples(n):
  """Text and audio [n t d] of n samples, and what they say in [-3, 3]."""
  y = random.uniform(-3, 3, n)
  text = random.normal(size=(n, 6, 8)) + y[:, None, None]
  return {"text": text, "audio": random.normal(size=(n, 20, 5))}, y


(train, y), (valid, y_valid), (test, y_test) = map(samples, (64, 16, 16))
labels = {"train": y, "valid": y_valid, "test": y_test}
corpus = msa_jax.Corpus.from_arrays(train, valid, test, labels={"sentiment": labels})
summary = msa_jax.train("hgem", corpus, "runs/a")

print("test", {k: v["mean"] for k, v in summary["splits"]["test"]["sentiment"].items()})
