"""Mixture of experts: a bank of equal experts and two ways to send rows through it.

`dense` runs every expert on every row and weights the outputs; `capacity` gathers
for each expert only the rows that selected it into a buffer of static size, so that
the cost follows k/e. Both give the same values and gradients as long as no buffer
overflows. Both read nothing but a `Routing`, so any gate can stand before them.

Capacity dispatch scatters rows; GPUs add scattered values in no fixed order, so runs
that must repeat bit for bit there need dense dispatch or
XLA_FLAGS=--xla_gpu_deterministic_ops=true.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from msa_jax.errors import UserError
from msa_jax.layers.routing import Router
from msa_jax.typing import Routing

# Name of an `ExpertBank`'s parameters; their axis 0 is the expert.
STACK = "experts"


class MixtureOutput(NamedTuple):
  """What a mixture returns, whatever its options.

  >>> mixture = MixtureOfExperts(nn.Dense(4), num_experts=3)
  >>> output, _ = mixture.init_with_output(jax.random.key(0), jnp.ones((5, 8)))
  >>> output.outputs.shape, output.routing.probs.shape, output.overflow.tolist()
  ((5, 4), (5, 3), [0, 0, 0])

  Attributes:
    outputs: [n ...] combined expert outputs; zero for filler rows.
    routing: the `Routing` that was used; all zeros for filler rows.
    overflow: [e] int32, rows that selected the expert but found its buffer full
      (always zero with dense dispatch).
  """

  outputs: jax.Array
  routing: Routing
  overflow: jax.Array


class Plan(flax.struct.PyTreeNode):
  """Which row sits in which slot of which expert's buffer (capacity dispatch).

  >>> routing = route(jnp.asarray([[3.0, 0.0], [0.0, 1.0], [2.0, 0.0]]), k=1)
  >>> plan = plan_capacity(routing, capacity=1)
  >>> plan.row.tolist(), plan.overflow.tolist()
  ([[0], [1]], [1, 0])

  Attributes:
    row: [e c] int32, the row in each slot (any row where the slot is empty).
    weight: [e c] float32, combine weight; zero where the slot is empty.
    filled: [e c] bool, True = the slot holds a row.
    dropped: [n] float32, the weight of each row that found no slot.
    overflow: [e] int32, number of rows that found no slot.
  """

  row: jax.Array
  weight: jax.Array
  filled: jax.Array
  dropped: jax.Array
  overflow: jax.Array


def capacity_of(rows: int, experts: int, k: int | None, factor: float) -> int:
  """Slots of each expert's buffer: ceil(factor * k * rows / experts), at most `rows`.

  Args:
    rows: number of rows n, fillers included.
    experts: number of experts e.
    k: experts each row uses; None = all.
    factor: slack over a perfectly even load; e/k never overflows.

  Raises:
    UserError: `factor` is not positive.
  """
  if not factor > 0:
    raise UserError(f"capacity_factor={factor}: must be above 0 (1.0 = even load)")
  used = experts if k is None else min(k, experts)
  # The rounding keeps 1.1 * 10 = 11.000000000000002 from asking for 12 slots.
  slots = math.ceil(round(factor * used * rows / experts, 6))
  return max(1, min(rows, slots))


def combine_dense(
  outputs: Float[Array, "e n *d"], routing: Routing
) -> Float[Array, "n *d"]:
  """Weights the outputs of all experts: y_n = sum_e combine_ne * outputs_en.

  The sum is float32, the result has the type of `outputs`. An expert that is not
  selected has exactly no influence, even if its output is not finite.
  """
  trailing = outputs.shape[2:]
  weight = routing.combine.astype(jnp.float32).T  # [e n]
  weight = weight.reshape(*weight.shape, *[1] * len(trailing))
  used = jnp.where(weight != 0, outputs.astype(jnp.float32), 0.0)
  return jnp.sum(weight * used, axis=0).astype(outputs.dtype)


def plan_capacity(
  routing: Routing, capacity: int, mask: Bool[Array, " n"] | None = None
) -> Plan:
  """Gives each expert its `capacity` rows of largest combine weight.

  Taking rows by weight rather than by position (batch priority, Riquelme et al.
  2021) makes the result independent of the order of the batch, up to ties, which go
  to the earlier row.

  Args:
    routing: `combine` [n e] says which rows selected which experts.
    capacity: slots per expert, at most n.
    mask: False = filler row, takes no slot.
  """
  weights = _real_rows(routing, mask).combine
  top, row = jax.lax.top_k(weights.T, capacity)  # [e c]
  filled = top > 0
  expert = jnp.broadcast_to(jnp.arange(row.shape[0])[:, None], row.shape)  # [e c]
  kept = jnp.zeros(weights.shape, bool).at[row, expert].set(filled)
  lost = (weights > 0) & ~kept
  return Plan(
    row=row,
    weight=jnp.where(filled, top, 0.0),
    filled=filled,
    dropped=jnp.sum(jnp.where(lost, weights, 0.0), axis=1),
    overflow=jnp.sum(lost, axis=0, dtype=jnp.int32),
  )


def dispatch_capacity(
  inputs: Float[Array, "n *d"] | Bool[Array, "n *d"] | Int[Array, "n *d"], plan: Plan
) -> Float[Array, "e c *d"] | Bool[Array, "e c *d"] | Int[Array, "e c *d"]:
  """Gathers each expert's rows into its buffer; empty slots are zero."""
  filled = plan.filled.reshape(*plan.filled.shape, *[1] * (inputs.ndim - 1))
  return jnp.where(filled, inputs[plan.row], jnp.zeros((), inputs.dtype))


def combine_capacity(
  outputs: Float[Array, "e c *d"],
  plan: Plan,
  residual: Float[Array, "n *d"] | None = None,
) -> Float[Array, "n *d"]:
  """Weights the buffers' outputs and puts them back into their rows.

  Args:
    outputs: what the experts made of `dispatch_capacity`'s buffers.
    plan: the plan the buffers were filled by.
    residual: stands in, with the lost weight, for an expert whose buffer was full;
      None = such an expert contributes nothing.

  Returns:
    float32 sums in the type of `outputs`; rows that selected no expert are zero.
  """
  trailing = outputs.shape[2:]
  ones = [1] * len(trailing)
  used = jnp.where(
    plan.filled.reshape(*plan.filled.shape, *ones), outputs.astype(jnp.float32), 0.0
  )
  weighted = plan.weight.reshape(*plan.weight.shape, *ones) * used
  rows = plan.dropped.shape[0]
  total = jnp.zeros((rows, *trailing), jnp.float32).at[plan.row].add(weighted)
  if residual is not None:
    lost = plan.dropped.reshape(rows, *ones)
    total += jnp.where(lost != 0, lost * residual.astype(jnp.float32), 0.0)
  return total.astype(outputs.dtype)


def scatter_capacity(
  plan: Plan, values: Float[Array, "e c"], rows: int
) -> Float[Array, "n e"]:
  """Puts one value per buffer slot back at [row, expert]; zero where nothing was sent.

  Args:
    plan: from `plan_capacity`.
    values: one per slot, e.g. scores of the experts' outputs.
    rows: n, of the batch.
  """
  blank = jnp.zeros((rows, plan.row.shape[0]), values.dtype)
  kept = jnp.where(plan.filled, values, 0.0)
  return blank.at[plan.row, _experts_of(plan)].add(kept)


def reweigh_capacity(
  plan: Plan, routing: Routing, mask: Bool[Array, " n"] | None = None
) -> Plan:
  """Gives the buffers the weights of another routing over the same selection.

  Args:
    plan: from `plan_capacity`.
    routing: whose `combine` replaces the plan's weights.
    mask: False = filler row.
  """
  weights = _real_rows(routing, mask).combine
  sent = scatter_capacity(plan, plan.filled.astype(jnp.float32), len(weights)) > 0
  return plan.replace(
    weight=jnp.where(plan.filled, weights[plan.row, _experts_of(plan)], 0.0),
    dropped=jnp.sum(jnp.where(sent, 0.0, weights), axis=1),
  )


def _experts_of(plan: Plan) -> Array:
  return jnp.broadcast_to(jnp.arange(plan.row.shape[0])[:, None], plan.row.shape)


class ExpertBank(nn.Module):
  """Experts of one kind in one stack: any module lifted by `nn.vmap`, params axis 0.

  >>> bank = ExpertBank(nn.Dense(4), num_experts=3)
  >>> bank.init_with_output(jax.random.key(0), jnp.ones((5, 8)))[0].shape
  (3, 5, 4)

  Each expert has its own parameters and its own dropout and noise. The expert must
  take `deterministic` (if it needs it) as an attribute: keyword arguments do not
  pass through the lift.

  Attributes:
    expert: the module every expert is a copy of, e.g. `MLP(64, deterministic=True)`;
      positional array arguments -> one array.
    num_experts: size of the stack e.
  """

  expert: nn.Module
  num_experts: int

  @nn.compact
  def __call__(self, *inputs: Array, in_axes: int | None = None) -> Array:
    """Runs every expert.

    Args:
      *inputs: arrays handed to the experts.
      in_axes: None = every expert reads the same inputs; 0 = expert i reads
        `input[i]` of each.

    Returns:
      [e ...] the experts' outputs, stacked.
    """
    lifted = nn.vmap(
      lambda module, *arrays: module(*arrays),
      in_axes=cast(Any, in_axes),  # Flax takes more than its annotation says.
      out_axes=0,
      axis_size=self.num_experts,
      variable_axes={"params": 0, "batch_stats": 0},
      split_rngs={"params": True, "dropout": True, "noise": True},
    )
    # The copy belongs to the bank wherever the caller made the original; within a
    # compact method that would otherwise be the caller's module.
    return lifted(self.expert.copy(parent=self, name=STACK), *inputs)


class MixtureOfExperts(nn.Module):
  """Router -> `Routing` -> expert bank -> weighted sum.

  >>> mixture = MixtureOfExperts(nn.Dense(4), num_experts=8, k=2, dispatch="capacity")
  >>> params = mixture.init(jax.random.key(0), jnp.ones((5, 6)))
  >>> mixture.apply(params, jnp.ones((5, 6))).outputs.shape
  (5, 4)

  Optional arguments are keywords and would be dropped by `nn.vmap` or `nn.scan`:
  lift a function that calls this module, not the module itself.

  Attributes:
    expert: the module every expert is a copy of; see `ExpertBank`.
    num_experts: number of experts e.
    k: experts each row uses; None = all. With an external routing: the most
      experts any row selects (capacity dispatch sizes its buffers by it).
    dispatch: `dense` (all experts on all rows, exact) or `capacity` (selected rows
      only, static buffers; rows that do not fit fall back to the residual).
    capacity_factor: slack of the buffers over an even load; e/k never overflows.
    noisy: whether the router learns noise; see `Router`.
    deterministic: True = no router noise; the expert has its own attribute.
  """

  expert: nn.Module
  num_experts: int
  k: int | None = None
  dispatch: str = "dense"
  capacity_factor: float = 1.25
  noisy: bool = False
  deterministic: bool = True

  @nn.compact
  def __call__(
    self,
    inputs: Float[Array, "n *d"],
    *,
    extras: Sequence[Array] = (),
    mask: Bool[Array, " n"] | None = None,
    available: Bool[Array, "n e"] | None = None,
    routing: Routing | None = None,
    router_inputs: Float[Array, "n r"] | None = None,
    residual: Float[Array, "n *o"] | None = None,
  ) -> MixtureOutput:
    """Sends each row through its experts.

    Args:
      inputs: what the experts read: vectors [n d] or whole sequences [n t d].
      extras: further arrays [n ...] for the experts, such as the steps' mask.
      mask: False = filler row: output zero, no slot taken, no influence.
      available: False = this expert does not exist for this row.
      routing: from a gate outside; None = the built-in router decides.
      router_inputs: what the built-in router reads; None = `inputs`, which must then be
        [n d].
      residual: for rows that do not fit, see `combine_capacity`.

    Raises:
      UserError: unknown `dispatch`, `k` below 1, `capacity_factor` not positive.
    """
    if self.dispatch not in ("dense", "capacity"):
      raise UserError(f"dispatch={self.dispatch!r}: choose 'dense' or 'capacity'")
    if routing is None:
      router = Router(
        self.num_experts,
        self.k,
        noisy=self.noisy,
        deterministic=self.deterministic,
        name="router",
      )
      routing = router(inputs if router_inputs is None else router_inputs, available)
    routing = _real_rows(routing, mask)
    bank = ExpertBank(self.expert, self.num_experts, name="bank")
    if self.dispatch == "dense":
      outputs = combine_dense(bank(inputs, *extras), routing)
      overflow = jnp.zeros(self.num_experts, jnp.int32)
      return MixtureOutput(outputs, routing, overflow)
    rows = inputs.shape[0]
    slots = capacity_of(rows, self.num_experts, self.k, self.capacity_factor)
    plan = plan_capacity(routing, slots)
    buffers = [dispatch_capacity(array, plan) for array in (inputs, *extras)]
    outputs = combine_capacity(bank(*buffers, in_axes=0), plan, residual)
    return MixtureOutput(outputs, routing, plan.overflow)


def _real_rows(routing: Routing, mask: Bool[Array, " n"] | None) -> Routing:
  """Zeroes the rows of fillers."""
  if mask is None:
    return routing
  return jax.tree.map(lambda array: jnp.where(mask[:, None], array, 0.0), routing)
