"""H-GEM's third layer: polarity experts between gates 2 and 3."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from msa_jax.layers.moe import (
  ExpertBank,
  capacity_of,
  combine_capacity,
  combine_dense,
  dispatch_capacity,
  plan_capacity,
  reweigh_capacity,
  scatter_capacity,
)
from msa_jax.losses.routing import vertex_cosine
from msa_jax.models.hgem.experts import PolarityExpert
from msa_jax.models.hgem.gates import Gate, OutputGate, SparseFusion, fuse_polarities
from msa_jax.models.hgem.options import DropoutRates, PolarityExpertConfig
from msa_jax.models.outputs import OutputSpec
from msa_jax.typing import Routing

_ROUTE_WIDTH = 64  # of the projections that compare routes with classes


def polarity_names(output: OutputSpec, num_experts: int) -> tuple[str, ...]:
  """Names of the polarity experts: the task's classes, if there are as many."""
  if len(output.classes) == num_experts:
    return output.classes
  if num_experts == 3:
    return ("negative", "neutral", "positive")
  return tuple(f"polarity_{index}" for index in range(num_experts))


def num_route_classes(output: OutputSpec) -> int:
  """Classes of the route losses: the three polarities, or the task's classes."""
  return 3 if output.kind == "regression" else len(output.classes)


class PolarityLayerOutput(NamedTuple):
  """What the third layer returns.

  Attributes:
    fused: [b d] the head's input, r + H_fusion.
    mixed: [b d] r, the experts' weighted outputs.
    sparse: [b d] H_fusion, zero without the information-guided fusion.
    prior: routing of Gate 2.
    routing: routing of Gate 3.
    class_scores: [b c] similarity of each sample's route with each route class.
  """

  fused: jax.Array
  mixed: jax.Array
  sparse: jax.Array
  prior: Routing
  routing: Routing
  class_scores: jax.Array


class PolarityLayer(nn.Module):
  """Gate 2, the polarity experts, Gate 3 and the information-guided sparse fusion.

  Attributes:
    experts: names of the polarity experts.
    sizes: of the polarity experts.
    num_classes: route classes c.
    disabled: names of experts left out.
    gate_dims: hidden widths of the units of gates 2 and 3.
    num_units: units of Gate 2.
    top_k: experts that Gate 2 keeps per sample.
    info_guided_fusion: whether the sparse expert's states are added (Eq. 12).
    dispatch: `dense` runs every expert on every sample, `capacity` those that Gate 2
      selects, in static buffers.
    capacity_factor: slack of the buffers; see `capacity_of`.
    rates: dropout rates.
    deterministic: True = evaluation.
    dtype: compute type.
  """

  experts: tuple[str, ...]
  sizes: PolarityExpertConfig = PolarityExpertConfig()
  num_classes: int = 3
  disabled: tuple[str, ...] = ()
  gate_dims: tuple[int, int] = (32, 32)
  num_units: int = 3
  top_k: int = 2
  info_guided_fusion: bool = True
  dispatch: str = "dense"
  capacity_factor: float = 1.25
  rates: DropoutRates = DropoutRates()
  deterministic: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    fused: Float[Array, "b d"],
    summaries: Float[Array, "b m d"] | None,
    seen: Bool[Array, "b m"],
    rows: Bool[Array, " b"],
  ) -> PolarityLayerOutput:
    """Routes every sample through the polarity experts.

    Args:
      fused: z_fused.
      summaries: the sparse expert's mean per modality; None without that expert.
      seen: which modalities a sample has.
      rows: False = filler row.
    """
    prior = self._prior(fused)
    bank, output_gate = self._bank(), self._output_gate()
    if self.dispatch == "dense":
      outputs = bank(fused)  # [e b d]
      routing = fuse_polarities(output_gate(outputs), prior, self.top_k)
      mixed = combine_dense(outputs.astype(jnp.float32), routing)
    else:
      n_batch, n_experts = prior.probs.shape
      used = min(self.top_k, n_experts)
      slots = capacity_of(n_batch, n_experts, used, self.capacity_factor)
      plan = plan_capacity(prior, slots, rows)
      outputs = bank(dispatch_capacity(fused, plan), in_axes=0)  # [e slots d]
      scores = scatter_capacity(plan, output_gate(outputs).T, n_batch)
      routing = fuse_polarities(scores, prior, self.top_k)
      plan = reweigh_capacity(plan, routing, rows)
      mixed = combine_capacity(outputs.astype(jnp.float32), plan, fused)
    sparse = jnp.zeros_like(mixed)
    if self.info_guided_fusion and summaries is not None:
      sparse = SparseFusion(name="gate3_igsf")(prior.probs, summaries, seen)
    scores = self._class_scores(prior.probs)
    return PolarityLayerOutput(mixed + sparse, mixed, sparse, prior, routing, scores)

  @nn.nowrap
  def _prior(self, fused: Float[Array, "b d"]) -> Routing:
    """Gate 2."""
    gate = Gate(
      self.gate_dims[0],
      self.num_units,
      self.experts,
      self.top_k,
      self.rates.gate,
      self.deterministic,
      name="gate2",
    )
    used = jnp.array([name not in self.disabled for name in self.experts])
    available = jnp.broadcast_to(used[None], (len(fused), len(used)))
    return gate(fused, None, available)

  @nn.nowrap
  def _bank(self) -> ExpertBank:
    expert = PolarityExpert(
      self.sizes.hidden_dim,
      self.sizes.num_layers,
      self.rates.expert,
      self.deterministic,
      self.dtype,
      parent=None,
    )
    return ExpertBank(expert, len(self.experts), name="L3")

  @nn.nowrap
  def _output_gate(self) -> OutputGate:
    return OutputGate(
      self.gate_dims[1],
      len(self.experts),
      self.rates.gate,
      self.deterministic,
      name="gate3",
    )

  @nn.nowrap
  def _class_scores(self, routes: Float[Array, "b e"]) -> Float[Array, "b c"]:
    """s(w, y) of Eq. 11 for every class y.

    Experts stand for classes where there are as many; else both are projected.
    """
    if self.num_classes == routes.shape[1]:
      return vertex_cosine(routes)
    projected = nn.Dense(_ROUTE_WIDTH, use_bias=False, name="mi_route")(routes)
    shape = (self.num_classes, _ROUTE_WIDTH)
    anchors = self.param("mi_classes", nn.initializers.normal(1.0), shape)
    return _unit(projected) @ _unit(anchors).T


def _unit(rows: Float[Array, "n d"]) -> Float[Array, "n d"]:
  """Rows scaled to length 1, zero rows kept (cosines)."""
  square = jnp.sum(rows**2, axis=-1, keepdims=True)
  return rows * jnp.where(square > 0, 1.0, 0.0) / jnp.sqrt(jnp.maximum(square, 1e-12))
