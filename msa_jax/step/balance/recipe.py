"""B-fusion as a recipe around any model: fusion weights that balance gradients.

Each modality's features are scaled by a weight omega_i before they are fused, so its
network learns omega_i times as fast. The weights have a loss of their own, the
distance of the modalities' gradient sizes from balance (`losses.balance`), and are
moved by SGD in the same step as the network, both from what was before the step.

A model takes part if its Flax module has two methods,

    encode(batch, *, train) -> features    modality -> [b d], what the modality's last
                                           linear layer reads
    tail(features, omega, batch, *, train) -> ModelOutput
                                           the last linear layers, each modality's
                                           result times omega[modality], fusion, head

and calls the last linear of modality m `last_<m>`, and all else that belongs to m's
network `<something>_<m>`: what `self.last = {"text": nn.Dense(8), ...}` and
`self.encoder = {...}` in `setup` do. Other names: `balanced(kernel=..., owner=...)`.

The gradient of omega's loss runs through `tail` alone, exactly, to second order: the
features do not depend on omega, so the encoders are differentiated once, as ever.

Source: AWF (Journal of Software 2024, 35(10):4781-4793), section 2.1, algorithm 1.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from msa_jax.config.options import BalanceConfig
from msa_jax.layers.masking import masked_mean
from msa_jax.step import flatten, rngs
from msa_jax.step.balance.omega import (
  OmegaReport,
  Path,
  check_options,
  constrain,
  initial_memory,
  omega_gradient,
  omega_learning_rate,
  owner_of,
  running_mean,
  scale_by_omega,
  scales_updates,
)
from msa_jax.step.balance.split_model import SplitModel, last_kernel, seen_modalities
from msa_jax.step.objective import Objective, objective_terms
from msa_jax.step.recipe import Recipe, Seed
from msa_jax.typing import Batch, Collections, Metrics, ModelOutput, Params, TrainState

COLLECTION = "balance"


def balanced(
  model: nn.Module,
  example: Batch,
  objective: Objective,
  network: optax.GradientTransformation,
  options: BalanceConfig,
  steps_per_epoch: int = 1,
  adaptive: str = "adam",
  kernel: Callable[[str], Path] = last_kernel,
  owner: Callable[[Path, tuple[str, ...]], str | None] = owner_of,
) -> Recipe:
  """B-fusion around one model.

  The state gains the collection `balance` (omega, in the order of
  `typing.modality_order`). With `omega_lr` 0 the weights stay 1 and training is that
  of the model alone, measured.

  Args:
    model: Flax module with `encode` and `tail`.
    example: a batch of the corpus's shapes.
    objective: what training minimises.
    network: optimizer of the parameters.
    options: of the fusion weights.
    steps_per_epoch: that `omega_lr` may be divided by.
    adaptive: name of the network's update rule, which decides whether its updates are
      scaled as well as its gradients.
    kernel: modality -> path of its last linear kernel in the parameters.
    owner: (parameter path, modalities) -> modality whose network it belongs to, or
      None; those parameters' updates are scaled under adaptive optimizers.

  Returns:
    A recipe whose step adds metrics: `g`, `omega`, `ratio`, and `alpha_mean` if the
    model has A-fusion, all [m]; `L_omega`; and each entry as a scalar,
    `balance/g_text` and so on.

  Raises:
    UserError: a bad option, or a model that does not take part.
  """
  check_options(options)
  host = SplitModel(model, example, objective, kernel)
  if scales_updates(options, adaptive):
    network = optax.chain(network, scale_by_omega(host.modalities, owner))
  network = optax.with_extra_args_support(network)
  weights = optax.sgd(omega_learning_rate(options, steps_per_epoch))
  parts = _Parts(options, host, network, weights)

  def init(seed: Seed) -> TrainState:
    variables = host.init(rngs.stream(seed, "params", 0))
    collections, params = flax.core.pop(dict(variables), "params")
    memory = initial_memory(options, len(host.modalities))
    collections = {**collections, COLLECTION: memory}
    return _start(parts, params, collections, jnp.zeros((), jnp.int32))

  def predict(params: Params, collections: Collections, batch: Batch) -> ModelOutput:
    others = {k: v for k, v in collections.items() if k != COLLECTION}
    omega = collections[COLLECTION]["omega"]
    return host.predict({"params": params, **others}, omega, batch)

  step = functools.partial(_step, parts)
  return Recipe(init, step, predict, functools.partial(_start, parts))


class _Parts(NamedTuple):
  """What a step is made of: the optimizer of the network and that of omega."""

  options: BalanceConfig
  host: SplitModel
  network: optax.GradientTransformationExtraArgs
  weights: optax.GradientTransformation


def _start(parts: _Parts, params, collections, step) -> TrainState:
  omega = parts.weights.init(collections[COLLECTION]["omega"])
  opt_state = {"network": parts.network.init(params), "omega": omega}
  return TrainState(step, params, collections, opt_state)


def _step(
  parts: _Parts, state: TrainState, batch: Batch, seed: Seed
) -> tuple[TrainState, Metrics]:
  """One update of network and weights, both from what was before it."""
  others = dict(state.collections)
  memory = others.pop(COLLECTION)
  omega = memory["omega"]
  result = _differentiate(parts, state, others, omega, batch, seed)
  report, memory, omega_state = _balance(parts, state, memory, result, batch)
  updates, network_state = parts.network.update(
    result.gradients, state.opt_state["network"], state.params, omega=omega
  )
  state = TrainState(
    step=state.step + 1,
    params=optax.apply_updates(state.params, updates),
    collections={**result.collections, COLLECTION: memory},
    opt_state={"network": network_state, "omega": omega_state},
  )
  norm = flatten.norm(result.gradients)
  measured = _metrics(parts.host.modalities, report, omega, result.output, batch)
  return state, {**result.metrics, **measured, "gradient_norm": norm}


def _balance(parts: _Parts, state, memory, result, batch):
  """Measures the gradient sizes and moves omega.

  Returns:
    The report, the new collection `balance` and the state of omega's optimizer.
  """
  options, host = parts.options, parts.host
  omega, decay = memory["omega"], options.g_ema
  seen = seen_modalities(batch, host.modalities, result.output.predictions)
  sizes_of = host.gradient_sizes(
    result.variables, lax.stop_gradient(result.features), batch, result.streams
  )
  smooth = (lambda g: running_mean(decay, memory, g, seen)[1]) if decay else None
  report = omega_gradient(options, sizes_of, omega, seen, smooth)
  running, _ = running_mean(decay, memory, report.sizes, seen)
  change, optimizer_state = parts.weights.update(
    report.gradient, state.opt_state["omega"], omega
  )
  proposed = cast(jax.Array, optax.apply_updates(omega, change))
  memory = {"omega": constrain(options, proposed, omega, seen), **running}
  return report, memory, optimizer_state


class _Differentiated(NamedTuple):
  """One pass: what the step needs of it. `variables` are those the tail ran with."""

  gradients: Params
  output: ModelOutput
  metrics: Metrics
  features: Mapping[str, jax.Array]
  variables: Mapping[str, Any]
  collections: Collections
  streams: Mapping[str, jax.Array]


def _differentiate(parts, state, others, omega, batch, seed) -> _Differentiated:
  """Forward and backward of the objective, in two parts; omega is a constant."""
  host = parts.host
  # The same keys for the measurement: g_i is the size of the actual gradient.
  streams = rngs.streams(seed, ("dropout", "noise"), state.step)

  def encode(params):
    return host.encode({"params": params, **others}, batch, streams)

  features, pull, encoded = jax.vjp(encode, state.params, has_aux=True)
  after_encode = {**others, **encoded}

  def loss(params, features):
    variables = {"params": params, **after_encode}
    output, collections = host.tail(variables, features, omega, batch, streams)
    _, metrics = objective_terms(host.objective, output, batch, state.step)
    return metrics["loss"], (output, collections, metrics)

  gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
  (from_tail, at_features), aux = gradient(state.params, features)
  (from_encoders,) = pull(at_features)
  output, collections, metrics = aux
  return _Differentiated(
    jax.tree.map(jnp.add, from_tail, from_encoders),
    output,
    metrics,
    features,
    {"params": state.params, **after_encode},
    {**after_encode, **collections},
    streams,
  )


def _metrics(modalities, report: OmegaReport, omega, output, batch) -> Metrics:
  vectors = {"g": report.sizes, "omega": omega, "ratio": report.ratio}
  if "alpha" in output.features:
    rows = batch.sample_mask[:, None]
    vectors["alpha_mean"] = masked_mean(output.features["alpha"], rows, 0)
  scalars = {
    f"balance/{kind.removesuffix('_mean')}_{name}": values[slot]
    for kind, values in vectors.items()
    for slot, name in enumerate(modalities)
  }
  return {**vectors, **scalars, "L_omega": report.loss}
