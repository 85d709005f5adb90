"""AWF: adaptive weight fusion, as a system.

B-fusion scales each modality's features with a weight that `train.balance` trains to
draw the modalities' gradients together; A-fusion weighs them per sample by attention
that the task trains.

Source: Luo, Wu, Liu, Tang: Multimodal sentiment analysis method based on adaptive
weight fusion, Journal of Software 2024, 35(10):4781-4793.
"""

import flax.linen as nn
import jax.numpy as jnp
import ml_collections
from jax import lax
from jaxtyping import Array, Bool, Float

from msa_jax.models.base import System, Target, predicted, shape_predictions
from msa_jax.models.subnets import (
  Features,
  Head,
  Omega,
  RecurrentEncoder,
  StepEncoder,
  check_options,
  encode_each,
  presence,
  read,
  weigh,
)
from msa_jax.typing import Batch, ModelOutput, UserError, modality_order

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


class AWF(nn.Module):
  """The network.

  Attributes:
    options: `config.model`, frozen.
    modalities: names in canonical order.
    target: the task predicted.

  Source: AWF, Eq. 1-4, 11-13 and figure 2.
  """

  options: ml_collections.FrozenConfigDict
  modalities: tuple[str, ...]
  target: Target

  def setup(self):
    options = self.options
    self.encoder = {name: self._encoder(name) for name in self.modalities}
    self.last = {
      name: nn.Dense(options.d, use_bias=options.last_bias) for name in self.modalities
    }
    self.attention = AttentionFusion(options.att_pool, options.att_bias)
    self.head = Head(
      (options.post,) * options.post_layers, self.target.n_outputs, options.dropout
    )

  @nn.nowrap
  def _encoder(self, name: str) -> nn.Module:
    options = self.options
    if name != "text" or options.text_encoder == "lstm":
      return RecurrentEncoder(options.d, options.dropout)
    pool = "mean" if options.text_encoder == "mean" else "first"
    return StepEncoder(pool, options.dropout)

  def encode(self, batch: Batch, *, train: bool) -> dict[str, Float[Array, "b d"]]:
    """Modality -> input of its last linear layer."""
    return encode_each(self.encoder, read(batch), train)

  def tail(
    self, features: Features, omega: Omega, batch: Batch, *, train: bool
  ) -> ModelOutput:
    """Last linear layers, both fusions, head.

    Args:
      features: from `encode`.
      omega: modality -> B-fusion weight; None = 1.
      batch: says which modalities are there.

    Returns:
      `features`: each modality's Z_i, A-fusion's weights `alpha` [b m] (zero without
      A-fusion), `fused` (the head's input, [b m*d]).
    """
    present = presence(read(batch))
    projected = {
      name: weigh(None, name, present[name], self.last[name](features[name]))
      for name in self.modalities
    }
    weighted = [
      weigh(omega, name, present[name], projected[name]) for name in self.modalities
    ]
    fused = jnp.stack(weighted, axis=1)  # [b m d]
    alpha = jnp.zeros(fused.shape[:2], fused.dtype)
    if self.options.afusion:
      stacked = jnp.stack([projected[n] for n in self.modalities], axis=1)
      if self.options.afusion_stop_grad:
        stacked = lax.stop_gradient(stacked)
      there = jnp.stack([present[name] for name in self.modalities], axis=1)
      alpha = self.attention(stacked, there)
      fused = (fused + alpha[..., None] * stacked) / 2
    fused = fused.reshape(len(fused), -1)  # [b m*d]
    values = self.head(fused, train=train)
    return ModelOutput(
      {self.target.name: shape_predictions(self.target, values)},
      {**projected, "alpha": alpha, "fused": fused},
      {},
      {},
    )

  def __call__(self, batch: Batch, *, train: bool, omega: Omega = None) -> ModelOutput:
    """`tail` of `encode`."""
    return self.tail(self.encode(batch, train=train), omega, batch, train=train)


def build(config: ml_collections.ConfigDict) -> AWF:
  """Builds the network for a corpus.

  Raises:
    UserError: a value out of range, or a task that the corpus lacks.
  """
  model = config.model
  check_options(model, _CHOICES, ("d", "post"))
  if model.post_layers < 0:
    raise UserError(f"model.post_layers={model.post_layers}: must be 0 or more")
  return AWF(
    options=ml_collections.FrozenConfigDict(model),
    modalities=modality_order(config.spec.widths),
    target=predicted(config),
  )


SYSTEM = System(build=build)
