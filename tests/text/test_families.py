"""MPNet and DeBERTa agree with transformers' PyTorch modules, whose arrays are stored
(tests/reference/text_encoders.npz), and are read as released or refused by name."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paths import REFERENCE

from msa_jax.errors import UserError
from msa_jax.layers import relative
from msa_jax.text import adapters, weights
from msa_jax.text.adapters import LowRank
from msa_jax.text.bert import TextEncoder, config_of

FAMILIES = {"mpnet": "mpnet", "deberta_v3": "deberta-v2"}


@functools.cache
def reference():
  with np.load(REFERENCE / "text_encoders.npz") as file:
    return dict(file)


def part(tag, kind):
  start = f"{tag}/{kind}/"
  return {k[len(start) :]: v for k, v in reference().items() if k.startswith(start)}


def options(tag, **changes):
  stored = json.loads(str(reference()["config"]))[tag]
  return {"model_type": FAMILIES[tag], **stored, **changes}


def states_and_gradients(tag, **how):
  config = config_of(options(tag))
  params = weights.from_tensors(part(tag, "weights"), config)
  params = weights.split(params, how.get("trained", -1))
  tokens, mask, cotangent = (
    jnp.asarray(reference()[f"{tag}/{name}"])
    for name in ("in_ids", "in_mask", "cotangent")
  )

  @functools.partial(jax.value_and_grad, has_aux=True)
  def run(params):
    states = TextEncoder(config, **how).apply({"params": params}, tokens, mask > 0)
    return jnp.sum(states[-1] * cotangent), jnp.stack(states)

  (_, states), gradients = jax.jit(run)(params)
  return config, states, gradients


@pytest.mark.parametrize("tag", FAMILIES)
@pytest.mark.parametrize("unroll", [True, False])
def test_states_of_all_layers_and_gradients_are_those_of_pytorch(tag, unroll):
  config, states, gradients = states_and_gradients(tag, unroll=unroll)
  real = reference()[f"{tag}/in_mask"] > 0
  for layer, found in enumerate(states):
    want = reference()[f"{tag}/hidden_{layer}"][real]
    np.testing.assert_allclose(found[real], want, atol=1e-5, err_msg=str(layer))
  found, want = weights.to_tensors(gradients, config), part(tag, "grad_weights")
  assert found.keys() == want.keys()
  for name, value in want.items():
    np.testing.assert_allclose(
      found[name], value, atol=1e-4 * max(1.0, np.abs(value).max()), err_msg=name
    )


@pytest.mark.parametrize("tag", FAMILIES)
def test_only_upper_layers_get_gradients_when_only_they_are_trained(tag):
  _, states, gradients = states_and_gradients(tag)
  _, same, upper = states_and_gradients(tag, trained=1)
  np.testing.assert_allclose(same, states, atol=1e-6)
  for name in ("embeddings", "lower", "relative"):
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(upper[name]))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a[0], b[2], atol=1e-5),
    upper["layers"],
    gradients["layers"],
  )


@pytest.mark.parametrize("tag", FAMILIES)
def test_an_input_does_not_depend_on_what_it_is_padded_to(tag):
  config = config_of(options(tag))
  params = weights.from_tensors(part(tag, "weights"), config)
  params = jax.tree.map(jnp.asarray, params)
  tokens = reference()[f"{tag}/in_ids"]
  lengths = reference()[f"{tag}/in_mask"].sum(axis=1)
  for row in (1, 2):  # 7 tokens, and a single one
    alone = tokens[row : row + 1, : lengths[row]]
    states = TextEncoder(config).apply(
      {"params": params}, jnp.asarray(alone), jnp.ones(alone.shape, bool)
    )
    want = reference()[f"{tag}/hidden_3"][row, : lengths[row]]
    np.testing.assert_allclose(states[-1][0], want, atol=1e-5)


def test_buckets_of_released_encoders():
  """Distances by hand: MPNet's 8 near ones each way, DeBERTa's 128."""
  row = relative.symmetric_buckets(200)[100]
  assert row[100] == 0 and row[99] == 1 and row[93] == 7 and row[101] == 17
  assert row[92] == row[89] == 8  # 8 to 11: one of the wider ones
  # 8 + log(90 / 8) / log(16) * 8 = 14.98
  assert row[10] == 14 and row[9] == 15
  assert relative.symmetric_buckets(200)[199, 0] == 15
  found = relative.log_buckets(np.array([0, 5, -128, 129, 130, 511, -511]), 256, 512)
  assert found.tolist() == [0, 5, -128, 129, 130, 255, -255]


def test_rows_are_skewed_as_a_loop_would():
  scores = np.random.default_rng(0).normal(size=(2, 4, 7))
  found = np.asarray(relative.by_pair(jnp.asarray(scores)))
  places = relative.distances(4).tolist()
  for t in range(4):
    for s in range(4):
      np.testing.assert_allclose(
        found[:, t, s], scores[:, t, places.index(t - s)], rtol=1e-6
      )


@pytest.mark.parametrize("tag", FAMILIES)
def test_adapters_reach_every_use_of_a_projection(tag):
  """The encoder with adapters is that with the product added to its kernels."""
  config = config_of(options(tag))
  params = weights.from_tensors(part(tag, "weights"), config)
  params = jax.tree.map(jnp.asarray, params)
  options_ = LowRank(2, 3.0, ("query", "key", "value", "out"))
  tokens = jnp.asarray(reference()[f"{tag}/in_ids"])
  mask = jnp.asarray(reference()[f"{tag}/in_mask"]) > 0
  changed = TextEncoder(config, low_rank=options_)
  shapes = jax.eval_shape(changed.init, jax.random.key(0), tokens, mask)["params"]
  random = np.random.default_rng(0)
  pairs = jax.tree.map(
    lambda leaf: jnp.asarray(random.normal(0, 0.3, leaf.shape), "float32"),
    shapes["adapters"],
  )
  split = {**weights.split(params, 0), "adapters": pairs}
  assert jax.tree.map(np.shape, split) == jax.tree.map(np.shape, dict(shapes))
  found = changed.apply({"params": split}, tokens, mask)[-1]
  whole = {**params, "layers": adapters.merged(params["layers"], pairs, options_)}
  whole = jax.tree.map(jnp.asarray, whole)
  want = TextEncoder(config).apply({"params": whole}, tokens, mask)[-1]
  np.testing.assert_allclose(found[mask], want[mask], atol=2e-5)
  plain = TextEncoder(config).apply({"params": params}, tokens, mask)[-1]
  assert np.abs(plain - want)[np.asarray(mask)].max() > 0.1


def test_settings_that_are_not_computed_are_refused():
  for changes, message in (
    ({"relative_attention_num_buckets": 16}, "num_buckets=16 must be 32"),
    ({"hidden_size": 0}, "hidden_size=0 must be positive"),
  ):
    with pytest.raises(UserError, match=message):
      config_of(options("mpnet", **changes))
  for changes, message in (
    ({"share_att_key": False}, "share_att_key=False must be True, as in DeBERTa-v3"),
    ({"position_biased_input": True}, "position_biased_input=True must be False"),
    ({"pos_att_type": ["c2p"]}, "must be 'p2c|c2p'"),
    ({"conv_kernel_size": 3}, "must be no conv_kernel_size"),
    ({"position_buckets": -1}, "position_buckets=-1 must be 2 or more"),
  ):
    with pytest.raises(UserError, match=message.replace("|", r"\|")):
      config_of(options("deberta_v3", **changes))
  released = options("deberta_v3", pos_att_type="p2c|c2p", position_buckets=256)
  made = config_of({**released, "max_position_embeddings": 512})
  assert (made.buckets, made.farthest, made.max_tokens) == (256, 512, 512)
  assert config_of(options("mpnet")).max_tokens == 30
