"""MMoLRE's sizes, flags and messages."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_mmolre as tiny
from tiny_mmolre import EMOTION, SENTIMENT, TASKS, WIDTHS, base, predict, same

from configs import mmolre as mmolre_config
from msa_jax.errors import UserError
from msa_jax.losses.task import binary_cross_entropy
from msa_jax.models.mmolre import system as mmolre
from msa_jax.step import recipe
from msa_jax.step.objective import objective_terms

NAMES = ("text", "audio")


def _sizes(params):
  return sum(leaf.size for leaf in jax.tree.leaves(params))


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
  _, params, batch, output = base()
  got = predict(tiny.config(n_blocks=1, **ABLATIONS[name]))(params, batch)
  same(got.predictions, output.predictions, atol=SAME[name])


COMBINED = (
  {"router_level": "token", "router_scope": "shared_only", "fusion": "query"},
  {"top_k": 2, "fusion": "concat"},
)


@pytest.mark.parametrize("flags", COMBINED)
def test_longer_padding_changes_nothing_under_other_flags_either(flags):
  config = tiny.config(n_blocks=1, **flags)
  params, batch = tiny.variables(config), tiny.batch()
  got = predict(config)(params, batch)
  longer = tiny.batch(steps={"text": 9, "audio": 7, "vision": 3})
  same(predict(config)(params, longer).predictions, got.predictions, atol=1e-5)
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
  config = tiny.config(widths=WIDTHS, modalities=(), n_blocks=1)
  params, batch = tiny.variables(config), tiny.batch(widths=WIDTHS)
  output = predict(config)(params, batch)
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
  output = predict(config)(params, tiny.batch(widths={"text": 8}))
  beta = np.asarray(output.routing["beta_sentiment"].probs)
  np.testing.assert_array_equal(beta[:, 0], [1, 0, 1, 1, 1, 0])


def test_emotion_losses_can_be_weighted_by_task_and_answer():
  loss = {"er_weight": 0.5, "er_pos_weight": (2.0, 1.0, 3.0), "er": "bce", "sa": "mse"}
  config = tiny.config(loss=loss)
  _, _, batch, output = base()
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
