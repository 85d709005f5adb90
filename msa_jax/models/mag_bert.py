"""MAG-BERT: audio and vision shift the embeddings of words.

Source: Rahman et al., ACL 2020 (arXiv:1908.05787); as in MMSA (thuiar/MMSA,
singleTask/BERT_MAG.py).
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from msa_jax.errors import UserError
from msa_jax.layers.attention import LAYER_NORM_EPSILON
from msa_jax.layers.dropout import Dropout
from msa_jax.layers.masking import POOLS, pool_steps
from msa_jax.models.late_fusion.base import COMPAT, check_present
from msa_jax.models.options import check, construct, defaults
from msa_jax.models.outputs import (
  REGRESSION,
  OutputSpec,
  primary_output,
  shape_predictions,
)
from msa_jax.models.system import Options, System
from msa_jax.text.hooks import Hook
from msa_jax.typing import MODALITIES, Batch, ModelOutput, Spec

_SMALL = 1e-6  # added to the norm that divides


class AdaptationGate(nn.Module):
  """The gate: e' = dropout(norm(e + alpha h)), h = sum_m g_m * (V_m x_m), g_m =
  relu(W_m [x_m; e]), alpha = min(beta |e| / (|h| + 1e-6), 1).

  Attributes:
    beta: how far a shift may go, as a share of the embedding's length.
    dropout: rate on the result.
    everywhere: steps without a frame are shifted too, by the biases, as in MMSA.

  Source: MAG-BERT, Eq. 3-7.
  """

  beta: float = 1.0
  dropout: float = 0.0
  everywhere: bool = False

  @nn.compact
  def __call__(
    self,
    states: Float[Array, "b t d"],
    frames: Mapping[str, tuple[Float[Array, "b t k"], Bool[Array, "b t"]]],
    *,
    train: bool,
  ) -> Float[Array, "b t d"]:
    """New states.

    Args:
      states: embeddings of words, e.
      frames: modality -> features at the same steps, and where there are any.
      train: whether dropout happens.
    """
    width, shift = states.shape[-1], jnp.zeros_like(states)
    for name, (values, there) in frames.items():
      both = jnp.concatenate([values, states], axis=-1)
      gate = nn.relu(nn.Dense(width, name=f"gate_{name}")(both))
      moved = gate * nn.Dense(width, name=f"shift_{name}")(values)
      shown = jnp.ones_like(there) if self.everywhere else there
      shift += jnp.where(shown[..., None], moved, 0.0)
    alpha = jnp.minimum(self.beta * _norm(states) / (_norm(shift, 1.0) + _SMALL), 1.0)
    norm = nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, name="norm")
    return Dropout(self.dropout, not train)(norm(alpha * shift + states))


def _norm(
  values: Float[Array, "b t d"], otherwise: float = 0.0
) -> Float[Array, "b t 1"]:
  """Length of each vector; of a zero vector `otherwise`, without a gradient."""
  square = jnp.sum(values**2, axis=-1, keepdims=True)
  there = square > 0
  return jnp.where(there, jnp.sqrt(jnp.where(there, square, 1.0)), otherwise)


class TanhHead(nn.Module):
  """A tanh layer as wide as its input, and a linear layer: what stands on BERT.

  Attributes:
    num_outputs: units of the linear layer.
    dropout: rate on what it reads.
    input_dropout: rate on the input.
  """

  num_outputs: int
  dropout: float = 0.0
  input_dropout: float = 0.0

  @nn.compact
  def __call__(
    self, values: Float[Array, "b d"], *, train: bool
  ) -> tuple[Float[Array, "b c"], Float[Array, "b d"]]:
    """The outputs, and the layer below them."""
    values = Dropout(self.input_dropout, not train, name="drop_input")(values)
    hidden = jnp.tanh(nn.Dense(values.shape[-1], name="pooler")(values))
    read = Dropout(self.dropout, not train, name="drop")(hidden)
    return nn.Dense(self.num_outputs, name="out")(read), hidden


class MAGBert(nn.Module):
  """The network, by default with MMSA's settings for MOSI.

    model = MAGBert()
    variables = model.init(jax.random.key(0), batch)
    output = model.apply(variables, batch)

  Audio and vision are at the text's steps. In a text encoder that is trained inside the
  model the gate sits after the embeddings; features of a frozen one it shifts
  themselves.

  Attributes:
    output: the task predicted.
    modalities: names in canonical order; every batch must have them.
    beta: see `AdaptationGate`.
    dropout: rate of the gate.
    post_dropout: rate on what the output layer reads.
    text_pool: what stands for a text: the `first` step (BERT's sentence token), as
      published, or the `mean`.
    compat: `mmsa` = steps without a frame are shifted by the gate's biases.
  """

  output: OutputSpec = REGRESSION
  modalities: tuple[str, ...] = MODALITIES
  beta: float = 1.0
  dropout: float = 0.3
  post_dropout: float = 0.1
  text_pool: str = "first"
  compat: str = "none"

  def __post_init__(self):
    check(
      self,
      choices={"compat": COMPAT, "text_pool": POOLS},
      above_zero=("beta",),
      rates=("dropout", "post_dropout"),
    )
    if "text" not in self.modalities or len(self.modalities) < 2:
      raise UserError(
        f"MAG-BERT shifts words by what else there is: modalities"
        f" {', '.join(self.modalities)} must be text and another one; choose with"
        " config.data.modalities."
      )
    super().__post_init__()

  def setup(self):
    # The gate is reached from the encoder, so the parts are made here.
    self.gate = AdaptationGate(self.beta, self.dropout, self.compat == "mmsa")
    self.head = TanhHead(self.output.num_outputs, self.post_dropout)

  def hooks(self, batch: Batch, train: bool) -> dict[int, Hook]:
    """The gate after the embeddings of a text encoder; see `text.hooks`."""

    def shift(states, mask):
      del mask
      return self._shifted(states, batch, train)

    return {0: shift}

  def _shifted(
    self, states: Float[Array, "b t d"], batch: Batch, train: bool
  ) -> Float[Array, "b t d"]:
    # Vision comes first, as published: the sum of both is rounded.
    names = [name for name in reversed(self.modalities) if name != "text"]
    frames = {name: _at_steps(batch, name, states.shape[1]) for name in names}
    return self.gate(states, frames, train=train)

  def __call__(
    self, batch: Batch, *, train: bool = False, hooked: bool = False
  ) -> ModelOutput:
    """Predicts one task.

    Args:
      batch: has every modality of the network; what is absent is hidden.
      train: whether dropout is used.
      hooked: whether the text encoder has been shifted already.

    Raises:
      UserError: the batch lacks a modality.
    """
    check_present(self.modalities, batch)
    text = batch.modalities["text"]
    states = text.features
    if not hooked:
      states = self._shifted(states, batch, train)
    pooled = pool_steps(states, text.mask, self.text_pool)
    values, hidden = self.head(pooled, train=train)
    predictions = {self.output.name: shape_predictions(self.output, values)}
    return ModelOutput(predictions, {"pooled": hidden})


def _at_steps(
  batch: Batch, name: str, steps: int
) -> tuple[Float[Array, "b t k"], Bool[Array, "b t"]]:
  """A modality at the steps of the text, and where there is any: a frame beyond the
  last word shifts none."""
  modality = batch.modalities[name]
  lacking = max(0, steps - modality.mask.shape[1])
  values = jnp.pad(modality.features, ((0, 0), (0, lacking), (0, 0)))
  there = jnp.pad(modality.mask, ((0, 0), (0, lacking)))
  return values[:, :steps], there[:, :steps]


def build(options: Options, spec: Spec) -> MAGBert:
  """Builds the network for a corpus.

  Raises:
    UserError: a value out of range, or sequences that are not aligned.
  """
  output = primary_output(options, spec)
  model = construct(MAGBert, options, output=output, modalities=spec.modalities)
  for name in model.modalities:
    if spec.lengths[name] > spec.lengths["text"]:
      raise UserError(
        f"MAG-BERT reads {name} at the text's steps, of which there are"
        f" {spec.lengths['text']}, but {name} has {spec.lengths[name]}: set"
        " config.data.align='pool'."
      )
  return model


def options() -> dict[str, Any]:
  """Options of the system (`config.model`): the fields of `MAGBert`."""
  return {"name": "mag_bert", **defaults(MAGBert)}


SYSTEM = System(build=build, options=defaults(MAGBert))
