"""MoMKE's two kinds of networks: the bank of modality experts and the soft routers.

All of a kind are one stack of parameters, expert (or modality) first, so that one
product computes them all and an expert can be cut out by its index.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from msa_jax.layers.activation import exact_gelu
from msa_jax.layers.attention import LAYER_NORM_EPSILON
from msa_jax.layers.dropout import Dropout
from msa_jax.layers.masking import masked_softmax

STYLES = ("official", "preln")


def torch_uniform(fan_in: int) -> Callable[..., jax.Array]:
  """Initialiser U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default of kernels and
  biases alike."""
  bound = 1.0 / math.sqrt(fan_in)

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


class Stack(nn.Module):
  """Kernels and biases of equal dense layers, for products over a leading axis.

  Attributes:
    count: leading axes, e.g. (experts, layers).
    shape: input and output width of each.
  """

  count: tuple[int, ...]
  shape: tuple[int, int]

  @nn.compact
  def __call__(self) -> tuple[Float[Array, "*n d c"], Float[Array, "*n c"]]:
    """Returns kernels [*count d c] and biases [*count c]."""
    init = torch_uniform(self.shape[0])
    kernel = self.param("kernel", init, (*self.count, *self.shape))
    return kernel, self.param("bias", init, (*self.count, self.shape[1]))


def _product(
  values: Float[Array, "e b t d"], kernel: Array, bias: Array
) -> Float[Array, "e b t c"]:
  return jnp.einsum("ebtd,edc->ebtc", values, kernel) + bias[:, None, None]


class ExpertBank(nn.Module):
  """Transformer stacks of equal shape, one per expert: x <- x + E_l(x), l = 1..depth.

  `official`: E(x) = o + MLP(o) with o = attention(x), without layer norm and without
  output projection. `preln`: the usual block x + out(attention(norm(x))), then
  x + MLP(norm(x)).

  Attributes:
    n_experts, width, depth, n_heads: sizes.
    mlp_ratio: hidden width of the MLP over `width`.
    style: one of `STYLES`.
    dropout: rate after both layers of the MLP.
    attention_dropout: rate on the attention probabilities.
    deterministic: True = evaluation.

  Source: MoMKE (ACM MM 2024), the released code.
  """

  n_experts: int
  width: int
  depth: int
  n_heads: int
  mlp_ratio: int = 1
  style: str = "official"
  dropout: float = 0.5
  attention_dropout: float = 0.0
  deterministic: bool = True

  def setup(self):
    count, hidden = (self.n_experts, self.depth), self.width * self.mlp_ratio
    self.qkv = Stack(count, (self.width, 3 * self.width))
    self.fc1 = Stack(count, (self.width, hidden))
    self.fc2 = Stack(count, (hidden, self.width))
    if self.style == "preln":
      self.out = Stack(count, (self.width, self.width))
      shape = (*count, 2, 2, self.width)  # layer, attention or MLP, scale or bias
      self.norms = self.param("norms", _norm_init, shape)
    self.drop = [
      [Dropout(rate, self.deterministic) for rate in self._rates()]
      for _ in range(self.depth)
    ]

  @nn.nowrap
  def _rates(self) -> tuple[float, float, float]:
    return self.attention_dropout, self.dropout, self.dropout

  def __call__(
    self, values: Float[Array, "e b t d"], mask: Bool[Array, "e b t"]
  ) -> Float[Array, "e b t d"]:
    """Runs rows [e] through expert e.

    Args:
      values: any number of sequences per expert.
      mask: True = valid key. A sequence without any attends to zeros.
    """
    for layer in range(self.depth):
      if self.style == "official":
        mixed = self._attend(layer, values, mask)
        values = values + mixed + self._mlp(layer, mixed)
      else:
        kernel, bias = (leaf[:, layer] for leaf in self.out())
        mixed = self._attend(layer, self._norm(layer, 0, values), mask)
        values = values + _product(mixed, kernel, bias)
        values = values + self._mlp(layer, self._norm(layer, 1, values))
    return values

  def _attend(self, layer, values, mask):
    kernel, bias = (leaf[:, layer] for leaf in self.qkv())
    shape = (*values.shape[:3], 3, self.n_heads, self.width // self.n_heads)
    projected = _product(values, kernel, bias).reshape(shape)
    query, key, value = (projected[..., i, :, :] for i in range(3))  # [e b t h k]
    scores = jnp.einsum("ebthk,ebshk->ebhts", query, key) / math.sqrt(shape[-1])
    weights = masked_softmax(scores, mask[:, :, None, None, :])
    weights = self.drop[layer][0](weights)
    mixed = jnp.einsum("ebhts,ebshk->ebthk", weights, value)
    return mixed.reshape(values.shape)

  def _mlp(self, layer, values):
    hidden = _product(values, *(leaf[:, layer] for leaf in self.fc1()))
    hidden = self.drop[layer][1](exact_gelu(hidden))
    output = _product(hidden, *(leaf[:, layer] for leaf in self.fc2()))
    return self.drop[layer][2](output)

  def _norm(self, layer, which, values):
    scale, bias = (self.norms[:, layer, which, i, None, None] for i in range(2))
    mean = jnp.mean(values, axis=-1, keepdims=True)
    variance = jnp.mean((values - mean) ** 2, axis=-1, keepdims=True)
    return (values - mean) * jax.lax.rsqrt(variance + LAYER_NORM_EPSILON) * scale + bias


def _norm_init(key, shape, dtype=jnp.float32):
  del key
  return jnp.broadcast_to(jnp.asarray([[1.0], [0.0]], dtype), shape)


class SoftRouters(nn.Module):
  """One router per modality: logits of its weights over the experts.

  A two-layer MLP with exact GELU; in training also the logits are dropped out, as the
  released code does.

  Attributes:
    n_modalities: number of routers.
    num_outputs: logits of each.
    dropout, logit_dropout: rates on the hidden layer and on the logits.
    deterministic: True = evaluation.
  """

  n_modalities: int
  num_outputs: int
  dropout: float
  logit_dropout: float
  deterministic: bool = True

  @nn.compact
  def __call__(self, values: Float[Array, "m b t d"]) -> Float[Array, "m b t c"]:
    width = values.shape[-1]
    fc1 = Stack((self.n_modalities,), (width, width), name="fc1")
    fc2 = Stack((self.n_modalities,), (width, self.num_outputs), name="fc2")
    hidden = exact_gelu(_product(values.astype(jnp.float32), *fc1()))
    hidden = Dropout(self.dropout, self.deterministic, name="drop")(hidden)
    logits = _product(hidden, *fc2())
    return Dropout(self.logit_dropout, self.deterministic, name="drop_logits")(logits)


def expert_weights(
  logits: Float[Array, "m b t c"], two_way: bool
) -> Float[Array, "m b t e"]:
  """Weights of every expert for every modality, float32; each row sums to 1.

  Args:
    logits: one per expert (their softmax), or (alpha, beta) if `two_way`: alpha is
      the weight of the modality's own expert, beta is shared equally by the others
      (R = alpha R_uni + beta R_joint).
    two_way: how to read the logits.
  """
  weights = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
  if not two_way:
    return weights
  count = len(logits)
  own = jnp.eye(count)[:, None, None]  # [m 1 1 e]
  # A lone expert has nobody to share with.
  share = weights[..., 1:] / (count - 1) if count > 1 else jnp.zeros_like(own)
  alpha = weights[..., :1] if count > 1 else jnp.ones_like(own)
  return own * alpha + (1.0 - own) * share


def own_expert(weights: Float[Array, "m b t e"]) -> Float[Array, "m b t e"]:
  """One-hot weights of each modality's own expert, of the same shape."""
  own = jnp.eye(weights.shape[-1], dtype=weights.dtype)[:, None, None]
  return jnp.broadcast_to(own, weights.shape)
