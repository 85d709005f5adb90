"""DERL's parts: its two encoders in one class, the enhancement and the filter unit,
and the bank that runs one layer per modality."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from msa_jax.layers.attention import LAYER_NORM_EPSILON, MultiHeadAttention
from msa_jax.layers.dropout import Dropout
from msa_jax.layers.masking import masked_softmax

XAVIER = nn.initializers.xavier_uniform()


class ModalityBank(nn.Module):
  """The same layer for several modalities, each with its own parameters.

  Parameters are stacked (axis 0 = modality) however the layer is run: inputs of equal
  shapes go through one vmapped computation, others through a loop. The numbers are the
  same, dropout included, so that a checkpoint does not depend on sequence lengths.

  Attributes:
    layer: what every modality gets a copy of; made with `parent=None`; positional
      arguments only, with an attribute `deterministic`.
    names: the modalities, in the order of the inputs.
    stacked: False = always loop.
  """

  layer: nn.Module
  names: tuple[str, ...]
  stacked: bool = True

  @nn.compact
  def __call__(self, inputs: Sequence[tuple]) -> list[Array]:
    """Runs the layer on `inputs[i]`, the positional arguments of modality i."""
    layer = self.layer.copy(parent=None, name=None)
    params = self._params(layer, inputs[0])
    random = not layer.deterministic and self.has_rng("dropout")
    key = self.make_rng("dropout") if random else None
    watched = self.is_mutable_collection("intermediates")

    def run(slot, own, arguments):
      rngs = {} if key is None else {"dropout": jax.random.fold_in(key, slot)}
      mutable = ["intermediates"] if watched else []
      output, sown = layer.apply(
        {"params": own}, *arguments, rngs=rngs, mutable=mutable
      )
      return output, sown.get("intermediates", {})

    if self.stacked and _same_shapes(inputs):
      arguments = jax.tree.map(lambda *leaves: jnp.stack(leaves), *inputs)
      slots = jnp.arange(len(inputs))
      outputs, sown = jax.vmap(run)(slots, params, arguments)
      results = [
        (outputs[i], jax.tree.map(lambda leaf, i=i: leaf[i], sown))
        for i in range(len(inputs))
      ]
    else:
      results = []
      for slot, arguments in enumerate(inputs):
        own = jax.tree.map(lambda p, slot=slot: p[slot], params)
        results.append(run(slot, own, arguments))
    if watched:
      for name, (_, sown) in zip(self.names, results, strict=True):
        self.sow("intermediates", name, sown)
    return [output for output, _ in results]

  @nn.nowrap
  def _params(self, layer: nn.Module, arguments: tuple) -> Any:
    # Asking for the variable spares `param`'s check, which traces the initialiser
    # again at every call.
    if self.has_variable("params", "stack"):
      return self.get_variable("params", "stack")
    layer = layer.clone(deterministic=True)

    def initial(key):
      keys = jax.random.split(key, len(self.names))
      return jax.vmap(lambda each: layer.init(each, *arguments)["params"])(keys)

    return self.param("stack", initial)


def _same_shapes(inputs: Sequence[tuple]) -> bool:
  shapes = [[leaf.shape for leaf in jax.tree.leaves(each)] for each in inputs]
  return all(each == shapes[0] for each in shapes)


class EncoderLayer(nn.Module):
  """One layer of either encoder: attention stages, then a feed-forward part.

  Without sources it is the intra-modal encoder: self-attention. With sources it is the
  cross-modal one: the result of attending to the first source asks the second, and so
  on. A stage whose source has no valid step adds nothing, not even a bias.

  Attributes:
    num_heads, scale: heads and factor of the logits, see `MultiHeadAttention`.
    ffn_dim: hidden width of the feed-forward part (ReLU).
    attends: which stages have an attention; the others are their layer norm alone
      (the source exists for no modality of the corpus).
    attention_dropout, residual_dropout, ffn_dropout: rates on the attention
      probabilities, on what is added to the residual stream, on the hidden layer.
    deterministic: True = evaluation.
    dtype: compute type.

  Source: DERL (2024), Eq. 5-11 and 12-15.
  """

  num_heads: int
  ffn_dim: int
  attends: tuple[bool, ...] = (True,)
  attention_dropout: float = 0.0
  residual_dropout: float = 0.0
  ffn_dropout: float = 0.0
  scale: float | None = None
  deterministic: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    values: Float[Array, "b t d"],
    mask: Bool[Array, "b t"],
    sources: tuple[Float[Array, "b _ d"], ...] | None = None,
    source_masks: tuple[Bool[Array, "b _"], ...] | None = None,
  ) -> Float[Array, "b t d"]:
    """Encodes `values`; zeros where `mask` is False.

    Args:
      values: the target's steps, the queries.
      mask: its real steps.
      sources, source_masks: keys and values of the stages that attend, in order; None
        = `values` themselves.
    """
    remaining = (
      None if sources is None else zip(sources, source_masks or (), strict=True)
    )
    for stage, attends in enumerate(self.attends, start=1):
      if not attends:
        values = self._norm(stage)(values)
        continue
      source = None if remaining is None else next(remaining)
      values = self._attend(stage, values, mask, source)
    values = self._feed_forward(len(self.attends) + 1, values)
    return jnp.where(mask[..., None], values, 0.0)

  @nn.nowrap
  def _norm(self, number: int) -> nn.LayerNorm:
    return nn.LayerNorm(
      epsilon=LAYER_NORM_EPSILON, dtype=self.dtype, name=f"norm_{number}"
    )

  @nn.nowrap
  def _attend(self, stage: int, values: Array, mask: Array, source) -> Array:
    attention = MultiHeadAttention(
      values.shape[-1],
      self.num_heads,
      self.attention_dropout,
      self.deterministic,
      scale=self.scale,
      dtype=self.dtype,
      kernel_init=XAVIER,
      name=f"attention_{stage}",
    )
    keys, key_mask = (values, mask) if source is None else source
    added = attention(values, keys, key_mask)
    added = jnp.where(jnp.any(key_mask, axis=1)[:, None, None], added, 0.0)
    added = Dropout(self.residual_dropout, self.deterministic)(added)
    return self._norm(stage)(values + added)

  @nn.nowrap
  def _feed_forward(self, number: int, values: Array) -> Array:
    hidden = nn.relu(dense(self.ffn_dim, self.dtype, "ffn_1")(values))
    hidden = Dropout(self.ffn_dropout, self.deterministic)(hidden)
    hidden = dense(values.shape[-1], self.dtype, "ffn_2")(hidden)
    hidden = Dropout(self.residual_dropout, self.deterministic)(hidden)
    return self._norm(number)(values + hidden)


def dense(width: int, dtype: Any, name: str, use_bias: bool = True) -> nn.Dense:
  """A linear layer as DERL starts it: Xavier-uniform matrix, zero bias."""
  return nn.Dense(width, use_bias, dtype=dtype, kernel_init=XAVIER, name=name)


def enhancement_weights(
  private: Float[Array, "b t d"],
  product: Float[Array, "b t d"],
  mask: Bool[Array, "b t"],
) -> Float[Array, "b t t"]:
  """Token-to-token map of the enhancement unit, in float32; rows sum to 1.

  Keys are divided by the length of each token, sqrt(sum F^2 + 1e-6); by the length of
  the whole matrix the map would hardly differ from the mean over tokens.

  Args:
    private: H' = H W_H, the queries.
    product: F = M' * H', the keys.
    mask: real steps; the others are no keys.

  Source: DERL (2024), Eq. 19.
  """
  product = jnp.where(mask[..., None], product, 0.0).astype(jnp.float32)
  square = jnp.sum(product**2, axis=-1, keepdims=True)
  keys = product * jax.lax.rsqrt(square + 1e-6)
  logits = jnp.einsum("btd,bsd->bts", private.astype(jnp.float32), keys)
  return masked_softmax(logits, mask[:, None, :])


class EnhancementUnit(nn.Module):
  """M'' = dropout(W_F) H' + M: the common stream, enhanced by the private one.

  The weights W_F are sown as `weights` into `intermediates`.

  Attributes:
    dropout: rate on W_F.
    deterministic: True = evaluation.
    dtype: compute type; W_F is float32.

  Source: DERL (2024), Eq. 16-20.
  """

  dropout: float = 0.0
  deterministic: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    common: Float[Array, "b t d"],
    private: Float[Array, "b t d"],
    mask: Bool[Array, "b t"],
  ) -> Float[Array, "b t d"]:
    width = common.shape[-1]
    left = dense(width, self.dtype, "common", use_bias=False)(common)  # M'
    right = dense(width, self.dtype, "private", use_bias=False)(private)  # H'
    weights = enhancement_weights(right, left * right, mask)
    self.sow("intermediates", "weights", weights)
    weights = Dropout(self.dropout, self.deterministic)(weights)
    added = jnp.einsum("bts,bsd->btd", weights.astype(self.dtype), right)
    return jnp.where(mask[..., None], common + added, 0.0)


class FilterUnit(nn.Module):
  """H'' = G H + (1 - G) M with G = sigmoid(M W'_M + H W'_H + b).

  The gate G is sown as `gate` into `intermediates`.

  Attributes:
    deterministic: unused; every layer of a bank has it.
    dtype: compute type; G is float32.

  Source: DERL (2024), Eq. 21-22.
  """

  deterministic: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    common: Float[Array, "b t d"],
    private: Float[Array, "b t d"],
    mask: Bool[Array, "b t"],
  ) -> Float[Array, "b t d"]:
    width = common.shape[-1]
    score = dense(width, self.dtype, "common", use_bias=False)(common)
    score = score + dense(width, self.dtype, "private")(private)
    gate = nn.sigmoid(score.astype(jnp.float32))
    self.sow("intermediates", "gate", gate)
    gate = gate.astype(self.dtype)
    return jnp.where(mask[..., None], gate * private + (1 - gate) * common, 0.0)


def attention_scale(kind: str, width: int, num_heads: int) -> float:
  """1 / sqrt(head width) for `head`, 1 / sqrt(width) for `model` (Eq. 5 literally)."""
  return 1.0 / math.sqrt(width if kind == "model" else width // num_heads)
