"""TFN: tensor fusion network, the outer product of the modalities' features.

Source: Zadeh et al., EMNLP 2017 (arXiv:1707.07250), with the sub-networks of MMSA
(thuiar/MMSA, singleTask/TFN.py).
"""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Bool, Float

from msa_jax.models.late_fusion import base
from msa_jax.models.late_fusion.base import Features, LateFusion, in_fusion_order
from msa_jax.models.late_fusion.encoders import mmsa_head, mmsa_networks, rectify
from msa_jax.models.system import Options, System
from msa_jax.typing import Spec

# MMSA squashes every corpus's predictions into this range.
_COMPAT_RANGE = (-3.0, 3.0)


def options() -> ml_collections.ConfigDict:
  """Options of the model (`config.model`), as in MMSA for MOSI."""
  return ml_collections.ConfigDict(
    {
      "name": "tfn",
      "task": "auto",  # the task predicted; auto = sentiment, else emotion
      # mmsa: means and last states over all steps, padding too, and predictions in
      # [-3, 3] whatever the corpus, as in MMSA.
      "compat": "none",
      "hidden": {"text": 128, "audio": 32, "vision": 128},
      "text_out": 32,
      "post": 64,
      "dropout": {"text": 0.3, "audio": 0.3, "vision": 0.3, "post": 0.5},
    }
  )


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


class TFN(LateFusion):
  """The network. See `LateFusion` for attributes."""

  def setup(self):
    self.encoder, self.last = mmsa_networks(self.options, self.modalities)
    self.head = mmsa_head(self.options, self.target.num_outputs)

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
    if self.target.kind != "regression":
      return values
    low, high = self.target.low, self.target.high
    if self.options.compat == "mmsa":
      low, high = _COMPAT_RANGE
    return low + (high - low) * nn.sigmoid(values)


def build(options: Options, spec: Spec) -> TFN:
  """Builds the network for a corpus.

  Raises:
    UserError: a value out of range, or a modality or task without options.
  """
  positive = ("hidden", "text_out", "post")
  return base.build(TFN, options, spec, base.COMPAT, positive)


SYSTEM = System(build=build)
