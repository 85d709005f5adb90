"""MoMKE in small: networks, batches, and the released code's weights in our layout."""

import jax
import jax.numpy as jnp
import numpy as np

from msa_jax.layers.masking import hide_unavailable
from msa_jax.models.momke import system
from msa_jax.typing import Batch, Label, Modality, Spec, Task, modality_order

WIDTHS = {"text": 5, "audio": 3, "vision": 4}
TASKS = {
  "sentiment": Task("regression", -3.0, 3.0),
  "emotion": Task("classes", classes=tuple("abcd"), protocol="classes"),
}


def options(**changes):
  """Options of a small model."""
  return {**system.options(), "hidden_dim": 8, "num_layers": 2, **changes}


def spec(widths=None, task="sentiment", utterances=4, tasks=TASKS):
  """A corpus of dialogues; `utterances` = 0: of utterances."""
  widths = widths or WIDTHS
  lengths = dict.fromkeys(widths, 4)
  return Spec(widths, lengths, {task: tasks[task]}, utterances=utterances)


def network(widths=None, task="sentiment", **changes):
  """A small model; keywords override options."""
  made = options(**changes)
  made.pop("name")
  utterances = 4 if made["level"] == "utterance" else 0
  return system.build(made, spec(widths, task, utterances))


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


def apply(model, **call):
  """The model as the step applies it: what is absent is hidden first."""

  def run(variables, data, **keywords):
    return model.apply(variables, hide_unavailable(data), **call, **keywords)

  return run


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
