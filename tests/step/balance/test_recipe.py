"""B-fusion around models: what moves what, in one step and over whole runs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_fusion
from changes import change

from msa_jax.step import compose, rngs
from msa_jax.step.balance import recipe as balance
from msa_jax.step.balance.split_model import seen_modalities

HOSTS = ("awf", "lf_dnn", "lf_lstm", "tfn")


def step_of(config):
  made = compose.build(config)
  return made, tiny_fusion.quick_jit(made.step)


def without(config):
  """The model alone, without B-fusion."""
  return change(config, balance={"enabled": False})


def start(config, made=None):
  """A state with random parameters: no initialisation to compile."""
  made = compose.build(config) if made is None else made
  shapes = jax.eval_shape(made.init, 0)
  params = tiny_fusion.random_like(shapes.params, dtype=jnp.float32)
  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
  collections = dict(zeros.collections)
  if "batch_stats" in collections:
    collections["batch_stats"] = jax.tree_util.tree_map_with_path(
      lambda path, leaf: leaf + (path[-1].key == "var"), collections["batch_stats"]
    )
  if "balance" in collections:
    memory = collections["balance"]
    collections["balance"] = {**memory, "omega": memory["omega"] + 1.0}
  return zeros.replace(params=params, collections=collections)


def with_omega(state, values):
  memory = {**state.collections["balance"], "omega": jnp.asarray(values, jnp.float32)}
  return state.replace(collections={**state.collections, "balance": memory})


def omega_of(state):
  return np.asarray(state.collections["balance"]["omega"])


def assert_trees_close(ours, theirs, **tolerance):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), ours, theirs)


@pytest.mark.parametrize("name", HOSTS)
def test_unmoved_weights_of_one_train_as_the_model_alone(name):
  dropout = {"dropout": 0.3} if name == "awf" else {"dropout.post": 0.3}
  config = tiny_fusion.config(
    name, model=dropout, balance={"omega_lr": "0"}, optim={"name": "sgd"}
  )
  _, step = step_of(config)
  alone, plain_step = step_of(without(config))
  state, plain = start(config), start(config, alone)
  batch = tiny_fusion.batch()
  for _ in range(2):
    state, metrics = step(state, batch, 3)
    plain, expected = plain_step(plain, batch, 3)
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-6)
    np.testing.assert_allclose(
      metrics["gradient_norm"], expected["gradient_norm"], rtol=1e-5
    )
  assert_trees_close(state.params, plain.params, atol=1e-7)
  statistics = {k: v for k, v in state.collections.items() if k != "balance"}
  assert_trees_close(statistics, dict(plain.collections), atol=1e-7)
  np.testing.assert_array_equal(omega_of(state), np.ones(3))


@pytest.mark.parametrize("name", ["awf", "lf_dnn"])
def test_initialisation_is_that_of_the_model_alone(name):
  config = tiny_fusion.config(name)
  ours = tiny_fusion.quick_jit(compose.build(config).init)(4)
  theirs = tiny_fusion.quick_jit(compose.build(without(config)).init)(4)
  jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)


def test_measured_sizes_are_those_of_the_gradient_of_the_whole_model():
  config = tiny_fusion.config("awf", model={"dropout": 0.4}, optim={"name": "sgd"})
  made, step = step_of(config)
  batch = tiny_fusion.batch()
  state = with_omega(start(config, made), [0.7, 1.2, 1.0])
  _, metrics = step(state, batch, 1)
  host = tiny_fusion.split(config)
  streams = rngs.streams(1, ("dropout", "noise"), 0)

  def loss(params):
    output = host.model.apply(
      {"params": params},
      batch,
      train=True,
      rngs=streams,
      omega=dict(zip(batch.order, jnp.asarray(omega_of(state)), strict=True)),
    )
    return jnp.mean(
      jnp.abs(output.predictions["sentiment"] - batch.labels["sentiment"].value)
    )

  gradients = tiny_fusion.quick_jit(jax.grad(loss))(state.params)
  expected = [np.abs(gradients[f"last_{n}"]["kernel"]).mean() for n in batch.order]
  np.testing.assert_allclose(metrics["g"], expected, rtol=1e-5)


def test_the_weights_loss_never_moves_the_network_nor_the_task_the_weights():
  batch = tiny_fusion.batch()
  after, moved = {}, {}
  for rate in ("0", "0.05", "0.1"):
    config = tiny_fusion.config("awf", balance={"omega_lr": rate})
    _, step = step_of(config)
    state, _ = step(with_omega(start(config), [0.8, 1.3, 1.1]), batch, 0)
    after[rate], moved[rate] = state.params, omega_of(state)
  jax.tree.map(np.testing.assert_array_equal, after["0"], after["0.1"])
  # SGD: the move is the rate times one gradient, the one that `omega_gradient` gives.
  np.testing.assert_array_equal(moved["0"], np.float32([0.8, 1.3, 1.1]))
  np.testing.assert_allclose(
    moved["0.1"] - moved["0"], 2 * (moved["0.05"] - moved["0"]), atol=1e-6
  )
  config = tiny_fusion.config("awf")
  host, state = tiny_fusion.split(config), start(config)
  variables = {"params": state.params}
  features, _ = host.encode(variables, batch, {})
  report = tiny_fusion.quick_jit(
    lambda omega: balance.omega_gradient(
      config.balance,
      host.gradient_sizes(variables, features, batch, {}),
      omega,
      jnp.ones(3, bool),
    )
  )(jnp.array([0.8, 1.3, 1.1]))
  np.testing.assert_allclose(
    moved["0.1"] - moved["0"], -0.1 * np.asarray(report.gradient), atol=1e-6
  )


def test_adam_updates_of_a_network_are_its_weight_times_the_plain_ones():
  batch, omega = tiny_fusion.batch(), [0.5, 2.0, 1.0]
  moves = {}
  for scaled in ("auto", "false"):
    config = tiny_fusion.config(
      "awf", balance={"scale_updates_by_omega": scaled}, optim={"name": "adam"}
    )
    _, step = step_of(config)
    before = with_omega(start(config), omega)
    after, _ = step(before, batch, 0)
    moves[scaled] = jax.tree.map(jnp.subtract, after.params, before.params)
  factors = {"text": 0.5, "audio": 2.0, "vision": 1.0}
  for name, tree in moves["auto"].items():
    factor = factors.get(name.rpartition("_")[2], 1.0)
    assert_trees_close(
      tree,
      jax.tree.map(lambda leaf, f=factor: f * leaf, moves["false"][name]),
      atol=2e-7,
    )


def test_one_strong_and_two_weak_gradients_are_drawn_together():
  config = tiny_fusion.config(
    "awf", balance={"omega_lr": "0.0025"}, optim={"name": "sgd", "learning_rate": 0.0}
  )
  made, step = step_of(config)
  # Labels far away: no sample's error changes its sign.
  batch = tiny_fusion.batch(16, label=100.0)
  text = batch.modalities["text"]
  text = text.replace(features=2.0 * text.features)
  batch = batch.replace(modalities={**batch.modalities, "text": text})
  state = start(config, made)

  def advance(_, carry):
    return made.step(carry, batch, 0)[0]

  _, before = step(state, batch, 0)
  state = tiny_fusion.quick_jit(lambda s: jax.lax.fori_loop(0, 200, advance, s))(state)
  _, after = step(state, batch, 0)
  assert float(before["g"].max() / before["g"].min()) > 4.0
  assert float(after["g"].max() / after["g"].min()) < 1.1
  assert omega_of(state)[0] < 0.5 < 1.0 < omega_of(state)[1]


@pytest.mark.parametrize("name", HOSTS)
def test_unavailable_modalities_and_single_samples_stay_finite(name):
  config = tiny_fusion.config(name, optim={"learning_rate": 1e-2})
  _, step = step_of(config)
  state = start(config)
  batch = tiny_fusion.batch(1)
  batch = batch.replace(available=jnp.array([[True, False, True]]))
  features = batch.modalities["audio"].features * jnp.nan
  audio = batch.modalities["audio"].replace(features=features)
  batch = batch.replace(modalities={**batch.modalities, "audio": audio})
  moved, metrics = step(state, batch, 0)
  for leaf in jax.tree.leaves((moved, metrics)):
    assert np.all(np.isfinite(leaf))
  assert omega_of(moved)[1] == 1.0
  assert float(metrics["ratio"][1]) == 0.0
  assert np.any(omega_of(moved) != 1.0)
  # A filler row is no sample at all: nothing to learn from, nothing moves.
  filler = batch.replace(sample_mask=jnp.array([False]))
  moved, metrics = step(state, filler, 0)
  np.testing.assert_array_equal(omega_of(moved), np.ones(3))
  assert float(metrics["L_omega"]) == 0.0
  for leaf in jax.tree.leaves((moved, metrics)):
    assert np.all(np.isfinite(leaf))


def test_one_modality_alone_has_nothing_to_balance():
  widths = {"text": 5}
  config = tiny_fusion.config("lf_lstm", widths=widths)
  _, step = step_of(config)
  state, metrics = step(start(config), tiny_fusion.batch(widths=widths), 0)
  np.testing.assert_array_equal(omega_of(state), [1.0])
  assert float(metrics["L_omega"]) == 0.0
  assert float(metrics["g"][0]) > 0.0


def test_only_labelled_samples_count_as_seen():
  batch = tiny_fusion.batch(2)
  available = jnp.array([[True, False, True], [True, True, True]])
  label = batch.labels["sentiment"].replace(mask=jnp.array([True, False]))
  batch = batch.replace(available=available, labels={"sentiment": label})
  seen = seen_modalities(batch, ("text", "audio", "vision"), ("sentiment",))
  np.testing.assert_array_equal(seen, [True, False, True])


def test_smoothed_gradients_are_remembered_in_the_state():
  config = tiny_fusion.config("lf_lstm", balance={"g_ema": 0.9})
  _, step = step_of(config)
  state, first = step(start(config), tiny_fusion.batch(seed=0), 0)
  np.testing.assert_allclose(
    state.collections["balance"]["g_mean"], 0.1 * first["g"], rtol=1e-5
  )
  state, second = step(state, tiny_fusion.batch(seed=1), 0)
  np.testing.assert_allclose(
    state.collections["balance"]["g_mean"],
    0.09 * first["g"] + 0.1 * second["g"],
    rtol=1e-5,
  )


def test_smoothed_gradients_decide_the_weights_loss_and_their_step():
  balance = {"g_ema": 0.9, "omega_lr": "0.1", "omega_grad": "proportional"}
  config = tiny_fusion.config("lf_lstm", balance=balance)
  _, step = step_of(config)
  state, first = step(start(config), tiny_fusion.batch(seed=0), 0)
  before = np.float64(state.collections["balance"]["omega"])
  state, second = step(state, tiny_fusion.batch(seed=1), 0)
  g = [np.float64(metrics["g"]) for metrics in (first, second)]
  smooth = (0.09 * g[0] + 0.1 * g[1]) / 0.19
  losses = []
  for sizes in (smooth, g[1]):
    target = sizes.mean() * np.minimum(sizes.max() / sizes, 10.0)
    losses.append(np.abs(sizes - target).sum())
  np.testing.assert_allclose(second["L_omega"], losses[0], rtol=1e-4)
  assert abs(losses[1] / losses[0] - 1) > 0.01  # those of the batch alone would not do
  target = smooth.mean() * np.minimum(smooth.max() / smooth, 10.0)
  slope = np.sign(smooth - target) * g[1] / before / smooth.mean()
  expected = np.clip(before - 0.1 * slope, 0.05, 5.0)
  np.testing.assert_allclose(state.collections["balance"]["omega"], expected, rtol=1e-4)


def test_prediction_uses_the_weights_that_were_learned():
  config = tiny_fusion.config("lf_lstm")
  made = compose.build(config)
  batch = tiny_fusion.batch()
  state = with_omega(start(config, made), [0.5, 2.0, 1.5])
  output = tiny_fusion.quick_jit(made.predict)(state.params, state.collections, batch)
  expected = tiny_fusion.quick_jit(
    lambda params: tiny_fusion.network(config).apply(
      {"params": params},
      batch,
      train=False,
      omega={
        "text": jnp.float32(0.5),
        "audio": jnp.float32(2),
        "vision": jnp.float32(1.5),
      },
    )
  )(state.params)
  assert_trees_close(output, expected, atol=1e-6)


def test_replicas_under_vmap_equal_single_runs():
  config = tiny_fusion.config("awf", model={"dropout": 0.3})
  made, step = step_of(config)
  batch = tiny_fusion.batch()
  states = [start(config, made), with_omega(start(config, made), [0.9, 1.2, 1.0])]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
  together, metrics = tiny_fusion.quick_jit(jax.vmap(made.step, in_axes=(0, None, 0)))(
    stacked, batch, jnp.array([0, 1])
  )
  for index, state in enumerate(states):
    alone, expected = step(state, batch, index)
    assert_trees_close(
      jax.tree.map(lambda leaf, i=index: leaf[i], together), alone, atol=1e-5
    )
    np.testing.assert_allclose(metrics["g"][index], expected["g"], rtol=1e-4)


def test_metrics_have_a_scalar_for_every_modality():
  config = tiny_fusion.config("awf")
  _, metrics = step_of(config)[1](start(config), tiny_fusion.batch(), 0)
  for kind, key in (
    ("g", "g"),
    ("omega", "omega"),
    ("ratio", "ratio"),
    ("alpha", "alpha_mean"),
  ):
    for slot, name in enumerate(("text", "audio", "vision")):
      assert float(metrics[f"balance/{kind}_{name}"]) == float(metrics[key][slot])


def test_gradients_of_the_last_layers_need_the_tail_alone():
  config = tiny_fusion.config("awf", model={"dropout": 0.4})
  host, state, batch = (
    tiny_fusion.split(config),
    start(config),
    tiny_fusion.batch(),
  )
  streams = rngs.streams(1, ("dropout", "noise"), 0)
  omega = jnp.array([0.7, 1.2, 1.0])
  label = batch.labels["sentiment"].value

  def gradient(through):
    def loss(kernels):
      params = {**state.params, **kernels}
      features, _ = host.encode({"params": params}, batch, streams)
      features = through(features)
      output, _ = host.tail({"params": params}, features, omega, batch, streams)
      return jnp.mean(jnp.abs(output.predictions["sentiment"] - label))

    kernels = {f"last_{name}": state.params[f"last_{name}"] for name in batch.order}
    return tiny_fusion.quick_jit(jax.grad(loss))(kernels)

  whole, tail = gradient(lambda u: u), gradient(jax.lax.stop_gradient)
  jax.tree.map(np.testing.assert_array_equal, whole, tail)
  assert all(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(whole))


OTHER_MODEL = {
  "feature_dim": 5,
  "post_dim": 7,
  "num_post_layers": 2,
  "dropout": 0.1,
  "text_encoder": "lstm",
  "attention_fusion": False,
}
OTHER_BALANCE = {
  "omega_init": 0.5,
  "omega_loss": "literal",
  "omega_lr": "0.1",
  "g_ema": 0.9,
  "omega_clip": (0.1, 4.0),
  "omega_norm": "sum3",
  "r_max": 3.0,
  "target_stop_grad": False,
  "omega_grad": "proportional",
  "scale_updates_by_omega": "false",
}


@pytest.mark.slow
def test_every_option_of_the_specification_changes_the_program():
  def program(**changes):
    config = tiny_fusion.config("awf", **changes)
    made = compose.build(config)

    def both(batch):
      return made.step(made.init(0), batch, 0)

    return str(jax.make_jaxpr(both)(tiny_fusion.batch(2)))

  default = program()
  assert default == program()
  for section, others in (("model", OTHER_MODEL), ("balance", OTHER_BALANCE)):
    for key, value in others.items():
      assert program(**{section: {key: value}}) != default, key
  config = tiny_fusion.config("awf")
  # What is left: a name, and the switch that `compose.build` reads.
  assert set(config.model) - set(OTHER_MODEL) == {"task"}
  assert set(dataclasses.asdict(config.balance)) - set(OTHER_BALANCE) == {"enabled"}
