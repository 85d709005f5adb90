"""AWF: adaptive weight fusion, as a system.

B-fusion scales each modality's features with a weight that `step.balance` trains to
draw the modalities' gradients together; A-fusion weighs them per sample by attention
that the task trains.

Source: Luo, Wu, Liu, Tang: Multimodal sentiment analysis method based on adaptive
weight fusion, Journal of Software 2024, 35(10):4781-4793.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from msa_jax.models.late_fusion.base import Features, LateFusion
from msa_jax.models.late_fusion.encoders import Head, RecurrentEncoder, StepEncoder
from msa_jax.models.options import check, defaults
from msa_jax.models.system import system_of

TEXT_ENCODERS = ("mean", "lstm", "bert_cls")


class AttentionFusion(nn.Module):
  """A-fusion's weights: a = sigmoid(relu(q A1) A2), q the mean of each modality.

  Source: AWF, Eq. 11-12.
  """

  @nn.compact
  def __call__(
    self, stacked: Float[Array, "b m d"], present: Bool[Array, "b m"]
  ) -> Float[Array, "b m"]:
    """Weights in (0, 1); zero for absent modalities."""

    def dense(name):
      return nn.Dense(
        stacked.shape[1],
        use_bias=False,
        kernel_init=nn.initializers.he_uniform(),
        name=name,
      )

    pooled = jnp.where(present, jnp.mean(stacked, axis=-1), 0.0)
    weights = nn.sigmoid(dense("excite")(nn.relu(dense("squeeze")(pooled))))
    return jnp.where(present, weights, 0.0)


class AWF(LateFusion):
  """The network, by default with the paper's sizes for MOSI.

    model = AWF()
    variables = model.init(jax.random.key(0), batch)
    output = model.apply(variables, batch)

  Attributes:
    output, modalities: see `LateFusion`.
    feature_dim: width of every modality's features.
    post_dim: units of each layer after fusion.
    num_post_layers: number of these; 0 = a linear head.
    dropout: rate on the encoders' outputs and on the fused features.
    text_encoder: of text that comes as the features of a frozen encoder: their `mean`,
      an `lstm` over them, or the first step (`bert_cls`, BERT's sentence token).
    attention_fusion: A-fusion; without it the head reads B-fusion's features alone.

  Source: AWF, Eq. 1-4, 11-13 and figure 2.
  """

  feature_dim: int = 256
  post_dim: int = 128
  num_post_layers: int = 1
  dropout: float = 0.0
  text_encoder: str = "mean"
  attention_fusion: bool = True

  def __post_init__(self):
    check(
      self,
      choices={"text_encoder": TEXT_ENCODERS},
      positive=("feature_dim", "post_dim"),
      not_negative=("num_post_layers",),
      rates=("dropout",),
    )
    super().__post_init__()

  def setup(self):
    self.encoder = {name: self._encoder(name) for name in self.modalities}
    self.last = {
      name: nn.Dense(self.feature_dim, use_bias=False) for name in self.modalities
    }
    self.attention = AttentionFusion()
    self.head = Head(
      (self.post_dim,) * self.num_post_layers, self.output.num_outputs, self.dropout
    )

  @nn.nowrap
  def _encoder(self, name: str) -> nn.Module:
    if name != "text" or self.text_encoder == "lstm":
      return RecurrentEncoder(self.feature_dim, self.dropout)
    pool = "mean" if self.text_encoder == "mean" else "first"
    return StepEncoder(pool, self.dropout)

  def fuse(
    self,
    weighted: Features,
    projected: Features,
    present: Mapping[str, Bool[Array, " b"]],
  ) -> tuple[Float[Array, "b c"], dict[str, Array]]:
    """Mean of both fusions, Z = (Z_GB + Z_ATT) / 2; B-fusion alone without A-fusion.

    Reports A-fusion's weights `alpha` [b m] (zero without A-fusion) and `fused`, the
    head's input [b m*d].
    """
    fused = jnp.stack([weighted[name] for name in self.modalities], axis=1)  # [b m d]
    alpha = jnp.zeros(fused.shape[:2], fused.dtype)
    if self.attention_fusion:
      # A-fusion must not train the unimodal networks.
      stacked = lax.stop_gradient(
        jnp.stack([projected[name] for name in self.modalities], axis=1)
      )
      there = jnp.stack([present[name] for name in self.modalities], axis=1)
      alpha = self.attention(stacked, there)
      fused = (fused + alpha[..., None] * stacked) / 2
    fused = fused.reshape(len(fused), -1)  # [b m*d]
    return fused, {"alpha": alpha, "fused": fused}


def options() -> dict[str, Any]:
  """Options of the system (`config.model`): the fields of `AWF`."""
  return {"name": "awf", **defaults(AWF)}


SYSTEM = system_of(
  AWF, search_space={"model.dropout": "0..0.6", "model.feature_dim": "32,64,128"}
)
