"""Every system of the table in small, and batches whose absent parts hold anything."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
from changes import change

from msa_jax.config.experiment import experiment
from msa_jax.step import recipe
from msa_jax.studies.ablation import changed
from msa_jax.text import finetune
from msa_jax.typing import Spec, Task

# Narrower than the defaults, where those take long to compile; else all is default.
NARROW = {
  "hgem": {
    "token_dim": 16,
    "fused_dim": 8,
    "gates.hidden_dims": (8, 8, 8, 8),
    "sparse_expert.ffn_dim": 16,
    "missing_mode": "embed",
  },
  "mmolre": {"modalities": ()},  # its default leaves vision out
  "mult": {"hidden_dim": 8, "num_heads": 2, "num_layers": 1},
}


# Narrower still: of a system around a text encoder, little is there to be seen.
LITTLE = {
  "derl": {"num_layers": 1},
  "hgem": {"fusion": "average"},
  "mmolre": {"num_blocks": 1},
  "momke": {"num_layers": 1, "level": "frame"},
}

_RECURRENT = {
  "hidden_dims.audio": 4,
  "hidden_dims.vision": 4,
  "feature_dims.audio": 3,
  "feature_dims.vision": 8,
  "head_dims.text": 6,
  "head_dims.audio": 4,
  "head_dims.vision": 5,
  "fusion_dim": 24,
}
NARROW["self_mm"] = _RECURRENT
NARROW["almt"] = {"hidden_dim": 8, "ffn_dim": 6, "num_heads": 2, "num_tokens": 2}
NARROW["tetfn"] = {
  "hidden_dim": 4,
  "num_heads": 2,
  "lstm_dims.audio": 3,
  "lstm_dims.vision": 4,
  "head_dims.text": 6,
  "head_dims.audio": 4,
  "head_dims.vision": 5,
  "fusion_dim": 24,
}
NARROW["mmim"] = {
  "hidden_dims.audio": 3,
  "hidden_dims.vision": 4,
  "feature_dims.audio": 4,
  "feature_dims.vision": 5,
  "fusion_dim": 6,
}
NARROW["misa"] = {"hidden_dim": 8, "ffn_dim": 8}
_HIDDEN = {"hidden_dims.text": 8, "hidden_dims.audio": 8, "hidden_dims.vision": 8}
# Tiny: compiled in a second or two.
TINY = {
  # All experts count, so that each one's dropout is seen.
  "hgem": {
    "gates.fusion_top_k": 3,
    "gates.polarity_top_k": 3,
    "robust_expert.noise_std": 0.0,
    "robust_expert.slot_dropout": 0.0,
  },
  "derl": {"hidden_dim": 8, "num_heads": 2, "ffn_multiplier": 1},
  "momke": {"hidden_dim": 8, "stage2_mask": "condition"},
  "mmolre": {
    "hidden_dim": 8,
    "shared_ranks": (1, 2),
    "task_rank": 3,
    "num_heads": 2,
    "ffn_dim": 4,
    "head_hidden_dim": 4,
    "num_blocks": 1,
  },
  "awf": {"feature_dim": 4, "post_dim": 6},
  "lf_lstm": {**_HIDDEN, "feature_dim": 4, "post_dim": 6},
  "lf_dnn": {**_HIDDEN, "text_dim": 5, "post_dim": 6},
  "tfn": {**_HIDDEN, "text_dim": 3, "post_dim": 6},
  "text_only": {},
  "self_mm": _RECURRENT,
  "misa": NARROW["misa"],
  "mmim": NARROW["mmim"],
  "almt": NARROW["almt"],
  "tetfn": NARROW["tetfn"],
  "mag_bert": {},
  "cenet": {},
  "lmf": _HIDDEN,
  "mlf_dnn": {**_HIDDEN, "text_dim": 5, "post_dim": 6},
  "mtfn": {**_HIDDEN, "text_dim": 3, "post_dim": 6},
  "mlmf": _HIDDEN,
  "ef_lstm": {"hidden_dim": 6, "num_layers": 2},
  "mfn": {**_HIDDEN, "memory_dim": 6},
  "graph_mfn": {**_HIDDEN, "memory_dim": 6, "node_dim": 5},
  "mult": {"hidden_dim": 8, "num_heads": 2, "num_layers": 1},
}


def config(name):
  """The resolved default config."""
  config = experiment(importlib.import_module(f"configs.{name}").get_config())
  config = changed(config, _options(NARROW, name))
  # Systems that learn from labels of one modality have them in their synthetic corpus.
  alone = [n for n in config.data.synthetic.tasks if n.startswith("sentiment_")]
  tasks = ("sentiment", *alone)
  spec = Spec(
    widths={"text": 6, "audio": 3, "vision": 4},
    lengths={"text": 5, "audio": 5, "vision": 5},
    ids={"text": (), "audio": ("codes",), "vision": ()},
    tasks=dict.fromkeys(tasks, Task("regression", -3.0, 3.0)),
    priors=dict.fromkeys(tasks, (0.625,)),
    train_size=8,
    # Samples are what the system is made for: steps may be utterances of dialogues.
    utterances=5 if config.data.sample_unit == "dialogue" else 0,
  )
  return config.replace(spec=spec)


def _options(table, name):
  return {f"model.{key}": value for key, value in table.get(name, {}).items()}


def encoding(name, folder):
  """The config of a run that trains the encoder in `folder` inside the system."""
  made = changed(config(name), _options(LITTLE, name))
  text = {"input": "encoder", "encoder": folder, "finetune": "all"}
  made = change(
    made,
    data={"sample_unit": "utterance"},
    text={**text, "learning_rate": 0.1},
    # Small programs: text and audio, no moments, no clipping.
    optim={
      "name": "sgd",
      "learning_rate": 0.1,
      "grad_clip_norm": 0.0,
      "weight_decay": 0.0,
    },
  )
  encoder = finetune.encoder_sizes(made.text)
  return change(
    made,
    spec={
      "utterances": 0,
      "widths": {"text": encoder.width, "audio": 3},
      "lengths": {"text": 5, "audio": 5},
      "ids": {"text": ("tokens",), "audio": ("codes",)},
      "encoder": encoder,
    },
  )


def batch(config, seed=0):
  """Six samples with ragged lengths and some lost steps, everything available."""
  random = np.random.default_rng(seed)
  batch = recipe.example_batch(config.spec, 6)
  modalities = {}
  for name, modality in batch.modalities.items():
    mask = np.arange(5)[None] < random.integers(2, 6, 6)[:, None]
    modalities[name] = modality.replace(
      features=jnp.asarray(random.normal(size=modality.features.shape), "float32"),
      mask=jnp.asarray(mask),
      lost=jnp.asarray(mask & (random.random((6, 5)) < 0.2)),
      ids={
        k: jnp.asarray(random.integers(0, 9, (6, 5)), "int32") for k in modality.ids
      },
    )
  return batch.replace(modalities=modalities)


def garbage(modality, rows, seed):
  """Other contents, lengths and losses in some rows; NaN and infinities included."""
  random = np.random.default_rng(seed)
  rows = rows[:, None]
  features = random.normal(size=modality.features.shape).astype("float32") * 1e3
  features[:, ::2] = np.nan
  features[:, 1::4] = np.inf
  ids = {
    k: jnp.where(rows, jnp.asarray(random.integers(0, 9, v.shape), "int32"), v)
    for k, v in modality.ids.items()
  }
  return modality.replace(
    features=jnp.where(rows[..., None], features, modality.features),
    mask=jnp.where(rows, random.random(modality.mask.shape) < 0.5, modality.mask),
    lost=jnp.where(rows, random.random(modality.lost.shape) < 0.3, modality.lost),
    ids=ids,
  )


def variables(system):
  """Random parameters; compiling the initialiser would take longer than the test."""
  random = np.random.default_rng(1)
  shapes = jax.eval_shape(system.init, 0)

  def fill(leaf):
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      return jnp.zeros(leaf.shape, leaf.dtype)
    return jnp.asarray(random.uniform(0.05, 0.4, leaf.shape), leaf.dtype)

  signs = jax.tree.map(
    lambda x: random.choice([-1.0, 1.0], x.shape).astype("f"), shapes.params
  )
  params = jax.tree.map(lambda leaf, sign: fill(leaf) * sign, shapes.params, signs)
  return params, jax.tree.map(fill, shapes.collections)
