"""MMoLRE as a whole: the properties of its sheet, flags, sizes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_mmolre as tiny
from tiny_mmolre import EMOTION, SENTIMENT, WIDTHS, compiled

from configs import mmolre as mmolre_config
from msa_jax.layers.lowrank import Bank, mix, split
from msa_jax.layers.masking import hide_unavailable
from msa_jax.losses.task import binary_cross_entropy
from msa_jax.models import mmolre
from msa_jax.models.mmolre_unitse import UniTSE
from msa_jax.train import recipe
from msa_jax.train.objective import objective_terms, task_losses
from msa_jax.typing import UserError

NAMES = ("text", "audio")
TASKS = ("sentiment", "emotion")


@functools.cache
def _base():
  """Config, parameters, batch and output of the default flags."""
  config = tiny.config()
  params, batch = tiny.variables(config), tiny.batch()
  return config, params, batch, _predict(config)(params, batch)


@functools.cache
def _predict(config):
  return compiled(functools.partial(tiny.apply, config))


def _sizes(params):
  return sum(leaf.size for leaf in jax.tree.leaves(params))


def _same(a, b, **tolerance):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, **tolerance)


@functools.cache
def _jacobian(config):
  """Gradient of every task's loss, by task."""
  terms = mmolre.terms(config)

  def losses(params, batch):
    return task_losses(config, tiny.apply(config, params, batch), batch, terms)

  return compiled(jax.jacrev(losses))


def _streams(config, params, name, data):
  """UniTSE of one modality by itself."""
  module = UniTSE(mmolre.build(config).options, TASKS, True)
  data = hide_unavailable(data).modalities[name]
  variables = {"params": params[f"unitse_{name}"]}
  return data, module.apply(variables, data.features, data.mask)


def test_each_task_reaches_its_own_parameters_and_the_shared_ones_alone():
  config, params, batch, _ = _base()
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
    assert any("shared_1" in path for path in own)
    assert any("cross_audio" in path for path in own)
    silent = [path for path in own if paths[path] == 0.0]
    assert not silent


def test_routers_on_the_task_experts_leave_the_shared_experts_without_gradient():
  config, params, batch, _ = _base()

  def steer(path, leaf):
    names = [key.key for key in path]
    if any(name.startswith("router_") for name in names):
      bias = jnp.asarray([0.0, 0.0, 1000.0])
      return jnp.zeros_like(leaf) if names[-1] == "kernel" else bias
    return leaf

  steered = jax.tree_util.tree_map_with_path(steer, params)
  output = _predict(config)(steered, batch)
  for name, gate in output.routing.items():
    if name.startswith("router_"):
      present = np.asarray(gate.probs).any(axis=1)
      np.testing.assert_array_equal(
        np.asarray(gate.combine)[present],
        [[0, 0, 1]] * 5 if present.sum() == 5 else [[0, 0, 1]] * 4,
      )
  gradients = _jacobian(config)(steered, batch)
  for task in TASKS:
    for name in NAMES:
      tower = gradients[task][f"unitse_{name}"]
      for block in ("shared_0", "shared_1"):
        assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(tower[block])) == 0
      own = tower["block_0"][f"expert_{task}"]["w1"]
      assert float(jnp.abs(own).max()) > 0


@pytest.mark.parametrize("chosen", [0, 1, 2, None])
def test_a_block_adds_the_chosen_expert_or_the_mean_of_all(chosen):
  config, params, batch, _ = _base()
  one = tiny.config(n_blocks=1)
  params = jax.tree.map(lambda leaf: leaf, params)
  router = jnp.zeros(3) if chosen is None else 1000.0 * jnp.eye(3)[chosen]
  block = params["unitse_text"]["block_0"]
  for task in TASKS:
    logits = block[f"router_{task}"]["logits"]
    logits["kernel"], logits["bias"] = jnp.zeros((8, 3)), router
  data, (streams, routing) = _streams(one, params, "text", batch)
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
  config = tiny.config(w2_init="zeros")
  params = compiled(recipe.build(config).init)(0).params
  data, (streams, routing) = _streams(config, params, "text", tiny.batch())
  for stream in streams:
    np.testing.assert_array_equal(stream, data.features)  # width d: no adapter
  for block in routing:
    for gate in block.values():
      rows = np.asarray(gate.probs)[np.asarray(data.mask).any(axis=1)]
      np.testing.assert_allclose(rows, 1 / 3, atol=1e-7)


def test_hidden_content_and_longer_padding_leave_the_predictions_alone():
  config, params, batch, output = _base()
  spoiled = {}
  for column, name in enumerate(batch.order):
    modality = batch.modalities[name]
    seen = modality.mask & batch.available[:, column, None]
    noise = jnp.where(seen[..., None], modality.features, 1e3)
    spoiled[name] = dataclasses.replace(modality, features=noise)
  again = _predict(config)(params, batch.replace(modalities=spoiled))
  _same(again.predictions, output.predictions, rtol=0, atol=0)
  longer = tiny.batch(steps={"text": 9, "audio": 7, "vision": 3})
  got = _predict(config)(params, longer)
  _same(got.predictions, output.predictions, atol=1e-5)
  _same(got.routing, output.routing, atol=1e-5)


def test_losses_are_means_over_the_owners_of_a_label():
  config, params, batch, output = _base()
  losses = task_losses(config, output, batch, mmolre.terms(config))
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
  losses = task_losses(config, output, alone, mmolre.terms(config))
  assert float(losses["emotion"]) == 0.0 and float(losses["sentiment"]) > 0
  gradients = _jacobian(config)(params, alone)["emotion"]
  assert not any(leaf.any() for leaf in jax.tree.leaves(gradients))


def test_gates_sum_to_one_over_available_modalities_and_absent_ones_do_not_matter():
  config, params, batch, output = _base()
  for task in TASKS:
    beta = np.asarray(output.routing[f"beta_{task}"].probs)
    np.testing.assert_allclose(beta.sum(axis=1), [1, 1, 1, 1, 1, 0], atol=1e-6)
    assert beta[1, 1] == 0.0 and (beta[0] > 0).all()
  # The sample without audio equals a text-only sample of another sound.
  nothing = batch.replace(available=jnp.zeros_like(batch.available))
  empty = _predict(config)(params, nothing)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(empty))
  for task in TASKS:
    assert not np.asarray(empty.routing[f"beta_{task}"].probs).any()


def test_learned_log_variances_balance_as_their_formula_says():
  config = tiny.config(loss={"balance": "uncertainty"})
  params, batch = tiny.variables(config), tiny.batch()

  def total(params, batch):
    output = tiny.apply(config, params, batch)
    terms, metrics = objective_terms(
      config, mmolre.SYSTEM, output, batch, jnp.zeros((), jnp.int32)
    )
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
  config, params, batch, output = _base()
  order = np.asarray([3, 0, 5, 4, 2, 1])
  got = _predict(config)(params, jax.tree.map(lambda leaf: leaf[order], batch))
  _same(
    (got.predictions, got.routing),
    jax.tree.map(lambda leaf: leaf[order], (output.predictions, output.routing)),
    atol=1e-5,
  )


def test_swapping_the_tasks_parameters_swaps_their_predictions():
  twin = {"sentiment": SENTIMENT, "emotion": SENTIMENT}
  config, batch = tiny.config(labels=twin), tiny.batch()
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

  one, two = (_predict(config)(p, batch).predictions for p in (params, swapped(params)))
  np.testing.assert_array_equal(one["sentiment"], two["emotion"])
  np.testing.assert_array_equal(one["emotion"], two["sentiment"])
  assert not np.allclose(one["sentiment"], one["emotion"])


def _published(**model):
  """Shapes of the network at the sheet's sizes; keywords override `config.model`."""
  config = mmolre_config.get_config("paper").copy_and_resolve_references()
  six = {**EMOTION, "classes": tuple("abcdef")}
  with config.unlocked():
    config.model.update(model)
    config.spec = dict(
      tiny.config(labels={"sentiment": SENTIMENT, "emotion": six}).spec
    )
    config.spec.widths = {"text": 768, "audio": 768}
  return jax.eval_shape(recipe.build(config).init, 0).params


def test_the_sheets_sizes_are_counted_part_by_part():
  params = _published()
  block = params["unitse_text"]["block_0"]
  assert _sizes(params["unitse_text"]["shared_0"]) == 740_592
  assert _sizes([block[f"expert_{task}"] for task in TASKS]) == 394_880
  assert _sizes([block[f"router_{task}"] for task in TASKS]) == 7_690
  assert _sizes([block[f"norm_{task}"] for task in TASKS]) == 3_072
  assert _sizes([params[f"unitse_{name}"] for name in NAMES]) == 4_584_936
  fusion = params["fusion"]
  assert _sizes([fusion[f"gate_{task}"] for task in TASKS]) == 3_076
  cross = _sizes([fusion[f"cross_{name}"] for name in NAMES])
  assert cross == 4_730_880 + 3_152_384
  assert _sizes([params[f"head_{task}"] for task in TASKS]) == 395_527
  assert _sizes(params) == 12_866_803


def test_another_expert_of_rank_r_costs_its_own_numbers_and_two_router_columns():
  more = _sizes(_published(ranks=(16, 32, 64, 128, 24)))
  expert, columns = 4 * 768 * 24 + 24 + 768, 2 * (768 + 1)
  assert more - 12_866_803 == 4 * (expert + columns)  # two blocks, two modalities


def test_full_rank_experts_have_the_sheets_size():
  tower = _published(full_rank=True)["unitse_text"]
  experts = [tower["shared_0"], *(tower["block_0"][f"expert_{t}"] for t in TASKS)]
  assert _sizes(experts) == 6 * 2_360_832


ABLATIONS = {
  "hard sharing": {"sharing": "hard"},
  "own experts only": {"sharing": "specific"},
  "full rank": {"full_rank": True},
  "one expert": {"ranks": (4,)},
  "eight equal ranks": {"ranks": (2,) * 8},
  "one block": {"n_blocks": 1},
  "shared blocks": {"share_blocks": True},
  "no residual": {"residual": False},
  "routers per step": {"router_level": "token"},
  "own expert outside the router": {"router_scope": "shared_only"},
  "outside, per step": {"router_scope": "shared_only", "router_level": "token"},
  "two experts used": {"top_k": 2},
  "one expert used": {"top_k": 1},
  "gates only": {"fusion": "gate_only"},
  "concatenation": {"fusion": "concat"},
  "queries": {"fusion": "query"},
  "plain form": {"dispatch": "plain"},
  "bfloat16": {"dtype": "bfloat16"},
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_flag_builds_and_changes_what_it_says(name):
  flags = ABLATIONS[name]
  config = tiny.config(**flags)
  params, batch = tiny.variables(config), tiny.batch()
  shape = jax.eval_shape(functools.partial(tiny.apply, config), params, batch)
  assert shape.predictions["sentiment"].shape == (6,)
  assert shape.predictions["emotion"].shape == (6, 3, 2)
  assert {leaf.dtype for leaf in shape.predictions.values()} == {jnp.dtype("float32")}
  tower, gates = params["unitse_text"], shape.routing
  if name == "hard sharing":
    assert set(tower["block_0"]) == {"norm_shared", "router_shared"}
    assert gates["router_text_0_shared"].probs.shape == (6, 2)
    assert "router_text_0_emotion" not in gates
  elif name == "own experts only":
    assert not any(key.startswith("shared_") for key in tower)
    assert gates["router_text_1_emotion"].probs.shape == (6, 1)
  elif name == "eight equal ranks":
    assert tower["shared_0"]["w1"].shape == (3, 8, 16)
    assert gates["router_text_1_emotion"].probs.shape == (6, 9)
  elif name in ("one block", "shared blocks"):
    assert "shared_0" in tower and "shared_1" not in tower
    assert ("block_1" in tower) == (name == "shared blocks")
  elif name.startswith(("own expert outside", "outside")):
    assert gates["router_text_0_emotion"].probs.shape == (6, 2)
  elif name == "gates only":
    assert set(params["fusion"]) == {"gate_sentiment", "gate_emotion"}
  elif name == "concatenation":
    assert params["fusion"]["concat_emotion"]["kernel"].shape == (16, 8)
    assert "beta_emotion" not in gates


SAME = {"plain form": 1e-5, "bfloat16": 0.3}


@pytest.mark.parametrize("name", SAME)
def test_other_ways_to_compute_give_the_same_numbers(name):
  _, params, batch, output = _base()
  got = _predict(tiny.config(**ABLATIONS[name]))(params, batch)
  _same(got.predictions, output.predictions, atol=SAME[name])


COMBINED = (
  {"router_level": "token", "router_scope": "shared_only", "fusion": "query"},
  {"top_k": 2, "fusion": "concat"},
)


@pytest.mark.parametrize("flags", COMBINED)
def test_longer_padding_changes_nothing_under_other_flags_either(flags):
  config = tiny.config(n_blocks=1, **flags)
  params, batch = tiny.variables(config), tiny.batch()
  got = _predict(config)(params, batch)
  longer = tiny.batch(steps={"text": 9, "audio": 7, "vision": 3})
  _same(_predict(config)(params, longer).predictions, got.predictions, atol=1e-5)
  for key, gate in got.routing.items():
    probs, combine = np.asarray(gate.probs), np.asarray(gate.combine)
    present = [row for row in range(5) if row != 1 or "audio" not in key]
    np.testing.assert_allclose(probs[present].sum(axis=1), 1.0, atol=1e-5)
    assert not probs[5].any()
    if "top_k" in flags:
      assert ((combine[present] > 0).sum(axis=1) == 2).all()
    if key.startswith("beta_"):
      assert probs[1, 1] == 0.0


def test_vision_joins_with_a_tower_and_an_attention_over_the_others():
  config = tiny.config(widths=WIDTHS, modalities=())
  params, batch = tiny.variables(config), tiny.batch(widths=WIDTHS)
  output = _predict(config)(params, batch)
  assert output.routing["beta_emotion"].probs.shape == (6, 3)
  assert params["unitse_vision"]["adapter"]["kernel"].shape == (5, 8)
  # By default vision is ignored though the batch has it.
  default = tiny.config(widths=WIDTHS)
  shapes = jax.eval_shape(recipe.build(default).init, 0).params
  assert "unitse_vision" not in shapes and "unitse_audio" in shapes
  assert _sizes(params) > _sizes(shapes)


def test_one_modality_needs_no_attention():
  config = tiny.config(widths={"text": 8})
  params = tiny.variables(config)
  assert set(params["fusion"]) == {"gate_sentiment", "gate_emotion"}
  output = _predict(config)(params, tiny.batch(widths={"text": 8}))
  beta = np.asarray(output.routing["beta_sentiment"].probs)
  np.testing.assert_array_equal(beta[:, 0], [1, 0, 1, 1, 1, 0])


def test_emotion_losses_can_be_weighted_by_task_and_answer():
  loss = {"er_weight": 0.5, "er_pos_weight": (2.0, 1.0, 3.0), "er": "bce", "sa": "mse"}
  config = tiny.config(loss=loss)
  _, _, batch, output = _base()
  terms, metrics = objective_terms(
    config, mmolre.SYSTEM, output, batch, jnp.zeros((), jnp.int32)
  )
  rows = np.asarray([0, 1, 2, 4])
  logits = output.predictions["emotion"][rows, :, 1]
  expected = binary_cross_entropy(
    logits, batch.labels["emotion"].value[rows], jnp.asarray([2.0, 1.0, 3.0])
  )
  np.testing.assert_allclose(metrics["loss/emotion"], expected.mean(), rtol=1e-5)
  np.testing.assert_allclose(terms["emotion"], 0.5 * expected.mean(), rtol=1e-5)
  error = output.predictions["sentiment"] - batch.labels["sentiment"].value
  squares = np.asarray(error)[np.asarray([0, 1, 3, 4])] ** 2
  np.testing.assert_allclose(metrics["loss/sentiment"], squares.mean(), rtol=1e-5)
  # Equal shares of all experts are balanced; the term weighs nothing by default.
  assert float(metrics["aux/bal"]) > 0 and float(metrics["weighted/bal"]) == 0


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    ({"sharing": "soft"}, "sharing='soft'.*mixed"),
    ({"ranks": ()}, "ranks=.*at least one shared expert"),
    ({"top_k": -1}, "top_k=-1: must be 0"),
    ({"n_heads": 3}, "n_heads=3: must divide model.d=8"),
    ({"dropout": 1.0}, r"dropout=1.0: must be in \[0, 1\)"),
    ({"ts_rank": 0}, "ts_rank=0: must be at least 1"),
    ({"modalities": ("smell",)}, "modalities=.*has none of them"),
    ({"tasks": ("sentiment", "sentiment")}, "name each task once"),
    ({"tasks": ("humour",)}, "tasks='humour'.*emotion.*usual"),
  ],
)
def test_bad_options_are_answered_with_the_rule(flags, message):
  with pytest.raises(UserError, match=message):
    mmolre.build(tiny.config(**flags))


def test_an_unknown_balance_is_answered_with_the_choices():
  with pytest.raises(UserError, match="balance='pareto'.*uncertainty"):
    mmolre.build(tiny.config(loss={"balance": "pareto"}))
