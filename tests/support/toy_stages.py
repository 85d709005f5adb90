"""A toy system that is trained in two stages, for the corpus of `toy`."""

import flax.linen as nn
import jax.numpy as jnp

from msa_jax.layers.masking import masked_mean
from msa_jax.models.system import Stage, System
from msa_jax.typing import ModelOutput

HEADS = ("text", "audio")


class Heads(nn.Module):
  """Stage 1: one linear head per modality; stage 2: a mixture of their outputs."""

  @nn.compact
  def __call__(self, batch, *, train, stage=2):
    del train
    alone = {}
    for name in HEADS:
      modality = batch.modalities[name]
      pooled = masked_mean(modality.features, modality.mask[..., None], 1)
      alone[name] = nn.Dense(1, name=f"head_{name}")(pooled)[:, 0]
    mixed = nn.Dense(1, name="mix")(jnp.stack(list(alone.values()), -1))[:, 0]
    first = {f"sentiment@{name}": value for name, value in alone.items()}
    return ModelOutput(first if stage == 1 else {"sentiment": mixed}, {}, {}, {})


def compose(snapshots, final):
  parts = {f"head_{n}": snapshots[n][f"head_{n}"] for n in HEADS}
  return {**final, **parts}


FIRST = Stage(
  "heads",
  epochs=4,
  call={"stage": 1},
  tracks={name: f"sentiment@{name}/mae" for name in HEADS},
  trainable=lambda path: path[0] != "mix",
  keep=lambda track, params: {f"head_{track}": params[f"head_{track}"]},
  compose=compose,
  collections="final",
)
SECOND = Stage(
  "mixture", epochs=3, call={"stage": 2}, trainable=lambda path: path[0] == "mix"
)
BOTH = (FIRST, SECOND)


def system(*stages, **hooks):
  """The system with the given stages."""
  return System(
    lambda options, spec: Heads(), stages=lambda *arguments: stages, **hooks
  )
