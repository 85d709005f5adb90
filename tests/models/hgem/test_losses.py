"""H-GEM's route losses and the classes of labels that they go by."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_hgem as tiny

from msa_jax.models.hgem import system as hgem
from msa_jax.typing import Label, Routing


def output_with(routes, gate1=None):
  routes = jnp.asarray(routes, jnp.float32)
  gate2 = Routing(routes, routes, jnp.log(routes + 1e-9))
  gate1 = gate2 if gate1 is None else gate1
  scores = routes / jnp.linalg.norm(routes, axis=1, keepdims=True)
  return hgem.ModelOutput(
    {}, {"mi_scores": scores}, {"gate1": gate1, "gate2": gate2}, {"den": jnp.ones(())}
  )


def test_route_losses_equal_loops_over_the_labelled_rows():
  random = np.random.default_rng(0)
  routes = random.dirichlet([1.0, 1.0, 1.0], 6)
  batch = tiny.batch()
  label = batch.labels["sentiment"].replace(mask=jnp.arange(6) != 2)
  batch = batch.replace(labels={"sentiment": label})
  losses = hgem.auxiliary(tiny.config(), output_with(routes), batch, jnp.zeros(()))
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
  np.testing.assert_allclose(losses["disc"], np.mean(alike) - np.mean(apart), atol=1e-5)
  np.testing.assert_allclose(losses["mi"], np.mean(nce), atol=1e-5)
  assert losses["den"] == 1.0
  # Every expert is selected by all five real rows: f = 1/3 and the balance is
  # 3 * sum(1/3 * P) = 1.
  np.testing.assert_allclose(losses["bal"], 1.0, atol=1e-6)


def test_route_losses_vanish_without_labels_and_without_gate_two():
  routes = np.full((6, 3), 1.0 / 3.0)
  unlabelled = tiny.batch().replace(labels={})
  losses = hgem.auxiliary(tiny.config(), output_with(routes), unlabelled, jnp.zeros(()))
  assert losses["disc"] == 0.0 and losses["mi"] == 0.0
  absent = Routing(*[jnp.zeros((6, 3))] * 3)
  output = hgem.ModelOutput(
    {},
    {"mi_scores": jnp.zeros((6, 3))},
    {"gate1": absent, "gate2": absent},
    {"den": jnp.zeros(())},
  )
  losses = hgem.auxiliary(tiny.config(), output, tiny.batch(), jnp.zeros(()))
  assert all(float(value) == 0.0 for value in losses.values())


@pytest.mark.parametrize(
  ("rule", "expected"),
  [
    ("polarity", [0, 2, 1, 0, 2, 2]),
    # -2, 1.5 -> 2, 0, -0.5 -> 0 (halves to even), 2.9 -> 3, 7 -> clipped to 3.
    ("round7", [1, 5, 3, 3, 6, 6]),
    ("sign2", [0, 1, 1, 0, 1, 1]),
  ],
)
def test_route_classes_of_real_valued_labels(rule, expected):
  batch = tiny.batch(rows=7, label=[-2.0, 1.5, 0.0, -0.5, 2.9, 7.0, 3.0])
  made = tiny.config({"route_label": rule})
  classes, real = hgem.route_classes(made, batch)
  assert classes[:6].tolist() == expected
  assert real.tolist() == [True] * 6 + [False]
  assert hgem.n_route_classes(made) == {"polarity": 3, "round7": 7, "sign2": 2}[rule]


def test_route_classes_of_class_labels():
  batch = tiny.batch(rows=3)
  answers = jnp.array([[0, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 1]], jnp.int32)
  batch = batch.replace(labels={"emotion": Label(answers, jnp.ones(3, bool))})
  batch = batch.replace(sample_mask=jnp.ones(3, bool))
  overrides = {"route_label": "class", "polarity.n": 4}
  classes, real = hgem.route_classes(
    tiny.config(overrides, emotion=tiny.EMOTION), batch
  )
  assert classes.tolist() == [2, 0, 1] and real.tolist() == [True, False, True]
  index = Label(jnp.array([3, 0, 2], jnp.int32), jnp.array([True, True, False]))
  made = tiny.config(overrides, emotion={**tiny.EMOTION, "kind": "classes"})
  classes, real = hgem.route_classes(made, batch.replace(labels={"emotion": index}))
  assert classes.tolist() == [3, 0, 2] and real.tolist() == [True, True, False]
