"""What parity tests share: batches of stored inputs, outputs and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np

from msa_jax.typing import Batch

INPUT = {"text": "t", "audio": "a", "vision": "v"}


def features(arrays, tag):
  """Modality -> stored input."""
  return {name: jnp.asarray(arrays[f"{tag}/in_{x}"]) for name, x in INPUT.items()}


def batch(values, lengths=None, labels=None):
  """A batch of these features; without lengths, all steps are real.

  Args:
    values: modality -> [b t d]; may be traced.
    lengths: modality -> [b], or [b] for all.
    labels: task -> [b].
  """
  shapes = {name: each.shape for name, each in values.items()}
  if lengths is None:
    lengths = {name: np.full(shape[0], shape[1]) for name, shape in shapes.items()}
  elif not isinstance(lengths, dict):
    lengths = dict.fromkeys(shapes, np.asarray(lengths))
  made = Batch.from_arrays(
    {name: np.ones(shape, "f") for name, shape in shapes.items()},
    lengths=lengths,
    labels=labels,
  )
  modalities = {
    name: each.replace(features=values[name], lost=jnp.zeros_like(each.mask))
    for name, each in made.modalities.items()
  }
  return made.replace(modalities=modalities)


def outputs(model, variables, values, lengths=None, task="sentiment"):
  """A network's output, and the gradient of its squared predictions of a task."""

  def energy(values):
    output = model.apply(variables, batch(values, lengths))
    return jnp.sum(output.predictions[task] ** 2), output

  gradient, output = jax.jit(jax.grad(energy, has_aux=True))(values)
  return output, gradient


def close(ours, theirs, tolerance):
  """Asserts that differences stay below tolerance times max(1, |value|)."""
  ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
  assert ours.shape == theirs.shape
  worst = np.max(np.abs(ours - theirs) / np.maximum(1.0, np.abs(theirs)))
  assert worst < tolerance, worst


def check_gradients(gradient, arrays, tag, name="grad_in"):
  """Compares gradients with respect to all inputs."""
  for modality, short in INPUT.items():
    close(gradient[modality], arrays[f"{tag}/{name}_{short}"], 1e-4)


def count(model, shapes):
  """Parameters of a network for these modality shapes, without making any."""
  values = {name: jnp.zeros(shape) for name, shape in shapes.items()}
  made = jax.eval_shape(model.init, jax.random.key(0), batch(values))
  return sum(leaf.size for leaf in jax.tree.leaves(made["params"]))


MOSI = {"text": (2, 50, 768), "audio": (2, 50, 5), "vision": (2, 50, 20)}
SIMS = {"text": (2, 39, 768), "audio": (2, 400, 33), "vision": (2, 55, 709)}
