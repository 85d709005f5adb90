"""MMoLRE's sizes, ablations, losses and messages."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_mmolre as tiny
from tiny_mmolre import EMOTION, SENTIMENT, TASKS, WIDTHS, base, predict, same

from configs import mmolre as mmolre_config
from msa_jax.config.experiment import experiment, from_json
from msa_jax.errors import UserError
from msa_jax.losses.task import binary_cross_entropy
from msa_jax.models.mmolre import MMoLRE
from msa_jax.models.outputs import output_spec
from msa_jax.step.recipe import example_batch

NAMES = ("text", "audio")


def _sizes(params):
  return sum(leaf.size for leaf in jax.tree.leaves(params))


def _params(config):
  """Shapes of the parameters."""
  init, example = tiny.network(config).init, example_batch(config.corpus_spec)
  return jax.eval_shape(init, jax.random.key(0), example)["params"]


def _published(**model):
  """Shapes of the network at the sheet's sizes; keywords are options of the model."""
  config = experiment(mmolre_config.get_config("paper"))
  six = dataclasses.replace(EMOTION, classes=tuple("abcdef"))
  spec = dataclasses.replace(
    tiny.config(labels={"sentiment": SENTIMENT, "emotion": six}).corpus_spec,
    widths={"text": 768, "audio": 768},
  )
  config = config.replace(model={**config.model, **model}, spec=spec)
  return _params(config)


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
  more = _sizes(_published(shared_ranks=(16, 32, 64, 128, 24)))
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
  "one expert": {"shared_ranks": (4,)},
  "eight equal ranks": {"shared_ranks": (2,) * 8},
  "one block": {"num_blocks": 1},
  "bfloat16": {"dtype": "bfloat16"},
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_ablation_builds_and_changes_what_it_says(name):
  config = tiny.config(**ABLATIONS[name])
  params, batch = tiny.variables(config), tiny.batch()
  shape = jax.eval_shape(functools.partial(tiny.apply, config), params, batch)
  assert shape.predictions["sentiment"].shape == (6,)
  assert shape.predictions["emotion"].shape == (6, 3, 2)
  assert {leaf.dtype for leaf in shape.predictions.values()} == {jnp.dtype("float32")}
  tower, gates = params["unitse_text"], shape.routing
  if name == "hard sharing":
    assert set(tower["block_0"]) == {"norm_shared", "router_shared"}
    assert gates["router_text_0_shared"].probs.shape == (6, 2)
    assert gates["router_text_0_shared"].experts == ("shared 0", "shared 1")
    assert "router_text_0_emotion" not in gates
  elif name == "own experts only":
    assert not any(key.startswith("shared_") for key in tower)
    assert gates["router_text_1_emotion"].probs.shape == (6, 1)
    assert gates["router_text_1_emotion"].experts == ("own",)
  elif name == "full rank":
    assert tower["shared_0"]["w1"].shape == (3, 8, 16)
    assert tower["block_1"]["expert_emotion"]["w1"].shape == (3, 8, 8)
  elif name == "eight equal ranks":
    assert tower["shared_0"]["w1"].shape == (3, 8, 16)
    assert gates["router_text_1_emotion"].probs.shape == (6, 9)
  elif name == "one block":
    assert "shared_0" in tower and "shared_1" not in tower
    assert "block_1" not in tower


def test_gates_name_their_experts():
  routing = base()[3].routing
  assert routing["router_audio_0_emotion"].experts == ("shared 0", "shared 1", "own")
  assert routing["beta_sentiment"].experts == ("text", "audio")
  for gate in routing.values():
    assert gate.probs.shape[-1] == len(gate.experts)


def test_bfloat16_gives_nearly_the_same_numbers():
  _, params, batch, output = base()
  got = predict(tiny.config(num_blocks=1, dtype="bfloat16"))(params, batch)
  same(got.predictions, output.predictions, atol=0.3)


@pytest.mark.parametrize("sharing", ["hard", "specific"])
def test_longer_padding_changes_nothing_however_experts_are_shared(sharing):
  config = tiny.config(num_blocks=1, sharing=sharing)
  params, batch = tiny.variables(config), tiny.batch()
  got = predict(config)(params, batch)
  longer = tiny.batch(steps={"text": 9, "audio": 7, "vision": 3})
  same(predict(config)(params, longer).predictions, got.predictions, atol=1e-5)
  for key, gate in got.routing.items():
    probs = np.asarray(gate.probs)
    present = [row for row in range(5) if row != 1 or "audio" not in key]
    np.testing.assert_allclose(probs[present].sum(axis=1), 1.0, atol=1e-5)
    assert not probs[5].any()


def test_the_network_can_be_used_alone():
  batch = tiny.batch(widths=WIDTHS)
  sizes = dict(hidden_dim=8, num_heads=2, shared_ranks=(1, 2), num_blocks=1)
  outputs = tuple(output_spec(name, task) for name, task in LABELS.items())
  for model, names in (
    (MMoLRE(**sizes), ("text", "audio")),
    (MMoLRE(modalities=(), outputs=outputs, **sizes), ("text", "audio", "vision")),
  ):
    output = jax.eval_shape(lambda m=model: m.init_with_output(KEY, batch)[0])
    assert output.predictions["sentiment"].shape == (6,)
    assert output.routing["beta_sentiment"].experts == names
  assert output.predictions["emotion"].shape == (6, 3, 2)


KEY = jax.random.key(0)
LABELS = {"sentiment": SENTIMENT, "emotion": EMOTION}


def test_a_batch_without_a_modality_is_refused():
  batch = tiny.batch(widths={"text": 8})
  with pytest.raises(UserError, match=r"modalities=.*: audio is not in \('text',\)"):
    jax.eval_shape(MMoLRE().init, KEY, batch)


def test_vision_joins_with_a_tower_and_an_attention_over_the_others():
  config = tiny.config(widths=WIDTHS, modalities=(), num_blocks=1)
  params, batch = tiny.variables(config), tiny.batch(widths=WIDTHS)
  output = predict(config)(params, batch)
  assert output.routing["beta_emotion"].probs.shape == (6, 3)
  assert params["unitse_vision"]["adapter"]["kernel"].shape == (5, 8)
  # By default vision is ignored though the batch has it.
  shapes = _params(tiny.config(widths=WIDTHS, num_blocks=1))
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
  loss = {"sentiment": "mse", "emotion": "bce", "emotion_weight": 0.5}
  loss |= {"emotion_positive_weight": (2.0, 1.0, 3.0)}
  _, _, batch, output = base()
  terms, metrics = tiny.terms(tiny.config(loss=loss), output, batch)
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
  assert float(metrics["aux/load_balance"]) > 0
  assert float(metrics["weighted/load_balance"]) == 0


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    ({"sharing": "soft"}, "model.sharing='soft' must be one of.*mixed"),
    ({"second_init": "ones"}, "model.second_init='ones' must be one of.*lecun"),
    ({"task_weights": "pareto"}, "model.task_weights='pareto'.*uncertainty"),
    ({"shared_ranks": ()}, "model.shared_ranks=.*at least one shared expert"),
    ({"num_heads": 3}, "model.num_heads=3 must divide model.hidden_dim=8"),
    ({"dropout": 1.0}, r"model.dropout=1.0 must be in \[0, 1\)"),
    ({"task_rank": 0}, "model.task_rank=0 must be at least 1"),
    ({"modalities": ("smell",)}, "modalities=.*has none of them"),
    ({"tasks": ("sentiment", "sentiment")}, "name each task once"),
    ({"tasks": ("humour",)}, "tasks='humour'.*emotion.*usual"),
    ({"ranks": (1,)}, "model.ranks: no such option.*shared_ranks"),
  ],
)
def test_bad_options_are_answered_with_the_rule(flags, message):
  with pytest.raises(UserError, match=message):
    tiny.network(tiny.config(**flags))


OLD = """{"model": {"name": "mmolre", "tasks": [], "modalities": ["text", "audio"],
  "d": 8, "n_blocks": 3, "ranks": [1, 2, 5], "ts_rank": 3, "full_rank": false,
  "sharing": "mixed", "share_blocks": false, "act": "gelu", "kernel": 5,
  "residual": true, "router_level": "utterance", "router_scope": "all", "top_k": 0,
  "w2_init": "lecun", "dispatch": "plain", "fusion": "cross_gate", "n_heads": 2,
  "ffn": 6, "head_hidden": 7, "dropout": 0.3, "attn_dropout": 0.2,
  "dtype": "bfloat16"},
  "loss": {"task": "default", "sa": "l1", "er": "bce", "er_weight": 0.5,
  "er_pos_weight": [2.0], "bal": 0.01, "balance": "uncertainty", "aux_warmup": 0.1}}"""


def test_a_config_of_the_first_version_gives_the_same_network():
  config = from_json(OLD).replace(spec=tiny.config().spec)
  assert tiny.network(config) == MMoLRE(
    outputs=tuple(output_spec(name, task) for name, task in LABELS.items()),
    hidden_dim=8,
    num_blocks=3,
    shared_ranks=(1, 2, 5),
    task_rank=3,
    kernel_size=5,
    second_init="lecun",
    num_heads=2,
    ffn_dim=6,
    head_hidden_dim=7,
    dropout=0.3,
    attention_dropout=0.2,
    task_weights="uncertainty",
    dtype="bfloat16",
  )
  assert config.loss == {
    "sentiment": "l1",
    "emotion": "bce",
    "emotion_weight": 0.5,
    "emotion_positive_weight": (2.0,),
    "load_balance": 0.01,
    "aux_warmup_fraction": 0.1,
  }


@pytest.mark.parametrize(
  ("now", "before"),
  [('"residual": true', '"residual": false'), ('"top_k": 0', '"top_k": 2')],
)
def test_a_config_with_a_value_that_is_gone_is_refused(now, before):
  with pytest.raises(UserError, match="must be .*the only value that is left"):
    from_json(OLD.replace(now, before))
