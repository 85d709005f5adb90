"""Losses of representations against float64 NumPy, published values, and masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mmsa_arrays import Arrays, close

from msa_jax.losses import contrastive, representation

LENGTH = 7
MASK = np.array([True, True, False, True, True, False, True])


def two(seed=0, width=6):
  random = np.random.default_rng(seed)
  return random.normal(size=(LENGTH, width)), random.normal(size=(LENGTH, width)) + 0.3


def difference(x, y):
  def unit(values):
    centred = values - values.mean(0)
    return centred / (np.linalg.norm(centred, axis=1, keepdims=True) + 1e-6)

  return np.mean((unit(x).T @ unit(y)) ** 2)


def moments(x, y):
  total = np.linalg.norm(x.mean(0) - y.mean(0))
  for k in range(2, 6):
    a, b = ((v - v.mean(0)) ** k for v in (x, y))
    total += np.linalg.norm(a.mean(0) - b.mean(0))
  return total


def discrepancy(z, n):
  def kernel(a, b):
    apart = ((a[:, None] - b[None]) ** 2).mean(-1)
    return np.exp(-apart / a.shape[1]).mean()

  return kernel(n, n) + kernel(z, z) - 2 * kernel(n, z)


def coding(x, p):
  x, p = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, p))
  scores = x @ p.T
  return np.mean(np.log(np.exp(scores).sum(1)) - np.diagonal(scores))


ORACLES = {
  "difference": (
    difference,
    lambda x, y, m: representation.difference(x, y, m),
  ),
  "moments": (
    moments,
    lambda x, y, m: representation.central_moments(x, y, m, m),
  ),
  "reconstruction": (
    lambda x, y: np.mean((x - y) ** 2),
    lambda x, y, m: representation.reconstruction(x, y, m),
  ),
  "discrepancy": (
    discrepancy,
    lambda x, y, m: representation.mean_discrepancy(x, y, m),
  ),
  "coding": (coding, lambda x, y, m: contrastive.predictive_coding(x, y, m)),
}


@pytest.mark.parametrize("name", sorted(ORACLES))
def test_a_loss_is_that_of_the_rows_that_count_in_float64(name):
  oracle, ours = ORACLES[name]
  x, y = two()
  run = jax.jit(jax.value_and_grad(ours, (0, 1)))
  spoilt = [np.where(MASK[:, None], values, np.nan).astype("f") for values in (x, y)]
  value, gradients = run(*spoilt, jnp.asarray(MASK))
  if name == "discrepancy":  # of the noise all rows are drawn
    spoilt[1] = y.astype("f")
    value, gradients = run(*spoilt, jnp.asarray(MASK))
  close(value, oracle(x[MASK], y[MASK]), 2e-6)
  for gradient in gradients:
    assert np.isfinite(gradient).all() and not gradient[~MASK].any()
    assert np.abs(gradient[MASK]).max() > 1e-4
  # Nothing counts: zero, without a gradient.
  value, gradients = run(*spoilt, jnp.zeros(LENGTH, bool))
  assert float(value) == 0.0
  assert all(not np.asarray(gradient).any() for gradient in gradients)


def test_terms_and_gradients_are_those_of_misa():
  arrays = Arrays("misa", "terms")
  x, y = jnp.asarray(arrays["x"]), jnp.asarray(arrays["y"])
  rows = jnp.ones(len(x), bool)
  for name, theirs in (
    ("difference", "diff"),
    ("moments", "cmd"),
    ("reconstruction", "mse"),
  ):
    run = jax.jit(jax.value_and_grad(ORACLES[name][1], (0, 1)))
    value, gradients = run(x, y, rows)
    close(value, arrays[theirs], 1e-6)
    for gradient, letter in zip(gradients, "xy", strict=True):
      close(gradient, arrays[f"grad_{theirs}_{letter}"], 1e-5)


def test_equal_codes_and_a_single_sample_have_finite_gradients():
  x = jnp.asarray(two()[0][:1], jnp.float32)
  rows = jnp.ones(1, bool)
  for name in ("difference", "moments"):
    run = jax.jit(jax.value_and_grad(ORACLES[name][1], (0, 1)))
    value, gradients = run(x, x, rows)
    assert abs(float(value)) < 1e-4
    assert all(np.isfinite(gradient).all() for gradient in gradients)
  x, y = (jnp.asarray(values[:1], jnp.float32) for values in two())
  close(ORACLES["moments"][1](x, y, rows), np.linalg.norm(x - y), 1e-5)


def test_a_gradient_is_reversed_and_the_values_are_not():
  weight = jnp.asarray(0.5)
  x = jnp.asarray([1.0, -2.0])
  np.testing.assert_array_equal(representation.reversed_gradient(x, weight), x)
  gradient = jax.grad(
    lambda x: jnp.sum(representation.reversed_gradient(x, weight) ** 2)
  )(x)
  np.testing.assert_allclose(gradient, -0.5 * 2.0 * x)


CASES = {"labels": (slice(0, 2), True), "simclr": (slice(0, 2), False)}
CASES["one_view"] = (slice(0, 1), True)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_contrastive_losses_are_those_of_hgraph_cl(temperature):
  given = Arrays("contrastive", "supcon")
  arrays = Arrays("contrastive", f"supcon_t{temperature}")
  features = jnp.asarray(given["features"]).swapaxes(0, 1)  # [v b d]
  labels = jnp.asarray(given["labels"].reshape(-1), jnp.int32)
  rows = jnp.ones(len(labels), bool)
  for name, (views, labelled) in CASES.items():
    classes = labels if labelled else jnp.arange(len(labels))

    def loss(features, views=views, classes=classes):
      return contrastive.supervised_contrastive(
        features[views], classes, rows, temperature
      )

    value, gradient = jax.jit(jax.value_and_grad(loss))(features)
    close(value, arrays[name], 2e-6)
    close(gradient.swapaxes(0, 1), arrays[f"grad_{name}"], 1e-5)


def test_samples_that_do_not_count_are_neither_anchors_nor_candidates():
  random = np.random.default_rng(3)
  views = random.normal(size=(2, LENGTH, 4)).astype("f")
  classes = jnp.asarray([0, 1, 0, 1, 0, 1, 1])
  run = jax.jit(jax.value_and_grad(contrastive.supervised_contrastive))
  value, gradient = run(
    np.where(MASK[None, :, None], views, np.nan), classes, jnp.asarray(MASK)
  )
  few = contrastive.supervised_contrastive(
    jnp.asarray(views[:, MASK]), classes[MASK], jnp.ones(MASK.sum(), bool)
  )
  close(value, few, 1e-5)
  assert np.isfinite(gradient).all() and not gradient[:, ~MASK].any()
  value, gradient = run(views, classes, jnp.zeros(LENGTH, bool))
  assert float(value) == 0.0 and not np.asarray(gradient).any()
