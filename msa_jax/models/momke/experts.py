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
from msa_jax.layers.dropout import Dropout
from msa_jax.layers.masking import masked_softmax


def torch_uniform(fan_in: int) -> Callable[..., jax.Array]:
  """Initialiser U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default of kernels and
  biases alike."""
  bound = 1.0 / math.sqrt(fan_in)

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


class TorchDense(nn.Module):
  """A linear layer whose kernel and bias start as `torch_uniform` has it.

  Attributes:
    width: of the output.
  """

  width: int

  @nn.compact
  def __call__(self, values: Float[Array, "*n d"]) -> Float[Array, "*n c"]:
    init = torch_uniform(values.shape[-1])
    kernel = self.param("kernel", init, (values.shape[-1], self.width))
    bias = self.param("bias", init, (self.width,))
    return values @ kernel + bias.reshape(*[1] * (values.ndim - 1), -1)


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
  """Transformer stacks of equal shape, one per expert: x <- x + E_l(x) for each layer.

  E(x) = o + MLP(o) with o = attention(x), without layer norm and without output
  projection, as in the released code.

  Attributes:
    num_experts, width, num_layers, num_heads: sizes.
    dropout: rate after both layers of the MLP.
    attention_dropout: rate on the attention probabilities.
    deterministic: True = evaluation.

  Source: MoMKE (ACM MM 2024), the released code.
  """

  num_experts: int
  width: int
  num_layers: int
  num_heads: int
  dropout: float = 0.5
  attention_dropout: float = 0.0
  deterministic: bool = True

  def setup(self):
    count = (self.num_experts, self.num_layers)
    self.qkv = Stack(count, (self.width, 3 * self.width))
    self.fc1 = Stack(count, (self.width, self.width))
    self.fc2 = Stack(count, (self.width, self.width))
    self.drop = [
      [Dropout(rate, self.deterministic) for rate in self._rates()]
      for _ in range(self.num_layers)
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
    for layer in range(self.num_layers):
      mixed = self._attend(layer, values, mask)
      values = values + mixed + self._mlp(layer, mixed)
    return values

  def _attend(self, layer, values, mask):
    kernel, bias = (leaf[:, layer] for leaf in self.qkv())
    shape = (*values.shape[:3], 3, self.num_heads, self.width // self.num_heads)
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


class SoftRouters(nn.Module):
  """One router per modality: logits of its weights over the experts.

  A two-layer MLP with exact GELU; in training also the logits are dropped out, as the
  released code does.

  Attributes:
    num_modalities: number of routers, and of experts.
    dropout, logit_dropout: rates on the hidden layer and on the logits.
    deterministic: True = evaluation.
  """

  num_modalities: int
  dropout: float
  logit_dropout: float
  deterministic: bool = True

  @nn.compact
  def __call__(self, values: Float[Array, "m b t d"]) -> Float[Array, "m b t e"]:
    width, count = values.shape[-1], self.num_modalities
    fc1 = Stack((count,), (width, width), name="fc1")
    fc2 = Stack((count,), (width, count), name="fc2")
    hidden = exact_gelu(_product(values.astype(jnp.float32), *fc1()))
    hidden = Dropout(self.dropout, self.deterministic, name="drop")(hidden)
    logits = _product(hidden, *fc2())
    return Dropout(self.logit_dropout, self.deterministic, name="drop_logits")(logits)


def own_expert(weights: Float[Array, "m b t e"]) -> Float[Array, "m b t e"]:
  """One-hot weights of each modality's own expert, of the same shape."""
  own = jnp.eye(weights.shape[-1], dtype=weights.dtype)[:, None, None]
  return jnp.broadcast_to(own, weights.shape)


def without_others(
  logits: Float[Array, "m b t e"], other: int
) -> Float[Array, "m b t e"]:
  """Logits that leave each modality its own expert and the one of index `other`."""
  count = logits.shape[-1]
  kept = jnp.eye(count, dtype=bool) | (jnp.arange(count) == other)[None]
  return jnp.where(kept[:, None, None], logits, -jnp.inf)
