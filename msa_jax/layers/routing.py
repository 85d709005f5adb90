"""Routers: from scores of candidates to the weights their outputs are given.

Everything here is float32, whatever the compute type of the model.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from msa_jax.errors import UserError
from msa_jax.layers.masking import masked_softmax
from msa_jax.typing import Routing


def select_top_k(
  scores: Float[Array, "*n e"], k: int, available: Bool[Array, "*n e"] | None = None
) -> Bool[Array, "*n e"]:
  """Marks the k best available candidates of each row.

  >>> select_top_k(jnp.asarray([[2.0, 1.0, 2.0, 3.0]]), k=2).tolist()
  [[True, False, False, True]]

  Candidates are compared pairwise, which for the few experts of a layer is cheaper
  than sorting on every backend and exact under jit and vmap.

  Args:
    scores: one score per candidate; larger is better. Gradients stop here.
    k: number to select, at least 1.
    available: True = may be selected; None = all.

  Returns:
    True for exactly min(k, number available) candidates of each row; equal scores
    are taken in order of index.

  Raises:
    UserError: k is below 1.
  """
  if k < 1:
    raise UserError(f"top_k={k}: select at least one expert (1, 2, ...) or None (all)")
  scores = jax.lax.stop_gradient(scores)
  if available is None:
    available = jnp.ones(scores.shape, bool)
  return available & (ranks(scores, available) < k)


def ranks(
  scores: Float[Array, "*n e"], available: Bool[Array, "*n e"]
) -> Int[Array, "*n e"]:
  """How many available candidates come before each; see `select_top_k`."""
  index = jnp.arange(scores.shape[-1])
  earlier = index[None, :] < index[:, None]  # [e e]: column comes before row
  rival, own = scores[..., None, :], scores[..., :, None]
  beats = (rival > own) | ((rival == own) & _like(earlier, rival.ndim))
  return jnp.sum(beats & available[..., None, :], axis=-1)


def route(
  logits: Float[Array, "*n e"],
  k: int | None = None,
  available: Bool[Array, "*n e"] | None = None,
  noise: Float[Array, "*n e"] | None = None,
) -> Routing:
  """Turns router logits into a `Routing`.

  >>> route(jnp.asarray([[1.0, 0.0, 1.0]]), k=2).combine.tolist()
  [[0.5, 0.0, 0.5]]

  With k > 1 the selected probabilities are renormalised to sum to 1. With k = 1 the
  selected expert is weighted by its probability among all available candidates: a
  renormalised weight would be the constant 1 and the router would receive no
  gradient from the task (Fedus et al. 2021, Switch Transformer).

  Args:
    logits: raw scores.
    k: number of experts each row uses; None or at least e = all (dense).
    available: False = the candidate does not exist for this row: probability and
      weight are exactly zero, and the logit has no influence.
    noise: added to the logits for the selection and for `combine`; `probs` and
      `logits` stay clean, so that balance losses see the router itself.

  Returns:
    `Routing`, all float32. A row without an available candidate is all zeros.

  Raises:
    UserError: k is below 1.
  """
  logits = logits.astype(jnp.float32)
  if available is None:
    available = jnp.ones(logits.shape, bool)
  probs = masked_softmax(logits, available)
  noisy = logits if noise is None else logits + noise.astype(jnp.float32)
  if k is None:
    return Routing(probs, masked_softmax(noisy, available), logits)
  selected = select_top_k(noisy, k, available)
  if k == 1:
    weights = masked_softmax(noisy, available)
    return Routing(probs, jnp.where(selected, weights, 0.0), logits)
  return Routing(probs, masked_softmax(noisy, selected), logits)


class Router(nn.Module):
  """Linear router, optionally with learned noise (Shazeer et al. 2017, Eq. 3-5).

  >>> router = Router(num_experts=4, k=2)
  >>> routing, _ = router.init_with_output(jax.random.key(0), jnp.ones((3, 8)))
  >>> (routing.combine > 0).sum(axis=-1).tolist()
  [2, 2, 2]

  logits = x W; when `noisy` and not `deterministic`, the selection sees
  logits + eps * softplus(x W_noise) with eps ~ N(0, 1) from the stream `noise`.

  Attributes:
    num_experts: number of candidates e.
    k: number of experts each row uses; None = all.
    noisy: whether noise is learned and added in training.
    use_bias: whether the logits have a bias.
    deterministic: True = no noise (evaluation).
    kernel_init: initialiser of the logits' kernel.
  """

  num_experts: int
  k: int | None = None
  noisy: bool = False
  use_bias: bool = False
  deterministic: bool = True
  kernel_init: Callable[..., jax.Array] = nn.initializers.normal(0.02)

  @nn.compact
  def __call__(
    self,
    inputs: Float[Array, "*n d"],
    available: Bool[Array, "*n e"] | None = None,
  ) -> Routing:
    """Routes each row; see `route` for `available` and for the result."""
    inputs = inputs.astype(jnp.float32)
    logits = self._dense("logits", self.kernel_init, self.use_bias)(inputs)
    noise = None
    if self.noisy:
      scale = nn.softplus(self._dense("noise", nn.initializers.zeros)(inputs))
      if not self.deterministic:
        normal = jax.random.normal(self.make_rng("noise"), logits.shape)
        noise = scale * normal
    return route(logits, self.k, available, noise)

  def _dense(self, name, kernel_init, use_bias=False) -> nn.Dense:
    # Highest precision: accelerators would otherwise round the logits' product to
    # bfloat16 or TF32, and near ties would select other experts.
    return nn.Dense(
      self.num_experts,
      use_bias=use_bias,
      kernel_init=kernel_init,
      dtype=jnp.float32,
      precision=jax.lax.Precision.HIGHEST,
      name=name,
    )


def _like(matrix: Bool[Array, "e e"], ndim: int) -> Bool[Array, "..."]:
  """Gives `matrix` leading axes of size 1 up to rank `ndim`."""
  return matrix.reshape(*[1] * (ndim - 2), *matrix.shape)
