"""The encoder of BERT and its relatives: post-norm layers, stored stacked.

All layers' weights lie in one array per kind, layer first, whether the layers run in
a loop (`lax.scan`: small programs, for accelerators) or one after the other (a CPU
runs loop bodies several times slower). Checkpoints do not tell the two apart.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from msa_jax.layers.activation import ACTIVATIONS
from msa_jax.layers.dropout import happens
from msa_jax.layers.masking import masked_softmax
from msa_jax.layers.relative import NOTHING, Relative, disentangled


def layer_norm(
  values: Float[Array, "... d"],
  scale: Float[Array, " d"],
  bias: Float[Array, " d"],
  epsilon: float,
) -> Float[Array, "... d"]:
  """Normalises the last axis in float32; the result has the type of `values`."""
  wide = values.astype(jnp.float32)
  centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
  variance = jnp.mean(centred**2, axis=-1, keepdims=True)
  shape = (*[1] * (values.ndim - 1), -1)
  normalised = centred * lax.rsqrt(variance + epsilon)
  result = normalised * scale.reshape(shape) + bias.reshape(shape)
  return result.astype(values.dtype)


def drop(
  values: Float[Array, "..."], key: jax.Array | None, rate: float
) -> Float[Array, "..."]:
  """Dropout by an explicit key; None = evaluation."""
  if key is None or rate == 0.0:
    return values
  dropped = happens(jax.random.key_data(key), values.shape, rate)
  return jnp.where(dropped, 0.0, values / (1.0 - rate)).astype(values.dtype)


class EncoderStack(nn.Module):
  """Layers of self-attention and feed-forward, each with its norm after the sum.

  >>> values, mask = jnp.ones((2, 5, 8)), jnp.ones((2, 5), bool)
  >>> stack = EncoderStack(n_layers=3, n_heads=2, width=8, inner=16)
  >>> (last, states), _ = stack.init_with_output(jax.random.key(0), values, mask)
  >>> last.shape, len(states)
  ((2, 5, 8), 3)

  Attributes:
    n_layers, n_heads, width, inner: sizes.
    activation: key of `ACTIVATIONS`.
    epsilon: of the norms.
    dropout, attention_dropout: rates.
    deterministic: True = evaluation.
    dtype: compute type; norms and probabilities are float32.
    unroll: True = one layer after the other, False = a loop, None = by the backend.
    remat: recomputes a layer's activations in the backward pass.
    frozen: the layers' parameters get no gradient; the states below them do.
    param_dtype: of the parameters.
    adapter_scale: factor of what adapters add.

  Source: Devlin et al. 2019; Vaswani et al. 2017.
  """

  n_layers: int
  n_heads: int
  width: int
  inner: int
  activation: str = "gelu"
  epsilon: float = 1e-12
  dropout: float = 0.0
  attention_dropout: float = 0.0
  deterministic: bool = True
  dtype: Any = jnp.float32
  unroll: bool | None = None
  remat: bool = False
  frozen: bool = False
  param_dtype: Any = jnp.float32
  adapter_scale: float = 1.0

  @nn.compact
  def __call__(
    self,
    hidden: Float[Array, "b t d"],
    mask: Bool[Array, "b t"],
    after: Mapping[int, Callable[[jax.Array], jax.Array]] | None = None,
    relative: Relative = NOTHING,
    adapters: Mapping[str, Mapping[str, jax.Array]] | None = None,
  ) -> tuple[Float[Array, "b t d"], tuple[Float[Array, "b t d"], ...]]:
    """Runs the stack.

    Args:
      hidden: embeddings.
      mask: True = token that may be attended to.
      after: what changes the states between layers, by the number of layers below it,
        1 to `n_layers`. States must keep shape and type.
      relative: what the attention scores depend on besides the states.
      adapters: name of a dense layer -> `down` [n_layers d r] and `up` [n_layers r d],
        whose product is added to its kernel.

    Returns:
      The last layer's states, and those of all layers in order, as changed.
    """
    weights = {name: self._weights(name, *s) for name, s in self._shapes().items()}
    weights = lax.stop_gradient(weights) if self.frozen else weights
    for name, pair in (adapters or {}).items():
      weights[name] = {**weights[name], **pair}
    keys = None
    if not self.deterministic and max(self.dropout, self.attention_dropout) > 0:
      keys = jax.random.split(self.make_rng("dropout"), (self.n_layers, 3))

    def layer(hidden, inputs):
      own, own_keys = inputs
      hidden = self._layer(own, own_keys, hidden, mask, relative)
      return hidden, hidden

    layer = jax.checkpoint(layer) if self.remat else layer
    unroll = jax.default_backend() == "cpu" if self.unroll is None else self.unroll
    run = self._one_by_one if unroll else self._in_loops
    return run(layer, hidden, weights, keys, after or {})

  @nn.nowrap
  def _in_loops(self, layer, hidden, weights, keys, after):
    """One loop over all layers, or one per run of layers between hooks."""
    ends = sorted({*after, self.n_layers})
    if len(ends) == 1:
      runs = [(weights, keys)]
    else:
      starts = [0, *ends[:-1]]
      sizes = [end - start for start, end in zip(starts, ends, strict=True)]
      leaves, tree = jax.tree.flatten(weights)
      parts = zip(*(lax.split(leaf, sizes) for leaf in leaves), strict=True)
      runs = [
        (tree.unflatten(part), None if keys is None else keys[start:end])
        for part, start, end in zip(parts, starts, ends, strict=True)
      ]
    states = []
    for end, run in zip(ends, runs, strict=True):
      hidden, more = lax.scan(layer, hidden, run)
      states += tuple(more)
      if end in after:
        hidden = states[-1] = after[end](hidden)
    return hidden, tuple(states)

  @nn.nowrap
  def _one_by_one(self, layer, hidden, weights, keys, after):
    """The layers as a straight program."""
    # The transpose of a split is one concatenation; that of indexing, a sum of
    # arrays as large as all layers, once per layer.
    parts = jax.tree.map(lambda leaf: lax.split(leaf, (1,) * len(leaf)), weights)
    states = []
    for i in range(self.n_layers):
      own = {
        name: {kind: value[i][0] for kind, value in part.items()}
        for name, part in parts.items()
      }
      hidden, _ = layer(hidden, (own, None if keys is None else keys[i]))
      hidden = after[i + 1](hidden) if i + 1 in after else hidden
      states.append(hidden)
    return hidden, tuple(states)

  @nn.nowrap
  def _shapes(self) -> dict[str, tuple[int, ...]]:
    d, inner = self.width, self.inner
    dense = {name: (d, d) for name in ("query", "key", "value", "attention")}
    norms = {"attention_norm": (d,), "output_norm": (d,)}
    return {**dense, "intermediate": (d, inner), "output": (inner, d), **norms}

  @nn.nowrap
  def _weights(self, name: str, *shape: int) -> dict[str, jax.Array]:
    return StackedWeights(self.n_layers, shape, self.param_dtype, name=name)()

  @nn.nowrap
  def _layer(self, weights, keys, hidden, mask, relative):
    keys = (None, None, None) if keys is None else keys
    head_width = self.width // self.n_heads

    def dense(name, values):
      kernel, bias = (weights[name][k].astype(self.dtype) for k in _DENSE)
      # One product over all rows: the kernel's derivative is then one as well, without
      # a transposed copy of the rows.
      flat = values.reshape(-1, values.shape[-1])
      rows = flat @ kernel + bias[None]
      if "down" in weights[name]:
        down, up = (weights[name][k].astype(self.dtype) for k in ("down", "up"))
        rows += (flat @ down) @ up * self.adapter_scale
      return rows.reshape(*values.shape[:-1], -1)

    def heads(name):
      return dense(name, hidden).reshape(*hidden.shape[:-1], self.n_heads, -1)

    def add_norm(name, values, key, skip):
      summed = drop(values, key, self.dropout) + skip
      gain, bias = (weights[name][k] for k in _NORM)
      return layer_norm(summed, gain, bias, self.epsilon)

    def vectors(name):  # [h r k]
      made = dense(name, relative.vectors.astype(self.dtype))
      return made.reshape(-1, self.n_heads, head_width).swapaxes(0, 1)

    parts = 1 if relative.vectors is None else 3
    scale = 1.0 / math.sqrt(head_width * parts)
    queries, sources = heads("query") * scale, heads("key")
    logits = jnp.einsum("bthd,bshd->bhts", queries, sources)
    if relative.bias is not None:
      logits += relative.bias.astype(self.dtype)[None]
    if relative.vectors is not None:
      swapped = jnp.swapaxes(queries, 1, 2), jnp.swapaxes(sources, 1, 2)
      logits += disentangled(*swapped, vectors("query") * scale, vectors("key"))
    probs = masked_softmax(logits, mask[:, None, None, :]).astype(self.dtype)
    probs = drop(probs, keys[0], self.attention_dropout)
    mixed = jnp.einsum("bhts,bshd->bthd", probs, heads("value"))
    mixed = dense("attention", mixed.reshape(hidden.shape))
    hidden = add_norm("attention_norm", mixed, keys[1], hidden)
    inner = ACTIVATIONS[self.activation](dense("intermediate", hidden))
    return add_norm("output_norm", dense("output", inner), keys[2], hidden)


_NORM = ("scale", "bias")
_DENSE = ("kernel", "bias")


class StackedWeights(nn.Module):
  """Kernel and bias, or scale and bias, of one kind of layer, layers first.

  >>> weights, _ = StackedWeights(3, (8, 16)).init_with_output(jax.random.key(0))
  >>> {name: value.shape for name, value in weights.items()}
  {'kernel': (3, 8, 16), 'bias': (3, 16)}

  Attributes:
    n_layers: layers.
    shape: [in out] of a dense layer, [d] of a norm.
    dtype: of the parameters.
  """

  n_layers: int
  shape: tuple[int, ...]
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self) -> dict[str, Float[Array, "..."]]:
    def stacked(name, initial, shape):
      return self.param(name, initial, (self.n_layers, *shape), self.dtype)

    bias = stacked("bias", nn.initializers.zeros, self.shape[-1:])
    if len(self.shape) == 1:
      return {"scale": stacked("scale", nn.initializers.ones, self.shape), "bias": bias}
    kernel = stacked("kernel", nn.initializers.normal(0.02), self.shape)
    return {"kernel": kernel, "bias": bias}
