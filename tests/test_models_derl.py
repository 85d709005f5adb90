"""DERL as a whole: sizes, masks, lengths, gradients, flags and configs."""

import functools
import importlib.util
import pathlib

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msa_jax import config as config_lib
from msa_jax.models import derl
from msa_jax.models.derl_model import targets_of
from msa_jax.train import recipe
from msa_jax.train.objective import objective
from msa_jax.typing import Batch, Label, Modality, UserError, modality_order

# What XLA's optimisations save in run time of such models they cost many times over
# in compile time.
compiled = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)

# By path: the configs are no package.
_FILE = pathlib.Path(__file__).parents[1] / "configs" / "derl.py"
_SPEC = importlib.util.spec_from_file_location("derl_config", _FILE)
derl_config = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(derl_config)

WIDTHS = {"text": 5, "audio": 4, "vision": 3}
NAMES = ("text", "audio", "vision")
TASKS = {
  "regression": {"sentiment": ("regression", ())},
  "classes": {"emotion": ("classes", ("a", "b", "c", "d"))},
  "binary": {"emotion": ("binary", ("a", "b", "c", "d"))},
}
QUIET = {"eu": 0.0, "attn": 0.0, "res": 0.0, "ffn": 0.0, "text": 0.0}


def resolved(
  variants="", names=NAMES, steps=(6, 6, 6), widths=WIDTHS, kind="regression", **model
):
  """A config resolved against a corpus of these shapes; a tiny network."""
  config = derl_config.get_config(variants).copy_and_resolve_references()
  with config.unlocked():
    config.model.update({"d": 8, "n_heads": 2, "ffn_mult": 1, "dropout": QUIET})
    config.model.update(model)
    config.spec = {
      "widths": {name: widths[name] for name in names},
      "lengths": dict(zip(NAMES, steps, strict=True)),
      "ids": {},
      "tasks": {
        name: {
          "kind": kind, "low": -3.0, "high": 3.0, "classes": classes,
          "protocol": "mosi",
        }
        for name, (kind, classes) in TASKS[kind].items()
      },
      "train_size": 100,
    }  # fmt: skip
  return config.lock()


def make_batch(steps=(6, 6, 6), size=4, names=NAMES, seed=0) -> Batch:
  """Random features everywhere, padding included; rows of different lengths."""
  random = np.random.default_rng(seed)
  modalities = {}
  for name, length in zip(NAMES, steps, strict=True):
    lengths = random.integers(2, length + 1, size)
    features = random.normal(size=(size, length, WIDTHS[name])).astype(np.float32)
    if name in names:
      modalities[name] = Modality(
        features=jnp.asarray(features),
        mask=jnp.asarray(np.arange(length)[None] < lengths[:, None]),
        lost=jnp.zeros((size, length), bool),
      )
  sentiment = random.uniform(-3, 3, size).astype(np.float32)
  return Batch(
    modalities=modalities,
    available=jnp.ones((size, len(modalities)), bool),
    labels={"sentiment": Label(jnp.asarray(sentiment), jnp.ones(size, bool))},
    index=jnp.arange(size, dtype=jnp.int32),
    sample_mask=jnp.ones(size, bool),
  )


def replace(batch, name, **fields):
  changed = batch.modalities[name].replace(**fields)
  return batch.replace(modalities={**batch.modalities, name: changed})


def lengthened(batch, name, extra):
  """More padding, filled with garbage."""
  modality = batch.modalities[name]
  size, _, width = modality.features.shape
  nothing = jnp.zeros((size, extra), bool)
  return replace(
    batch,
    name,
    features=jnp.concatenate(
      [modality.features, jnp.full((size, extra, width), 9.0)], axis=1
    ),
    mask=jnp.concatenate([modality.mask, nothing], axis=1),
    lost=jnp.concatenate([modality.lost, nothing], axis=1),
  )


def drawn(shapes, seed=0):
  """Variables of these shapes, none of them zero or one; nothing is compiled."""
  random = np.random.default_rng(seed)

  def draw(path, leaf):
    noise = random.standard_normal(leaf.shape)
    name = path[-1].key
    if name == "kernel":
      value = noise / np.sqrt(np.prod(leaf.shape[-2:-1]))
    elif name in ("scale", "var"):
      value = np.exp(0.2 * noise)
    else:
      value = 0.2 * noise
    return jnp.asarray(value, leaf.dtype)

  return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def _initial(text: str):
  config = config_lib.from_json(text)
  model = derl.build(config)
  shapes = jax.eval_shape(
    lambda key: model.init(key, recipe.example_batch(config.spec), train=False),
    jax.random.key(0),
  )
  return model, drawn(shapes)


def initial(config):
  """The model of a config, and variables of it."""
  return _initial(config_lib.to_json(config))


@functools.cache
def _predictor(model, train: bool):
  def run(variables, batch, key):
    return model.apply(
      variables,
      batch,
      train=train,
      rngs={"dropout": key},
      mutable=["batch_stats"] if train else [],
    )

  return compiled(run)


def predict(model, variables, batch, train=False, key=0):
  """Output, and the updated collections when training."""
  output, updated = _predictor(model, train)(variables, batch, jax.random.key(key))
  return (output, updated) if train else output


def assert_close(one, other, atol=1e-5):
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    np.testing.assert_allclose(a, b, atol=atol)


def paper_params(variants, vision):
  config = derl_config.get_config(variants).copy_and_resolve_references()
  with config.unlocked():
    config.spec = resolved(widths={"text": 768, "audio": 74, "vision": vision}).spec
  model = derl.build(config.lock())
  example = recipe.example_batch(config.spec)
  variables = jax.eval_shape(
    lambda key: model.init(key, example, train=False), jax.random.key(0)
  )
  return variables["params"]


def size(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_the_mosi_variant_has_the_parameters_of_the_paper_block_by_block():
  params = paper_params("mosi", 47)
  # 3 modalities each: 2 * 10,200 + 3 * 100 + 20,250; 10,200 + 2 * 100 + 20,250.
  assert size(params["cross_1"]) == size(params["cross_2"]) == 3 * 40_950
  assert size(params["intra_1"]) == size(params["intra_2"]) == 3 * 30_650
  assert size(params["enhance_1"]) == 3 * 5_000
  assert size(params["filter_1"]) == 3 * 5_050
  inputs = {name: size(params[f"conv_{name}"]) for name in NAMES}
  assert inputs == {"text": 115_250, "audio": 11_150, "vision": 7_100}
  assert sum(size(params[f"norm_{name}"]) for name in NAMES) == 300
  head = [size(params[name]) for name in ("head_1", "head_2", "head_out")]
  assert head == [22_650, 22_650, 151]
  assert size(params) == 639_001


def test_the_mosei_variant_has_the_parameters_of_the_paper():
  assert size(paper_params("mosei", 35)) == 1_372_051


def test_gates_exist_between_layers_only_unless_asked_for():
  def gates(n_layers, **options):
    config = resolved(n_layers=n_layers, **options)
    model = derl.build(config)
    params = jax.eval_shape(
      lambda key: model.init(key, recipe.example_batch(config.spec), train=False),
      jax.random.key(0),
    )["params"]
    found = {name: p for name, p in params.items() if "enhance" in name}
    found |= {name: p for name, p in params.items() if "filter" in name}
    return {name: next(iter(jax.tree.leaves(p))).shape[0] for name, p in found.items()}

  assert gates(1) == {}
  assert gates(2) == {"enhance_1": 3, "filter_1": 3}
  assert gates(2, use_fu=False) == {"enhance_1": 3}
  assert gates(2, use_eu=False) == {"filter_1": 3}
  assert gates(1, gate_last=True) == {"enhance_1": 3, "filter_1": 3}
  assert gates(3, share_gates=True) == {"enhance": 1, "filter": 1}


@pytest.mark.parametrize("train", [False, True])
def test_padding_has_no_influence_whatever_it_holds_and_however_long_it_is(train):
  model, variables = initial(resolved())
  batch = make_batch()
  expected = predict(model, variables, batch, train)
  garbage = batch
  for name in NAMES:
    modality = batch.modalities[name]
    features = jnp.where(modality.mask[..., None], modality.features, jnp.nan)
    garbage = replace(garbage, name, features=features)
  # 6, 13 and 7 steps: no longer one computation.
  uneven = lengthened(lengthened(batch, "audio", 7), "vision", 1)
  for changed in (garbage, uneven):
    found = predict(model, variables, changed, train)
    if train:
      assert_close(found[1], expected[1])
      found, wanted = found[0], expected[0]
    else:
      wanted = expected
    assert_close(found.predictions, wanted.predictions)
    assert_close(found.losses, wanted.losses)
    for name in NAMES:
      assert_close(found.features[f"F_{name}"], wanted.features[f"F_{name}"])


def test_nearly_equal_lengths_give_streams_of_their_own_lengths():
  config = resolved(steps=(6, 7, 8))
  model, variables = initial(config)
  output = jax.eval_shape(
    lambda v, b: model.apply(v, b, train=False), variables, make_batch((6, 7, 8))
  )
  steps = {name: output.features[f"M_{name}"].shape[1] for name in NAMES}
  assert steps == {"text": 6, "audio": 7, "vision": 8}


@pytest.mark.parametrize("train", [False, True])
def test_stacked_and_looped_modalities_give_the_same_numbers(train):
  dropout = dict.fromkeys(QUIET, 0.2)
  model, variables = initial(resolved(dropout=dropout))
  loop = model.clone(stacked=False)
  batch = make_batch()
  assert_close(
    predict(model, variables, batch, train), predict(loop, variables, batch, train)
  )


def test_the_parameters_do_not_depend_on_the_lengths():
  # How values are drawn: `test_a_banks_parameters_do_not_depend_on_the_lengths`.
  trees = [
    jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), initial(resolved(steps=s))[1])
    for s in ((6, 6, 6), (6, 3, 11))
  ]
  assert trees[0] == trees[1]


@pytest.mark.parametrize("train", [False, True])
def test_filler_rows_have_no_influence(train):
  model, variables = initial(resolved())
  batch = make_batch()
  expected = predict(model, variables, batch, train)
  filled = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), batch, make_batch(seed=1))
  filled = filled.replace(sample_mask=jnp.arange(8) < 4)
  found = predict(model, variables, filled, train)
  if train:
    assert_close(found[1], expected[1])
    found, expected = found[0], expected[0]
  assert_close(found.predictions["sentiment"][:4], expected.predictions["sentiment"])
  assert_close(found.losses, expected.losses)


def test_lost_steps_have_no_influence():
  model, variables = initial(resolved())
  batch = make_batch()
  lost = batch.modalities["text"].mask & (jnp.arange(6)[None] == 1)
  features = jnp.where(lost[..., None], jnp.nan, batch.modalities["text"].features)
  found = predict(
    model, variables, replace(batch, "text", lost=lost, features=features)
  )
  mask = batch.modalities["text"].mask & ~lost
  expected = predict(model, variables, replace(batch, "text", mask=mask))
  assert_close(found.predictions, expected.predictions)
  whole = predict(model, variables, batch)
  assert np.abs(found.predictions["sentiment"] - whole.predictions["sentiment"]).max()


def test_an_unavailable_modality_has_no_influence_and_no_gradient():
  model, variables = initial(resolved())
  batch = make_batch()
  batch = batch.replace(available=batch.available.at[:, 1].set(False))
  output = predict(model, variables, batch)
  for name in ("F", "M", "H"):
    assert not output.features[f"{name}_audio"].any()
  features = jnp.full_like(batch.modalities["audio"].features, jnp.nan)
  assert_close(
    predict(model, variables, replace(batch, "audio", features=features)), output
  )
  text, vision = output.features["F_text"], output.features["F_vision"]
  apart = np.sqrt(((text - vision) ** 2).sum(axis=-1) + 1e-8)
  np.testing.assert_allclose(output.losses["dis"], apart.mean(), rtol=1e-5)

  def loss(params):
    variables_ = {**variables, "params": params}
    output, _ = model.apply(variables_, batch, train=True, mutable=["batch_stats"])
    return jnp.sum(output.predictions["sentiment"]) + output.losses["dis"]

  gradient = compiled(jax.grad(loss))(variables["params"])
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
  for leaf in jax.tree.leaves((gradient["conv_audio"], gradient["norm_audio"])):
    assert not leaf.any()


def test_a_sample_without_any_modality_is_finite_and_has_no_distance():
  model, variables = initial(resolved())
  batch = make_batch()
  batch = batch.replace(available=jnp.zeros((4, 3), bool))
  output, updated = predict(model, variables, batch, train=True)
  assert np.isfinite(output.predictions["sentiment"]).all()
  assert output.losses["dis"] == 0.0
  assert_close(updated["batch_stats"], variables["batch_stats"], atol=0.0)


@pytest.mark.parametrize("absent", NAMES)
def test_a_modality_the_corpus_lacks_is_as_one_that_is_always_absent(absent):
  names = tuple(name for name in NAMES if name != absent)
  three, variables = initial(resolved())
  two, own = initial(resolved(names=names))
  batch = make_batch()
  column = jnp.arange(3)[None] == NAMES.index(absent)
  expected = predict(
    three, variables, batch.replace(available=~column & batch.available)
  )
  # The two modalities' parameters out of those of three.
  slots = np.array([NAMES.index(name) for name in names])
  full = flax.traverse_util.flatten_dict(variables["params"])
  params = {}
  for path, leaf in flax.traverse_util.flatten_dict(own["params"]).items():
    if path[0].startswith("head"):
      params[path] = leaf
    else:
      params[path] = full[path][slots] if "stack" in path else full[path]
    assert params[path].shape == leaf.shape
  params = flax.traverse_util.unflatten_dict(params)
  statistics = {key: variables["batch_stats"][key] for key in own["batch_stats"]}
  own = {"params": params, "batch_stats": statistics}
  found = predict(two, own, make_batch(names=names))
  assert_close(found.losses, expected.losses)
  for name in names:
    for letter in ("F", "M", "H"):
      key = f"{letter}_{name}"
      assert_close(found.features[key], expected.features[key])


@pytest.mark.parametrize("name", ["text", "vision"])
def test_one_modality_alone_trains_without_a_distance(name):
  config = resolved(names=(name,))
  model, variables = initial(config)
  output, _ = predict(model, variables, make_batch(names=(name,)), train=True)
  assert output.losses["dis"] == 0.0
  assert np.isfinite(output.predictions["sentiment"]).all()
  assert not any(
    "attention" in part for part in variables["params"]["cross_1"]["stack"]
  )


def test_the_order_of_the_sources_is_that_of_the_paper():
  model, variables = initial(resolved(n_layers=1))
  stack = variables["params"]["cross_1"]["stack"]
  sources = {"text": ("audio", "vision"), "audio": ("text", "vision")}
  sources["vision"] = ("text", "audio")
  batch = make_batch()
  for slot, target in enumerate(NAMES):
    for stage, source in enumerate(sources[target], start=1):
      # Muting this stage leaves the target's M as if the source were absent.
      attention = stack[f"attention_{stage}"]
      out = jax.tree.map(lambda p, slot=slot: p.at[slot].set(0.0), attention["out"])
      muted = {**stack, f"attention_{stage}": {**attention, "out": out}}
      params = {**variables["params"], "cross_1": {"stack": muted}}
      found = predict(model, {**variables, "params": params}, batch)
      hidden = batch.available & (jnp.arange(3)[None] != NAMES.index(source))
      expected = predict(model, variables, batch.replace(available=hidden))
      key = f"M_{target}"
      assert_close(found.features[key], expected.features[key])


def test_rows_may_be_permuted():
  model, variables = initial(resolved())
  batch = make_batch()
  order = jnp.array([2, 0, 3, 1])
  found = predict(model, variables, jax.tree.map(lambda leaf: leaf[order], batch))
  expected = predict(model, variables, batch)
  assert_close(found.predictions["sentiment"], expected.predictions["sentiment"][order])


def test_training_differs_from_evaluation_by_dropout_and_batch_statistics_only():
  model, variables = initial(resolved(input_norm="layer"))
  batch = make_batch()
  trained, _ = predict(model, variables, batch, train=True)
  assert_close(trained, predict(model, variables, batch), atol=1e-6)
  model, variables = initial(resolved())  # batch statistics
  trained, updated = predict(model, variables, batch, train=True)
  evaluated = predict(model, variables, batch)
  apart = trained.predictions["sentiment"] - evaluated.predictions["sentiment"]
  assert np.abs(apart).max() > 1e-3
  assert not np.allclose(
    updated["batch_stats"]["norm_text"]["mean"],
    variables["batch_stats"]["norm_text"]["mean"],
  )


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


def step_of(config):
  """State before, state after and metrics of one update."""
  made = recipe.build(config)
  shapes = jax.eval_shape(made.init, 0)
  params, collections = drawn((shapes.params, shapes.collections))
  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
  state = zeros.replace(params=params, collections=collections)
  after, metrics = compiled(made.step)(state, make_batch(), 0)
  return state, after, metrics


def loss_of(config):
  """Metrics of a training step's forward pass."""
  model, variables = initial(config)
  batch = make_batch()
  output, _ = predict(model, variables, batch, train=True)
  return objective(config, derl.SYSTEM, output, batch, jnp.zeros((), jnp.int32))[1]


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
    config.optim.update({"name": "sgd", "lr_new": 1.0, "clip": 0.0, "warmup": 0.0})
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


@pytest.mark.parametrize("kind, shape", [("classes", (4, 4)), ("binary", (4, 4, 2))])
def test_emotions_are_predicted_as_logits(kind, shape):
  config = resolved("iemocap", kind=kind)
  model = derl.build(config)
  batch = make_batch()
  output = jax.eval_shape(
    lambda: model.init_with_output(jax.random.key(0), batch, train=False)[0]
  )
  assert output.predictions["emotion"].shape == shape


def test_bfloat16_computes_close_to_float32_and_keeps_float32_outside():
  model, variables = initial(resolved())
  half, own = initial(resolved(dtype="bfloat16"))
  assert {leaf.dtype for leaf in jax.tree.leaves(own)} == {jnp.dtype("float32")}
  expected = predict(model, variables, make_batch())
  found = predict(half, variables, make_batch())
  assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}
  for name in NAMES:
    one, other = found.features[f"M_{name}"], expected.features[f"M_{name}"]
    assert 0 < np.abs(one - other).max() < 0.15


def test_seeds_can_be_trained_side_by_side():
  made = recipe.build(resolved(n_layers=1, dropout=dict.fromkeys(QUIET, 0.1)))
  seeds = jnp.arange(2)
  batch = make_batch()
  states = compiled(jax.vmap(made.init))(seeds)
  after, metrics = compiled(jax.vmap(made.step, in_axes=(0, None, 0)))(
    states, batch, seeds
  )
  state = jax.tree.map(lambda leaf: leaf[1], states)
  alone, figures = compiled(made.step)(state, batch, 1)
  np.testing.assert_allclose(metrics["loss"][1], figures["loss"], rtol=1e-5)
  assert_close(jax.tree.map(lambda leaf: leaf[1], after.params), alone.params, 1e-4)


@pytest.mark.parametrize(
  "options, message",
  [
    ({"variant": "ie_x"}, "variant='ie_x'.*ie_t"),
    ({"pool": "max"}, "pool='max'.*mean"),
    ({"dis": "cosine"}, "dis='cosine'.*token_l2"),
    ({"dtype": "float16"}, "dtype='float16'.*bfloat16"),
    ({"n_layers": 0}, "n_layers=0.*at least 1"),
    ({"n_heads": 3}, "n_heads=3.*divide model.d=8"),
    ({"d": 9, "n_heads": 3}, "d=9.*even"),
    ({"dropout": {"attn": 1.0}}, r"dropout.attn=1.0.*\[0, 1\)"),
    ({"kernels": (3, 3)}, r"kernels=\(3, 3\).*each of \('text', 'audio', 'vision'\)"),
    ({"kernels": (3, 3, 0)}, r"kernels=\(3, 3, 0\).*positive"),
    ({"task": "humor"}, "task='humor'.*sentiment"),
    ({"variant": "cie_vta", "names": ("text", "audio")}, "cie_vta.*vision.*has"),
  ],
)
def test_values_out_of_range_are_refused(options, message):
  with pytest.raises(UserError, match=message):
    derl.build(resolved(**options))


def test_every_variant_of_the_config_has_the_papers_settings():
  settings = {}
  for name in derl_config.VARIANTS:
    config = derl_config.get_config(name)
    settings[name] = (
      config.model.n_layers,
      config.loss.dis,
      config.optim.lr_new,
      config.loss.task,
    )
    assert (config.model.d, config.model.n_heads, config.optim.batch) == (50, 10, 48)
  assert settings["mosi"] == (2, 0.005, 5e-5, "mse")
  assert settings["mosei"] == (5, 0.5, 2e-5, "mse")
  assert settings["sims"] == (2, 0.005, 5e-5, "l1")
  assert settings["iemocap"] == (2, 0.005, 5e-5, "default")
  assert derl_config.get_config("mosei,tuned").optim.lr_new == 1e-3
  minimal = derl_config.get_config("mosi,paper_min")
  rates = minimal.model.dropout.to_dict()
  assert rates == {"eu": 0.1, "attn": 0.0, "res": 0.0, "ffn": 0.0, "text": 0.0}
  assert minimal.optim.warmup == minimal.optim.clip == 0.0


def test_an_unknown_variant_of_the_config_is_refused():
  with pytest.raises(UserError, match="'mosu'.*mosei"):
    derl_config.get_config("mosu")


def test_variants_of_table_four_follow_the_corpus():
  assert targets_of("cie_all", ("text", "audio")).cross == ("text", "audio")
  assert targets_of("ie_tav", ("text",)).intra == ("text",)
  assert modality_order(targets_of("full", NAMES).intra) == NAMES
  assert targets_of("nonsense", NAMES) is None
