"""The fusion weights' loss, gradient and limits, in float64 against differences."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_fusion
from hypothesis import given, settings
from hypothesis import strategies as st

from msa_jax.config.options import BalanceConfig
from msa_jax.errors import UserError
from msa_jax.losses.balance import balance_loss, balance_targets, mean_magnitude
from msa_jax.step.balance import omega as omega_lib

OMEGA = (0.8, 1.3, 1.1)
ALL = jnp.ones((3,), bool)


def options(**changes):
  return tiny_fusion.config(balance=changes).balance


def central_differences(function, at, step=1e-6):
  at = np.asarray(at, np.float64)
  return np.array(
    [
      (function(jnp.asarray(at + step * e)) - function(jnp.asarray(at - step * e)))
      / (2 * step)
      for e in np.eye(len(at))
    ]
  )


def test_gradient_size_is_the_mean_absolute_entry():
  # (1 + 2 + 3 + 0) / 4
  assert float(mean_magnitude(jnp.array([[1.0, -2.0], [3.0, 0.0]]))) == 1.5


def test_targets_and_loss_by_hand():
  # mean 3; ratios 6/6, 6/2, 6/1; targets 3, 9, 18; |6-3| + |2-9| + |1-18| = 27.
  sizes = jnp.array([6.0, 2.0, 1.0])
  targets = balance_targets(sizes, ALL, 10.0)
  np.testing.assert_allclose(targets.target, [3.0, 9.0, 18.0])
  np.testing.assert_allclose(targets.ratio, [1.0, 3.0, 6.0])
  assert float(balance_loss(sizes, targets.target, ALL)) == 27.0


def test_ratio_is_bounded_for_silent_modalities():
  targets = balance_targets(jnp.array([1.0, 0.0, 0.5]), ALL, 10.0)
  np.testing.assert_allclose(targets.ratio, [1.0, 10.0, 2.0])
  unbounded = balance_targets(jnp.array([1.0, 0.0, 0.5]), ALL, float("inf"))
  assert np.all(np.isfinite(unbounded.target))


def test_a_modality_not_seen_has_no_part_in_mean_maximum_and_loss():
  seen = jnp.array([True, False, True])
  sizes = jnp.array([4.0, 100.0, 2.0])
  targets = balance_targets(sizes, seen, 10.0)
  # mean (4 + 2) / 2 = 3, ratios 1 and 2, targets 3 and 6: |4-3| + |2-6| = 5.
  np.testing.assert_allclose(targets.target, [3.0, 0.0, 6.0])
  assert float(balance_loss(sizes, targets.target, seen)) == 5.0


@pytest.mark.parametrize(
  ("host", "loss", "kind"),
  [
    ("awf", "l1", "relative"),
    ("awf", "mse", "literal"),
    ("lf_dnn", "mse", "relative"),
    ("tfn", "l1", "literal"),
  ],
)
def test_gradient_equals_finite_differences_at_frozen_targets(
  float64, host, loss, kind
):
  made = tiny_fusion.config(host, balance={"omega_loss": kind}, loss={"task": loss})
  double = tiny_fusion.Double(made)
  omega = jnp.asarray(OMEGA, float64)
  report = double.report(omega)
  target, _, mean = balance_targets(double.sizes(omega), double.seen, 10.0)
  scale = 1.0 / float(mean) if kind == "relative" else 1.0
  expected = central_differences(
    lambda w: float(jnp.sum(jnp.abs(double.sizes(w) - target))) * scale, omega
  )
  np.testing.assert_allclose(report.gradient, expected, rtol=2e-6, atol=1e-9)


def test_without_stop_gradient_the_target_is_differentiated_too(float64):
  made = tiny_fusion.config(
    balance={"target_stop_grad": False, "omega_loss": "literal"}, loss={"task": "mse"}
  )
  double = tiny_fusion.Double(made)
  omega = jnp.asarray(OMEGA, float64)
  report = double.report(omega)

  def loss(w):
    g = double.sizes(w)
    return float(balance_loss(g, balance_targets(g, ALL, 10.0).target, ALL))

  np.testing.assert_allclose(
    report.gradient, central_differences(loss, omega), rtol=2e-6, atol=1e-9
  )
  frozen = tiny_fusion.config(balance={"omega_loss": "literal"}).balance
  other = double.report(omega, frozen)
  assert not np.allclose(other.gradient, report.gradient, rtol=1e-2)


def linear_l1(loss="l1"):
  """A linear head, no A-fusion and labels far away: the loss has no kink nearby."""
  made = tiny_fusion.config(
    model={"num_post_layers": 0, "attention_fusion": False},
    loss={"task": loss},
    balance={"omega_loss": "literal"},
  )
  return made, tiny_fusion.Double(made, tiny_fusion.batch(label=100.0))


def test_with_a_linear_head_and_l1_gradients_scale_with_their_weight(float64):
  _, double = linear_l1()
  at_one = double.sizes(jnp.ones((3,), float64))
  scaled = double.sizes(jnp.asarray(OMEGA, float64))
  np.testing.assert_allclose(scaled, at_one * np.asarray(OMEGA), rtol=1e-12)


def test_with_l1_the_gradient_is_sign_times_size_over_weight(float64):
  made, double = linear_l1()
  omega = jnp.asarray(OMEGA, float64)
  report = double.report(omega)
  sizes = np.asarray(double.sizes(omega))
  target = sizes.mean() * sizes.max() / sizes
  np.testing.assert_allclose(
    report.gradient, np.sign(sizes - target) * sizes / np.asarray(OMEGA), rtol=1e-10
  )
  jacobian = np.asarray(tiny_fusion.quick_jit(jax.jacobian(double.function))(omega))
  np.testing.assert_allclose(jacobian, np.diag(np.diag(jacobian)), atol=1e-14)
  proportional = tiny_fusion.config(
    balance={"omega_loss": "literal", "omega_grad": "proportional"}
  ).balance
  cheap = double.report(omega, proportional)
  np.testing.assert_allclose(cheap.gradient, report.gradient, rtol=1e-10)


def test_with_squared_error_weights_influence_each_others_gradients(float64):
  _, double = linear_l1("mse")
  jacobian = np.asarray(
    tiny_fusion.quick_jit(jax.jacobian(double.function))(jnp.asarray(OMEGA, float64))
  )
  off_diagonal = jacobian - np.diag(np.diag(jacobian))
  assert np.abs(off_diagonal).max() > 1e-5 * np.abs(jacobian).max()


def proportional_sizes(slopes):
  """Gradient sizes that are proportional to their weights."""
  return lambda omega: omega * jnp.asarray(slopes, omega.dtype)


def test_equal_gradients_are_a_fixed_point():
  report = omega_lib.omega_gradient(
    options(), proportional_sizes([0.5, 0.5, 0.5]), jnp.ones((3,)), ALL
  )
  assert float(report.loss) == 0.0
  np.testing.assert_array_equal(report.gradient, np.zeros(3))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.01, 10.0), min_size=3, max_size=3))
def test_weights_rise_below_the_geometric_mean_and_fall_above(slopes):
  sizes = np.asarray(slopes)
  limit = np.sqrt(sizes.mean() * sizes.max())
  if np.any(np.abs(sizes / limit - 1) < 1e-3) or sizes.max() / sizes.min() > 9:
    return
  report = omega_lib.omega_gradient(
    options(), proportional_sizes(slopes), jnp.ones((3,)), ALL
  )
  np.testing.assert_array_equal(np.sign(report.gradient), np.sign(sizes - limit))


def test_literal_and_relative_losses_have_parallel_gradients():
  sizes = proportional_sizes([0.002, 0.001, 0.0005])
  literal = omega_lib.omega_gradient(
    options(omega_loss="literal"), sizes, jnp.ones((3,)), ALL
  )
  relative = omega_lib.omega_gradient(options(), sizes, jnp.ones((3,)), ALL)
  mean = 0.0035 / 3
  np.testing.assert_allclose(
    relative.gradient, np.asarray(literal.gradient) / mean, rtol=1e-5
  )
  assert float(relative.loss) == float(literal.loss)


def test_a_silent_gradient_moves_nothing_and_stays_finite(float64):
  _, double = linear_l1()
  double.silence("audio")
  omega = jnp.ones((3,), float64)
  report = double.report(omega)
  assert float(report.sizes[1]) == 0.0
  assert float(report.ratio[1]) == 10.0
  assert float(report.gradient[1]) == 0.0
  assert np.all(np.isfinite(report.gradient))


def test_no_gradient_at_all_moves_nothing():
  report = omega_lib.omega_gradient(
    options(), proportional_sizes([0.0, 0.0, 0.0]), jnp.ones((3,)), ALL
  )
  np.testing.assert_array_equal(report.gradient, np.zeros(3))
  assert float(report.loss) == 0.0


def test_weights_stay_within_the_clip():
  omega = jnp.array([0.06, 4.9, 1.0])
  new = omega_lib.constrain(options(), jnp.array([-1.0, 9.0, 1.5]), omega, ALL)
  np.testing.assert_allclose(new, [0.05, 5.0, 1.5])


def test_sum3_keeps_the_sum_and_weights_not_seen():
  made = options(omega_norm="sum3")
  omega = jnp.array([1.0, 1.5, 0.5])
  new = omega_lib.constrain(made, jnp.array([0.5, 2.0, 0.5]), omega, ALL)
  np.testing.assert_allclose(new, [0.5, 2.0, 0.5], rtol=1e-6)
  seen = jnp.array([True, False, True])
  new = omega_lib.constrain(made, jnp.array([0.9, 7.0, 0.9]), omega, seen)
  # 3 - 1.5 = 1.5 shared in equal parts.
  np.testing.assert_allclose(new, [0.75, 1.5, 0.75], rtol=1e-6)


@pytest.mark.parametrize(
  ("proposed", "expected"),
  [
    ([-1.0, 5.0, 5.0], [0.05, 1.475, 1.475]),  # the small one waits at its bound
    ([0.1, 0.1, 40.0], [0.3 / 5.2, 0.3 / 5.2, 15.0 / 5.2]),  # 40 counts as 5
    ([5.0, 5.0, 5.0], [1.0, 1.0, 1.0]),
    ([0.05, 0.05, 0.05], [1.0, 1.0, 1.0]),
  ],
)
def test_sum3_stays_within_the_clip(proposed, expected):
  made = options(omega_norm="sum3")
  new = omega_lib.constrain(made, jnp.array(proposed), jnp.ones(3), ALL)
  np.testing.assert_allclose(new, expected, rtol=1e-5)


def test_sum3_shares_what_weights_not_seen_leave():
  made = options(omega_norm="sum3", omega_clip=(0.5, 1.5))
  seen = jnp.array([True, False, True])
  for waiting, shared in ((1.4, [0.6, 1.0]), (0.5, [1.0, 1.5]), (3.0, [0.5, 0.5])):
    omega = jnp.array([1.0, waiting, 1.0])
    new = omega_lib.constrain(made, jnp.array([0.6, 9.0, 1.0]), omega, seen)
    np.testing.assert_allclose(new, [shared[0], waiting, shared[1]], rtol=1e-5)


def test_sum3_needs_a_clip_around_the_mean_weight():
  with pytest.raises(UserError, match="omega_clip=.*keeps the mean weight 1"):
    omega_lib.check_options(
      options(omega_norm="sum3", omega_clip=(2.0, 5.0), omega_init=2.0)
    )


def test_running_mean_forgets_its_start_and_waits_for_modalities_not_seen():
  memory = {"g_mean": jnp.zeros(2), "g_weight": jnp.zeros(2)}
  both, first = jnp.array([True, True]), jnp.array([True, False])
  memory, mean = omega_lib.running_mean(0.9, memory, jnp.array([2.0, 4.0]), both)
  np.testing.assert_allclose(mean, [2.0, 4.0], rtol=1e-6)
  _, mean = omega_lib.running_mean(0.9, memory, jnp.array([3.0, 9.0]), first)
  # (0.9 * 0.1 * 2 + 0.1 * 3) / 0.19 for the first; the second waits.
  np.testing.assert_allclose(mean, [0.48 / 0.19, 4.0], rtol=1e-6)


def test_smoothing_replaces_values_but_not_derivatives():
  # Sizes now 1, 2, 3; smoothed 3, 2, 1: targets 2, 3, 6, so the signs are +, -, -.
  report = omega_lib.omega_gradient(
    options(omega_loss="literal"),
    proportional_sizes([1.0, 2.0, 3.0]),
    jnp.ones((3,)),
    ALL,
    lambda sizes: jnp.array([3.0, 2.0, 1.0]),
  )
  np.testing.assert_allclose(report.gradient, [1.0, -2.0, -3.0])
  np.testing.assert_allclose(report.sizes, [1.0, 2.0, 3.0])


def test_updates_of_a_network_are_multiplied_by_its_weight_and_moments_are_not():
  params = {
    "encoder_text": {"kernel": jnp.ones((2, 2))},
    "last_audio": {"kernel": jnp.ones((2, 2))},
    "head": {"kernel": jnp.ones((2, 1))},
    "attention": {"kernel": jnp.ones((3, 3))},
  }
  gradients = jax.tree.map(lambda leaf: 0.3 * leaf, params)
  names = ("text", "audio", "vision")
  plain = optax.with_extra_args_support(optax.adam(0.1))
  scaled = optax.chain(optax.adam(0.1), omega_lib.scale_by_omega(names))
  omega = jnp.array([0.5, 2.0, 1.0])
  state, scaled_state = plain.init(params), scaled.init(params)
  for _ in range(3):
    expected, state = plain.update(gradients, state, params)
    updates, scaled_state = scaled.update(gradients, scaled_state, params, omega=omega)
    for name, factor in {
      "encoder_text": 0.5,
      "last_audio": 2.0,
      "head": 1.0,
      "attention": 1.0,
    }.items():
      np.testing.assert_array_equal(
        updates[name]["kernel"], factor * np.asarray(expected[name]["kernel"])
      )
  jax.tree.map(np.testing.assert_array_equal, scaled_state[0], state)


def test_owners_are_read_off_names():
  names = ("text", "audio", "vision")
  assert omega_lib.owner_of(("encoder_audio", "lstm", "bias"), names) == "audio"
  assert omega_lib.owner_of(("text", "kernel"), names) == "text"
  assert omega_lib.owner_of(("head", "audio", "kernel"), names) is None
  assert omega_lib.owner_of(("context", "kernel"), names) is None


@pytest.mark.parametrize(
  ("text", "rate"), [("0.05/steps_per_epoch", 0.025), ("0.3", 0.3), ("0", 0.0)]
)
def test_learning_rate_is_a_number_or_a_share_of_an_epoch(text, rate):
  assert omega_lib.omega_learning_rate(options(omega_lr=text), 2) == rate


@pytest.mark.parametrize("text", ["fast", "-1", "nan", "1/epoch", "0.1/", "inf"])
def test_other_learning_rates_are_refused(text):
  with pytest.raises(UserError, match="omega_lr"):
    omega_lib.omega_learning_rate(options(omega_lr=text), 2)


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("omega_loss", "square"),
    ("omega_norm", "sum4"),
    ("omega_grad", "none"),
    ("scale_updates_by_omega", "maybe"),
    ("omega_clip", (0.0, 5.0)),
    ("omega_clip", (2.0, 5.0)),
    ("r_max", 0.5),
    ("g_ema", 1.0),
  ],
)
def test_bad_options_are_refused_by_name(key, value):
  with pytest.raises(UserError, match=key):
    omega_lib.check_options(options(**{key: value}))


@pytest.mark.parametrize(
  ("optimizer", "chosen", "expected"),
  [
    ("adam", "auto", True),
    ("adamw", "auto", True),
    ("sgd", "auto", False),
    ("sgd", "true", True),
    ("adam", "false", False),
  ],
)
def test_auto_scales_updates_of_adaptive_optimizers_only(optimizer, chosen, expected):
  made = options(scale_updates_by_omega=chosen)
  assert omega_lib.scales_updates(made, optimizer) == expected


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"omega_clip": (2.0, 1.0)}, "config.balance.omega_clip=.* must be 0 < low"),
    ({"omega_clip": (0.1, math.inf)}, "config.balance.omega_clip=.* finite"),
    ({"omega_init": 9.0}, "with omega_init=9.0"),
    ({"r_max": 0.0}, "config.balance.r_max=0.0: must be at least 1"),
    ({"g_ema": 1.0}, "config.balance.g_ema=1.0: must be in"),
  ],
)
def test_options_of_balancing_have_ranges(changes, message):
  with pytest.raises(UserError, match=message):
    omega_lib.check_options(BalanceConfig(**changes))
  omega_lib.check_options(BalanceConfig(r_max=math.inf))
