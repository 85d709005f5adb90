"""MMoLRE as a whole: the properties of its sheet, flags, sizes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_mmolre as tiny
from tiny_mmolre import SENTIMENT, TASKS, base, compiled, predict, same

from msa_jax.config.experiment import from_json, to_json
from msa_jax.layers.lowrank import Bank, mix, split
from msa_jax.layers.masking import has_content, hide_unavailable
from msa_jax.models.mmolre import system as mmolre
from msa_jax.models.mmolre.unitse import UniTSE
from msa_jax.step import compose
from msa_jax.step.objective import task_losses


def _losses(config, output, batch):
  """Loss of every task."""
  tasks = config.corpus_spec.tasks
  terms = mmolre.terms(config.loss, config.corpus_spec)
  return task_losses(tasks, terms, output, batch)


def _jacobian(config):
  """Gradient of every task's loss, by task."""
  return _compiled_jacobian(to_json(config))


@functools.cache
def _compiled_jacobian(text):
  config = from_json(text)

  def losses(params, batch):
    return _losses(config, tiny.apply(config, params, batch), batch)

  return compiled(jax.jacrev(losses))


def _streams(params, data):
  """UniTSE of the text by itself, of one block."""
  data = hide_unavailable(data).modalities["text"]
  module = UniTSE(TASKS, 8, 1, (1, 2), (3,))
  run = compiled(module.apply)
  return data, run({"params": params["unitse_text"]}, data.features, data.mask)


def test_each_task_reaches_its_own_parameters_and_the_shared_ones_alone():
  config, params, batch, _ = base()
  gradients = _jacobian(config)(params, batch)
  for task, other in (TASKS, TASKS[::-1]):
    paths = {
      "/".join(key.key for key in path): float(jnp.abs(leaf).max())
      for path, leaf in jax.tree_util.tree_leaves_with_path(gradients[task])
    }
    assert all(np.isfinite(size) for size in paths.values())
    foreign = [path for path in paths if f"_{other}" in path]
    assert {path.split("/")[-2] for path in foreign} >= {
      *(f"norm_{other}", f"expert_{other}", f"gate_{other}")
    }
    assert max(paths[path] for path in foreign) == 0.0
    # Everything else has gradient, but for biases that softmax and sums cancel.
    own = [path for path in paths if path not in foreign]
    assert any("shared_0" in path for path in own)
    assert any("cross_audio" in path for path in own)
    silent = [path for path in own if paths[path] == 0.0]
    assert not silent


def test_routers_on_the_task_experts_leave_the_shared_experts_without_gradient():
  config = tiny.config(widths={"text": 8})  # two blocks, no attention
  params, batch = tiny.variables(config), tiny.batch(widths={"text": 8})
  for block in ("block_0", "block_1"):
    for task in TASKS:
      logits = params["unitse_text"][block][f"router_{task}"]["logits"]
      logits["kernel"] = jnp.zeros((8, 3))
      logits["bias"] = jnp.asarray([0.0, 0.0, 1000.0])
  output = predict(config)(params, batch)
  for name, gate in output.routing.items():
    if name.startswith("router_"):
      chosen = [[0, 0, 1]] * 6
      chosen[1] = chosen[5] = [0, 0, 0]  # without text, filler
      np.testing.assert_array_equal(gate.combine, chosen)
  gradients = _jacobian(config)(params, batch)
  for task in TASKS:
    tower = gradients[task]["unitse_text"]
    for block in ("shared_0", "shared_1"):
      assert not any(leaf.any() for leaf in jax.tree.leaves(tower[block]))
    assert float(jnp.abs(tower["block_0"][f"expert_{task}"]["w1"]).max()) > 0


@pytest.mark.parametrize("chosen", [0, 1, 2, None])
def test_a_block_adds_the_chosen_expert_or_the_mean_of_all(chosen):
  _, params, batch, _ = base()
  params = jax.tree.map(lambda leaf: leaf, params)  # its mappings are changed below
  router = jnp.zeros(3) if chosen is None else 1000.0 * jnp.eye(3)[chosen]
  block = params["unitse_text"]["block_0"]
  for task in TASKS:
    logits = block[f"router_{task}"]["logits"]
    logits["kernel"], logits["bias"] = jnp.zeros((8, 3)), router
  data, (streams, routing) = _streams(params, batch)
  mask = np.asarray(data.mask)
  for task, stream in zip(TASKS, streams, strict=True):
    norm = block[f"norm_{task}"]
    values = np.where(mask[..., None], data.features, 0.0).astype(np.float64)
    centred = values - values.mean(-1, keepdims=True)
    scaled = centred / np.sqrt(values.var(-1, keepdims=True) + 1e-5)
    normalised = scaled * np.asarray(norm["scale"]) + np.asarray(norm["bias"])
    banks = [params["unitse_text"]["shared_0"], block[f"expert_{task}"]]
    experts = []
    for ranks, bank in zip(((1, 2), (3,)), banks, strict=True):
      arrays = (bank[key] for key in ("w1", "b1", "w2"))
      biases = bank["b2"].reshape(len(ranks), 8)
      for expert in split(Bank(ranks, *arrays, biases)):
        inputs = jnp.asarray(np.where(mask[..., None], normalised, 0.0), jnp.float32)
        experts.append(mix(expert, inputs, data.mask, jnp.ones((6, 1))))
    added = np.mean(experts, axis=0) if chosen is None else experts[chosen]
    expected = np.where(mask[..., None], values + added, 0.0)
    np.testing.assert_allclose(stream, expected, atol=2e-5)
    probs = np.asarray(routing[0][task].probs)[mask.any(axis=1)]
    even = np.full(3, 1 / 3) if chosen is None else np.eye(3)[chosen]
    np.testing.assert_allclose(probs, np.tile(even, (len(probs), 1)), atol=1e-7)


def test_zero_second_kernels_make_unitse_the_identity_for_all_tasks():
  config = tiny.config(second_init="zeros", num_blocks=1)
  params = compiled(compose.build(config).init)(0).params
  data, (streams, routing) = _streams(params, tiny.batch())
  for stream in streams:
    np.testing.assert_array_equal(stream, data.features)  # width d: no adapter
  for block in routing:
    for gate in block.values():
      rows = np.asarray(gate.probs)[np.asarray(data.mask).any(axis=1)]
      np.testing.assert_allclose(rows, 1 / 3, atol=1e-7)


def test_hidden_content_and_longer_padding_leave_the_predictions_alone():
  config, params, batch, output = base()
  spoiled = {}
  for column, name in enumerate(batch.order):
    modality = batch.modalities[name]
    seen = modality.mask & batch.available[:, column, None]
    noise = jnp.where(seen[..., None], modality.features, 1e3)
    spoiled[name] = dataclasses.replace(modality, features=noise)
  again = predict(config)(params, batch.replace(modalities=spoiled))
  same(again.predictions, output.predictions, rtol=0, atol=0)
  longer = tiny.batch(steps={"text": 9, "audio": 7, "vision": 3})
  got = predict(config)(params, longer)
  same(got.predictions, output.predictions, atol=1e-5)
  same(got.routing, output.routing, atol=1e-5)


def test_losses_are_means_over_the_owners_of_a_label():
  config, params, batch, output = base()
  losses = _losses(config, output, batch)
  rows = np.asarray([0, 1, 3, 4])
  predicted = np.asarray(output.predictions["sentiment"], np.float64)[rows]
  label = np.asarray(batch.labels["sentiment"].value, np.float64)[rows]
  np.testing.assert_allclose(
    losses["sentiment"], np.abs(predicted - label).mean(), rtol=1e-6
  )
  rows = np.asarray([0, 1, 2, 4])
  logits = np.asarray(output.predictions["emotion"], np.float64)[rows]
  np.testing.assert_array_equal(logits[..., 0], 0.0)
  logit, yes = logits[..., 1], np.asarray(batch.labels["emotion"].value)[rows]
  expected = np.log1p(np.exp(np.where(yes == 1, -logit, logit))).mean()
  np.testing.assert_allclose(losses["emotion"], expected, rtol=1e-5)
  # A task nobody has a label of costs nothing and moves nothing.
  label = batch.labels["emotion"]
  nobody = dataclasses.replace(label, mask=jnp.zeros_like(label.mask))
  alone = batch.replace(labels={**batch.labels, "emotion": nobody})
  losses = _losses(config, output, alone)
  assert float(losses["emotion"]) == 0.0 and float(losses["sentiment"]) > 0
  gradients = _jacobian(config)(params, alone)["emotion"]
  assert not any(leaf.any() for leaf in jax.tree.leaves(gradients))


def test_gates_sum_to_one_over_available_modalities_and_absent_ones_do_not_matter():
  config, params, batch, output = base()
  for task in TASKS:
    beta = np.asarray(output.routing[f"beta_{task}"].probs)
    np.testing.assert_allclose(beta.sum(axis=1), [1, 1, 1, 1, 1, 0], atol=1e-6)
    assert beta[1, 1] == 0.0 and (beta[0] > 0).all()
  # The sample without audio equals a text-only sample of another sound.
  nothing = batch.replace(available=jnp.zeros_like(batch.available))
  empty = predict(config)(params, nothing)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(empty))
  for task in TASKS:
    assert not np.asarray(empty.routing[f"beta_{task}"].probs).any()


def test_learned_log_variances_balance_as_their_formula_says():
  config = tiny.config(task_weights="uncertainty", num_blocks=1)
  params, batch = tiny.variables(config), tiny.batch()

  def total(params, batch):
    output = tiny.apply(config, params, batch)
    terms, metrics = tiny.terms(config, output, batch)
    return sum(terms[task] for task in TASKS), metrics

  step = compiled(jax.value_and_grad(total, has_aux=True))
  (value, metrics), gradient = step(params, batch)
  expected = 0.0
  for task in TASKS:
    s, loss = float(params[f"log_variance_{task}"]), float(metrics[f"loss/{task}"])
    expected += np.exp(-s) * loss + s
    np.testing.assert_allclose(
      gradient[f"log_variance_{task}"], 1 - np.exp(-s) * loss, rtol=1e-4
    )
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  zeros = {f"log_variance_{task}": jnp.zeros(()) for task in TASKS}
  (value, metrics), _ = step({**params, **zeros}, batch)
  np.testing.assert_allclose(
    value, sum(metrics[f"loss/{task}"] for task in TASKS), rtol=1e-6
  )
  # Without an owner s stays where it is.
  label = batch.labels["emotion"]
  nobody = dataclasses.replace(label, mask=jnp.zeros_like(label.mask))
  alone = batch.replace(labels={**batch.labels, "emotion": nobody})
  (_, metrics), gradient = step(params, alone)
  assert float(gradient["log_variance_emotion"]) == 0.0
  assert float(metrics["weighted/emotion"]) == 0.0


def test_samples_do_not_see_each_other():
  config, params, batch, output = base()
  order = np.asarray([3, 0, 5, 4, 2, 1])
  got = predict(config)(params, jax.tree.map(lambda leaf: leaf[order], batch))
  same(
    (got.predictions, got.routing),
    jax.tree.map(lambda leaf: leaf[order], (output.predictions, output.routing)),
    atol=1e-5,
  )


def test_swapping_the_tasks_parameters_swaps_their_predictions():
  twin = {"sentiment": SENTIMENT, "emotion": SENTIMENT}
  config, batch = tiny.config(labels=twin, num_blocks=1), tiny.batch()
  params = tiny.variables(config)

  def swapped(tree):
    exchange = {"_sentiment": "_emotion", "_emotion": "_sentiment"}
    result = {}
    for key, value in tree.items():
      for old, new in exchange.items():
        if key.endswith(old):
          key = key.removesuffix(old) + new
          break
      result[key] = swapped(value) if isinstance(value, dict) else value
    return result

  one, two = (predict(config)(p, batch).predictions for p in (params, swapped(params)))
  np.testing.assert_array_equal(one["sentiment"], two["emotion"])
  np.testing.assert_array_equal(one["emotion"], two["sentiment"])
  assert not np.allclose(one["sentiment"], one["emotion"])


def test_a_sample_of_which_nothing_is_read_gets_the_prior():
  """Text and audio are read, so vision alone says nothing; a bias is no prediction."""
  widths = tiny.WIDTHS
  config = tiny.config(widths, num_blocks=1)
  priors = {"sentiment": (0.75,)}
  config = config.replace("spec", priors=priors)
  data = tiny.batch(widths)
  seen = jnp.asarray([[0, 0, 1], [0, 1, 1], [1, 0, 0]] + [[1, 1, 1]] * 3, bool)
  data = data.replace(available=seen)
  made, params = compose.build(config), tiny.variables(config)
  output = compiled(made.predict)(params, {}, data)
  content = has_content(data, made.reads)
  assert content.tolist() == [False, True, True, True, True, False]  # a filler row
  value = np.asarray(output.predictions["sentiment"])
  assert value[0] == 0.75 and (np.abs(value[1:5] - 0.75) > 1e-4).all()
  # A system that reads vision too predicts from it.
  every = compose.build(
    tiny.config(widths, num_blocks=1, modalities=()).replace("spec", priors=priors)
  )
  assert has_content(data, every.reads).tolist() == [True] * 5 + [False]
