"""H-GEM's route losses and the classes of labels that they go by."""

import jax
import jax.numpy as jnp
import numpy as np
import tiny_hgem as tiny

from msa_jax.layers.routing import route
from msa_jax.models.hgem import system as hgem
from msa_jax.models.hgem.polarity_layer import num_route_classes
from msa_jax.models.outputs import REGRESSION, output_spec
from msa_jax.step import compose
from msa_jax.step.objective import make_objective
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


def test_the_information_of_gates_equals_an_oracle_in_float64():
  random = np.random.default_rng(3)
  batch = tiny.batch()  # row 5 is filler
  probs = {gate: random.dirichlet([0.5] * 3, 6) for gate in hgem.INFORMED_GATES}
  # Row 1 lacks a modality: for Gate 0 its absence is no choice.
  probs["gate0"][1] = [0.5, 0.5, 0.0]
  routing = {
    gate: Routing(*[jnp.asarray(values, jnp.float32)] * 3)
    for gate, values in probs.items()
  }
  output = output_with(probs["gate2"]).replace(routing=routing)
  losses = hgem.auxiliary(tiny.model(), output, batch, jnp.zeros(()))

  def entropy(values):
    return -np.sum(values * np.log(np.where(values > 0, values, 1.0)), axis=-1)

  for gate, values in probs.items():
    rows = values[[0, 2, 3, 4]] if gate == "gate0" else values[:5]
    wanted = entropy(rows.mean(axis=0)) - entropy(rows).mean()
    found = float(losses[f"information_{gate}"])
    np.testing.assert_allclose(-found, wanted, rtol=1e-5)


def test_fillers_and_rows_without_content_have_no_information():
  random = np.random.default_rng(4)
  batch = tiny.batch()
  batch = batch.replace(available=batch.available.at[0].set(False))
  probs = jnp.asarray(random.dirichlet([1.0] * 3, 6), jnp.float32)
  other = probs.at[jnp.asarray([0, 5])].set(jnp.asarray([1.0, 0.0, 0.0]))

  def loss(values):
    routing = Routing(values, values, jnp.log(values + 1e-9))
    output = output_with(values).replace(
      routing=dict.fromkeys(hgem.INFORMED_GATES, routing)
    )
    return hgem.auxiliary(tiny.model(), output, batch, jnp.zeros(()))

  ours, theirs = loss(probs), loss(other)
  for gate in hgem.INFORMED_GATES:
    np.testing.assert_allclose(
      ours[f"information_{gate}"], theirs[f"information_{gate}"], rtol=1e-6
    )
  gradient = jax.grad(lambda values: loss(values)["information_gate1"])(probs)
  assert np.all(np.asarray(gradient)[[0, 5]] == 0.0)
  assert np.all(np.abs(np.asarray(gradient)[1:5]).max(axis=1) > 1e-3)


def test_descent_on_the_information_makes_decisions_firm_and_uses_all_experts():
  """From near even gates to one expert each, none of them idle."""
  logits = 0.3 * jax.random.normal(jax.random.key(0), (12, 3))
  rows = jnp.ones(12, bool)

  def loss(logits):
    return -hgem.sample_information(route(logits), rows)

  step = jax.jit(lambda logits: logits - 5.0 * jax.grad(loss)(logits))
  for _ in range(200):
    logits = step(logits)
  probs = np.asarray(route(logits).probs)
  assert np.all(probs.max(axis=1) > 0.9)
  np.testing.assert_allclose(probs.mean(axis=0), 1 / 3, atol=0.1)


def test_gates_train_with_a_rate_of_their_own_where_it_is_given():
  names = [("gate1", "units"), ("gate3_igsf", "kernel"), ("L3", "out"), ("head_1",)]
  own = {"new": 1.0, "gate": 2.0}
  found = [compose.partition_with_rate(hgem.SYSTEM, own, path) for path in names]
  assert found == ["gate", "gate", "new", "new"]
  # A run of an earlier version has no such rate.
  for rates in ({"new": 1.0}, {"new": 1.0, "gate": 0.0}):
    found = [compose.partition_with_rate(hgem.SYSTEM, rates, path) for path in names]
    assert found == ["new"] * 4


def test_an_objective_of_an_earlier_version_has_no_information_loss():
  weights = {"route_discrimination": 0.1, "route_mi": 0.0}
  made = make_objective(hgem.SYSTEM, tiny.model(), weights, {}, {}, 10)
  assert made.weights["information_gate1"] == 0.0
  assert made.weights["route_discrimination"] == 0.1
