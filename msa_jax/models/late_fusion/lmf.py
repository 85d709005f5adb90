"""LMF: the outer product of the modalities' features, by weights of low rank.

Source: Liu et al., Efficient low-rank multimodal fusion with modality-specific factors,
ACL 2018 (arXiv:1806.00064), with the sub-networks of MMSA (thuiar/MMSA,
singleTask/LMF.py).
"""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.core import FrozenDict
from jax import lax
from jaxtyping import Array, Float

from msa_jax.models.late_fusion.base import (
  COMPAT,
  LateFusion,
  check_by_modality,
  fusion_order,
  with_padding,
)
from msa_jax.models.late_fusion.encoders import TEXT_ENCODERS, mmsa_networks, rectify
from msa_jax.models.options import check, defaults
from msa_jax.models.system import system_of
from msa_jax.typing import Batch

FACTORS = "factors"  # partition of the optimizer


class LowRankHead(nn.Module):
  """y = sum over r of w_r times the product over modalities of [1; h_m] W_m^r, + b.

  That is a linear layer on the outer product of the [1; h_m], whose kernel is a sum of
  outer products, one for each r.

  Attributes:
    widths: (modality, width of its features), in the order of the input.
    rank: number of terms.
    num_outputs: units o.
    fixed: w and b stay as they begin.

  Source: Liu et al. 2018, Eq. 6-8.
  """

  widths: tuple[tuple[str, int], ...]
  rank: int
  num_outputs: int
  fixed: bool = False

  @nn.compact
  def __call__(
    self, values: Float[Array, "b d"], *, train: bool
  ) -> Float[Array, "b c"]:
    """The features side by side -> y. Nothing is dropped, in training neither."""
    del train
    ends = list(itertools.accumulate(width for _, width in self.widths))[:-1]
    parts = jnp.split(values, ends, axis=-1)
    product = jnp.ones((len(values), self.rank, self.num_outputs), values.dtype)
    for (name, width), part in zip(self.widths, parts, strict=True):
      extended = jnp.concatenate([jnp.ones_like(part[:, :1]), part], axis=-1)
      deviation = math.sqrt(2.0 / ((width + 1 + self.rank) * self.num_outputs))
      factor = self.param(
        f"factor_{name}",
        nn.initializers.normal(deviation),
        (self.rank, width + 1, self.num_outputs),
      )
      product = product * jnp.einsum("bd,rdo->bro", extended, factor)
    start = nn.initializers.normal(math.sqrt(2.0 / (self.rank + 1)))
    weights = self.param("weights", start, (self.rank,))
    bias = self.param("bias", nn.initializers.zeros, (self.num_outputs,))
    if self.fixed:
      weights, bias = lax.stop_gradient((weights, bias))
    return jnp.einsum("bro,r->bo", product, weights) + bias[None]


def text_dim_of(hidden_dims: Mapping[str, int]) -> int:
  """Width of the text's features: half of its LSTM's."""
  return max(hidden_dims.get("text", 2) // 2, 1)


def low_rank_head(
  network: LateFusion, hidden_dims: Mapping[str, int], rank: int, fixed: bool = False
) -> LowRankHead:
  """The head of a network whose text features are half as wide as its LSTM."""
  dims = {**hidden_dims, "text": text_dim_of(hidden_dims)}
  widths = tuple((name, dims[name]) for name in fusion_order(network.modalities))
  return LowRankHead(widths, rank, network.output.num_outputs, fixed)


def factors_apart(path: tuple[str, ...]) -> str:
  """The modalities' factors have a learning rate and a weight decay of their own."""
  return FACTORS if path[-1].startswith("factor_") else "new"


class LMF(LateFusion):
  """The network, by default with MMSA's sizes for MOSI.

    model = LMF()
    variables = model.init(jax.random.key(0), batch)
    output = model.apply(variables, batch)

  Attributes:
    output, modalities: see `LateFusion`.
    hidden_dims: modality -> units of its LSTM (text, whose features are half as wide)
      or of its dense layers.
    rank: of the fusion's weights.
    dropout: modality -> rate.
    text_encoder: of the text: an `lstm` as in MMSA, the `mean` of its steps, which is
      all that a fine-tuned encoder needs, or the `first` of them.
    compat: `mmsa` = means and last states over all steps, padding too, as in MMSA.
  """

  hidden_dims: Mapping[str, int] = FrozenDict(text=128, audio=16, vision=128)
  rank: int = 3
  dropout: Mapping[str, float] = FrozenDict(text=0.3, audio=0.3, vision=0.3)
  text_encoder: str = "lstm"
  compat: str = "none"

  def __post_init__(self):
    check(
      self,
      choices={"compat": COMPAT, "text_encoder": TEXT_ENCODERS},
      positive=("hidden_dims", "rank"),
      rates=("dropout",),
    )
    check_by_modality(self, "hidden_dims", "dropout")
    super().__post_init__()

  def setup(self):
    self.encoder, self.last = mmsa_networks(
      self.modalities,
      self.hidden_dims,
      self.dropout,
      text_dim_of(self.hidden_dims),
      self.text_encoder,
    )
    self.head = low_rank_head(self, self.hidden_dims, self.rank)

  @nn.nowrap
  def read(self, batch: Batch) -> Batch:
    """The batch with the steps that count, by `compat`."""
    return with_padding(batch) if self.compat == "mmsa" else batch

  def project(self, features: Mapping[str, Array]) -> dict[str, Float[Array, "b d"]]:
    """Last linear layer of each modality; ReLU after it for all but text."""
    return rectify(super().project(features))


def options() -> dict[str, Any]:
  """Options of the system (`config.model`): the fields of `LMF`."""
  return {"name": "lmf", **defaults(LMF)}


SYSTEM = system_of(LMF, partition=factors_apart)
