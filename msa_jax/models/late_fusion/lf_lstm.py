"""LF-LSTM: late fusion of one LSTM per modality, by concatenation.

The last valid state of a one-directional LSTM per modality, dropout, a linear layer per
modality, and LF-DNN's head.

Source: named in the tables of AWF (Journal of Software 2024, 35(10):4781-4793) without
a public definition; this one is ours.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from flax.core import FrozenDict

from msa_jax.models.late_fusion.base import (
  COMPAT,
  DROPOUTS,
  LateFusion,
  check_by_modality,
  with_padding,
)
from msa_jax.models.late_fusion.encoders import RecurrentEncoder, mmsa_head
from msa_jax.models.options import check, defaults
from msa_jax.models.system import system_of
from msa_jax.typing import Batch


class LFLSTM(LateFusion):
  """The network.

    model = LFLSTM()
    variables = model.init(jax.random.key(0), batch)
    output = model.apply(variables, batch)

  Attributes:
    output, modalities: see `LateFusion`.
    hidden_dims: modality -> units of its LSTM.
    feature_dim: width of every modality's features.
    post_dim: units of both layers after fusion.
    dropout: modality -> rate.
    post_dropout: rate on the fused features.
    compat: `mmsa` = last states over all steps, padding too, as MMSA's text networks
      read.
  """

  hidden_dims: Mapping[str, int] = FrozenDict(text=128, audio=16, vision=128)
  feature_dim: int = 128
  post_dim: int = 128
  dropout: Mapping[str, float] = FrozenDict(text=0.2, audio=0.2, vision=0.2)
  post_dropout: float = 0.2
  compat: str = "none"

  def __post_init__(self):
    check(
      self,
      choices={"compat": COMPAT},
      positive=("hidden_dims", "feature_dim", "post_dim"),
      rates=("dropout", "post_dropout"),
    )
    check_by_modality(self, "hidden_dims", "dropout")
    super().__post_init__()

  def setup(self):
    self.encoder = {
      name: RecurrentEncoder(self.hidden_dims[name], self.dropout[name])
      for name in self.modalities
    }
    self.last = {name: nn.Dense(self.feature_dim) for name in self.modalities}
    self.head = mmsa_head(self.post_dim, self.output.num_outputs, self.post_dropout)

  @nn.nowrap
  def read(self, batch: Batch) -> Batch:
    """The batch with the steps that count, by `compat`."""
    return with_padding(batch) if self.compat == "mmsa" else batch


def options() -> dict[str, Any]:
  """Options of the system (`config.model`): the fields of `LFLSTM`."""
  return {"name": "lf_lstm", **defaults(LFLSTM)}


SYSTEM = system_of(LFLSTM, search_space=DROPOUTS)
