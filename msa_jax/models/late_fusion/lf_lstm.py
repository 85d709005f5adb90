"""LF-LSTM: late fusion of one LSTM per modality, by concatenation.

Named in the tables of AWF (Journal of Software 2024, 35(10)) without a public
definition; here: the last valid state of a one-directional LSTM per modality, dropout,
a linear layer per modality, and LF-DNN's head.
"""

import flax.linen as nn
import ml_collections

from msa_jax.models.late_fusion import base
from msa_jax.models.late_fusion.base import LateFusion
from msa_jax.models.late_fusion.encoders import RecurrentEncoder, mmsa_head
from msa_jax.models.system import Options, System
from msa_jax.typing import Spec


def options() -> ml_collections.ConfigDict:
  """Options of the model (`config.model`)."""
  return ml_collections.ConfigDict(
    {
      "name": "lf_lstm",
      "task": "auto",  # the task predicted; auto = sentiment, else emotion
      # mmsa: last states over all steps, padding too, as MMSA's text networks read.
      "compat": "none",
      "hidden": {"text": 128, "audio": 16, "vision": 128},
      "d": 128,  # width of every modality's features
      "post": 128,
      "dropout": {"text": 0.2, "audio": 0.2, "vision": 0.2, "post": 0.2},
    }
  )


class LFLSTM(LateFusion):
  """The network. See `LateFusion` for attributes."""

  def setup(self):
    options = self.options
    self.encoder = {
      name: RecurrentEncoder(options.hidden[name], options.dropout[name])
      for name in self.modalities
    }
    self.last = {name: nn.Dense(options.d) for name in self.modalities}
    self.head = mmsa_head(options, self.target.num_outputs)


def build(options: Options, spec: Spec) -> LFLSTM:
  """Builds the network for a corpus.

  Raises:
    UserError: a value out of range, or a modality or task without options.
  """
  return base.build(LFLSTM, options, spec, base.COMPAT, ("hidden", "d", "post"))


SYSTEM = System(build=build)
