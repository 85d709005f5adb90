"""Expert banks: does the cost of capacity dispatch follow k/e?"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks import measure
from msa_jax.layers.moe import MixtureOfExperts
from msa_jax.typing import Routing

_EXPERTS = 8


class _Expert(nn.Module):
  hidden: int

  @nn.compact
  def __call__(self, values):
    return nn.Dense(values.shape[-1])(nn.gelu(nn.Dense(self.hidden)(values)))


def even_routing(rows: int, experts: int, k: int) -> Routing:
  """Every row uses k experts and every expert the same number of rows."""
  first = jnp.arange(rows)[:, None] + jnp.arange(k)[None, :]  # [n k]
  chosen = jax.nn.one_hot(first % experts, experts).sum(axis=1)  # [n e]
  return Routing(chosen / k, chosen / k, chosen)


def dispatch(repeats: int) -> list[dict[str, Any]]:
  """Forward and backward of a bank, dense against capacity, for some k of e.

  The load is even and the buffers have no slack, so the ideal ratio is k/e.
  """
  on_cpu = jax.default_backend() == "cpu"
  rows, width = (512, 256) if on_cpu else (16384, 1024)
  inputs = jax.random.normal(jax.random.key(0), (rows, width))
  figures = []
  for k in (1, 2, 4, 8):
    routing = even_routing(rows, _EXPERTS, k)
    seconds = {}
    for kind in ("dense", "capacity"):
      bank = MixtureOfExperts(
        _Expert(4 * width), _EXPERTS, k=k, dispatch=kind, capacity_factor=1.0
      )
      params = bank.init(jax.random.key(1), inputs, routing=routing)

      def loss(params, values, bank=bank, routing=routing):
        return jnp.sum(bank.apply(params, values, routing=routing).outputs ** 2)

      gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
      seconds[kind] = measure.median_seconds(
        lambda gradient=gradient, params=params: gradient(params, inputs), repeats
      )
    ratio = seconds["capacity"] / seconds["dense"]
    figures.append(
      {
        "k": k,
        "experts": _EXPERTS,
        "rows": rows,
        "width": width,
        **{f"{kind}_seconds": value for kind, value in seconds.items()},
        "ratio": ratio,
        "ratio_over_ideal": ratio * _EXPERTS / k,
      }
    )
  return figures
