"""AWF: adaptive weight fusion, as a system.

B-fusion scales each modality's features with a weight that `step.balance` trains to
draw the modalities' gradients together; A-fusion weighs them per sample by attention
that the task trains.

Source: Luo, Wu, Liu, Tang: Multimodal sentiment analysis method based on adaptive
weight fusion, Journal of Software 2024, 35(10):4781-4793.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
import ml_collections
from jax import lax
from jaxtyping import Array, Bool, Float

from msa_jax.errors import UserError
from msa_jax.models.late_fusion import base
from msa_jax.models.late_fusion.base import Features, LateFusion
from msa_jax.models.late_fusion.encoders import Head, RecurrentEncoder, StepEncoder
from msa_jax.models.system import Options, System
from msa_jax.typing import Spec

_CHOICES = {
  "text_encoder": ("mean", "lstm", "bert_cls"),
  "att_pool": ("mean", "rms"),
}


def options() -> ml_collections.ConfigDict:
  """Options of the model (`config.model`), as in the paper for MOSI."""
  return ml_collections.ConfigDict(
    {
      "name": "awf",
      "task": "auto",  # the task predicted; auto = sentiment, else emotion
      "d": 256,  # width of every modality's features
      "post": 128,  # width of the fusion layers
      "post_layers": 1,  # 0 = a linear head
      "dropout": 0.0,
      # Text comes as the features of a frozen encoder: their mean, an LSTM over them,
      # or the first step (BERT's sentence token).
      "text_encoder": "mean",
      "last_bias": False,
      "afusion": True,
      "afusion_stop_grad": True,  # A-fusion does not train the unimodal networks
      "att_bias": False,
      "att_pool": "mean",
    }
  )


class AttentionFusion(nn.Module):
  """A-fusion's weights: a = sigmoid(relu(q A1) A2), q one number per modality.

  Attributes:
    pool: how a modality's features become one number: `mean`, or `rms` (root mean
      square).
    use_bias: biases in both layers.

  Source: AWF, Eq. 11-12.
  """

  pool: str
  use_bias: bool

  @nn.compact
  def __call__(
    self, stacked: Float[Array, "b m d"], present: Bool[Array, "b m"]
  ) -> Float[Array, "b m"]:
    """Weights in (0, 1); zero for absent modalities."""
    if self.pool == "rms":
      # The small number keeps the gradient finite where all features are zero.
      pooled = jnp.sqrt(jnp.mean(stacked**2, axis=-1) + 1e-12)
    else:
      pooled = jnp.mean(stacked, axis=-1)
    pooled = jnp.where(present, pooled, 0.0)

    def dense(name):
      return nn.Dense(
        stacked.shape[1],
        use_bias=self.use_bias,
        kernel_init=nn.initializers.he_uniform(),
        name=name,
      )

    weights = nn.sigmoid(dense("excite")(nn.relu(dense("squeeze")(pooled))))
    return jnp.where(present, weights, 0.0)


class AWF(LateFusion):
  """The network. See `LateFusion` for attributes.

  Source: AWF, Eq. 1-4, 11-13 and figure 2.
  """

  def setup(self):
    options = self.options
    self.encoder = {name: self._encoder(name) for name in self.modalities}
    self.last = {
      name: nn.Dense(options.d, use_bias=options.last_bias) for name in self.modalities
    }
    self.attention = AttentionFusion(options.att_pool, options.att_bias)
    self.head = Head(
      (options.post,) * options.post_layers, self.target.num_outputs, options.dropout
    )

  @nn.nowrap
  def _encoder(self, name: str) -> nn.Module:
    options = self.options
    if name != "text" or options.text_encoder == "lstm":
      return RecurrentEncoder(options.d, options.dropout)
    pool = "mean" if options.text_encoder == "mean" else "first"
    return StepEncoder(pool, options.dropout)

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
    if self.options.afusion:
      stacked = jnp.stack([projected[name] for name in self.modalities], axis=1)
      if self.options.afusion_stop_grad:
        stacked = lax.stop_gradient(stacked)
      there = jnp.stack([present[name] for name in self.modalities], axis=1)
      alpha = self.attention(stacked, there)
      fused = (fused + alpha[..., None] * stacked) / 2
    fused = fused.reshape(len(fused), -1)  # [b m*d]
    return fused, {"alpha": alpha, "fused": fused}


def build(options: Options, spec: Spec) -> AWF:
  """Builds the network for a corpus.

  Raises:
    UserError: a value out of range, or a task that the corpus lacks.
  """
  layers = options["post_layers"]
  if layers < 0:
    raise UserError(f"model.post_layers={layers}: must be 0 or more")
  return base.build(AWF, options, spec, _CHOICES, ("d", "post"))


SYSTEM = System(build=build)
