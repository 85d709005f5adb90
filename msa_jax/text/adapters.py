"""Adapters: low-rank changes of an encoder's attention, trained in place of it.

Source: Hu et al., "LoRA" (ICLR 2022), section 4.1.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from jaxtyping import Array, Float

# Projections of attention by their usual names -> dense layers of `EncoderStack`.
PROJECTIONS = {
  "query": "query",
  "key": "key",
  "value": "value",
  "out": "attention",
}


@dataclasses.dataclass(frozen=True)
class LowRank:
  """What is changed.

  Attributes:
    rank: of the changes.
    alpha: the changes are scaled by alpha / rank.
    projections: of attention, keys of `PROJECTIONS`.
  """

  rank: int
  alpha: float
  projections: tuple[str, ...]

  @property
  def scale(self) -> float:
    return self.alpha / self.rank


class Adapters(nn.Module):
  """Pairs of matrices of all layers; their products start at zero.

  >>> options = LowRank(rank=4, alpha=8.0, projections=("query", "out"))
  >>> pairs, _ = Adapters(options, 2, 16).init_with_output(jax.random.key(0))
  >>> {name: pair["down"].shape for name, pair in pairs.items()}
  {'query': (2, 16, 4), 'attention': (2, 16, 4)}

  Attributes:
    options: rank and projections.
    n_layers, width: of the encoder.
  """

  options: LowRank
  n_layers: int
  width: int

  @nn.compact
  def __call__(self) -> dict[str, dict[str, Float[Array, "l i o"]]]:
    rank, n, d = self.options.rank, self.n_layers, self.width
    start = nn.initializers.variance_scaling(
      1.0 / 3.0, "fan_in", "uniform", in_axis=1, out_axis=2, batch_axis=0
    )
    pairs = {}
    for projection in self.options.projections:
      name = PROJECTIONS[projection]
      pairs[name] = {
        "down": self.param(f"{name}_down", start, (n, d, rank)),
        "up": self.param(f"{name}_up", nn.initializers.zeros, (n, rank, d)),
      }
    return pairs


def merged(
  layers: Mapping[str, Any], adapters: Mapping[str, Any], options: LowRank
) -> dict[str, Any]:
  """The layers with the changes in their kernels (float32).

  Args:
    layers: parameters of all layers in one stack.
    adapters: parameters of `Adapters`.
    options: of the adapters.
  """
  layers = dict(layers)
  for projection in options.projections:
    name = PROJECTIONS[projection]
    kernel = np.asarray(layers[name]["kernel"], np.float32)
    down, up = (np.asarray(adapters[f"{name}_{part}"]) for part in ("down", "up"))
    layers[name] = {**layers[name], "kernel": kernel + options.scale * (down @ up)}
  return layers
