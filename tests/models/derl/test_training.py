"""DERL's gradients, losses, ablations and flags."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_derl import (
  NAMES,
  QUIET,
  assert_close,
  compiled,
  initial,
  loss_of,
  make_batch,
  predict,
  replace,
  resolved,
  step_of,
)

from msa_jax.errors import UserError
from msa_jax.models.derl import system as derl
from msa_jax.step.recipe import example_batch

pytestmark = pytest.mark.slow


def build(config):
  return derl.build(config.model, config.corpus_spec)


def training_gradient(config, params_change=lambda params: params):
  model, variables = initial(config)
  batch = make_batch(size=8)

  def loss(params):
    variables_ = {**variables, "params": params}
    output, _ = model.apply(variables_, batch, train=True, mutable=["batch_stats"])
    apart = output.predictions["sentiment"] - batch.labels["sentiment"].value
    return jnp.mean(apart**2) + 0.1 * output.losses["dissimilarity"]

  return compiled(jax.grad(loss))(params_change(variables["params"]))


def test_the_gradient_reaches_every_parameter():
  gradient = flax.traverse_util.flatten_dict(training_gradient(resolved()), sep="/")
  unreached = {path for path, leaf in gradient.items() if np.abs(leaf).max() < 1e-6}
  # What softmax and batch normalisation are blind to: a constant added to all keys'
  # logits, a constant added to a channel.
  blind = {path for path in gradient if path.endswith("/key/bias")}
  blind |= {f"conv_{name}/bias" for name in NAMES}
  assert unreached == blind


@pytest.mark.parametrize(
  "encoder, norm, unit, other",
  [
    ("cross_2", "norm_3", "enhance_1", "filter_1"),
    ("intra_2", "norm_2", "filter_1", "enhance_1"),
  ],
)
def test_each_unit_acts_through_its_own_encoder_of_the_next_layer(
  encoder, norm, unit, other
):
  def deaf(params):
    # Its last norm's scale is zero: this encoder ignores its input.
    stack = params[encoder]["stack"]
    ends = {**stack[norm], "scale": jnp.zeros_like(stack[norm]["scale"])}
    return {**params, encoder: {"stack": {**stack, norm: ends}}}

  gradient = training_gradient(resolved(), deaf)
  assert all(not leaf.any() for leaf in jax.tree.leaves(gradient[unit]))
  assert all(np.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(gradient[other]))


def test_the_loss_is_the_task_loss_plus_beta_times_the_distance():
  config = resolved()
  _, _, metrics = step_of(config)
  assert config.loss["dissimilarity"] == 0.005 and config.loss["task"] == "mse"
  expected = metrics["loss/sentiment"] + 0.005 * metrics["aux/dissimilarity"]
  np.testing.assert_allclose(metrics["loss"], expected, atol=1e-6)
  assert metrics["aux/dissimilarity"] > 0.1


def test_beta_zero_removes_every_path_of_the_distance():
  sgd = {"name": "sgd", "learning_rate": 1.0}
  config = resolved(
    loss={"dissimilarity": 0.0},
    optim={**sgd, "grad_clip_norm": 0.0, "warmup_fraction": 0.0},
  )
  before, after, _ = step_of(config)
  model = build(config)
  batch = make_batch()

  def task_loss(params):
    variables = {"params": params, **before.collections}
    output, _ = model.apply(variables, batch, train=True, mutable=["batch_stats"])
    return jnp.mean(
      (output.predictions["sentiment"] - batch.labels["sentiment"].value) ** 2
    )

  gradient = compiled(jax.grad(task_loss))(before.params)
  moved = jax.tree.map(lambda a, b: a - b, before.params, after.params)
  assert_close(moved, gradient)


TABLE_4 = [
  ("ie_t", {"F_text", "H_text"}),
  ("ie_a", {"F_audio", "H_audio"}),
  ("ie_v", {"F_vision", "H_vision"}),
  ("ie_tav", {f"{letter}_{name}" for letter in "FH" for name in NAMES}),
  ("cie_tav", {"F_text", "M_text"}),
  ("cie_atv", {"F_audio", "M_audio"}),
  ("cie_vta", {"F_vision", "M_vision"}),
  ("cie_all", {f"{letter}_{name}" for letter in "FM" for name in NAMES}),
]


@pytest.mark.parametrize("variant, streams", TABLE_4)
def test_the_encoder_ablations_train_with_the_streams_they_name(variant, streams):
  config = resolved(model={"variant": variant, "num_layers": 1})
  before, after, metrics = step_of(config)
  assert np.isfinite(metrics["loss"])
  output = jax.eval_shape(
    lambda params, batch: build(config).apply(
      {"params": params, **before.collections}, batch
    ),
    after.params,
    make_batch(),
  )
  assert set(output.features) == streams
  assert not any(name[:4] in ("enha", "filt") for name in after.params)
  assert after.params["head_1"]["kernel"].shape == (24, 24)  # zeros keep the width
  assert (metrics["aux/dissimilarity"] > 0) == (len(streams) == 6)
  assert (
    np.abs(after.params["head_1"]["kernel"] - before.params["head_1"]["kernel"]).max()
    > 0
  )


@pytest.mark.parametrize(
  "options",
  [
    {"use_filter": False},
    {"use_enhancement": False},
    {"use_filter": False, "use_enhancement": False},
  ],
)
def test_the_module_ablations_train_and_change_the_prediction(options):
  before, after, metrics = step_of(resolved(model=options))
  assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["gradient_norm"])
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before.params, after.params)
  # Adam's first update moves everything that has a gradient.
  assert moved["cross_1"]["stack"]["ffn_1"]["kernel"] > 0
  default = loss_of(resolved())["loss/sentiment"]
  assert abs(default - metrics["loss/sentiment"]) > 1e-6


def aligned(batch):
  mask = batch.modalities["text"].mask
  for name in NAMES:
    batch = replace(batch, name, mask=mask)
  return batch


def test_pooling_after_a_linear_head_equals_pooling_before_it():
  before, variables = initial(resolved())
  after, _ = initial(resolved(model={"pooling": "after_mlp"}))
  batch = aligned(make_batch())

  def both(variables):
    return (
      predict(before, variables, batch).predictions["sentiment"],
      predict(after, variables, batch).predictions["sentiment"],
    )

  one, two = both(variables)
  assert np.abs(one - two).max() > 1e-3  # ReLU does not commute with the mean
  # All hidden units far in ReLU's linear half.
  params = {**variables["params"]}
  params["head_1"] = {**params["head_1"], "bias": jnp.full(24, 30.0)}
  one, two = both({**variables, "params": params})
  np.testing.assert_allclose(one, two, atol=2e-4)


def test_a_head_at_every_step_needs_equal_lengths_and_says_so():
  config = resolved(model={"pooling": "after_mlp"}, steps=(6, 11, 6))
  example = example_batch(config.corpus_spec)
  with pytest.raises(UserError, match="model.pooling.*equal length.*11.*align"):
    jax.eval_shape(build(config).init, jax.random.key(0), example)


def test_maps_are_reported_on_request():
  model, variables = initial(resolved(model={"dropout": {**QUIET, "enhancement": 0.5}}))
  batch = make_batch()
  _, sown = compiled(lambda v, b: model.apply(v, b, mutable=["intermediates"]))(
    variables, batch
  )
  maps = sown["intermediates"]
  for name in NAMES:
    mask = np.asarray(batch.modalities[name].mask)
    (stages,) = maps["cross_1"][name]
    assert stages["attention_2"]["weights"][0].shape == (4, 2, 6, 6)
    weights = np.asarray(maps["enhance_1"][name][0]["weights"][0])
    np.testing.assert_allclose(weights.sum(axis=-1), np.ones((4, 6)), atol=1e-5)
    assert not weights.transpose(0, 2, 1)[~mask].any()
    gate = np.asarray(maps["filter_1"][name][0]["gate"][0])
    assert gate.shape == (4, 6, 8) and (gate > 0).all() and (gate < 1).all()


OTHER_OPTIONS = {
  "hidden_dim": 12,
  "num_heads": 4,
  "num_layers": 1,
  "ffn_multiplier": 2,
  "kernel_sizes": (3, 1, 3),
  "attention_scale": "model",
  "use_enhancement": False,
  "use_filter": False,
  "variant": "ie_tav",
  "pooling": "after_mlp",
  "dtype": "bfloat16",
}


def test_every_option_changes_the_program():
  batch = make_batch(size=2)

  def program(**options):
    model = build(resolved(model=options))

    def run(batch, key):
      rngs = {"params": key, "dropout": key}
      return model.init_with_output(rngs, batch, train=True)

    return str(jax.make_jaxpr(run)(batch, jax.random.key(0)))

  default = program()
  assert default == program()
  for key, value in OTHER_OPTIONS.items():
    assert program(**{key: value}) != default, key
  for site in QUIET:
    assert program(dropout={**QUIET, site: 0.5}) != default, site
  assert set(resolved().model) - set(OTHER_OPTIONS) == {"task", "dropout"}
