"""AWF: both fusions against numpy, gradient partition, absence, parameter table."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_fusion

from configs import awf as awf_config
from msa_jax.config.experiment import experiment
from msa_jax.errors import UserError
from msa_jax.layers.masking import hide_unavailable
from msa_jax.models.late_fusion import awf, encoders
from msa_jax.typing import Spec

NAMES = ("text", "audio", "vision")


def tail_in_numpy(params, features, omega, afusion=True):
  """The tail in float64: last linears, fusions, one ReLU layer, linear layer."""
  p = jax.tree.map(np.float64, params)
  z = np.stack(
    [np.float64(features[n]) @ p[f"last_{n}"]["kernel"] for n in NAMES], axis=1
  )
  fused = np.asarray(omega)[None, :, None] * z
  alpha = np.zeros(z.shape[:2])
  if afusion:
    squeezed = np.maximum(z.mean(-1) @ p["attention"]["squeeze"]["kernel"], 0.0)
    alpha = 1 / (1 + np.exp(-squeezed @ p["attention"]["excite"]["kernel"]))
    fused = (fused + alpha[..., None] * z) / 2
  hidden = fused.reshape(len(fused), -1) @ p["head"]["hidden_0"]["kernel"]
  hidden = np.maximum(hidden + p["head"]["hidden_0"]["bias"], 0.0)
  values = hidden @ p["head"]["out"]["kernel"] + p["head"]["out"]["bias"]
  return values[:, 0], alpha


def made(model=(), size=6, **changes):
  config = tiny_fusion.config("awf", model=model, **changes)
  module = tiny_fusion.network(config)
  batch = tiny_fusion.batch(size, widths=config.spec.widths)
  return module, tiny_fusion.variables_of(module, batch), batch


def named(values):
  return dict(zip(NAMES, jnp.asarray(values, jnp.float32), strict=True))


@pytest.mark.parametrize("afusion", [True, False])
def test_fusions_equal_a_numpy_network(afusion):
  module, variables, batch = made({"attention_fusion": afusion})
  omega = [0.7, 1.4, 1.1]

  @tiny_fusion.quick_jit
  def run(variables):
    features = module.apply(variables, batch, train=False, method="encode")
    return features, module.apply(
      variables, features, named(omega), batch, train=False, method="tail"
    )

  features, output = run(variables)
  expected, alpha = tail_in_numpy(variables["params"], features, omega, afusion)
  np.testing.assert_allclose(output.predictions["sentiment"], expected, atol=1e-5)
  np.testing.assert_allclose(output.features["alpha"], alpha, atol=1e-6)


def test_text_features_are_masked_means_and_others_last_lstm_states():
  module, variables, batch = made()
  features = tiny_fusion.quick_jit(
    lambda v: module.apply(v, batch, train=False, method="encode")
  )(variables)
  text = batch.modalities["text"]
  for row in range(6):
    length = int(text.mask[row].sum())
    np.testing.assert_allclose(
      features["text"][row], text.features[row, :length].mean(0), atol=1e-6
    )
  p = jax.tree.map(np.float64, variables["params"]["encoder_audio"]["lstm"])
  audio = batch.modalities["audio"]
  sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
  for row in range(6):
    cell = hidden = np.zeros(4)
    for step in np.float64(audio.features[row, : int(audio.mask[row].sum())]):
      gates = step @ p["input_kernel"][0] + hidden @ p["recurrent_kernel"][0]
      i, f, g, o = np.split(gates + p["bias"][0], 4)
      cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
      hidden = sigmoid(o) * np.tanh(cell)
    np.testing.assert_allclose(features["audio"][row], hidden, atol=2e-6)


def encoder_gradients(module, variables, batch, omega, intercept=None):
  """Task gradients of everything, with the attention's output changed or not."""

  def loss(params):
    output = module.apply({"params": params}, batch, train=False, omega=named(omega))
    return jnp.sum(jnp.abs(output.predictions["sentiment"] - 10.0))

  @tiny_fusion.quick_jit
  def gradient(params):
    if intercept is None:
      return jax.grad(loss)(params)
    with nn.intercept_methods(intercept):
      return jax.grad(loss)(params)

  return gradient(variables["params"])


def frozen_attention(call, arguments, keywords, context):
  result = call(*arguments, **keywords)
  if isinstance(context.module, awf.AttentionFusion):
    return jax.lax.stop_gradient(result)
  return result


def unimodal(gradients):
  return {k: v for k, v in gradients.items() if k.endswith(NAMES)}


def largest(tree):
  return max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(tree))


def test_attention_does_not_train_the_unimodal_networks():
  module, variables, batch = made()
  gradients = encoder_gradients(module, variables, batch, (1.0, 1.0, 1.0))
  frozen = encoder_gradients(
    module, variables, batch, (1.0, 1.0, 1.0), frozen_attention
  )
  jax.tree.map(np.testing.assert_array_equal, unimodal(gradients), unimodal(frozen))
  assert largest(gradients["attention"]) > 1e-4
  assert largest(frozen["attention"]) == 0.0
  silenced = encoder_gradients(module, variables, batch, (0.0, 0.0, 0.0))
  assert largest(unimodal(silenced)) == 0.0


def attention(stacked, present, seed=0):
  module = awf.AttentionFusion()
  shapes = jax.eval_shape(module.init, jax.random.key(0), stacked, present)
  variables = tiny_fusion.random_like(shapes, seed, 2.0, jnp.float32)
  return variables, module.apply(variables, stacked, present)


def test_attention_weights_are_in_the_unit_interval_and_one_half_at_zero():
  stacked = jnp.asarray(np.random.default_rng(1).normal(size=(5, 3, 4)), jnp.float32)
  _, alpha = attention(stacked, jnp.ones((5, 3), bool))
  assert float(alpha.min()) > 0.0
  assert float(alpha.max()) < 1.0
  _, alpha = attention(jnp.zeros((2, 3, 4)), jnp.ones((2, 3), bool))
  np.testing.assert_array_equal(alpha, np.full((2, 3), 0.5))


def test_permuting_modalities_with_their_weights_permutes_the_attention():
  stacked = jnp.asarray(np.random.default_rng(2).normal(size=(5, 3, 4)), jnp.float32)
  present = jnp.ones((5, 3), bool)
  variables, alpha = attention(stacked, present)
  order = np.array([2, 0, 1])
  p = variables["params"]
  permuted = {
    name: {"kernel": p[name]["kernel"][order][:, order]}
    for name in ("squeeze", "excite")
  }
  result = awf.AttentionFusion().apply({"params": permuted}, stacked[:, order], present)
  np.testing.assert_allclose(result, alpha[:, order], atol=1e-6)


def test_an_absent_modality_gets_no_attention_and_has_exactly_no_influence():
  module, variables, batch = made()
  batch = batch.replace(
    available=batch.available.at[0, 1].set(False).at[1].set(False),
    sample_mask=batch.sample_mask.at[5].set(False),
  )

  def spoil(column, each):
    keep = each.mask & batch.available[:, column, None] & batch.sample_mask[:, None]
    return each.replace(features=jnp.where(keep[..., None], each.features, jnp.nan))

  polluted = batch.replace(
    modalities={n: spoil(c, batch.modalities[n]) for c, n in enumerate(batch.order)}
  )

  @tiny_fusion.quick_jit
  def run(batch):
    batch = hide_unavailable(batch)

    def loss(params):
      output = module.apply({"params": params}, batch)
      return jnp.sum(output.predictions["sentiment"][:5] ** 2), output

    return jax.grad(loss, has_aux=True)(variables["params"])

  (gradients, output), theirs = run(batch), run(polluted)
  jax.tree.map(np.testing.assert_array_equal, (gradients, output), theirs)
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))
  alpha = np.asarray(output.features["alpha"])
  assert alpha[0, 1] == 0.0
  assert np.all(alpha[1] == 0.0)
  assert np.all(alpha[0, [0, 2]] > 0.0)


def test_longer_padding_changes_nothing():
  module, variables, batch = made()

  def pad(each):
    grow = ((0, 0), (0, 3))
    return each.replace(
      features=jnp.pad(each.features, (*grow, (0, 0)), constant_values=jnp.nan),
      mask=jnp.pad(each.mask, grow),
      lost=jnp.pad(each.lost, grow),
    )

  longer = batch.replace(modalities={n: pad(m) for n, m in batch.modalities.items()})
  np.testing.assert_allclose(
    tiny_fusion.predict(module, variables, batch),
    tiny_fusion.predict(module, variables, longer),
    atol=1e-6,
  )


@pytest.mark.parametrize("encoder", ["lstm", "bert_cls"])
def test_other_text_encoders_predict(encoder):
  module, variables, batch = made({"text_encoder": encoder})
  assert ("encoder_text" in variables["params"]) == (encoder == "lstm")
  assert np.all(np.isfinite(tiny_fusion.predict(module, variables, batch)))


@pytest.mark.parametrize("widths", [{"audio": 4}, {"text": 5, "vision": 3}])
def test_fewer_modalities_and_one_sample_are_enough(widths):
  module, variables, batch = made(size=1, widths=widths)
  assert np.isfinite(tiny_fusion.predict(module, variables, batch)[0])


# Trainable parameters by part, from the paper's sizes: W_T is (text width) * d, an
# LSTM 4 (D d + d^2 + d), a last linear d^2, attention 2 * 3^2, the head
# 3 d post + post and (post + 1) per output.
TABLE = {
  "mosi": ((768, 5, 20), 196_608, 268_288 + 65_536, 283_648 + 65_536, 98_432 + 129),
  "mosei": ((768, 74, 35), 98_304, 103_936 + 16_384, 83_968 + 16_384, 49_280 + 129),
  "sims": ((768, 33, 709), 98_304, 82_944 + 16_384, 429_056 + 16_384, 24_640 + 65),
  "iemocap": ((300, 74, 35), 76_800, 338_944 + 65_536, 299_008 + 65_536, 98_432 + 1032),
}
TOTAL = {"mosi": 978_198, "mosei": 368_406, "sims": 667_798, "iemocap": 945_309}


@pytest.mark.parametrize("data_set", sorted(TABLE))
def test_parameters_are_those_of_the_papers_sizes(data_set):
  widths, text, audio, vision, head = TABLE[data_set]
  config = experiment(awf_config.get_config(data_set))
  sentiment, emotions = tiny_fusion.SENTIMENT, tiny_fusion.EMOTIONS
  spec = Spec(
    widths=dict(zip(NAMES, widths, strict=True)),
    lengths=dict.fromkeys(NAMES, 4),
    tasks={"emotion": emotions} if data_set == "iemocap" else {"sentiment": sentiment},
  )
  module = awf.SYSTEM.build(config.model, spec)
  batch = tiny_fusion.batch(1, widths=dict(zip(NAMES, widths, strict=True)))
  shapes = jax.eval_shape(
    lambda key: module.init(key, batch, train=False), jax.random.key(0)
  )["params"]
  tally = dict.fromkeys((*NAMES, "attention", "head"), 0)
  for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
    owner = next(part for part in tally if path[0].key.endswith(part))
    tally[owner] += leaf.size
  assert tally == {
    "text": text,
    "audio": audio,
    "vision": vision,
    "attention": 18,
    "head": head,
  }
  # The fusion weights are no parameters; the paper's total counts them.
  assert sum(tally.values()) + 3 == TOTAL[data_set]


def test_a_negative_number_of_fusion_layers_is_refused():
  with pytest.raises(UserError, match="model.num_post_layers=-1"):
    made({"num_post_layers": -1})


def test_with_weights_of_one_and_no_attention_it_is_plain_concatenation():
  module, variables, batch = made({"attention_fusion": False})

  @tiny_fusion.quick_jit
  def run(variables):
    params = variables["params"]
    features = module.apply(variables, batch, train=False, method="encode")
    plain = [features[n] @ params[f"last_{n}"]["kernel"] for n in NAMES]
    plain = jnp.concatenate(plain, axis=-1)
    head = encoders.Head((6,), 1, 0.0)
    expected = head.apply({"params": params["head"]}, plain, train=False)[:, 0]
    weighted = module.apply(variables, batch, train=False, omega=named([1.0] * 3))
    unweighted = module.apply(variables, batch, train=False)
    return expected, weighted.predictions, unweighted.predictions

  expected, weighted, unweighted = run(variables)
  np.testing.assert_allclose(weighted["sentiment"], expected, atol=1e-6)
  np.testing.assert_array_equal(weighted["sentiment"], unweighted["sentiment"])
