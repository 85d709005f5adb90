"""TFN: tensor fusion network, the outer product of the modalities' features.

Source: Zadeh et al., EMNLP 2017 (arXiv:1707.07250), with the sub-networks of MMSA
(thuiar/MMSA, singleTask/TFN.py).
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.core import FrozenDict
from jaxtyping import Array, Bool, Float

from msa_jax.models.late_fusion.base import (
  COMPAT,
  DROPOUTS,
  Features,
  LateFusion,
  check_by_modality,
  in_fusion_order,
  with_padding,
)
from msa_jax.models.late_fusion.encoders import (
  TEXT_ENCODERS,
  mmsa_head,
  mmsa_networks,
  rectify,
)
from msa_jax.models.options import check, defaults
from msa_jax.models.outputs import OutputSpec
from msa_jax.models.system import system_of
from msa_jax.typing import Batch

# MMSA squashes every corpus's predictions into this range.
_COMPAT_RANGE = (-3.0, 3.0)


def outer_product(parts: list[Float[Array, "b _"]]) -> Float[Array, "b c"]:
  """Flattened outer product of [1; h] over `parts`; the last one varies fastest.

  Args:
    parts: [b d_i] each.

  Returns:
    [b c] with c the product of d_i + 1.
  """
  fused = jnp.ones((len(parts[0]), 1), parts[0].dtype)
  for part in parts:
    extended = jnp.concatenate([jnp.ones_like(part[:, :1]), part], axis=-1)
    fused = jnp.einsum("bi,bj->bij", fused, extended).reshape(len(part), -1)
  return fused


def squash(
  values: Float[Array, "b c"], output: OutputSpec, compat: str
) -> Float[Array, "b c"]:
  """Regression in the task's range by a sigmoid, or in MOSI's if `compat` is `mmsa`."""
  if output.kind != "regression":
    return values
  low, high = _COMPAT_RANGE if compat == "mmsa" else (output.low, output.high)
  return low + (high - low) * nn.sigmoid(values)


class TFN(LateFusion):
  """The network, by default with MMSA's sizes for MOSI.

    model = TFN()
    variables = model.init(jax.random.key(0), batch)
    output = model.apply(variables, batch)

  Attributes:
    output, modalities: see `LateFusion`.
    hidden_dims: modality -> units of its LSTM (text) or of its dense layers.
    text_dim: width of the text's features; other modalities keep their `hidden_dims`.
    post_dim: units of both layers after fusion.
    dropout: modality -> rate.
    post_dropout: rate on the fused features.
    text_encoder: of the text: an `lstm` as in MMSA, the `mean` of its steps, which is
      all that a fine-tuned encoder needs, or the `first` of them.
    compat: `mmsa` = means and last states over all steps, padding too, and predictions
      in [-3, 3] whatever the corpus, as in MMSA.
  """

  hidden_dims: Mapping[str, int] = FrozenDict(text=128, audio=32, vision=128)
  text_dim: int = 32
  post_dim: int = 64
  dropout: Mapping[str, float] = FrozenDict(text=0.3, audio=0.3, vision=0.3)
  post_dropout: float = 0.5
  text_encoder: str = "lstm"
  compat: str = "none"

  def __post_init__(self):
    check(
      self,
      choices={"compat": COMPAT, "text_encoder": TEXT_ENCODERS},
      positive=("hidden_dims", "text_dim", "post_dim"),
      rates=("dropout", "post_dropout"),
    )
    check_by_modality(self, "hidden_dims", "dropout")
    super().__post_init__()

  def setup(self):
    self.encoder, self.last = mmsa_networks(
      self.modalities,
      self.hidden_dims,
      self.dropout,
      self.text_dim,
      self.text_encoder,
    )
    self.head = mmsa_head(self.post_dim, self.output.num_outputs, self.post_dropout)

  @nn.nowrap
  def read(self, batch: Batch) -> Batch:
    """The batch with the steps that count, by `compat`."""
    return with_padding(batch) if self.compat == "mmsa" else batch

  def project(self, features: Features) -> dict[str, Float[Array, "b d"]]:
    """Last linear layer of each modality; ReLU after it for all but text."""
    return rectify(super().project(features))

  def fuse(
    self,
    weighted: Features,
    projected: Features,
    present: Mapping[str, Bool[Array, " b"]],
  ) -> tuple[Float[Array, "b c"], dict[str, Array]]:
    """The outer product, which is too wide to report."""
    del projected, present
    return outer_product(in_fusion_order(weighted)), {}

  @nn.nowrap
  def finish(self, values: Float[Array, "b c"]) -> Float[Array, "b c"]:
    """Squashes regression into the task's range by a sigmoid."""
    return squash(values, self.output, self.compat)


def options() -> dict[str, Any]:
  """Options of the system (`config.model`): the fields of `TFN`."""
  return {"name": "tfn", **defaults(TFN)}


SYSTEM = system_of(TFN, search_space=DROPOUTS)
