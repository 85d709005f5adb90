"""Summaries of gates: hand values, units, masks, agreement with the losses."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from msa_jax.layers.routing import route
from msa_jax.losses import routing as losses
from msa_jax.metrics.routing import gate_metrics, routing_metrics
from msa_jax.typing import Routing


def random_gate(seed=0, rows=20, experts=3, k=2):
  logits = np.random.default_rng(seed).standard_normal((rows, experts))
  routing = route(jnp.asarray(logits, jnp.float32), k)
  return routing, np.array(routing.probs), np.array(routing.combine)


def test_a_firm_and_even_gate_by_hand():
  eye = np.eye(4)
  got = gate_metrics(eye, eye)
  assert got["router_entropy_dense_nats"] == 0.0
  np.testing.assert_allclose(got["load_entropy_dense_nats"], math.log(4))
  np.testing.assert_allclose(got["load_entropy_dense_bits"], 2.0)
  np.testing.assert_allclose(got["information_sparse_normalised"], 1.0)
  assert got["selection_frequency"] == got["load"] == [0.25] * 4
  assert got["load_cv2"] == 0.0


def test_a_uniform_top_two_gate_of_three_is_undecided_by_one_bit():
  probs = np.full((6, 3), 1 / 3)
  combine = np.array([[0.5, 0.5, 0.0]] * 4 + [[0.0, 0.5, 0.5]] * 2)
  got = gate_metrics(probs, combine)
  np.testing.assert_allclose(got["router_entropy_dense_bits"], math.log2(3))
  np.testing.assert_allclose(got["router_entropy_dense_normalised"], 1.0)
  np.testing.assert_allclose(got["router_entropy_sparse_bits"], 1.0)
  np.testing.assert_allclose(got["selection_frequency"], [4 / 6, 1.0, 2 / 6])
  np.testing.assert_allclose(got["load"], [4 / 12, 6 / 12, 2 / 12])
  # 3 * (1/9 + 1/4 + 1/36) - 1 = 1/6.
  np.testing.assert_allclose(got["load_cv2"], 1 / 6)


def test_host_side_summaries_agree_with_the_losses_on_the_device():
  routing, probs, combine = random_gate()
  got = gate_metrics(probs, combine)
  pairs = {
    "router_entropy_dense_bits": losses.router_entropy(routing.probs, base="bits"),
    "load_entropy_dense_nats": losses.load_entropy(routing.probs),
    "information_sparse_nats": losses.routing_information(routing.combine),
    "load_entropy_sparse_normalised": losses.load_entropy(
      routing.combine, normalised=True
    ),
    "load_cv2": losses.load_cv2(routing),
  }
  for name, expected in pairs.items():
    np.testing.assert_allclose(got[name], expected, rtol=1e-4, atol=1e-6)


def test_top_one_weights_are_a_firm_decision_whatever_their_size():
  _, probs, combine = random_gate(k=1)
  assert gate_metrics(probs, combine)["router_entropy_sparse_nats"] == 0.0


def test_filler_rows_and_rows_without_experts_count_nowhere():
  _, probs, combine = random_gate()
  short = gate_metrics(probs[:15], combine[:15])
  probs[15:18] = combine[15:18] = 0.0
  mask = np.arange(20) < 18
  assert gate_metrics(probs, combine, mask) == short


@pytest.mark.filterwarnings("error")
def test_a_gate_without_rows_is_nan_under_the_same_keys():
  _, probs, combine = random_gate()
  empty = gate_metrics(probs, combine, np.zeros(20, bool))
  assert empty.keys() == gate_metrics(probs, combine).keys()
  assert math.isnan(empty["router_entropy_dense_nats"])
  assert all(math.isnan(value) for value in empty["load"])
  alone = gate_metrics(np.ones((2, 1)), np.ones((2, 1)))
  assert alone["router_entropy_dense_normalised"] == 0.0


def test_every_gate_is_summarised_under_its_name():
  _, probs, combine = random_gate()
  gates = {name: Routing(probs, combine, probs) for name in ("gate1", "gate2")}
  got = routing_metrics(gates)
  assert set(got) == {"gate1", "gate2"}
  assert got["gate2"] == gate_metrics(probs, combine)
