"""UniTSE: task-specific features of one modality from shared and own low-rank experts.

Source: the parts (stacked blocks, shared and task-specific low-rank experts, one router
per task) are those of public summaries of MMoLRE (arXiv 2505.14143); norms, residual,
the router's form and all sizes are ours.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Bool, Float

from msa_jax.layers.attention import LAYER_NORM_EPSILON
from msa_jax.layers.dropout import Dropout
from msa_jax.layers.lowrank import LowRankExperts, join, mix
from msa_jax.layers.masking import masked_mean
from msa_jax.layers.routing import Router
from msa_jax.typing import Routing

Streams = tuple[Any, ...]  # one [b t d] per task

HARD = "shared"  # name of the only stream when tasks share everything


def streams_of(sharing: str, tasks: tuple[str, ...]) -> tuple[str, ...]:
  """Names of the streams inside UniTSE: the tasks, or one for all of them."""
  return (HARD,) if sharing == "hard" else tasks


def expert_ranks(
  options: ml_collections.FrozenConfigDict,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """Ranks of the shared experts and of a task's own, after `sharing`, `full_rank`."""
  shared, own = tuple(options.ranks), (options.ts_rank,)
  if options.full_rank:
    shared, own = (options.d,) * len(shared), (options.d,)
  return (
    () if options.sharing == "specific" else shared,
    () if options.sharing == "hard" else own,
  )


class UniTSEBlock(nn.Module):
  """x <- x + sum_n g_n expert_n(norm(x)) for every task, g by the task's router.

  The shared experts are the same for all tasks; norms, routers and the last expert are
  the task's own, so that nothing of a task's own receives gradient from another.

  Attributes:
    options: `config.model`, frozen.
    streams: names of the task streams.
    deterministic: True = evaluation.
    dtype: compute type; routers and norm statistics are float32.
  """

  options: ml_collections.FrozenConfigDict
  streams: tuple[str, ...]
  deterministic: bool
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    inputs: Streams,
    mask: Bool[Array, "b t"],
    shared: LowRankExperts | None,
  ) -> tuple[Streams, Mapping[str, Routing]]:
    """Returns the new streams (zero at masked steps) and each task's routing [b e]."""
    options = self.options
    own = expert_ranks(options)[1]
    banks = [] if shared is None else [shared()]
    outputs, routings = [], {}
    for name, values in zip(self.streams, inputs, strict=True):
      norm = nn.LayerNorm(LAYER_NORM_EPSILON, dtype=self.dtype, name=f"norm_{name}")
      normalised = jnp.where(mask[..., None], norm(values), 0.0)
      candidates = list(banks)
      if own:
        candidates.append(self._experts(own, f"expert_{name}")())
      bank = join(candidates)
      routing, gates = self._route(name, normalised, mask, len(bank.ranks))
      mixed = mix(bank, normalised, mask, gates, options.act, options.dispatch)
      mixed = Dropout(options.dropout, self.deterministic)(mixed)
      outputs.append(values + mixed if options.residual else mixed)
      routings[name] = routing
    return tuple(outputs), routings

  @nn.nowrap
  def _experts(self, ranks: tuple[int, ...], name: str) -> LowRankExperts:
    options = self.options
    return LowRankExperts(ranks, options.d, options.kernel, options.w2_init, name=name)

  @nn.nowrap
  def _route(
    self,
    name: str,
    values: Float[Array, "b t d"],
    mask: Bool[Array, "b t"],
    n_experts: int,
  ) -> tuple[Routing, Float[Array, "b ... e"]]:
    """The routing to report [b e], and the gates of all candidates."""
    options = self.options
    # Task experts outside the router's scope always take part, with weight one.
    outside = options.router_scope == "shared_only" and options.sharing == "mixed"
    router = Router(
      n_experts - outside,
      options.top_k or None,
      use_bias=True,
      kernel_init=nn.initializers.zeros,
      name=f"router_{name}",
    )
    if options.router_level == "token":
      routing = router(values, _spread(mask, n_experts - outside))
      gates, real = routing.combine, mask
      weights = mask[..., None]
      routing = Routing(
        *(masked_mean(x, weights, 1) for x in (routing.probs, routing.combine)),
        masked_mean(routing.logits, weights, 1),
      )
    else:
      pooled = masked_mean(values.astype(jnp.float32), mask[..., None], 1)
      real = jnp.any(mask, axis=1)
      routing = router(pooled, _spread(real, n_experts - outside))
      gates = routing.combine
    if outside:
      gates = jnp.concatenate([gates, real[..., None].astype(gates.dtype)], axis=-1)
    return routing, gates


def _spread(mask: Bool[Array, "*n"], experts: int) -> Bool[Array, "*n e"]:
  return jnp.broadcast_to(mask[..., None], (*mask.shape, experts))


class UniTSE(nn.Module):
  """Stacked blocks of one modality, after an input adapter where widths differ.

  Attributes:
    options: `config.model`, frozen.
    tasks: names of the tasks.
    deterministic: True = evaluation.
    dtype: compute type.
  """

  options: ml_collections.FrozenConfigDict
  tasks: tuple[str, ...]
  deterministic: bool
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, values: Float[Array, "b t k"], mask: Bool[Array, "b t"]
  ) -> tuple[Streams, list[Mapping[str, Routing]]]:
    """Every task's stream [b t d], in the order of `tasks`, and the blocks' routings.

    With hard sharing all tasks get the same stream and the routings have one entry.
    """
    options = self.options
    values = values.astype(self.dtype)
    if values.shape[-1] != options.d:
      values = nn.Dense(options.d, dtype=self.dtype, name="adapter")(values)
      values = nn.LayerNorm(LAYER_NORM_EPSILON, dtype=self.dtype, name="adapter_norm")(
        values
      )
    values = jnp.where(mask[..., None], values, 0.0)
    names = streams_of(options.sharing, self.tasks)
    ranks = expert_ranks(options)[0]
    outputs: Streams = (values,) * len(names)
    routings, shared = [], None
    for block in range(options.n_blocks):
      if ranks and (shared is None or not options.share_blocks):
        shared = LowRankExperts(
          *(ranks, options.d, options.kernel, options.w2_init),
          name=f"shared_{block}",
        )
      outputs, routing = UniTSEBlock(
        options, names, self.deterministic, self.dtype, name=f"block_{block}"
      )(outputs, mask, shared)
      routings.append(routing)
    if len(names) == 1:
      outputs = outputs * len(self.tasks)
    return outputs, routings
