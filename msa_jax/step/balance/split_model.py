"""A model in two parts, as B-fusion sees it: `encode` and `tail`.

`step.balance.recipe` says what a model must have to take part.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from msa_jax.errors import UserError
from msa_jax.layers.masking import hide_unavailable
from msa_jax.losses.balance import mean_magnitude
from msa_jax.step.balance.omega import Path, Sizes
from msa_jax.step.objective import Objective, task_losses
from msa_jax.typing import Batch, Collections, ModelOutput, task_name

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


class SplitModel:
  """A model in two parts, and where its last linear layers are.

  Attributes:
    model: the Flax module.
    example: a batch of the corpus's shapes.
    objective: what training minimises.
    modalities: in the order of omega.
    paths: modality -> path of its last linear kernel.
  """

  def __init__(
    self,
    model: nn.Module,
    example: Batch,
    objective: Objective,
    kernel: Callable[[str], Path] = last_kernel,
  ):
    """Checks that the model takes part.

    Raises:
      UserError: it lacks `encode` or `tail`, or a last linear layer.
    """
    self.model, self.example, self.objective = model, example, objective
    self.modalities = example.order
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
      {"params": key}, self.example
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
      tasks, terms = self.objective.tasks, self.objective.terms
      return sum(task_losses(tasks, terms, output, batch).values())

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
