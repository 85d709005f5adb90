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

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Key

from msa_jax.layers.masking import hide_unavailable, masked_mean
from msa_jax.losses.balance import mean_magnitude
from msa_jax.models import SYSTEMS
from msa_jax.models.base import Stage, System, one_stage
from msa_jax.train import optim, rngs
from msa_jax.train.objective import objective, task_losses
from msa_jax.train.omega import (
  OmegaReport,
  Path,
  Sizes,
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
from msa_jax.train.recipe import Recipe, Seed, example_batch
from msa_jax.typing import (
  Batch,
  Collections,
  Metrics,
  ModelOutput,
  Params,
  TrainState,
  UserError,
  modality_order,
  task_name,
)

COLLECTION = "balance"
Streams = Mapping[str, jax.Array]


def last_kernel(modality: str) -> Path:
  """Path of a modality's last linear kernel by the naming convention."""
  return (f"last_{modality}", "kernel")


def seen_modalities(
  batch: Batch, modalities: tuple[str, ...], tasks: Iterable[str]
) -> Bool[Array, " m"]:
  """Which modalities have a visible step in a sample that has a label of `tasks`."""
  labelled = jnp.zeros_like(batch.sample_mask)
  for name in tasks:
    mask = batch.labels[task_name(name)].mask
    labelled = labelled | jnp.any(mask.reshape(len(mask), -1), axis=1)
  visible = hide_unavailable(batch)
  return jnp.stack(
    [jnp.any(visible.modalities[name].mask & labelled[:, None]) for name in modalities]
  )


def _get(tree: Any, path: Path) -> Any:
  for key in path:
    tree = tree[key]
  return tree


def _put(tree: Any, path: Path, value: Any) -> Any:
  if not path:
    return value
  return {**tree, path[0]: _put(tree[path[0]], path[1:], value)}


class Host:
  """A model in two parts, and where its last linear layers are.

  Attributes:
    config, system: the run's, and its row of the table of systems.
    model: the Flax module.
    modalities: in the order of omega.
    paths: modality -> path of its last linear kernel.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    system: System,
    kernel: Callable[[str], Path] = last_kernel,
  ):
    """Builds the model and checks that it takes part.

    Raises:
      UserError: it lacks `encode` or `tail`, or a last linear layer.
    """
    self.config, self.system = config, system
    self.model = system.build(config)
    self.modalities = modality_order(config.spec.widths)
    self.paths = {name: kernel(name) for name in self.modalities}
    missing = [n for n in ("encode", "tail") if not hasattr(self.model, n)]
    if missing:
      raise UserError(
        f"B-fusion cannot balance {type(self.model).__name__}: it lacks"
        f" {' and '.join(missing)}. Implement encode(batch, *, train) -> modality ->"
        " features before its last linear layer, and tail(features, omega, batch, *,"
        " train) -> ModelOutput; or set config.balance.enabled=False."
      )
    params = jax.eval_shape(self.init, jax.random.key(0))["params"]
    for name, path in self.paths.items():
      try:
        _get(params, path)
      except (KeyError, TypeError, IndexError):
        raise UserError(
          f"B-fusion finds no parameter {'/'.join(path)} in"
          f" {type(self.model).__name__}: call the last linear layer of {name}"
          f" last_{name}, or pass kernel= to balanced()."
        ) from None

  def init(self, key: Key[Array, ""]) -> Mapping[str, Any]:
    """Variables of the model, as `model.init` would make them."""
    ones = jnp.ones((len(self.modalities),))
    return nn.init(lambda module, batch: self._whole(module, ones, batch), self.model)(
      {"params": key}, example_batch(self.config.spec)
    )

  def predict(
    self, variables: Mapping[str, Any], omega: Float[Array, " m"], batch: Batch
  ) -> ModelOutput:
    """`tail` of `encode`, without dropout."""
    return nn.apply(
      lambda module, batch: self._whole(module, omega, batch), self.model
    )(variables, batch)

  def encode(
    self, variables: Mapping[str, Any], batch: Batch, streams: Streams
  ) -> tuple[Mapping[str, jax.Array], Collections]:
    """Features by modality and updated collections, in training mode."""
    return self._train(variables, streams, "encode", batch)

  def tail(
    self,
    variables: Mapping[str, Any],
    features: Mapping[str, jax.Array],
    omega: Float[Array, " m"],
    batch: Batch,
    streams: Streams,
  ) -> tuple[ModelOutput, Collections]:
    """Output and updated collections, in training mode."""
    return self._train(variables, streams, "tail", features, self._named(omega), batch)

  def gradient_sizes(
    self,
    variables: Mapping[str, Any],
    features: Mapping[str, jax.Array],
    batch: Batch,
    streams: Streams,
  ) -> Sizes:
    """Returns omega -> g_i: sizes of the gradient at the last linears (Eq. 7).

    A function of `tail` alone: differentiating it never reaches the encoders.
    """
    params = variables["params"]
    kernels = {name: _get(params, path) for name, path in self.paths.items()}

    def task(kernels, omega):
      changed = params
      for name, path in self.paths.items():
        changed = _put(changed, path, kernels[name])
      output, _ = self.tail(
        {**variables, "params": changed}, features, omega, batch, streams
      )
      return sum(task_losses(self.config, output, batch).values())

    def sizes(omega):
      gradients = jax.grad(task)(kernels, omega)
      return jnp.stack([mean_magnitude(gradients[n]) for n in self.modalities])

    return sizes

  def _named(self, omega):
    return {name: omega[slot] for slot, name in enumerate(self.modalities)}

  def _whole(self, module, omega, batch):
    features = module.encode(batch, train=False)
    return module.tail(features, self._named(omega), batch, train=False)

  def _train(self, variables, streams, method, *arguments):
    mutable = [name for name in variables if name != "params"]
    return self.model.apply(
      variables, *arguments, train=True, rngs=streams, mutable=mutable, method=method
    )


def balanced(
  config: ml_collections.ConfigDict,
  system: System | None = None,
  kernel: Callable[[str], Path] = last_kernel,
  owner: Callable[[Path, tuple[str, ...]], str | None] = owner_of,
  stage: Stage | None = None,
) -> Recipe:
  """B-fusion around one model.

  The state gains the collection `balance` (omega, in the order of
  `typing.modality_order`). With `omega_lr` 0 the weights stay 1 and training is that
  of the model alone, measured.

  Args:
    config: a resolved config; reads `config.balance`.
    system: the model; None = `config.model.name` of the table.
    kernel: modality -> path of its last linear kernel in the parameters.
    owner: (parameter path, modalities) -> modality whose network it belongs to, or
      None; those parameters' updates are scaled under adaptive optimizers.
    stage: which parameters to train; None = all.

  Returns:
    A recipe whose step adds metrics: `g`, `omega`, `ratio`, and `alpha_mean` if the
    model has A-fusion, all [m]; `L_omega`; and each entry as a scalar,
    `balance/g_text` and so on.

  Raises:
    UserError: a bad option, or a model that does not take part.
  """
  stage = one_stage(config)[0] if stage is None else stage
  if stage.call:
    raise UserError(
      f"B-fusion cannot balance {config.model.name}: its stages call the module with"
      f" {dict(stage.call)}, which encode and tail do not take. Set"
      " config.balance.enabled=False."
    )
  system = SYSTEMS[config.model.name] if system is None else system
  check_options(config.balance)
  host = Host(config, system, kernel)
  network = optim.build(config, system.partition, stage.trainable)
  if scales_updates(config):
    network = optax.chain(network, scale_by_omega(host.modalities, owner))
  network = optax.with_extra_args_support(network)
  weights = optax.sgd(omega_learning_rate(config))

  def start(params, collections, step) -> TrainState:
    omega = weights.init(collections[COLLECTION]["omega"])
    opt_state = {"network": network.init(params), "omega": omega}
    return TrainState(step, params, collections, opt_state)

  def init(seed: Seed) -> TrainState:
    variables = host.init(rngs.stream(seed, "params", 0))
    collections, params = flax.core.pop(variables, "params")
    memory = initial_memory(config.balance, len(host.modalities))
    collections = {**collections, COLLECTION: memory}
    return start(params, collections, jnp.zeros((), jnp.int32))

  def step(state: TrainState, batch: Batch, seed: Seed) -> tuple[TrainState, Metrics]:
    others = dict(state.collections)
    memory = others.pop(COLLECTION)
    omega = memory["omega"]
    result = _differentiate(config, host, state, others, omega, batch, seed)
    output = result.output
    seen = seen_modalities(batch, host.modalities, output.predictions)
    sizes_of = host.gradient_sizes(
      result.variables, lax.stop_gradient(result.features), batch, result.streams
    )
    decay = config.balance.g_ema
    report = omega_gradient(
      config.balance,
      sizes_of,
      omega,
      seen,
      (lambda g: running_mean(decay, memory, g, seen)[1]) if decay else None,
    )
    running, _ = running_mean(decay, memory, report.sizes, seen)
    change, omega_state = weights.update(
      report.gradient, state.opt_state["omega"], omega
    )
    proposed = optax.apply_updates(omega, change)
    updates, network_state = network.update(
      result.gradients, state.opt_state["network"], state.params, omega=omega
    )
    memory = {"omega": constrain(config.balance, proposed, omega, seen), **running}
    state = TrainState(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      collections={**result.collections, COLLECTION: memory},
      opt_state={"network": network_state, "omega": omega_state},
    )
    norm = optax.tree.norm(result.gradients)
    measured = _metrics(host.modalities, report, omega, output, batch)
    return state, {**result.metrics, **measured, "gradient_norm": norm}

  def predict(params: Params, collections: Collections, batch: Batch) -> ModelOutput:
    others = {k: v for k, v in collections.items() if k != COLLECTION}
    omega = collections[COLLECTION]["omega"]
    return host.predict({"params": params, **others}, omega, batch)

  return Recipe(init, step, predict, start)


class _Differentiated(NamedTuple):
  """One pass: what the step needs of it. `variables` are those the tail ran with."""

  gradients: Params
  output: ModelOutput
  metrics: Metrics
  features: Mapping[str, jax.Array]
  variables: Mapping[str, Any]
  collections: Collections
  streams: Mapping[str, jax.Array]


def _differentiate(config, host, state, others, omega, batch, seed) -> _Differentiated:
  """Forward and backward of the objective, in two parts; omega is a constant."""
  # The same keys for the measurement: g_i is the size of the actual gradient.
  streams = rngs.streams(seed, ("dropout", "noise"), state.step)

  def encode(params):
    return host.encode({"params": params, **others}, batch, streams)

  features, pull, encoded = jax.vjp(encode, state.params, has_aux=True)
  after_encode = {**others, **encoded}

  def loss(params, features):
    variables = {"params": params, **after_encode}
    output, collections = host.tail(variables, features, omega, batch, streams)
    total, metrics = objective(config, host.system, output, batch, state.step)
    return total, (output, collections, metrics)

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
