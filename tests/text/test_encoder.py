"""Encoders agree with PyTorch's, layer by layer, and with themselves however they run;
weights are complete or refused by name."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_encoder
from paths import REFERENCE

from msa_jax.errors import UserError
from msa_jax.text import weights
from msa_jax.text.bert import TextEncoder, config_of

DATA = REFERENCE
FAMILIES = ("bert", "roberta", "xlm-roberta")


@functools.cache
def reference():
  with np.load(DATA / "text_reference.npz") as file:
    return dict(file)


def part(family, kind):
  prefix = f"{family}/{kind}/"
  return {
    k.removeprefix(prefix): v
    for k, v in reference().items()
    if prefix in k[: len(prefix)]
  }


def options(family, **changes):
  return {
    **tiny_encoder.OPTIONS,
    "model_type": family,
    "layer_norm_eps": 1e-12 if family == "bert" else 1e-5,
    "pad_token_id": 0 if family == "bert" else 1,
    "hidden_act": "gelu_new" if family == "roberta" else "gelu",
    **changes,
  }


def inputs(family):
  names = ("tokens", "mask", "types")
  tokens, mask, types = (jnp.asarray(reference()[f"{family}/{n}"]) for n in names)
  return tokens.astype(jnp.int32), mask, types.astype(jnp.int32)


def imported(family):
  config = config_of(options(family))
  params = weights.from_tensors(part(family, "weight"), config)
  return config, jax.tree.map(jnp.asarray, params)


def states_and_gradients(family, **how):
  config, params = imported(family)
  params = weights.split(params, how.get("trained", -1))
  tokens, mask, types = inputs(family)
  cotangent = jnp.asarray(reference()[f"{family}/cotangent"])

  @functools.partial(jax.value_and_grad, has_aux=True)
  def run(params):
    states = TextEncoder(config, **how).apply({"params": params}, tokens, mask, types)
    return jnp.sum(states[-1] * cotangent), jnp.stack(states)

  (_, states), gradients = jax.jit(run)(params)
  return config, states, gradients


@pytest.mark.parametrize("family", FAMILIES)
def test_states_of_all_layers_and_gradients_are_those_of_pytorch(family):
  config, states, gradients = states_and_gradients(family)
  real = np.asarray(inputs(family)[1])
  expected = reference()[f"{family}/states"]
  np.testing.assert_allclose(states[:, real], expected[:, real], atol=1e-5)
  found = weights.to_tensors(gradients, config)
  want = part(family, "gradient")
  assert found.keys() == want.keys()
  for name, value in want.items():
    np.testing.assert_allclose(found[name], value, atol=1e-4, err_msg=name)


def close(a, b):
  np.testing.assert_allclose(a, b, atol=1e-5)


def test_loop_straight_program_and_recomputation_agree():
  _, states, gradients = states_and_gradients("bert", unroll=True)
  for how in ({"unroll": False}, {"unroll": False, "remat": True}):
    _, other, others = states_and_gradients("bert", **how)
    np.testing.assert_allclose(other, states, atol=1e-6)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradients, others
    )


def test_only_upper_layers_get_gradients_when_only_they_are_trained():
  _, states, gradients = states_and_gradients("bert")
  _, same, upper = states_and_gradients("bert", trained=1)
  np.testing.assert_allclose(same, states, atol=1e-6)
  for name in ("embeddings", "lower"):
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(upper[name]))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a[0], b[1], atol=1e-5),
    upper["layers"],
    gradients["layers"],
  )


def test_padding_tokens_have_no_influence_and_no_token_at_all_is_finite():
  config, params = imported("bert")
  tokens, mask, _ = inputs("bert")
  mask = mask.at[2].set(False)
  run = jax.jit(lambda t: TextEncoder(config).apply({"params": params}, t, mask)[-1])
  one, other = run(tokens), run(jnp.where(mask, tokens, 17))
  np.testing.assert_array_equal(one[mask], other[mask])
  assert np.isfinite(one).all()


def test_extra_inputs_are_added_to_the_embeddings_and_get_gradients():
  config, params = imported("roberta")
  wider = dataclasses.replace(config, extras=(("tag", 3),))
  tokens, mask, types = inputs("roberta")
  table = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
  tags = jnp.asarray(np.arange(21).reshape(3, 7) % 3)

  def run(table, tags):
    own = {**params, "embeddings": {**params["embeddings"], "tag": table}}
    apply = TextEncoder(wider).apply
    return apply({"params": own}, tokens, mask, types, {"tag": tags})[-1]

  # Adding one row to all is the same as adding it to the embeddings of the type.
  constant = run(jnp.asarray(table), jnp.full_like(tokens, 2))
  moved = {
    **params["embeddings"],
    "type": params["embeddings"]["type"] + table[2][None],
  }
  plain = TextEncoder(config).apply(
    {"params": {**params, "embeddings": moved}}, tokens, mask, types
  )[-1]
  np.testing.assert_allclose(constant, plain, atol=1e-5)
  gradient = jax.grad(lambda t: jnp.sum(run(t, tags)[mask] ** 3))(jnp.asarray(table))
  assert np.all(np.any(np.abs(gradient) > 1e-4, axis=1))


def test_dropout_drops_the_stated_share_and_differs_by_key():
  config, params = imported("bert")
  tokens, mask, _ = inputs("bert")

  def run(key):
    model = TextEncoder(config, deterministic=False)
    return model.apply({"params": params}, tokens, mask, rngs={"dropout": key})

  run = jax.jit(run)
  one, other = run(jax.random.key(0)), run(jax.random.key(1))
  np.testing.assert_allclose(np.mean(np.asarray(one[0]) == 0.0), 0.1, atol=0.05)
  assert not np.allclose(one[-1], other[-1])


def folder(tmp_path, tensors, **changes):
  from safetensors.numpy import save_file

  (tmp_path / "config.json").write_text(json.dumps(options("bert", **changes)))
  save_file(tensors, tmp_path / "model.safetensors")
  return tmp_path


def test_a_folder_of_hugging_face_loads_and_exports_again(tmp_path):
  tensors = part("bert", "weight")
  extra = {"bert.pooler.dense.bias": np.zeros(8, np.float32)}
  old = {
    n.replace("LayerNorm.weight", "LayerNorm.gamma"): v for n, v in tensors.items()
  }
  source = folder(tmp_path, {**{f"bert.{n}": v for n, v in old.items()}, **extra})
  loaded = weights.load(str(source))
  out = tmp_path / "out"
  weights.export(weights.split(loaded.params, 1), source, loaded.config, out)
  again = weights._tensors(out)
  assert again.keys() == tensors.keys()
  for name, value in tensors.items():
    np.testing.assert_array_equal(again[name], value)
  assert weights.read_config(out) == loaded.config


def test_weights_missing_unexpected_or_misshapen_are_listed(tmp_path):
  config = config_of(options("bert"))
  tensors = dict(part("bert", "weight"))
  name = "encoder.layer.1.output.dense.bias"
  value = tensors.pop(name)
  with pytest.raises(UserError, match=f"missing: {name}; unexpected: strange"):
    weights.from_tensors({**tensors, "strange": value}, config)
  with pytest.raises(UserError, match=r"output.dense.bias has shape \(3,\)"):
    weights.from_tensors({**tensors, name: value[:3]}, config)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"model_type": "gpt2"}, "model_type 'gpt2': must be one of bert"),
    ({"hidden_size": 0}, "hidden_size=0 must be positive"),
    ({"num_attention_heads": 3}, "must be a multiple of num_attention_heads=3"),
    ({"hidden_act": "sine"}, "hidden_act='sine' must be one of"),
    ({"position_embedding_type": "relative_key"}, "must be 'absolute'"),
  ],
)
def test_configs_that_do_not_fit_are_refused(changes, message):
  with pytest.raises(UserError, match=message):
    config_of(options("bert", **changes))


def test_damaged_and_absent_files_are_one_line(tmp_path):
  with pytest.raises(UserError, match="no readable config.json"):
    weights.load(str(tmp_path))
  (tmp_path / "config.json").write_text("{}")
  with pytest.raises(UserError, match=f"{tmp_path}: model_type None"):
    weights.load(str(tmp_path))
  (tmp_path / "config.json").write_text(json.dumps(options("bert")))
  with pytest.raises(UserError, match="neither model.safetensors nor pytorch_model"):
    weights.load(str(tmp_path))
  (tmp_path / "model.safetensors").write_bytes(b"\xff" * 20)
  with pytest.raises(UserError, match="not a readable safetensors file"):
    weights.load(str(tmp_path))
  with pytest.raises(UserError, match="no such folder"):
    weights.load("/nowhere/at/all")


def test_without_network_the_message_says_what_to_fetch(monkeypatch):
  import huggingface_hub

  def refuse(*arguments, **options):
    raise ConnectionError("no route")

  monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
  monkeypatch.setattr(huggingface_hub, "model_info", refuse)
  with pytest.raises(UserError, match="download config.json.*huggingface.co/a/b"):
    weights.load("a/b")


def test_clients_that_are_not_installed_are_named(monkeypatch, tmp_path):
  monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
  with pytest.raises(UserError, match="needs the hub's client: pip install"):
    weights.load("a/b")
  monkeypatch.setitem(__import__("sys").modules, "safetensors.numpy", None)
  with pytest.raises(UserError, match="export needs safetensors"):
    weights.export({}, tmp_path, config_of(options("bert")), tmp_path)
