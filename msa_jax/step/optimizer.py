"""Optimizers: one schedule shape, one learning rate per parameter partition."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from msa_jax.config.options import OptimConfig
from msa_jax.errors import UserError
from msa_jax.models.system import everything
from msa_jax.models.with_anchor import ANCHOR
from msa_jax.step.flatten import Kind, KindOf, Names, names_of, packed
from msa_jax.text import finetune
from msa_jax.typing import Spec

SCHEDULES = ("constant", "linear", "cosine")
OPTIMIZERS = ("adam", "adamw", "sgd")


def total_steps(spec: Spec, optim: OptimConfig) -> int:
  """Batches of a whole run: epochs times those of the training split."""
  return max(1, spec.steps_per_epoch(optim.batch_size) * optim.epochs)


def total_updates(spec: Spec, optim: OptimConfig) -> int:
  """Updates of a whole run, of `optim.accumulate_steps` batches each."""
  batches, every = spec.steps_per_epoch(optim.batch_size), optim.accumulate_steps
  tail = every - 1 if optim.accumulation == "mean" else 0
  return max(1, (batches + tail) // every * optim.epochs)


def schedule(optim: OptimConfig, steps: int) -> optax.Schedule:
  """Relative learning rate in [0, 1]: linear warm-up, then the named decay.

  Args:
    optim: reads `warmup_fraction` and `schedule`, one of `SCHEDULES`.
    steps: of the whole run.
  """
  warmup = round(optim.warmup_fraction * steps)
  decay = {
    "constant": lambda: optax.constant_schedule(1.0),
    "linear": lambda: optax.linear_schedule(1.0, 0.0, max(1, steps - warmup)),
    "cosine": lambda: optax.cosine_decay_schedule(1.0, max(1, steps - warmup)),
  }
  if optim.schedule not in decay:
    raise UserError(
      f"config.optim.schedule={optim.schedule!r} must be one of {SCHEDULES}."
    )
  after = decay[optim.schedule]()
  if warmup == 0:
    return after
  # The first update already moves: warm-up goes through 1/warmup, 2/warmup, ...
  ramp = optax.linear_schedule(1.0 / warmup, 1.0, max(1, warmup - 1))
  return optax.join_schedules([ramp, after], [warmup])


_PLAIN = ("bias", "scale")


def _decays(optim: OptimConfig) -> Callable[[Names, Any], bool]:
  """Which parameters `optim.weight_decay` applies to, by path and array."""
  if optim.name == "adamw":
    # Biases, norm scales and other vectors are not decayed. Those of stacked layers and
    # experts are matrices, known by their names.
    return lambda names, leaf: leaf.ndim > 1 and names[-1] not in _PLAIN
  if not any((optim.weight_decay, *optim.weight_decays.values())):
    return lambda names, leaf: False

  # Published for systems from scratch, where everything decays; a pretrained encoder's
  # norms and biases stay near what they are, and so do an anchor's bias and scale.
  def decays(names: Names, leaf: Any) -> bool:
    if names[0] == ANCHOR:
      return leaf.ndim > 1
    own = names[0] != finetune.PARAMETERS or optim.decay_norms
    return own or names[-1] not in _PLAIN

  return decays


def _kind_of(
  optim: OptimConfig, partition: Callable[[Names], str], rates: Mapping[str, float]
) -> KindOf:
  decays = _decays(optim)

  def kind_of(names, leaf):
    name = partition(names)
    if name not in rates:
      raise UserError(
        f"no learning rate for the parameter partition {name!r}: set"
        f" config.optim.learning_rates.{name} (known partitions: {sorted(rates)})."
      )
    return Kind(name, decays(names, leaf))

  return kind_of


def _all_but(
  frozen: Callable[[tuple[str, ...]], bool], inner: optax.GradientTransformation
) -> optax.GradientTransformation:
  """`inner` for all but what no stage trains, of which the state has nothing."""

  def label(path, _):
    return "frozen" if frozen(names_of(path)) else "trained"

  return optax.multi_transform(
    {"trained": inner, "frozen": optax.set_to_zero()},
    lambda params: jax.tree_util.tree_map_with_path(label, params),
  )


def _update_rule(optim: OptimConfig) -> optax.GradientTransformation:
  if optim.name == "sgd":
    return optax.trace(decay=optim.momentum)
  if optim.name not in OPTIMIZERS:
    raise UserError(f"config.optim.name={optim.name!r} must be one of {OPTIMIZERS}.")
  return optax.scale_by_adam(b1=0.9, b2=0.999, eps=optim.epsilon)


def _decayed(
  optim: OptimConfig, kind_of: KindOf, mask: Callable[[Any], Any]
) -> optax.GradientTransformation:
  """Adds each parameter times the weight decay of its partition.

  Args:
    optim: the decays.
    kind_of: of the trees that the transformation sees.
    mask: parameters -> which of them decay.
  """
  if not optim.weight_decays:
    return optax.add_decayed_weights(optim.weight_decay, mask=mask)

  def update(updates, state, params=None):
    def add(path, gradient, leaf):
      kind = kind_of(names_of(path), leaf)
      decay = optim.weight_decays.get(kind.partition, optim.weight_decay)
      return gradient + decay * leaf if kind.decays and decay else gradient

    return jax.tree_util.tree_map_with_path(add, updates, params), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _only(
  trainable: Callable[[tuple[str, ...]], bool], inner: optax.GradientTransformation
) -> optax.GradientTransformation:
  """`inner` for some parameters; the others get no update of any kind, and their
  gradients do not count in the clipping. The state is that of `inner`."""

  def masked(tree):
    def keep(path, leaf):
      return leaf if trainable(names_of(path)) else jnp.zeros_like(leaf)

    return jax.tree_util.tree_map_with_path(keep, tree)

  def update(updates, state, params=None):
    updates, state = inner.update(masked(updates), state, params)
    return masked(updates), state

  return optax.GradientTransformation(inner.init, update)


def _clip_branches(
  norm: float, branched: Callable[[tuple[str, ...]], bool]
) -> optax.GradientTransformation:
  """Clips every branch by its own norm: as many runs of their own would.

  Args:
    norm: greatest norm of a branch's gradient.
    branched: parameter path -> whether its first axis is that of the branches.
  """

  def update(updates, state, params=None):
    del params
    flat = jax.tree_util.tree_flatten_with_path(updates)[0]
    owned = [leaf for path, leaf in flat if branched(names_of(path))]
    squares = [jnp.sum(leaf.reshape(len(leaf), -1) ** 2, axis=1) for leaf in owned]
    total = jnp.sqrt(sum(squares))
    scale = jnp.where(total < norm, 1.0, norm / jnp.maximum(total, 1e-38))

    def clip(path, leaf):
      shape = (-1, *[1] * (leaf.ndim - 1))
      return leaf * scale.reshape(shape) if branched(names_of(path)) else leaf

    return jax.tree_util.tree_map_with_path(clip, updates), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _slower_below(factor: float) -> optax.GradientTransformation:
  """Multiplies the updates of the text encoder's i-th trained layer, counted from the
  top and from 0, by factor^i, and those of the embeddings by factor^(number of layers).
  Adapters are those of their layers.

  Source: discriminative fine-tuning, Howard and Ruder 2018, section 3.2.
  """

  def update(updates, state, params=None):
    del params
    encoder = updates.get(finetune.PARAMETERS)
    if encoder is None:
      return updates, state
    stacks = [name for name in ("layers", "adapters") if name in encoder]
    leaves = jax.tree.leaves([encoder[name] for name in stacks])
    count = len(leaves[0]) if leaves else 0
    powers = factor ** jnp.arange(count - 1, -1, -1, dtype=jnp.float32)
    scaled = dict(encoder)
    for name in stacks:
      scaled[name] = jax.tree.map(
        lambda leaf: leaf * powers.reshape(-1, *[1] * (leaf.ndim - 1)), encoder[name]
      )
    for name in {"embeddings", "relative"} & set(encoder):
      scaled[name] = jax.tree.map(lambda leaf: leaf * factor**count, encoder[name])
    return {**updates, finetune.PARAMETERS: scaled}, state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def build(
  optim: OptimConfig,
  steps: int,
  partition: Callable[[tuple[str, ...]], str],
  trainable: Callable[[tuple[str, ...]], bool] = everything,
  branched: bool = False,
  rates: Mapping[str, float] | None = None,
  frozen: Callable[[tuple[str, ...]], bool] | None = None,
  layer_decay: float = 1.0,
  clip_all: bool = False,
) -> optax.GradientTransformation:
  """Builds the optimizer of a run, or of one stage of it.

  Args:
    optim: rule, schedule, clipping, weight decay.
    steps: updates of the whole run.
    partition: parameter path -> partition name.
    trainable: parameter path -> whether it is trained; the others stay as they are.
    branched: the trained parameters' first axis is that of independent branches, each
      of which is clipped by its own norm.
    rates: partition name -> learning rate; None = `optim.rates`.
    frozen: parameter path -> whether it gets no state at all; None = none.
    layer_decay: factor of the learning rate from a layer of the text encoder to the
      one below it.
    clip_all: the norm that is clipped is also that of what is not trained.

  Returns:
    Clip by value and by global norm over all partitions, then weight decay as a part of
    the gradient of every parameter but a text encoder's norms and biases (L2; `adam`,
    `sgd`), the update rule, or after it decoupled weight decay on matrices (`adamw`),
    the schedule and each partition's learning rate.

  Raises:
    UserError: unknown optimizer or schedule, or a partition without learning rate.
  """
  rates = optim.rates if rates is None else rates
  rule, relative = _update_rule(optim), schedule(optim, steps)
  clip, value = optim.grad_clip_norm, optim.grad_clip_value
  decays = any((optim.weight_decay, *optim.weight_decays.values()))

  def rules(kind_of: KindOf) -> optax.GradientTransformation:
    def each(entry):
      def of(params):
        return jax.tree_util.tree_map_with_path(
          lambda path, leaf: getattr(kind_of(names_of(path), leaf), entry), params
        )

      return of

    parts = [optax.clip(value)] if value else []
    apart = branched or clip_all
    parts += [] if apart or not clip else [optax.clip_by_global_norm(clip)]
    decayed = _decayed(optim, kind_of, each("decays"))
    if optim.name == "adamw":
      parts += [rule, decayed]
    else:
      parts += [decayed, rule] if decays else [rule]
    scales: dict[Hashable, Any] = {
      name: optax.scale(-rate) for name, rate in rates.items()
    }
    parts.append(optax.multi_transform(scales, each("partition")))
    parts.append(optax.scale_by_schedule(relative))
    return optax.chain(*parts)

  optimizer = packed(_kind_of(optim, partition, rates), rules)
  if branched and clip:
    optimizer = optax.chain(_clip_branches(clip, trainable), optimizer)
  if layer_decay != 1.0:
    optimizer = optax.chain(optimizer, _slower_below(layer_decay))
  if frozen is not None:
    optimizer = _all_but(frozen, optimizer)
  optimizer = optimizer if trainable is everything else _only(trainable, optimizer)
  if clip_all and clip:
    optimizer = optax.chain(optax.clip_by_global_norm(clip), optimizer)
  return optimizer
