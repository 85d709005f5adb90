"""Low-rank convolutional experts: a bank of them at the cost of their ranks.

An expert of rank r is a convolution over time with r output channels, an activation,
and a product back to the full width, so it maps every window of steps through r
numbers. A bank of experts of any ranks is run in one piece: see
`kernels.low_rank.mix_fused`.

Source: MMoLRE (arXiv 2505.14143) states low-rank expert networks; a public summary of
its method gives the two kernels and the ranks' index. The fused form is ours.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from msa_jax.errors import UserError
from msa_jax.layers.kernels.gelu import exact_gelu
from msa_jax.layers.kernels.low_rank import Bank, join, mix_fused, mix_plain, split

__all__ = ["ACTIVATIONS", "FORMS", "SECOND_INITS"]
__all__ += ["Bank", "LowRankExperts", "join", "mix", "split"]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "gelu": exact_gelu,
  "relu": nn.relu,
  "identity": lambda values: values,
}
SECOND_INITS = ("zeros", "lecun")
FORMS = ("fused", "plain")


class LowRankExperts(nn.Module):
  """The weights of a bank of experts; `mix` applies them.

  >>> values, mask = jnp.ones((2, 5, 8)), jnp.ones((2, 5), bool)
  >>> bank, _ = LowRankExperts(ranks=(1, 4), width=8).init_with_output(
  ...   jax.random.key(0)
  ... )
  >>> mix(bank, values, mask, gates=jnp.ones((2, 2))).shape
  (2, 5, 8)

  Attributes:
    ranks: rank of each expert, all at least 1.
    width: d of input and output.
    kernel_size: steps that the first kernel sees; centred.
    second_init: `zeros` (every expert starts as its zero bias, as adapters do) or
      `lecun` (normal, fan-in = the expert's rank).

  Raises:
    UserError: a rank below 1, or an unknown initialiser.
  """

  ranks: tuple[int, ...]
  width: int
  kernel_size: int = 3
  second_init: str = "zeros"

  @nn.compact
  def __call__(self) -> Bank:
    """The bank, float32."""
    if not self.ranks or min(self.ranks) < 1:
      raise UserError(f"ranks={self.ranks}: give each expert a rank of at least 1")
    if self.second_init not in SECOND_INITS:
      raise UserError(f"w2_init={self.second_init!r}: choose one of {SECOND_INITS}")
    total, zeros = sum(self.ranks), nn.initializers.zeros
    experts = len(self.ranks)
    # Fan-in is kernel_size * d for every expert, so one draw serves all of them.
    first = (self.kernel_size, self.width, total)
    return Bank(
      ranks=self.ranks,
      first=self.param("w1", nn.initializers.lecun_normal(), first),
      first_bias=self.param("b1", zeros, (total,)),
      second=self.param("w2", self._second, (total, self.width)),
      # Stored flat: optimizers decay matrices, and biases are none.
      second_bias=self.param("b2", zeros, (experts * self.width,)).reshape(experts, -1),
    )

  @nn.nowrap
  def _second(self, key, shape):
    if self.second_init == "zeros":
      return jnp.zeros(shape)
    draw = nn.initializers.lecun_normal()
    keys = jax.random.split(key, len(self.ranks))
    parts = [
      draw(k, (rank, shape[1])) for k, rank in zip(keys, self.ranks, strict=True)
    ]
    return jnp.concatenate(parts)


def mix(
  bank: Bank,
  values: Float[Array, "b t d"],
  mask: Bool[Array, "b t"],
  gates: Float[Array, "b ... e"],
  activation: str = "gelu",
  form: str = "fused",
) -> Float[Array, "b t d"]:
  """Sum over experts of gate times output: sum_n g_n (act(conv(x; w1_n) + b1_n) w2_n
  + b2_n).

  Args:
    bank: the experts' weights.
    values: input; masked steps are zero for every convolution.
    mask: True = real step; the others come out as zeros.
    gates: weight of each expert, per sample [b e] or per step [b t e].
    activation: key of `ACTIVATIONS`.
    form: `fused` (one wide convolution, one product) or `plain` (a loop over experts,
      for comparison); equal up to rounding.

  Raises:
    UserError: unknown activation or form.
  """
  if activation not in ACTIVATIONS:
    raise UserError(f"act={activation!r}: choose one of {tuple(ACTIVATIONS)}")
  if form not in FORMS:
    raise UserError(f"dispatch={form!r}: choose one of {FORMS}")
  gates = gates if gates.ndim == 3 else gates[:, None]  # [b t|1 e]
  values = jnp.where(mask[..., None], values, 0.0)
  apply = mix_fused if form == "fused" else mix_plain
  result = apply(bank, values, gates, ACTIVATIONS[activation])
  return jnp.where(mask[..., None], result, 0.0)
