"""LF-DNN: late fusion of dense networks and a text LSTM, by concatenation.

Source: MMSA (thuiar/MMSA, singleTask/LF_DNN.py), Yu et al., ACL 2020 (CH-SIMS).
"""

import ml_collections
from jaxtyping import Array, Float

from msa_jax.models.late_fusion import base
from msa_jax.models.late_fusion.base import Features, LateFusion
from msa_jax.models.late_fusion.encoders import mmsa_head, mmsa_networks, rectify
from msa_jax.models.system import Options, System
from msa_jax.typing import Spec


def options() -> ml_collections.ConfigDict:
  """Options of the model (`config.model`), as in MMSA for MOSI."""
  return ml_collections.ConfigDict(
    {
      "name": "lf_dnn",
      "task": "auto",  # the task predicted; auto = sentiment, else emotion
      # mmsa: means and last states over all steps, padding too, as in MMSA.
      "compat": "none",
      "hidden": {"text": 128, "audio": 16, "vision": 128},
      "text_out": 256,
      "post": 128,
      "dropout": {"text": 0.2, "audio": 0.2, "vision": 0.2, "post": 0.2},
    }
  )


class LFDNN(LateFusion):
  """The network. See `LateFusion` for attributes."""

  def setup(self):
    self.encoder, self.last = mmsa_networks(self.options, self.modalities)
    self.head = mmsa_head(self.options, self.target.num_outputs)

  def project(self, features: Features) -> dict[str, Float[Array, "b d"]]:
    """Last linear layer of each modality; ReLU after it for all but text."""
    return rectify(super().project(features))


def build(options: Options, spec: Spec) -> LFDNN:
  """Builds the network for a corpus.

  Raises:
    UserError: a value out of range, or a modality or task without options.
  """
  positive = ("hidden", "text_out", "post")
  return base.build(LFDNN, options, spec, base.COMPAT, positive)


SYSTEM = System(build=build)
