"""LF-DNN: late fusion of dense networks and a text LSTM, by concatenation.

Source: MMSA (thuiar/MMSA, singleTask/LF_DNN.py), Yu et al., ACL 2020 (CH-SIMS).
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from flax.core import FrozenDict
from jaxtyping import Array, Float

from msa_jax.models.late_fusion.base import (
  COMPAT,
  DROPOUTS,
  Features,
  LateFusion,
  check_by_modality,
  with_padding,
)
from msa_jax.models.late_fusion.encoders import (
  TEXT_ENCODERS,
  mmsa_head,
  mmsa_networks,
  rectify,
)
from msa_jax.models.options import check, defaults
from msa_jax.models.system import system_of
from msa_jax.typing import Batch


class LFDNN(LateFusion):
  """The network, by default with MMSA's sizes for MOSI.

    model = LFDNN()
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
    compat: `mmsa` = means and last states over all steps, padding too, as in MMSA.
  """

  hidden_dims: Mapping[str, int] = FrozenDict(text=128, audio=16, vision=128)
  text_dim: int = 256
  post_dim: int = 128
  dropout: Mapping[str, float] = FrozenDict(text=0.2, audio=0.2, vision=0.2)
  post_dropout: float = 0.2
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


def options() -> dict[str, Any]:
  """Options of the system (`config.model`): the fields of `LFDNN`."""
  return {"name": "lf_dnn", **defaults(LFDNN)}


SYSTEM = system_of(LFDNN, search_space=DROPOUTS)
