"""B-fusion's weights: their options, gradient, limits and memory.

`step.balance.recipe` puts these around a model. Source: AWF, Journal of Software 2024,
35(10):4781-4793, section 2.1.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float

from msa_jax.config.options import BalanceConfig
from msa_jax.errors import UserError
from msa_jax.losses.balance import balance_loss, balance_targets
from msa_jax.text import finetune
from msa_jax.typing import Collections

_ADAPTIVE = ("adam", "adamw")
_CHOICES = {
  "omega_loss": ("relative", "literal"),
  "omega_norm": ("none", "sum3"),
  "omega_grad": ("autodiff", "proportional"),
  "scale_updates_by_omega": ("auto", "true", "false"),
}

Path = tuple[str, ...]
Omega = Float[Array, " m"]
Sizes = Callable[[Omega], Float[Array, " m"]]


def owner_of(path: Path, modalities: tuple[str, ...]) -> str | None:
  """Modality whose network a parameter belongs to, None for the fusion and head."""
  if path[0] == finetune.PARAMETERS:
    return "text"
  for name in modalities:
    if path[0] == name or path[0].endswith(f"_{name}"):
      return name
  return None


def check_options(options: BalanceConfig) -> None:
  """Checks `config.balance`.

  Raises:
    UserError: a value that is not allowed.
  """
  for key, allowed in _CHOICES.items():
    if getattr(options, key) not in allowed:
      raise UserError(
        f"config.balance.{key}={getattr(options, key)!r}: choose one of {allowed}"
      )
  low, high = options.omega_clip
  if options.omega_norm == "sum3" and not low <= 1.0 <= high:
    raise UserError(
      f"config.balance.omega_clip={options.omega_clip}: omega_norm='sum3' keeps the"
      " mean weight 1, which must lie between low and high."
    )
  if not 0.0 < low <= options.omega_init <= high < math.inf:
    raise UserError(
      f"config.balance.omega_clip={options.omega_clip}: must be 0 < low <= omega_init"
      f" <= high, finite, with omega_init={options.omega_init}."
    )
  if not options.r_max >= 1.0:
    raise UserError(f"config.balance.r_max={options.r_max}: must be at least 1.")
  if not 0.0 <= options.g_ema < 1.0:
    raise UserError(f"config.balance.g_ema={options.g_ema}: must be in [0, 1).")


def omega_learning_rate(options: BalanceConfig, steps_per_epoch: int) -> float:
  """Learning rate of omega's SGD, from `balance.omega_lr`.

  Raises:
    UserError: neither a number nor `<number>/steps_per_epoch`, or negative.
  """
  text = options.omega_lr
  number, slash, unit = text.partition("/")
  try:
    rate = float(number)
  except ValueError:
    rate = -1.0
  if not 0.0 <= rate < float("inf") or (slash and unit != "steps_per_epoch"):
    raise UserError(
      f"config.balance.omega_lr={text!r} must be a number from 0, or such a number"
      " followed by '/steps_per_epoch'."
    )
  return rate / max(1, steps_per_epoch) if slash else rate


def scales_updates(options: BalanceConfig, optimizer: str) -> bool:
  """Whether updates of a modality's network are multiplied by its weight.

  Adam divides the scale of gradients out again, which would undo Eq. 5; `auto` puts it
  back for adaptive optimizers only.
  """
  chosen = options.scale_updates_by_omega
  return optimizer in _ADAPTIVE if chosen == "auto" else chosen == "true"


def scale_by_omega(
  modalities: tuple[str, ...], owner: Callable = owner_of
) -> optax.GradientTransformationExtraArgs:
  """Multiplies the updates of each modality's network by its weight (Eq. 5).

  The update takes the extra argument `omega` [m], in the order of `modalities`.
  Moments of the transformations before it never see the factor.
  """

  def update(updates, state, params=None, **extra):
    del params
    omega = extra["omega"]

    def scaled(path, leaf):
      name = owner(tuple(str(getattr(key, "key", key)) for key in path), modalities)
      return leaf if name is None else leaf * omega[modalities.index(name)]

    return jax.tree_util.tree_map_with_path(scaled, updates), state

  return optax.GradientTransformationExtraArgs(
    lambda params: optax.EmptyState(), update
  )


class OmegaReport(NamedTuple):
  """What one evaluation of omega's loss says.

  Attributes:
    gradient: [m] of the loss that is used, zero for modalities not seen.
    sizes: [m] g_i of this batch. ratio: [m] r_i.
    loss: [] L_omega as the paper has it.
  """

  gradient: jax.Array
  sizes: jax.Array
  ratio: jax.Array
  loss: jax.Array


def omega_gradient(
  options: BalanceConfig,
  sizes_of: Sizes,
  omega: Float[Array, " m"],
  seen: Bool[Array, " m"],
  smooth: Sizes | None = None,
) -> OmegaReport:
  """Gradient of L_omega with respect to the fusion weights.

  Args:
    options: `config.balance`.
    sizes_of: omega -> gradient sizes g_i [m]; differentiated if `omega_grad` is
      `autodiff`.
    omega: the weights.
    seen: False = the modality takes no part and its weight no harm.
    smooth: replaces the values, not the derivatives, of g_i (a running mean).

  Source: AWF Eq. 6-10; the target is a constant unless `target_stop_grad` is False.
  """

  def loss(omega):
    raw = sizes_of(omega)
    sizes = raw
    if smooth is not None:
      fixed = lax.stop_gradient(raw)
      sizes = lax.stop_gradient(smooth(fixed)) + (raw - fixed)
    target, ratio, mean = balance_targets(sizes, seen, options.r_max)
    if options.target_stop_grad:
      target = lax.stop_gradient(target)
    literal = balance_loss(sizes, target, seen)
    scale = jnp.ones_like(literal)
    if options.omega_loss == "relative":
      # Scale-free: gradients of 1e-3 and of 1 move the weights alike.
      scale = 1.0 / jnp.maximum(lax.stop_gradient(mean), 1e-12)
    return literal * scale, (raw, sizes - target, ratio, literal, scale)

  if options.omega_grad == "autodiff":
    gradient, (raw, _, ratio, literal, _) = jax.grad(loss, has_aux=True)(omega)
  else:
    # Exact for an L1 task loss and a linear head: g_i is proportional to omega_i.
    _, (raw, excess, ratio, literal, scale) = loss(omega)
    gradient = jnp.sign(excess) * raw / omega * scale
  return OmegaReport(jnp.where(seen, gradient, 0.0), raw, ratio, literal)


def constrain(
  options: BalanceConfig,
  proposed: Float[Array, " m"],
  omega: Float[Array, " m"],
  seen: Bool[Array, " m"],
) -> Float[Array, " m"]:
  """Clips the new weights; `sum3` then scales those seen so that all weights add up to
  m, as in GradNorm, none of them beyond the clip. Weights of modalities not seen stay.

  If those not seen leave too much or too little to share, the others are at the clip.
  """
  low, high = options.omega_clip
  proposed = jnp.clip(proposed, low, high)
  if options.omega_norm == "sum3":
    rest = len(omega) - jnp.sum(jnp.where(seen, 0.0, omega))

    def scaled(factor: Array) -> Array:
      return jnp.clip(proposed * factor, low, high)

    # The sum grows with the factor, in straight pieces between those factors at which
    # a weight reaches a bound.
    ends = jnp.sort(jnp.concatenate([low / proposed, high / proposed]))  # [2m]
    sums = jnp.sum(jnp.where(seen[None], jax.vmap(scaled)(ends), 0.0), axis=1)
    proposed = scaled(jnp.interp(rest, sums, ends))
  return jnp.where(seen, proposed, omega)


def initial_memory(options: BalanceConfig, size: int) -> Collections:
  """The collection `balance` at the start, for `size` modalities."""
  return {
    "omega": jnp.full((size,), options.omega_init, jnp.float32),
    # Running mean of the gradient sizes and the weight it has gathered.
    "g_mean": jnp.zeros((size,)),
    "g_weight": jnp.zeros((size,)),
  }


def running_mean(
  decay: float,
  memory: Collections,
  sizes: Float[Array, " m"],
  seen: Bool[Array, " m"],
) -> tuple[Collections, Float[Array, " m"]]:
  """Running mean of the gradient sizes; modalities not seen keep theirs.

  Returns:
    The new `g_mean` and `g_weight`, and the mean corrected for its start from zero.
  """
  keep = jnp.where(seen, decay, 1.0)
  mean = keep * memory["g_mean"] + (1.0 - keep) * sizes
  weight = keep * memory["g_weight"] + (1.0 - keep)
  return {"g_mean": mean, "g_weight": weight}, mean / jnp.maximum(weight, 1e-12)
