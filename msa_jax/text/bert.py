"""BERT in Flax: embeddings and encoder, without pooler and heads."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.core import FrozenDict
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from msa_jax.errors import UserError
from msa_jax.layers.transformer import ACTIVATIONS, EncoderStack, drop, layer_norm
from msa_jax.text import hooks
from msa_jax.text.roberta import padded_positions


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
  """Sizes of an encoder, as in a Hugging Face `config.json`.

  Attributes:
    family: `bert`, `roberta` or `xlm-roberta`.
    vocabulary, positions, types: rows of the three embedding tables.
    width, n_layers, n_heads, inner: of the layers.
    activation: key of `layers.transformer.ACTIVATIONS`.
    epsilon: of the norms.
    dropout, attention_dropout: rates in training.
    pad: id of the padding token.
    extras: further embedding tables by name of their ids: rows. The last row of each
      is that of padding.
  """

  family: str
  vocabulary: int
  positions: int
  types: int
  width: int
  n_layers: int
  n_heads: int
  inner: int
  activation: str = "gelu"
  epsilon: float = 1e-12
  dropout: float = 0.1
  attention_dropout: float = 0.1
  pad: int = 0
  extras: tuple[tuple[str, int], ...] = ()

  @property
  def max_tokens(self) -> int:
    """Longest input: RoBERTa's positions start after that of padding."""
    return self.positions - (0 if self.family == "bert" else self.pad + 1)


FAMILIES = ("bert", "roberta", "xlm-roberta")
_KEYS = {
  "vocab_size": "vocabulary",
  "max_position_embeddings": "positions",
  "type_vocab_size": "types",
  "hidden_size": "width",
  "num_hidden_layers": "n_layers",
  "num_attention_heads": "n_heads",
  "intermediate_size": "inner",
}
_MOST_LAYERS = 1000


def config_of(options: Mapping[str, Any]) -> EncoderConfig:
  """Reads the contents of a Hugging Face `config.json`.

  Raises:
    UserError: another family, activation or kind of positions, or sizes that are
      absent or do not fit.
  """
  family = options.get("model_type")
  if family not in FAMILIES:
    raise UserError(f"model_type {family!r}: must be one of {', '.join(FAMILIES)}")
  sizes: dict[str, Any] = {ours: options.get(theirs) for theirs, ours in _KEYS.items()}
  for theirs, ours in _KEYS.items():
    if type(sizes[ours]) is not int or sizes[ours] < 1:
      raise UserError(f"config.json: {theirs}={sizes[ours]!r} must be positive")
  if sizes["n_layers"] > _MOST_LAYERS:
    raise UserError(
      f"config.json: num_hidden_layers={sizes['n_layers']} must be {_MOST_LAYERS} at"
      " most"
    )
  if sizes["width"] % sizes["n_heads"]:
    raise UserError(
      f"config.json: hidden_size={sizes['width']} must be a multiple of"
      f" num_attention_heads={sizes['n_heads']}"
    )
  activation = options.get("hidden_act", "gelu")
  if activation not in ACTIVATIONS:
    raise UserError(
      f"config.json: hidden_act={activation!r} must be one of {sorted(ACTIVATIONS)}"
    )
  positions = options.get("position_embedding_type") or "absolute"
  if positions != "absolute":
    raise UserError(
      f"config.json: position_embedding_type={positions!r} must be 'absolute'"
    )
  pad = options.get("pad_token_id")
  return EncoderConfig(
    family,
    **sizes,
    activation=activation,
    epsilon=float(options.get("layer_norm_eps", 1e-12)),
    dropout=float(options.get("hidden_dropout_prob", 0.1)),
    attention_dropout=float(options.get("attention_probs_dropout_prob", 0.1)),
    pad=(0 if family == "bert" else 1) if pad is None else int(pad),
  )


_NORMAL = nn.initializers.normal(0.02)


class Embeddings(nn.Module):
  """Sum of the embeddings of tokens, positions, types and extra inputs, normalised.

  Attributes:
    config: sizes.
    deterministic: True = evaluation.
    dtype: of the result.

  Source: Devlin et al. 2019; the extra inputs: H-GEM (2026), Eq. 2.
  """

  config: EncoderConfig
  deterministic: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    tokens: Int[Array, "b t"],
    positions: Int[Array, "b t"],
    types: Int[Array, "b t"],
    extras: Mapping[str, Int[Array, "b t"]],
  ) -> Float[Array, "b t d"]:
    """Embeds tokens."""
    config = self.config

    def table(name, rows, initial=_NORMAL):
      return self.param(name, initial, (rows, config.width))

    summed = table("word", config.vocabulary)[tokens]
    summed += table("position", config.positions)[positions]
    summed += table("type", config.types)[types]
    for name, rows in config.extras:
      # A pretrained encoder starts as it was: new tables are zero.
      summed += table(name, rows, nn.initializers.zeros)[extras[name]]
    scale = self.param("scale", nn.initializers.ones, (config.width,))
    bias = self.param("bias", nn.initializers.zeros, (config.width,))
    summed = layer_norm(summed, scale, bias, config.epsilon).astype(self.dtype)
    key = None if self.deterministic else self.make_rng("dropout")
    return drop(summed, key, config.dropout)


class TextEncoder(nn.Module):
  """An encoder of any family.

  Attributes:
    config: sizes.
    trained: how many of the upper layers are trained; the parameters of the layers
      below and of the embeddings then get no gradient. -1 = all of it.
    deterministic, dtype, unroll, remat: see `EncoderStack`.
    after: hooks by the number of layers below them, 0 = after the embeddings; see
      `text.hooks`. They get their gradients wherever they sit.
  """

  config: EncoderConfig
  trained: int = -1
  deterministic: bool = True
  dtype: Any = jnp.float32
  unroll: bool | None = None
  remat: bool = False
  after: Mapping[int, hooks.Hook] = FrozenDict()

  def __post_init__(self):
    hooks.check(self.after, self.config.n_layers)
    super().__post_init__()

  @nn.compact
  def __call__(
    self,
    tokens: Int[Array, "b t"],
    mask: Bool[Array, "b t"],
    types: Int[Array, "b t"] | None = None,
    extras: Mapping[str, Int[Array, "b t"]] | None = None,
    **context: Any,
  ) -> tuple[Float[Array, "b t d"], ...]:
    """Computes all hidden states: the embeddings', then each layer's.

    Args:
      tokens: ids.
      mask: True = token that may be attended to.
      types: ids of segments; None = all zero.
      extras: ids of the extra inputs of the config.
      **context: what the hooks read beside the states, such as features of audio.

    Returns:
      n_layers + 1 arrays, each as its hook returned it where one sits. Values at
      padding are undefined: mask them.
    """
    config = self.config
    types = jnp.zeros_like(tokens) if types is None else types
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    if config.family != "bert":
      positions = padded_positions(tokens, config.pad)
    embed = Embeddings(config, self.deterministic, self.dtype, name="embeddings")
    hidden = embed(tokens, positions, types, extras or {})
    upper = config.n_layers if self.trained < 0 else self.trained
    cut = config.n_layers - upper
    # A gradient on its way to a hook passes the frozen layers above it, so there the
    # parameters are frozen; without such a hook it ends where the frozen layers do.
    passed = self.trained >= 0 and any(place <= cut for place in self.after)
    hidden = lax.stop_gradient(hidden) if passed else hidden
    hook = functools.partial(hooks.call, self.after, mask=mask, context=context)
    hidden = hook(0, hidden)
    states = [hidden]
    for name, below, layers in (("lower", 0, cut), ("layers", cut, upper)):
      if name == "layers" and self.trained >= 0 and not passed:
        hidden = lax.stop_gradient(hidden)
      if layers:
        after = {
          place - below: functools.partial(hook, place)
          for place in self.after
          if below < place <= below + layers
        }
        stack = self._stack(layers, name, passed and name == "lower")
        hidden, more = stack(hidden, mask, after)
        states += more
    return tuple(states)

  @nn.nowrap
  def _stack(self, n_layers: int, name: str, frozen: bool) -> EncoderStack:
    config = self.config
    return EncoderStack(
      n_layers=n_layers,
      n_heads=config.n_heads,
      width=config.width,
      inner=config.inner,
      activation=config.activation,
      epsilon=config.epsilon,
      dropout=config.dropout,
      attention_dropout=config.attention_dropout,
      deterministic=self.deterministic,
      dtype=self.dtype,
      unroll=self.unroll,
      remat=self.remat,
      frozen=frozen,
      name=name,
    )
