"""H-GEM's route losses and the classes of labels that they go by."""

import jax.numpy as jnp
import numpy as np
import tiny_hgem as tiny

from msa_jax.models.hgem import system as hgem
from msa_jax.models.hgem.polarity_layer import num_route_classes
from msa_jax.models.outputs import REGRESSION, output_spec
from msa_jax.typing import Label, Routing


def output_with(routes, gate1=None):
  routes = jnp.asarray(routes, jnp.float32)
  gate2 = Routing(routes, routes, jnp.log(routes + 1e-9))
  gate1 = gate2 if gate1 is None else gate1
  scores = routes / jnp.linalg.norm(routes, axis=1, keepdims=True)
  return hgem.ModelOutput(
    {},
    {"class_scores": scores},
    {"gate1": gate1, "gate2": gate2},
    {"denoising": jnp.ones(())},
  )


def test_route_losses_equal_loops_over_the_labelled_rows():
  random = np.random.default_rng(0)
  routes = random.dirichlet([1.0, 1.0, 1.0], 6)
  batch = tiny.batch()
  label = batch.labels["sentiment"].replace(mask=jnp.arange(6) != 2)
  batch = batch.replace(labels={"sentiment": label})
  losses = hgem.auxiliary(tiny.model(), output_with(routes), batch, jnp.zeros(()))
  rows = [0, 1, 3, 4]  # 2 has no label, 5 is filler
  classes = [0, 2, 0, 2]
  alike, apart, nce = [], [], []
  unit = routes / np.linalg.norm(routes, axis=1, keepdims=True)
  for i, a in zip(rows, classes, strict=True):
    inner = 0.0
    for j, b in zip(rows, classes, strict=True):
      inner += np.exp(unit[i, b] / 0.12)
      if i != j:
        (alike if a == b else apart).append(np.sum((routes[i] - routes[j]) ** 2))
    nce.append(np.log(inner) - unit[i, a] / 0.12)
  np.testing.assert_allclose(
    losses["route_discrimination"], np.mean(alike) - np.mean(apart), atol=1e-5
  )
  np.testing.assert_allclose(losses["route_mi"], np.mean(nce), atol=1e-5)
  assert losses["denoising"] == 1.0
  # Every expert is selected by all five real rows: f = 1/3 and the balance is
  # 3 * sum(1/3 * P) = 1.
  np.testing.assert_allclose(losses["load_balance"], 1.0, atol=1e-6)


def test_rows_without_content_and_fillers_count_in_no_route_loss():
  random = np.random.default_rng(1)
  routes, other = (random.dirichlet([1.0, 1.0, 1.0], 6) for _ in range(2))
  skewed = np.eye(3)[[0, 0, 1, 2, 2, 2]]
  batch, model = tiny.batch(), tiny.model()
  # Row 0 has nothing, row 2 has lost all its steps, row 5 is filler.
  available = batch.available.at[0].set(False)
  batch = batch.replace(available=available)
  for name in batch.order:
    lost = batch.modalities[name].lost.at[2].set(True)
    batch = tiny.edit(batch, name, lost=lost)
  gone = np.array([True, False, True, False, False, True])

  def losses(rows):
    gate = Routing(*[jnp.asarray(skewed * (1 - rows) + other * rows, jnp.float32)] * 3)
    mixed = jnp.asarray(routes * (1 - rows) + other * rows, jnp.float32)
    return hgem.auxiliary(model, output_with(mixed, gate), batch, jnp.zeros(()))

  ours, theirs = losses(np.zeros((6, 1))), losses(gone[:, None])
  for name in ("route_discrimination", "route_mi", "load_balance"):
    np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-6)
  # Rows 1, 3, 4: experts 0, 2, 2 for sure, so 3 * (1/3 * 1/3 + 2/3 * 2/3).
  np.testing.assert_allclose(ours["load_balance"], 3 * 5 / 9, rtol=1e-6)


def test_route_losses_vanish_without_labels_and_without_gate_two():
  routes = np.full((6, 3), 1.0 / 3.0)
  unlabelled = tiny.batch().replace(labels={})
  losses = hgem.auxiliary(tiny.model(), output_with(routes), unlabelled, jnp.zeros(()))
  assert losses["route_discrimination"] == 0.0 and losses["route_mi"] == 0.0
  absent = Routing(*[jnp.zeros((6, 3))] * 3)
  output = hgem.ModelOutput(
    {},
    {"class_scores": jnp.zeros((6, 3))},
    {"gate1": absent, "gate2": absent},
    {"denoising": jnp.zeros(())},
  )
  losses = hgem.auxiliary(tiny.model(), output, tiny.batch(), jnp.zeros(()))
  assert all(float(value) == 0.0 for value in losses.values())


def test_route_classes_of_real_valued_labels_are_polarities():
  batch = tiny.batch(rows=7, label=[-2.0, 1.5, 0.0, -0.5, 2.9, 7.0, 3.0])
  classes, real = hgem.route_classes(REGRESSION, batch)
  assert classes[:6].tolist() == [0, 2, 1, 0, 2, 2]
  assert real.tolist() == [True] * 6 + [False]
  assert num_route_classes(REGRESSION) == 3


def test_route_classes_of_class_labels():
  batch = tiny.batch(rows=3)
  answers = jnp.array([[0, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 1]], jnp.int32)
  batch = batch.replace(labels={"emotion": Label(answers, jnp.ones(3, bool))})
  batch = batch.replace(sample_mask=jnp.ones(3, bool))
  questions = output_spec("emotion", tiny.EMOTION)
  classes, real = hgem.route_classes(questions, batch)
  assert classes.tolist() == [2, 0, 1] and real.tolist() == [True, False, True]
  index = Label(jnp.array([3, 0, 2], jnp.int32), jnp.array([True, True, False]))
  one = questions._replace(kind="classes")
  classes, real = hgem.route_classes(one, batch.replace(labels={"emotion": index}))
  assert classes.tolist() == [3, 0, 2] and real.tolist() == [True, True, False]
  assert num_route_classes(one) == 4


def test_the_temperature_scales_the_scores_of_the_information_loss():
  routes = np.random.default_rng(0).dirichlet([1.0, 1.0, 1.0], 6)
  batch, output = tiny.batch(), output_with(routes)
  sharp, flat = (
    float(
      hgem.auxiliary(
        tiny.model({"route_temperature": tau}), output, batch, jnp.zeros(())
      )["route_mi"]
    )
    for tau in (0.05, 1e4)
  )
  # A flat softmax over the batch's five real rows: the loss is log 5.
  np.testing.assert_allclose(flat, np.log(5.0), atol=1e-3)
  assert abs(sharp - flat) > 0.1
