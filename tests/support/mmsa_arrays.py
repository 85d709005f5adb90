"""Published modules' arrays, and their weights as parameters of ours.

PyTorch has linear kernels as (out, in), the gates of an LSTM as i, f, g, o with two
biases, and packs query, key and value of attention into one matrix.
"""

import ast
import functools

import jax
import jax.numpy as jnp
import numpy as np
from paths import REFERENCE

from msa_jax.text import weights as encoder_weights
from msa_jax.text.bert import EncoderConfig
from msa_jax.typing import Batch, Label, Modality, Task

# The tiny encoder of all files.
ENCODER = EncoderConfig(
  "bert", 64, 32, 2, 16, 2, 2, 32, dropout=0.0, attention_dropout=0.0
)
TASK = Task("regression", -3.0, 3.0)
# What XLA's optimisations save in run time of such models they cost many times over
# in compile time.
compiled = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


class Arrays:
  """A file's arrays under a tag: `arrays["output"]`, and names below a prefix."""

  def __init__(self, file, tag=""):
    self.file = np.load(REFERENCE / f"{file}.npz")
    self.tag = f"{tag}/" if tag else ""

  def __getitem__(self, name):
    return self.file[self.tag + name]

  def __contains__(self, name):
    return self.tag + name in self.file

  def below(self, prefix):
    """Name without the prefix -> array."""
    start = f"{self.tag}{prefix}/"
    return {
      name.removeprefix(start): self.file[name]
      for name in self.file.files
      if name.startswith(start)
    }

  @property
  def config(self):
    return ast.literal_eval(str(self["config"]))


def dense(weights, name):
  """A linear layer."""
  made = {"kernel": jnp.asarray(weights[f"{name}.weight"].T)}
  if f"{name}.bias" in weights:
    made["bias"] = jnp.asarray(weights[f"{name}.bias"])
  return made


def norm(weights, name):
  """A layer norm."""
  return {
    "scale": jnp.asarray(weights[f"{name}.weight"]),
    "bias": jnp.asarray(weights[f"{name}.bias"]),
  }


def recurrent(weights, name, layer=0, gru=False, two_biases=True):
  """An LSTM or GRU layer of any number of directions."""
  ends = [f"_l{layer}", f"_l{layer}_reverse"]
  ends = [end for end in ends if f"{name}.weight_ih{end}" in weights]

  def stacked(kind):
    return np.stack([weights[f"{name}.{kind}{end}"] for end in ends])

  made = {
    "input_kernel": np.swapaxes(stacked("weight_ih"), 1, 2),
    "recurrent_kernel": np.swapaxes(stacked("weight_hh"), 1, 2),
  }
  first, second = stacked("bias_ih"), stacked("bias_hh")
  if gru:
    third = second.shape[1] // 3
    shared = np.concatenate([second[:, : 2 * third], 0 * second[:, 2 * third :]], 1)
    made |= {"bias": first + shared, "candidate_bias": second[:, 2 * third :]}
  elif two_biases:
    made |= {"bias": first, "recurrent_bias": second}
  else:
    made["bias"] = first + second
  return jax.tree.map(jnp.asarray, made)


def attention(weights, name):
  """Attention whose query, key and value are packed."""
  kernels = np.split(weights[f"{name}.in_proj_weight"], 3)
  biases = np.split(weights[f"{name}.in_proj_bias"], 3)
  made = {
    part: {"kernel": jnp.asarray(kernel.T), "bias": jnp.asarray(bias)}
    for part, kernel, bias in zip(
      ("query", "key", "value"), kernels, biases, strict=True
    )
  }
  return {**made, "out": dense(weights, f"{name}.out_proj")}


def encoder(weights, prefix, config=ENCODER):
  """A tiny encoder, without its pooler."""
  own = {
    name.removeprefix(prefix): value
    for name, value in weights.items()
    if name.startswith(prefix) and ".pooler." not in name
  }
  return jax.tree.map(jnp.asarray, encoder_weights.from_tensors(own, config))


def modality(features, lengths, ids=None):
  """A modality of a batch."""
  features = jnp.asarray(features, jnp.float32)
  mask = np.arange(features.shape[1])[None] < np.asarray(lengths)[:, None]
  lost = jnp.zeros(mask.shape, bool)
  return Modality(features, jnp.asarray(mask), lost, ids or {})


def batch(modalities, labels=None, index=None, task="sentiment"):
  """A batch of full availability."""
  size = len(next(iter(modalities.values())).mask)
  made = {}
  if labels is not None:
    value = jnp.asarray(np.reshape(labels, -1), jnp.float32)
    made[task] = Label(value, jnp.ones(size, bool))
  index = np.arange(size) if index is None else index
  return Batch(
    modalities,
    jnp.ones((size, len(modalities)), bool),
    made,
    jnp.asarray(index, jnp.int32),
    jnp.ones(size, bool),
  )


def stub_batch(arrays, audio, vision, **more):
  """A batch whose text is what the published encoder said.

  Args:
    arrays: with `bert_hidden`, `in_text`, `in_a`, `in_v`.
    audio, vision: lengths.
  """
  return batch(
    {
      "text": modality(arrays["bert_hidden"], arrays["in_text"][:, 1].sum(1)),
      "audio": modality(arrays["in_a"], audio),
      "vision": modality(arrays["in_v"], vision),
    },
    **more,
  )


def token_batch(arrays, name, aligned=False):
  """A batch of a trainer's run, with token ids; where it is aligned, all sequences are
  as long as the text."""
  part = arrays.below(name)
  ids = {"tokens": jnp.asarray(part["text"][:, 0], jnp.int32)}
  size, _, steps = part["text"].shape
  length = part["text"][:, 1].sum(1)
  modalities = {"text": modality(np.zeros((size, steps, 0)), length, ids)}
  for other in ("audio", "vision"):
    own = length if aligned else part[f"{other}_lengths"]
    modalities[other] = modality(part[other], own)
  return batch(
    modalities,
    part["labels"],
    part["index"],
  )


def batches(arrays, aligned=False):
  """The batches of an epoch of a trainer's run."""
  found = []
  while f"batch{len(found)}/text" in arrays:
    found.append(token_batch(arrays, f"batch{len(found)}", aligned))
  assert len(found) > 1
  return found


def with_features(batch, features):
  """The batch with other features by modality."""
  modalities = {
    name: each.replace(features=features[name])
    for name, each in batch.modalities.items()
  }
  return batch.replace(modalities=modalities)


def features_of(batch):
  """Features by modality."""
  return {name: each.features for name, each in batch.modalities.items()}


def close(ours, theirs, tolerance=1e-5):
  """Compares relative to max(1, |value|)."""
  ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
  np.testing.assert_allclose(ours, theirs.reshape(ours.shape), tolerance, tolerance)


def trees_close(ours, theirs, tolerance=1e-4, but=()):
  """Compares parameters; `but` are ends of paths that are left out."""
  flat = jax.tree_util.tree_leaves_with_path(ours)
  others = dict(jax.tree_util.tree_leaves_with_path(theirs))
  assert len(flat) == len(others)
  for path, leaf in flat:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if not name.endswith(but or ("\0",)):
      error = np.abs(np.asarray(leaf, float) - np.asarray(others[path], float))
      limit = tolerance * np.maximum(1.0, np.abs(np.asarray(others[path])))
      assert (error <= limit).all(), f"{name} differs by {error.max():.3g}"
