"""BERT and its relatives in Flax: embeddings and encoder, without pooler and heads."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from msa_jax.errors import UserError
from msa_jax.layers import relative
from msa_jax.layers.relative import NOTHING, Relative
from msa_jax.layers.transformer import ACTIVATIONS, EncoderStack, drop, layer_norm
from msa_jax.text import hooks
from msa_jax.text.adapters import Adapters, LowRank
from msa_jax.text.roberta import padded_positions


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
  """Sizes of an encoder, as in a Hugging Face `config.json`.

  Attributes:
    family: `bert`, `roberta`, `xlm-roberta`, `mpnet` or `deberta-v2` (which is that of
      version 3 too).
    vocabulary, positions, types: rows of the three embedding tables. MPNet and DeBERTa
      have no types; DeBERTa's positions are the longest input, without a table.
    width, n_layers, n_heads, inner: of the layers.
    activation: key of `layers.transformer.ACTIVATIONS`.
    epsilon: of the norms.
    dropout, attention_dropout: rates in training.
    pad: id of the padding token.
    extras: further embedding tables by name of their ids: rows. The last row of each
      is that of padding.
    buckets: of relative positions, of MPNet and DeBERTa; 0 = none.
    farthest: relative position from which on DeBERTa tells them apart no more.
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
  buckets: int = 0
  farthest: int = 0

  @property
  def max_tokens(self) -> int:
    """Longest input: RoBERTa's positions start after that of padding."""
    return self.positions - (self.pad + 1 if self.family in _AFTER_PADDING else 0)

  @property
  def tables(self) -> dict[str, int]:
    """Embedding tables of a checkpoint: rows."""
    found = {"word": self.vocabulary, "position": self.positions, "type": self.types}
    if self.family == "deberta-v2":
      del found["position"]
    return {name: rows for name, rows in found.items() if rows}


FAMILIES = ("bert", "roberta", "xlm-roberta", "mpnet", "deberta-v2")
_AFTER_PADDING = ("roberta", "xlm-roberta", "mpnet")
_EPSILON = {"deberta-v2": 1e-7}
# What the code computes, whatever a config.json says of the rest.
_MPNET_BUCKETS = 32
_DEBERTA = {
  "relative_attention": True,
  "share_att_key": True,
  "norm_rel_ebd": "layer_norm",
  "position_biased_input": False,
  "type_vocab_size": 0,
}
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
  keys = dict(_KEYS)
  if family in ("mpnet", "deberta-v2"):
    del keys["type_vocab_size"]
  sizes: dict[str, Any] = {ours: options.get(theirs) for theirs, ours in keys.items()}
  for theirs, ours in keys.items():
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
  sizes = {"types": 0, **sizes, **_relative(options)}
  return EncoderConfig(
    family,
    **sizes,
    activation=activation,
    epsilon=float(options.get("layer_norm_eps", _EPSILON.get(family, 1e-12))),
    dropout=float(options.get("hidden_dropout_prob", 0.1)),
    attention_dropout=float(options.get("attention_probs_dropout_prob", 0.1)),
    pad=int(family in _AFTER_PADDING) if pad is None else int(pad),
  )


def _relative(options: Mapping[str, Any]) -> dict[str, int]:
  """Buckets of relative positions of a `config.json`.

  Raises:
    UserError: a kind that no released encoder has, but the code of some could.
  """
  if options["model_type"] == "mpnet":
    rows = options.get("relative_attention_num_buckets", _MPNET_BUCKETS)
    if rows != _MPNET_BUCKETS:
      raise UserError(
        f"config.json: relative_attention_num_buckets={rows!r} must be {_MPNET_BUCKETS}"
      )
    return {"buckets": _MPNET_BUCKETS}
  if options["model_type"] != "deberta-v2":
    return {}
  for key, value in _DEBERTA.items():
    if options.get(key, value) != value:
      raise UserError(
        f"config.json: {key}={options[key]!r} must be {value!r}, as in DeBERTa-v3"
      )
  kinds = options.get("pos_att_type", ())
  kinds = kinds.split("|") if isinstance(kinds, str) else kinds
  if set(kinds) != {"c2p", "p2c"} or options.get("conv_kernel_size"):
    raise UserError(
      f"config.json: pos_att_type={options.get('pos_att_type')!r} must be 'p2c|c2p',"
      " and there must be no conv_kernel_size, as in DeBERTa-v3"
    )
  buckets = options.get("position_buckets", -1)
  if type(buckets) is not int or buckets < 2:
    raise UserError(f"config.json: position_buckets={buckets!r} must be 2 or more")
  farthest = options.get("max_relative_positions", -1)
  if farthest < 1:
    farthest = options["max_position_embeddings"]
  return {"buckets": buckets, "farthest": int(farthest)}


_NORMAL = nn.initializers.normal(0.02)


class Embeddings(nn.Module):
  """Sum of the embeddings of tokens, positions, types and extra inputs, normalised.

  Attributes:
    config: sizes.
    deterministic: True = evaluation.
    dtype: of the result.
    param_dtype: of the parameters.

  Source: Devlin et al. 2019; the extra inputs: H-GEM (2026), Eq. 2.
  """

  config: EncoderConfig
  deterministic: bool = True
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

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

    def looked_up(name, rows, numbers, initial=_NORMAL):
      table = self.param(name, initial, (rows, config.width), self.param_dtype)
      return table[numbers].astype(jnp.float32)

    numbers = {"word": tokens, "position": positions, "type": types}
    summed = jnp.zeros((*tokens.shape, config.width))
    for name, rows in config.tables.items():
      summed += looked_up(name, rows, numbers[name])
    for name, rows in config.extras:
      # A pretrained encoder starts as it was: new tables are zero.
      summed += looked_up(name, rows, extras[name], nn.initializers.zeros)
    scale, bias = _norm(self, config.width, self.param_dtype)
    summed = layer_norm(summed, scale, bias, config.epsilon).astype(self.dtype)
    key = None if self.deterministic else self.make_rng("dropout")
    return drop(summed, key, config.dropout)


def _norm(module: nn.Module, width: int, dtype: Any) -> tuple[Any, Any]:
  """Scale and bias of a norm."""
  return (
    module.param("scale", nn.initializers.ones, (width,), dtype),
    module.param("bias", nn.initializers.zeros, (width,), dtype),
  )


class RelativePositions(nn.Module):
  """What attention scores depend on besides the tokens, the same for all layers.

  Attributes:
    config: sizes, of MPNet or DeBERTa.
    deterministic: True = evaluation.
    param_dtype: of the parameters.

  Source: Song et al., MPNet (2020); He et al., DeBERTaV3 (2021).
  """

  config: EncoderConfig
  deterministic: bool = True
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, steps: int) -> Relative:
    """For inputs of `steps` tokens."""
    config, dtype = self.config, self.param_dtype
    if config.family == "mpnet":
      table = self.param("table", _NORMAL, (config.buckets, config.n_heads), dtype)
      places = relative.symmetric_buckets(steps, config.buckets)
      return Relative(bias=jnp.moveaxis(table[places].astype(jnp.float32), -1, 0))
    rows = 2 * config.buckets
    table = self.param("table", _NORMAL, (rows, config.width), dtype)
    scale, bias = _norm(self, config.width, dtype)
    table = layer_norm(table.astype(jnp.float32), scale, bias, config.epsilon)
    places = relative.log_buckets(
      relative.distances(steps), config.buckets, config.farthest
    )
    vectors = table[np.clip(places + config.buckets, 0, rows - 1)]
    key = None if self.deterministic else self.make_rng("dropout")
    return Relative(vectors=drop(vectors, key, config.dropout))


class TextEncoder(nn.Module):
  """An encoder of any family.

  Attributes:
    config: sizes.
    trained: how many of the upper layers are trained; the parameters of the layers
      below and of the embeddings then get no gradient. -1 = all of it.
    frozen_dtype: of the parameters that are not trained.
    low_rank: adapters that are trained in place of all else, or None.
    deterministic, dtype, unroll, remat: see `EncoderStack`.
    after: hooks by the number of layers below them, 0 = after the embeddings; see
      `text.hooks`. They get their gradients wherever they sit.
  """

  config: EncoderConfig
  trained: int = -1
  frozen_dtype: Any = jnp.float32
  low_rank: LowRank | None = None
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
    if config.family in _AFTER_PADDING:
      positions = padded_positions(tokens, config.pad)
    trained = self.trained if self.low_rank is None else 0
    frozen = trained >= 0
    below = self.frozen_dtype if frozen else jnp.float32
    embed = Embeddings(config, self.deterministic, self.dtype, below, name="embeddings")
    hidden = embed(tokens, positions, types, extras or {})
    beside = NOTHING
    if config.buckets:
      place = RelativePositions(config, self.deterministic, below, name="relative")
      beside = place(tokens.shape[1])
      beside = lax.stop_gradient(beside) if frozen else beside
    changes = {}
    if self.low_rank is not None:
      pairs = Adapters(self.low_rank, config.n_layers, config.width, name="adapters")
      changes = pairs()
    upper = config.n_layers if trained < 0 else trained
    cut = config.n_layers - upper
    # A gradient on its way to a hook or an adapter passes the frozen layers above it,
    # so there the parameters are frozen; else it ends where the frozen layers do.
    passed = frozen and (bool(changes) or any(place <= cut for place in self.after))
    hidden = lax.stop_gradient(hidden) if passed else hidden
    hook = functools.partial(hooks.call, self.after, mask=mask, context=context)
    hidden = hook(0, hidden)
    states = [hidden]
    for name, below, layers in (("lower", 0, cut), ("layers", cut, upper)):
      if name == "layers" and frozen and not passed:
        hidden = lax.stop_gradient(hidden)
      if layers:
        after = {
          place - below: functools.partial(hook, place)
          for place in self.after
          if below < place <= below + layers
        }
        stack = self._stack(layers, name, passed and name == "lower")
        hidden, more = stack(hidden, mask, after, beside, changes)
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
      param_dtype=self.frozen_dtype if name == "lower" else jnp.float32,
      adapter_scale=1.0 if self.low_rank is None else self.low_rank.scale,
      name=name,
    )
