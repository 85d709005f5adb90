"""Schedules, partitions and clipping of the optimizer."""

import jax.numpy as jnp
import numpy as np
import pytest
import toy

from msa_jax.errors import UserError
from msa_jax.step import optimizer as optim
from msa_jax.typing import Spec

STEPS = 20  # 4 batches per epoch, 5 epochs


def _optim(**options):
  return toy.config(batch_size=10, epochs=5, **options).optim


def _build(options, partition=toy.SYSTEM.partition):
  return optim.build(options, STEPS, partition)


def test_total_steps_counts_the_padded_last_batch():
  spec = Spec(widths={}, lengths={}, tasks={}, train_size=41)
  assert optim.total_steps(spec, _optim()) == 25


def test_linear_schedule_warms_up_over_its_share_and_ends_at_zero():
  rate = optim.schedule(_optim(warmup_fraction=0.2, schedule="linear"), STEPS)
  # 4 warm-up steps: 1/4, 2/4, 3/4, 1; then 1 down to 0 over 16 steps.
  values = [float(rate(step)) for step in range(21)]
  np.testing.assert_allclose(values[:5], [0.25, 0.5, 0.75, 1.0, 1.0], atol=1e-6)
  np.testing.assert_allclose(values[12], 0.5, atol=1e-6)
  np.testing.assert_allclose(values[20], 0.0, atol=1e-6)


def test_constant_schedule_without_warm_up_is_one():
  rate = optim.schedule(_optim(warmup_fraction=0.0, schedule="constant"), STEPS)
  assert [float(rate(step)) for step in (0, 7, 19)] == [1.0, 1.0, 1.0]


def test_cosine_schedule_is_half_way_in_the_middle():
  rate = optim.schedule(_optim(warmup_fraction=0.0, schedule="cosine"), STEPS)
  np.testing.assert_allclose(float(rate(10)), 0.5, atol=1e-6)


def test_first_adam_update_is_each_partitions_learning_rate():
  config = _optim(warmup_fraction=0.0, schedule="constant", grad_clip_norm=0.0)
  optimizer = _build(config)
  params = {"gate": {"kernel": jnp.ones((2, 2))}, "head": {"kernel": jnp.ones((2, 1))}}
  gradients = {
    "gate": {"kernel": jnp.full((2, 2), 3.0)},
    "head": {"kernel": jnp.full((2, 1), -7.0)},
  }
  updates, _ = optimizer.update(gradients, optimizer.init(params), params)
  # Adam's first update is -lr * sign(gradient).
  np.testing.assert_allclose(updates["gate"]["kernel"], -0.01, rtol=1e-5)
  np.testing.assert_allclose(updates["head"]["kernel"], 0.05, rtol=1e-5)


def test_clipping_bounds_the_norm_over_all_partitions():
  config = _optim(
    name="sgd", warmup_fraction=0.0, schedule="constant", grad_clip_norm=1.0
  )
  optimizer = _build(config)
  params = {
    "gate": {"kernel": jnp.zeros((1, 1))},
    "head": {"kernel": jnp.zeros((1, 1))},
  }
  gradients = {
    "gate": {"kernel": jnp.full((1, 1), 3.0)},
    "head": {"kernel": jnp.full((1, 1), 4.0)},
  }
  updates, _ = optimizer.update(gradients, optimizer.init(params), params)
  # Norm 5 becomes 1: gradients .6 and .8, times the learning rates .01 and .05.
  np.testing.assert_allclose(updates["gate"]["kernel"], -0.006, rtol=1e-5)
  np.testing.assert_allclose(updates["head"]["kernel"], -0.04, rtol=1e-5)


def test_adamw_decays_matrices_and_spares_vectors():
  config = _optim(
    name="adamw",
    warmup_fraction=0.0,
    schedule="constant",
    weight_decay=0.1,
    grad_clip_norm=0.0,
  )
  optimizer = _build(config)
  params = {"head": {"kernel": jnp.full((2, 1), 2.0), "bias": jnp.full((1,), 2.0)}}
  gradients = {"head": {"kernel": jnp.zeros((2, 1)), "bias": jnp.zeros((1,))}}
  updates, _ = optimizer.update(gradients, optimizer.init(params), params)
  np.testing.assert_allclose(updates["head"]["kernel"], -0.05 * 0.1 * 2.0, rtol=1e-5)
  np.testing.assert_array_equal(updates["head"]["bias"], 0.0)


@pytest.mark.parametrize(
  ("options", "message"),
  [({"name": "lion"}, "optim.name"), ({"schedule": "step"}, "schedule")],
)
def test_unknown_names_are_answered_with_the_choices(options, message):
  with pytest.raises(UserError, match=message):
    _build(_optim(**options))


def test_a_partition_without_learning_rate_is_named():
  optimizer = _build(_optim(), lambda path: "backbone")
  with pytest.raises(UserError, match="learning_rates.backbone"):
    optimizer.init({"kernel": jnp.ones((1, 1))})


def test_lower_layers_of_a_text_encoder_learn_more_slowly():
  config = _optim(warmup_fraction=0.0, schedule="constant", grad_clip_norm=0.0)
  one = jnp.ones((3, 2, 2))
  params = {
    "text_encoder": {"embeddings": {"word": one[0]}, "layers": {"query": one}},
    "head": {"kernel": one[0]},
  }
  optimizer = optim.build(config, STEPS, lambda path: "new", layer_decay=0.5)
  updates, _ = optimizer.update(params, optimizer.init(params), params)
  found = updates["text_encoder"]
  # Adam's first update is the learning rate: whole for the third layer and the head.
  np.testing.assert_allclose(updates["head"]["kernel"], -0.05, rtol=1e-5)
  for layer, share in enumerate((0.25, 0.5, 1.0)):
    np.testing.assert_allclose(
      found["layers"]["query"][layer], -0.05 * share, rtol=1e-5
    )
  np.testing.assert_allclose(found["embeddings"]["word"], -0.05 * 0.125, rtol=1e-5)


def test_partitions_have_decays_of_their_own():
  config = _optim(
    name="sgd",
    warmup_fraction=0.0,
    schedule="constant",
    grad_clip_norm=0.0,
    weight_decay=0.1,
    weight_decays={"gate": 0.5},
  )
  optimizer = _build(config)
  params = {"gate": {"kernel": jnp.ones((2, 2))}, "head": {"kernel": jnp.ones((2, 1))}}
  zeros = {"gate": {"kernel": jnp.zeros((2, 2))}, "head": {"kernel": jnp.zeros((2, 1))}}
  updates, _ = optimizer.update(zeros, optimizer.init(params), params)
  np.testing.assert_allclose(updates["gate"]["kernel"], -0.01 * 0.5, rtol=1e-5)
  np.testing.assert_allclose(updates["head"]["kernel"], -0.05 * 0.1, rtol=1e-5)


def test_clipping_by_value_bounds_every_entry():
  config = _optim(
    name="sgd",
    warmup_fraction=0.0,
    schedule="constant",
    grad_clip_norm=0.0,
    grad_clip_value=0.5,
  )
  optimizer = _build(config)
  params = {"head": {"kernel": jnp.zeros((2, 1))}}
  gradients = {"head": {"kernel": jnp.asarray([[-3.0], [0.2]])}}
  updates, _ = optimizer.update(gradients, optimizer.init(params), params)
  expected = [[0.05 * 0.5], [-0.05 * 0.2]]
  np.testing.assert_allclose(updates["head"]["kernel"], expected, rtol=1e-5)


def test_updates_of_several_batches_are_counted_with_or_without_the_rest():
  spec = Spec(widths={}, lengths={}, tasks={}, train_size=41)  # 5 batches
  assert optim.total_updates(spec, _optim(accumulate_steps=2)) == 15
  dropped = _optim(accumulate_steps=2, accumulation="sum")
  assert optim.total_updates(spec, dropped) == 10
