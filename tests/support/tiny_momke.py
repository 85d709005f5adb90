"""MoMKE in small: configs, batches, and the released code's weights in our layout."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from msa_jax.config.experiment import read_spec
from msa_jax.models.momke import network as momke
from msa_jax.typing import Batch, Label, Modality, modality_order

WIDTHS = {"text": 5, "audio": 3, "vision": 4}
SENTIMENT = {"kind": "regression", "low": -3.0, "high": 3.0, "classes": ()}
EMOTION = {"kind": "classes", "low": 0.0, "high": 0.0, "classes": ("a", "b", "c", "d")}


def config(widths=None, task="sentiment", **options):
  """A resolved config of a small model; keywords override `config.model`."""
  model = momke.options()
  model.update({"D": 8, "depth": 2, **options})
  tasks = {"sentiment": SENTIMENT, "emotion": EMOTION}
  used = widths or WIDTHS
  spec = {"widths": used, "lengths": dict.fromkeys(used, 4)}
  spec["tasks"] = {task: tasks[task]}
  spec["utterances"] = 4 if model.level == "utterance" else 0
  return ml_collections.ConfigDict({"model": model, "spec": spec})


def build(made):
  """The model of a config."""
  return momke.build(made.model.to_dict(), read_spec(made.spec.to_dict()))


def batch(available, real=None, widths=None, seed=0):
  """Random dialogues; `available` [b t m] in canonical order, `real` [b t]."""
  available = np.asarray(available, bool)
  random = np.random.default_rng(seed)
  size, steps = available.shape[:2]
  real = np.ones((size, steps), bool) if real is None else np.asarray(real, bool)
  modalities = {}
  for column, name in enumerate(modality_order(widths or WIDTHS)):
    width = (widths or WIDTHS)[name]
    modalities[name] = Modality(
      features=jnp.asarray(random.normal(size=(size, steps, width)), jnp.float32),
      mask=jnp.asarray(real),
      lost=jnp.asarray(~available[..., column] & real),
    )
  return Batch(
    modalities=modalities,
    available=jnp.ones((size, len(modalities)), bool),
    labels={
      "sentiment": Label(
        jnp.asarray(random.uniform(-3, 3, (size, steps)), jnp.float32),
        jnp.asarray(real),
      )
    },
    index=jnp.arange(size, dtype=jnp.int32),
    sample_mask=jnp.ones(size, bool),
  )


def from_released(weights, order=("t", "a", "v")):
  """Parameters from the released code's state dict (modalities and experts a, t, v)."""
  theirs = [("a", "t", "v").index(letter) for letter in order]
  depth = 1 + max(int(k.split(".")[2]) for k in weights if k.startswith("block."))
  width = weights["proj1.weight"].shape[0] // 3
  wide = np.concatenate([np.arange(width) + i * width for i in theirs])

  def stacked(names, rows=slice(None)):
    return {
      "kernel": np.stack([weights[f"{n}.weight"][rows].T for n in names]),
      "bias": np.stack([weights[f"{n}.bias"][rows] for n in names]),
    }

  def bank(*parts):
    def leaf(kind, expert, layer):
      prefix = f"block.blocks.{layer}.Transformer_{expert}"
      return np.concatenate([weights[f"{prefix}.{p}.{kind}"].T for p in parts], -1)

    return {
      ours: np.stack(
        [np.stack([leaf(kind, e, i) for i in range(depth)]) for e in order]
      )
      for ours, kind in (("kernel", "weight"), ("bias", "bias"))
    }

  names = {"t": "text", "a": "audio", "v": "vision"}
  projections = {
    f"in_proj_{names[m]}": {
      "kernel": weights[f"{m}_in_proj.0.weight"].T,
      "bias": weights[f"{m}_in_proj.0.bias"],
    }
    for m in order
  }
  network = projections | {
    "experts": {
      "qkv": bank("q", "k", "v"),
      "fc1": bank("mlp.fc1"),
      "fc2": bank("mlp.fc2"),
    },
    "heads": stacked([f"nlp_head_{m}" for m in order]),
    "routers": {
      "fc1": stacked([f"router_{m}.fc1" for m in order]),
      "fc2": stacked([f"router_{m}.fc2" for m in order], theirs),
    },
    "proj1": {
      "kernel": weights["proj1.weight"][wide][:, wide].T,
      "bias": weights["proj1.bias"][wide],
    },
    "head": {
      "kernel": weights["nlp_head.weight"][:, wide].T,
      "bias": weights["nlp_head.bias"],
    },
  }
  return {"network": jax.tree.map(jnp.asarray, network)}
