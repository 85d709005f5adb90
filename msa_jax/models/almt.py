"""ALMT: text guides what is taken from audio and vision into a hyper-modality.

Source: Zhang, Wang, Yin, Wan, Wang, EMNLP 2023 (arXiv:2310.05804); as in its code
(Haoyu-ha/ALMT) and MMSA (thuiar/MMSA, singleTask/ALMT.py).
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.core import FrozenDict
from jaxtyping import Array, Bool, Float

from msa_jax.errors import UserError
from msa_jax.layers.attention import LAYER_NORM_EPSILON
from msa_jax.layers.kernels.gelu import exact_gelu
from msa_jax.layers.masking import masked_softmax
from msa_jax.models.late_fusion.base import COMPAT, check_present
from msa_jax.models.options import check, defaults
from msa_jax.models.outputs import REGRESSION, OutputSpec, shape_predictions
from msa_jax.models.system import system_of
from msa_jax.typing import MODALITIES, Batch, Modality, ModelOutput

_HEAD_DIM = 64  # of all layers but the hyper-modality's, whatever their width


def _norm(name: str) -> nn.LayerNorm:
  return nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, name=name)


def _attend(
  query: Float[Array, "b t c"],
  key: Float[Array, "b s c"],
  value: Float[Array, "b s c"],
  mask: Bool[Array, "b s"],
  num_heads: int,
) -> Float[Array, "b t c"]:
  """Scaled dot-product attention of several heads, which lie side by side."""
  query, key, value = (
    each.reshape(*each.shape[:2], num_heads, -1) for each in (query, key, value)
  )
  scores = jnp.einsum("bthk,bshk->bhts", query, key) * query.shape[-1] ** -0.5
  weights = masked_softmax(scores, mask[:, None, None])
  mixed = jnp.einsum("bhts,bshk->bthk", weights, value)
  return mixed.reshape(*mixed.shape[:2], -1)


class GuidedLayer(nn.Module):
  """A pre-norm layer in which a sequence attends to another one, or to itself.

  Query, key and value have a norm each and no biases.

  Attributes:
    num_heads: of 64 units each.
    ffn_dim: hidden units of the feed-forward part.
  """

  num_heads: int
  ffn_dim: int

  @nn.compact
  def __call__(
    self,
    target: Float[Array, "b t d"],
    source: Float[Array, "b s d"],
    mask: Bool[Array, "b s"],
  ) -> Float[Array, "b t d"]:
    width = target.shape[-1]

    def project(name, values):
      inner = self.num_heads * _HEAD_DIM
      return nn.Dense(inner, use_bias=False, name=name)(_norm(f"norm_{name}")(values))

    mixed = _attend(
      project("query", target),
      project("key", source),
      project("value", source),
      mask,
      self.num_heads,
    )
    target = target + nn.Dense(width, name="out")(mixed)
    hidden = nn.Dense(self.ffn_dim, name="ffn_1")(_norm("norm_ffn")(target))
    return target + nn.Dense(width, name="ffn_2")(exact_gelu(hidden))


class TokenEmbedding(nn.Module):
  """A few tokens that have read a modality: linear layer, tokens in front, positions,
  layers of self-attention; the tokens alone are kept.

  Attributes:
    width, num_tokens, num_layers, num_heads, ffn_dim: sizes.
    length: steps that have a position of their own.
    padding: tokens read padding too, as published.
  """

  width: int
  num_tokens: int
  num_layers: int
  num_heads: int
  ffn_dim: int
  length: int
  padding: bool

  @nn.compact
  def __call__(
    self, modality: Modality, real: Bool[Array, " b"]
  ) -> Float[Array, "b n d"]:
    frames = nn.Dense(self.width, name="project")(modality.features)
    count, steps = self.num_tokens, frames.shape[1]
    tokens = self.param("tokens", nn.initializers.zeros, (count, self.width))
    table = self.param(
      "positions", nn.initializers.normal(1.0), (self.length + count, self.width)
    )
    # Steps beyond the training's longest have no position.
    place = jnp.pad(table, ((0, max(0, steps - self.length)), (0, 0)))
    lead = jnp.broadcast_to(tokens[None], (len(frames), *tokens.shape))
    values = jnp.concatenate([lead, frames], axis=1) + place[None, : count + steps]
    shown = jnp.broadcast_to(real[:, None], modality.mask.shape)
    mask = shown if self.padding else modality.mask
    mask = jnp.concatenate([jnp.ones((len(mask), count), bool), mask], axis=1)
    for index in range(self.num_layers):
      layer = GuidedLayer(self.num_heads, self.ffn_dim, name=f"layer_{index}")
      values = layer(values, values, mask)
    return values[:, :count]


class HyperLayer(nn.Module):
  """The hyper-modality takes in what text finds in the other modalities.

  y <- norm(y) + L(sum_m attention(Q t, K_m x_m, V_m x_m)), all inputs normalised.

  Attributes:
    num_heads: divides the width.
  """

  num_heads: int

  @nn.compact
  def __call__(
    self,
    hyper: Float[Array, "b n d"],
    text: Float[Array, "b n d"],
    others: Mapping[str, Float[Array, "b n d"]],
  ) -> Float[Array, "b n d"]:
    width = text.shape[-1]

    def project(name, values):
      return nn.Dense(width, use_bias=False, name=name)(values)

    query = project("query", _norm("norm_text")(text))
    found = jnp.zeros_like(hyper)
    for name, tokens in others.items():
      tokens = _norm(f"norm_{name}")(tokens)
      key, value = project(f"key_{name}", tokens), project(f"value_{name}", tokens)
      everything = jnp.ones(tokens.shape[:2], bool)
      found += _attend(query, key, value, everything, self.num_heads)
    return _norm("norm_hyper")(hyper) + nn.Dense(width, name="out")(found)


class ALMT(nn.Module):
  """The network, by default with MMSA's sizes for MOSI.

    model = ALMT()
    variables = model.init(jax.random.key(0), batch)
    output = model.apply(variables, batch)

  Attributes:
    output: the task predicted.
    modalities: names in canonical order, text among them; every batch must have them.
    lengths: modality -> steps that have a position of their own.
    hidden_dim: width of all tokens.
    num_tokens: of each modality, and of the hyper-modality.
    embedding_layers: of each modality's embedding.
    hyper_layers: of the hyper-modality; text has as many scales.
    fusion_layers: in which text attends to the hyper-modality.
    num_heads: of all layers.
    ffn_dim: hidden units in embeddings and fusion.
    compat: `mmsa` = padding is read like frames.

  Source: ALMT, section 3.
  """

  output: OutputSpec = REGRESSION
  modalities: tuple[str, ...] = MODALITIES
  lengths: Mapping[str, int] = FrozenDict(text=50, audio=375, vision=500)
  hidden_dim: int = 128
  num_tokens: int = 8
  embedding_layers: int = 1
  hyper_layers: int = 3
  fusion_layers: int = 2
  num_heads: int = 8
  ffn_dim: int = 128
  compat: str = "none"

  def __post_init__(self):
    sizes = ("hidden_dim", "num_tokens", "embedding_layers", "hyper_layers")
    check(
      self,
      choices={"compat": COMPAT},
      positive=(*sizes, "fusion_layers", "num_heads", "ffn_dim"),
    )
    if self.hidden_dim % self.num_heads:
      raise UserError(
        f"model.hidden_dim={self.hidden_dim} must be a multiple of"
        f" num_heads={self.num_heads}"
      )
    if "text" not in self.modalities or len(self.modalities) < 2:
      raise UserError(
        f"ALMT guides what else there is by text: modalities"
        f" {', '.join(self.modalities)} must be text and another one; choose with"
        " config.data.modalities."
      )
    super().__post_init__()

  @nn.compact
  def __call__(self, batch: Batch, *, train: bool = False) -> ModelOutput:
    """Predicts one task; `features` has the modalities' tokens, the hyper-modality's
    and the `fusion` [b n d].

    Raises:
      UserError: the batch lacks a modality.
    """
    del train  # nothing is dropped
    check_present(self.modalities, batch)
    tokens = {name: self._embedded(batch, name) for name in self.modalities}
    others = {name: tokens[name] for name in self.modalities if name != "text"}
    scales = self._scales(tokens["text"])
    shape = (self.num_tokens, self.hidden_dim)
    hyper = self.param("hyper", nn.initializers.ones, shape)
    hyper = jnp.broadcast_to(hyper[None], tokens["text"].shape)
    for index, text in enumerate(scales):
      hyper = HyperLayer(self.num_heads, name=f"hyper_{index}")(hyper, text, others)
    fused = self._fused(scales[-1], hyper)
    values = nn.Dense(self.output.num_outputs, name="out")(fused[:, 0])
    predictions = {self.output.name: shape_predictions(self.output, values)}
    return ModelOutput(predictions, {**tokens, "hyper": hyper, "fusion": fused})

  @nn.nowrap
  def _embedded(self, batch: Batch, name: str) -> Float[Array, "b n d"]:
    embed = TokenEmbedding(
      self.hidden_dim,
      self.num_tokens,
      self.embedding_layers,
      self.num_heads,
      self.ffn_dim,
      self.lengths[name],
      self.compat == "mmsa",
      name=f"embed_{name}",
    )
    return embed(batch.modalities[name], batch.sample_mask)

  @nn.nowrap
  def _scales(self, tokens: Float[Array, "b n d"]) -> list[Float[Array, "b n d"]]:
    """Text after none, one, two, ... layers."""
    shape = tokens.shape[1:]
    table = self.param("text_positions", nn.initializers.normal(1.0), shape)
    tokens = tokens + table[None]
    everything, found = jnp.ones(tokens.shape[:2], bool), [tokens]
    for index in range(self.hyper_layers - 1):
      layer = GuidedLayer(self.num_heads, self.hidden_dim, name=f"text_{index}")
      found.append(layer(found[-1], found[-1], everything))
    return found

  @nn.nowrap
  def _fused(
    self, text: Float[Array, "b n d"], hyper: Float[Array, "b n d"]
  ) -> Float[Array, "b m d"]:
    """Text that has attended to the hyper-modality, one token more in front."""
    count, width = text.shape[1:]
    token = self.param("fusion_token", nn.initializers.zeros, (1, width))
    lead = jnp.broadcast_to(token[None], (len(text), 1, width))

    def placed(name, values):
      table = self.param(name, nn.initializers.normal(1.0), (count + 1, width))
      return jnp.concatenate([lead, values], axis=1) + table[None]

    source = placed("source_positions", hyper)
    target = placed("target_positions", text)
    everything = jnp.ones(source.shape[:2], bool)
    for index in range(self.fusion_layers):
      layer = GuidedLayer(self.num_heads, self.ffn_dim, name=f"fusion_{index}")
      target = layer(target, source, everything)
    return target


def options() -> dict[str, Any]:
  """Options of the system (`config.model`): the fields of `ALMT`."""
  return {"name": "almt", **defaults(ALMT)}


SYSTEM = system_of(ALMT)
