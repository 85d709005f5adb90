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
from msa_jax.step import recipe


def training_gradient(config, params_change=lambda params: params):
  model, variables = initial(config)
  batch = make_batch(size=8)

  def loss(params):
    variables_ = {**variables, "params": params}
    output, _ = model.apply(variables_, batch, train=True, mutable=["batch_stats"])
    apart = output.predictions["sentiment"] - batch.labels["sentiment"].value
    return jnp.mean(apart**2) + 0.1 * output.losses["dis"]

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
  assert config.loss.dis == 0.005 and config.loss.task == "mse"
  expected = metrics["loss/sentiment"] + 0.005 * metrics["aux/dis"]
  np.testing.assert_allclose(metrics["loss"], expected, atol=1e-6)
  assert metrics["aux/dis"] > 0.1
  model, variables = initial(config)
  assert "dis" in model.apply(variables, make_batch(), train=False).losses


def test_beta_zero_removes_every_path_of_the_distance():
  config = resolved()
  with config.unlocked():
    config.loss.dis = 0.0
    config.optim.update(
      {
        "name": "sgd",
        "learning_rate": 1.0,
        "grad_clip_norm": 0.0,
        "warmup_fraction": 0.0,
      }
    )
  before, after, _ = step_of(config)
  model = derl.build(config)
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
  config = resolved(variant=variant, n_layers=1)
  before, after, metrics = step_of(config)
  assert np.isfinite(metrics["loss"])
  output = jax.eval_shape(
    lambda params, batch: derl.build(config).apply(
      {"params": params, **before.collections}, batch, train=False
    ),
    after.params,
    make_batch(),
  )
  assert set(output.features) == streams
  assert not any(name[:4] in ("enha", "filt") for name in after.params)
  assert after.params["head_1"]["kernel"].shape == (24, 24)  # zeros keep the width
  assert (metrics["aux/dis"] > 0) == (len(streams) == 6)
  assert (
    np.abs(after.params["head_1"]["kernel"] - before.params["head_1"]["kernel"]).max()
    > 0
  )


@pytest.mark.parametrize(
  "options", [{"use_fu": False}, {"use_eu": False}, {"use_fu": False, "use_eu": False}]
)
def test_the_module_ablations_train_and_change_the_prediction(options):
  before, after, metrics = step_of(resolved(**options))
  assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["gradient_norm"])
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before.params, after.params)
  # Adam's first update moves everything that has a gradient.
  assert moved["cross_1"]["stack"]["ffn_1"]["kernel"] > 0
  default = loss_of(resolved())["loss/sentiment"]
  assert abs(default - metrics["loss/sentiment"]) > 1e-6


@pytest.mark.parametrize(
  "options",
  [
    {"n_layers": 3, "share_gates": True},
    {"gate_last": True, "norm_style": "pre", "input_norm": "none"},
    {"pe": "learned", "dis": "token_l2"},
    {"eu_norm": "frobenius"},
    {"attn_scale": "model", "dis": "rms"},
  ],
)
def test_the_flags_change_the_prediction(options):
  metrics = loss_of(resolved(**options))
  default = loss_of(resolved())
  assert np.isfinite(metrics["loss"])
  assert abs(default["loss/sentiment"] - metrics["loss/sentiment"]) > 1e-6
  if "dis" in options:
    assert abs(default["aux/dis"] - metrics["aux/dis"]) > 1e-3


def test_sources_of_the_first_layer_matter_only_beyond_it():
  for n_layers, differs in ((1, False), (2, True)):
    model, variables = initial(resolved(n_layers=n_layers))
    other, _ = initial(resolved(n_layers=n_layers, cie_source="layer_input"))
    one = predict(model, variables, make_batch()).predictions["sentiment"]
    two = predict(other, variables, make_batch()).predictions["sentiment"]
    assert (np.abs(one - two).max() > 1e-4) == differs


@pytest.mark.parametrize("pool", ["first", "last"])
def test_pooling_takes_the_first_or_last_real_step(pool):
  model, variables = initial(resolved(pool=pool))
  batch = make_batch()
  lost = batch.modalities["audio"].mask & (jnp.arange(6)[None] == 0)
  batch = replace(batch, "audio", lost=lost)  # the first real step is the second
  features = predict(model, variables, batch).features
  for name in NAMES:
    mask = np.asarray(batch.modalities[name].mask & ~batch.modalities[name].lost)
    total = features[f"M_{name}"] + features[f"H_{name}"]
    for row in range(4):
      step = np.flatnonzero(mask[row])[0 if pool == "first" else -1]
      expected = total[row, step]
      np.testing.assert_allclose(features[f"F_{name}"][row], expected, atol=1e-6)


def aligned(batch):
  mask = batch.modalities["text"].mask
  for name in NAMES:
    batch = replace(batch, name, mask=mask)
  return batch


def test_pooling_after_a_linear_head_equals_pooling_before_it():
  before, variables = initial(resolved())
  after, _ = initial(resolved(pool="after_mlp"))
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


@pytest.mark.parametrize("options", [{"pool": "after_mlp"}, {"dis": "token_l2"}])
def test_flags_that_need_equal_lengths_say_so(options):
  config = resolved(steps=(6, 11, 6), **options)
  model = derl.build(config)
  key = next(iter(options))
  with pytest.raises(UserError, match=f"model.{key}.*equal length.*11.*align"):
    jax.eval_shape(
      lambda: model.init(
        jax.random.key(0), recipe.example_batch(config.spec), train=False
      )
    )


def test_maps_are_reported_on_request():
  model, variables = initial(resolved(dropout={**QUIET, "eu": 0.5}))
  batch = make_batch()
  _, sown = compiled(
    lambda v, b: model.apply(v, b, train=False, mutable=["intermediates"])
  )(variables, batch)
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
  "d": 12,
  "n_heads": 4,
  "n_layers": 1,
  "ffn_mult": 2,
  "kernels": (3, 1, 3),
  "input_norm": "layer",
  "pe": "learned",
  "attn_scale": "model",
  "norm_style": "pre",
  "eu_norm": "frobenius",
  "gate_last": True,
  "cie_source": "layer_input",
  "share_gates": True,
  "use_eu": False,
  "use_fu": False,
  "variant": "ie_tav",
  "pool": "last",
  "dis": "rms",
  "dtype": "bfloat16",
}


def test_every_option_of_the_specification_changes_the_program():
  batch = make_batch(size=2)

  def program(**options):
    model = derl.build(resolved(**options))

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
  named = {"name", "task", "dropout"}
  assert set(resolved().model) - set(OTHER_OPTIONS) == named
