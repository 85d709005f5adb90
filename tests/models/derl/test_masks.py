"""DERL under padding, filler rows, lost content and missing modalities."""

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
  lengthened,
  make_batch,
  predict,
  replace,
  resolved,
)

from msa_jax.layers.masking import hide_unavailable

pytestmark = pytest.mark.slow


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
  output = jax.eval_shape(model.apply, variables, make_batch((6, 7, 8)))
  steps = {name: output.features[f"M_{name}"].shape[1] for name in NAMES}
  assert steps == {"text": 6, "audio": 7, "vision": 8}


@pytest.mark.parametrize("train", [False, True])
def test_stacked_and_looped_modalities_give_the_same_numbers(train):
  dropout = dict.fromkeys(QUIET, 0.2)
  model, variables = initial(resolved(model={"dropout": dropout}))
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
  np.testing.assert_allclose(output.losses["dissimilarity"], apart.mean(), rtol=1e-5)

  hidden = hide_unavailable(batch)

  def loss(params):
    variables_ = {**variables, "params": params}
    output, _ = model.apply(variables_, hidden, train=True, mutable=["batch_stats"])
    return jnp.sum(output.predictions["sentiment"]) + output.losses["dissimilarity"]

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
  assert output.losses["dissimilarity"] == 0.0
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
  assert output.losses["dissimilarity"] == 0.0
  assert np.isfinite(output.predictions["sentiment"]).all()
  assert not any(
    "attention" in part for part in variables["params"]["cross_1"]["stack"]
  )


def test_the_order_of_the_sources_is_that_of_the_paper():
  model, variables = initial(resolved(model={"num_layers": 1}))
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
  model, variables = initial(resolved())
  batch = make_batch()
  trained, updated = predict(model, variables, batch, train=True)
  evaluated = predict(model, variables, batch)
  apart = trained.predictions["sentiment"] - evaluated.predictions["sentiment"]
  assert np.abs(apart).max() > 1e-3
  # Momentum is 0.9: ten times the step leads from the running to the batch's own.
  own = jax.tree.map(
    lambda old, new: old + 10.0 * (new - old),
    variables["batch_stats"],
    updated["batch_stats"],
  )
  same = predict(model, {**variables, "batch_stats": own}, batch)
  assert_close(trained, same, atol=2e-3)
