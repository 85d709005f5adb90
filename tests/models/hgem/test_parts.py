"""H-GEM's parts one by one: gates, experts, fusion, options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_hgem as tiny

from msa_jax.config.experiment import flatten
from msa_jax.errors import UserError
from msa_jax.layers.moe import ExpertBank
from msa_jax.layers.routing import route
from msa_jax.models.hgem import HGEM
from msa_jax.models.hgem import system as hgem
from msa_jax.models.hgem.experts import AudioExpert, PolarityExpert, VisionExpert
from msa_jax.models.hgem.fusion import DenseExpert, RobustExpert, SparseExpert
from msa_jax.models.hgem.gates import Gate, SparseFusion, fuse_polarities


def unit_loop(params, unit, view):
  """One gating unit in float64: norm, ReLU layer, scores."""
  params = jax.tree.map(lambda leaf: np.float64(leaf[unit]), params)
  view = np.float64(view)
  mean, variance = view.mean(axis=-1, keepdims=True), view.var(axis=-1, keepdims=True)
  hidden = (view - mean) / np.sqrt(variance + 1e-5)
  hidden = hidden * params["norm"]["scale"] + params["norm"]["bias"]
  hidden = hidden @ params["hidden"]["kernel"] + params["hidden"]["bias"]
  return np.maximum(hidden, 0) @ params["scores"]["kernel"] + params["scores"]["bias"]


def softmax(rows):
  rows = np.exp(rows - rows.max(axis=-1, keepdims=True))
  return rows / rows.sum(axis=-1, keepdims=True)


def test_a_gate_averages_its_units_over_the_views_there_are(getkey):
  gate = Gate(hidden_dim=6, num_units=3, experts=("a", "b", "c", "d"))
  views = jax.random.normal(getkey(), (3, 3, 5))
  seen = jnp.array([[True, True, True], [True, False, True], [False, True, False]])
  candidates = jnp.ones((3, 4), bool)
  variables = tiny.random_variables(
    lambda: gate.init(jax.random.key(0), views, seen, candidates)
  )
  routing = gate.apply(variables, views, seen, candidates)
  (params,) = variables["params"]["units"].values()
  for row in range(3):
    scores = [unit_loop(params, u, views[row, u]) for u in range(3) if seen[row, u]]
    expected = softmax(np.mean(scores, axis=0))
    np.testing.assert_allclose(routing.probs[row], expected, atol=1e-5)
  np.testing.assert_allclose(routing.combine, routing.probs, atol=1e-6)
  assert routing.experts == ("a", "b", "c", "d")


def test_a_gate_starts_nearly_undecided():
  gate = Gate(16, 3, ("a", "b", "c"), 2)
  view, everything = jnp.ones((4, 8)) * jnp.arange(8.0)[None], jnp.ones((4, 3), bool)
  variables = gate.init(jax.random.key(1), view, None, everything)
  probs = gate.apply(variables, view, None, everything).probs
  np.testing.assert_allclose(probs, 1.0 / 3.0, atol=0.05)


def test_gate_three_corrects_the_prior_by_the_scores():
  prior = route(jnp.log(jnp.array([[0.5, 0.3, 0.2]])), 2)
  scores = jnp.array([[0.0, jnp.log(2.0), 5.0]])
  routing = fuse_polarities(scores, prior, 2)
  # 0.5 * 1 and 0.3 * 2, the third not selected: 5/11, 6/11.
  np.testing.assert_allclose(routing.combine, [[5 / 11, 6 / 11, 0.0]], atol=1e-6)


def test_gate_three_with_one_expert_keeps_a_probability():
  prior = route(jnp.log(jnp.array([[0.5, 0.3, 0.2]])), 1)
  silent = fuse_polarities(jnp.zeros((1, 3)), prior, 1)
  np.testing.assert_allclose(silent.combine, [[0.5, 0.0, 0.0]], atol=1e-6)
  scores = jnp.array([[jnp.log(3.0), 7.0, 7.0]])
  louder = fuse_polarities(scores, prior, 1)
  # 1.5 / (1.5 + 0.3 + 0.2): scores of experts that were not selected do not count.
  np.testing.assert_allclose(louder.combine, [[0.75, 0.0, 0.0]], atol=1e-6)


def fusion_case():
  random = np.random.default_rng(0)
  routes = jnp.asarray(random.dirichlet([1.0, 1.0, 1.0], 3), jnp.float32)
  summaries = jnp.asarray(random.normal(size=(3, 2, 4)), jnp.float32)
  available = jnp.array([[True, True], [False, True], [False, False]])
  return routes, summaries, available


def test_sparse_fusion_without_a_kernel_is_the_mean_of_what_there_is():
  routes, summaries, available = fusion_case()
  zeros = {"params": {"kernel": jnp.zeros((4, 8)), "bias": jnp.zeros(8)}}
  result = SparseFusion().apply(zeros, routes, summaries, available)
  np.testing.assert_allclose(result[0], np.mean(summaries[0], axis=0), atol=1e-6)
  np.testing.assert_allclose(result[1], summaries[1, 1], atol=1e-6)
  assert np.all(np.asarray(result[2]) == 0.0)


def test_sparse_fusion_reads_the_routes_and_their_information(getkey):
  routes, summaries, available = fusion_case()
  kernel, bias = jax.random.normal(getkey(), (4, 8)), jax.random.normal(getkey(), (8,))
  fusion = SparseFusion()
  variables = {"params": {"kernel": kernel, "bias": bias}}

  def fuse(routes):
    return fusion.apply(variables, routes, summaries, available)

  z = np.float64(routes[0])
  information = 1.0 + np.sum(z * np.log(z)) / np.log(3.0)
  raw = np.append(z, information) @ np.float64(kernel) + np.float64(bias)
  gates = 2.0 / (1.0 + np.exp(-raw.reshape(2, 4)))
  expected = np.mean(gates * np.float64(summaries[0]), axis=0)
  np.testing.assert_allclose(fuse(routes)[0], expected, atol=1e-5)
  gradient = jax.grad(lambda r: jnp.sum(fuse(r) ** 2))(routes)
  assert np.all(np.isfinite(gradient))
  assert np.any(np.asarray(gradient) != 0.0)


def fusion_inputs():
  """Two samples of two steps and two modalities, the second with one modality."""
  random = np.random.default_rng(3)
  mask = jnp.asarray(np.array([[[1, 1], [1, 1]], [[1, 0], [1, 0]]], bool))
  tokens = jnp.asarray(random.normal(size=(2, 2, 2, 3)), jnp.float32)
  return jnp.where(mask[..., None], tokens, 0.0), mask


def robust_case(train, **fields):
  tokens, mask = fusion_inputs()
  fields = {"output_dim": 4, "hidden_dim": 8, "denoiser_dim": 8, **fields}
  module, quiet = (
    RobustExpert(**fields, deterministic=not train),
    RobustExpert(**fields),
  )
  variables = tiny.random_variables(lambda: quiet.init(jax.random.key(0), tokens, mask))

  def apply(variables, seed=0):
    return module.apply(variables, tokens, mask, rngs={"noise": jax.random.key(seed)})

  return variables, apply, tokens


def test_the_robust_expert_is_noisy_in_training_only():
  variables, evaluate, _ = robust_case(train=False)
  assert np.array_equal(evaluate(variables, 0).pooled, evaluate(variables, 1).pooled)
  _, train, _ = robust_case(train=True)
  assert not np.allclose(train(variables, 0).pooled, train(variables, 1).pooled)
  _, quiet, _ = robust_case(train=True, noise_std=0.0, slot_dropout=0.0)
  np.testing.assert_allclose(
    quiet(variables).pooled, evaluate(variables).pooled, atol=1e-6
  )


def test_noise_reaches_the_content_and_slot_drops_the_denoiser_alone():
  """T_concat is the noisy input, whole; the denoiser sees it with slots dropped."""
  variables, evaluate, _ = robust_case(train=False)
  params = variables["params"]
  sure = {"params": {**params, "L2_C": jnp.full((2, 3), 60.0)}}  # content alone
  _, noisy, _ = robust_case(train=True, noise_std=0.5, slot_dropout=0.0)
  _, dropping, _ = robust_case(train=True, noise_std=0.0, slot_dropout=1 - 1e-9)
  # The second sample's other slot is absent, and so always the denoiser's.
  full = evaluate(sure).pooled[0]
  assert np.abs(noisy(sure, 0).pooled[0] - full).max() > 0.05
  assert np.abs(noisy(sure, 0).pooled[0] - noisy(sure, 1).pooled[0]).max() > 0.05
  np.testing.assert_allclose(dropping(sure).pooled[0], full, atol=1e-6)
  blind = {"params": {**params, "L2_den_1": {**params["L2_den_1"]}}}
  kernel = jnp.zeros_like(params["L2_den_1"]["kernel"])
  blind["params"]["L2_den_1"]["kernel"] = kernel
  ours, theirs = dropping(variables), evaluate(blind)
  np.testing.assert_allclose(ours.pooled, theirs.pooled, atol=1e-6)
  np.testing.assert_allclose(ours.denoising, theirs.denoising, rtol=1e-6)
  assert not np.allclose(ours.pooled, evaluate(variables).pooled, atol=1e-3)


def test_an_absent_slot_ignores_its_confidence():
  variables, evaluate, _ = robust_case(train=False)
  params = variables["params"]
  theta = params["L2_C"]
  assert theta.shape == (2, 3)
  plain = evaluate(variables).pooled
  moved = {"params": {**params, "L2_C": theta.at[1].add(2.0)}}
  changed = evaluate(moved).pooled
  assert not np.allclose(changed[0], plain[0])
  assert np.array_equal(changed[1], plain[1])


def test_blending_and_denoising_loss_equal_a_loop():
  variables, evaluate, tokens = robust_case(train=False)
  params = jax.tree.map(np.float64, variables["params"])

  def dense(name, values):
    return values @ params[name]["kernel"] + params[name]["bias"]

  gelu = np.vectorize(lambda x: 0.5 * x * (1.0 + float(jax.lax.erf(x / np.sqrt(2.0)))))
  confidence = 1.0 / (1.0 + np.exp(-params["L2_C"]))
  present = np.array([[1.0, 1.0], [1.0, 0.0]])
  errors = []
  for row in range(2):
    outputs = []
    for step in range(2):
      content = np.float64(tokens[row, step])  # [m d]
      restored = dense("L2_den_2", gelu(dense("L2_den_1", content.reshape(-1))))
      restored = restored.reshape(2, 3)
      for slot in range(2):
        if present[row, slot]:
          errors.extend((restored[slot] - content[slot]) ** 2)
      weight = confidence * present[row][:, None]
      blend = (weight * content + (1.0 - weight) * restored).reshape(-1)
      outputs.append(dense("L2_rob_2", gelu(dense("L2_rob_1", blend))))
    result = evaluate(variables).pooled[row]
    np.testing.assert_allclose(result, np.mean(outputs, axis=0), atol=1e-5)
  np.testing.assert_allclose(evaluate(variables).denoising, np.mean(errors), rtol=1e-5)


def test_confidence_starts_on_the_side_of_the_content():
  params = RobustExpert(4).init(jax.random.key(0), *fusion_inputs())["params"]
  assert np.all(np.asarray(params["L2_C"]) == 2.0)  # sigmoid(2) = 0.88


def test_the_dense_expert_equals_a_loop_over_real_steps():
  tokens, mask = fusion_inputs()
  expert = DenseExpert(output_dim=4, hidden_dim=8)
  variables = tiny.random_variables(
    lambda: expert.init(jax.random.key(0), tokens, mask)
  )
  params = jax.tree.map(np.float64, variables["params"])
  gelu = np.vectorize(lambda x: 0.5 * x * (1.0 + float(jax.lax.erf(x / np.sqrt(2.0)))))

  def layer(name, values):
    return gelu(values @ params[name]["kernel"] + params[name]["bias"])

  mask = mask.at[0, 1].set(False)
  result = expert.apply(variables, tokens, mask)
  first = layer("L2_dense_2", layer("L2_dense_1", np.float64(tokens[0, 0].reshape(-1))))
  np.testing.assert_allclose(result[0], first, atol=1e-5)
  steps = [np.float64(tokens[1, step].reshape(-1)) for step in range(2)]
  mean = np.mean([layer("L2_dense_2", layer("L2_dense_1", s)) for s in steps], axis=0)
  np.testing.assert_allclose(result[1], mean, atol=1e-5)


def test_the_sparse_expert_s_summaries_average_to_its_result():
  """Equally long modalities weigh the same; one that is absent is zero."""
  tokens, mask = fusion_inputs()
  sizes = {"max_steps": 2, "num_heads": 1, "ffn_dim": 8, "keep_fraction": 0.5}
  expert = SparseExpert(4, **sizes, keep_share_of="nominal", norm_summaries=False)
  variables = tiny.random_variables(
    lambda: expert.init(jax.random.key(0), tokens, mask)
  )
  pooled, summaries = expert.apply(variables, tokens, mask)
  np.testing.assert_allclose(pooled[0], summaries[0].mean(axis=0), atol=1e-5)
  np.testing.assert_allclose(pooled[1], summaries[1, 0], atol=1e-6)
  assert np.all(np.asarray(summaries[1, 1]) == 0.0)


def test_normalised_summaries_are_means_of_normalised_tokens():
  tokens, mask = fusion_inputs()
  sizes = {"max_steps": 2, "num_heads": 1, "ffn_dim": 8}
  plain, normed = (
    SparseExpert(4, **sizes, norm_summaries=norm) for norm in (False, True)
  )
  variables = tiny.random_variables(
    lambda: normed.init(jax.random.key(0), tokens, mask)
  )
  params = variables["params"]
  _, state = plain.apply(variables, tokens, mask, capture_intermediates=True)
  (states,) = state["intermediates"]["L2_sparse_0"]["__call__"]
  kernel, bias = (np.float64(params["L2_sparse_out"][k]) for k in ("kernel", "bias"))
  projected = np.float64(states).reshape(2, 2, 2, 3) @ kernel + bias  # [b t m c]
  centred = projected - projected.mean(axis=-1, keepdims=True)
  scaled = centred / np.sqrt(projected.var(axis=-1, keepdims=True) + 1e-5)
  norm = jax.tree.map(np.float64, params["L2_sparse_norm"])
  scaled = scaled * norm["scale"] + norm["bias"]
  found = normed.apply(variables, tokens, mask)
  np.testing.assert_allclose(found.summaries[0], scaled[0].mean(axis=0), atol=1e-5)
  np.testing.assert_allclose(found.summaries[1, 0], scaled[1, :, 0].mean(0), atol=1e-5)
  assert np.all(np.asarray(found.summaries[1, 1]) == 0.0)
  # What the fusion itself takes is not normalised.
  pooled = plain.apply(variables, tokens, mask).pooled
  np.testing.assert_allclose(found.pooled, pooled, atol=1e-5)


def test_the_bank_of_polarity_experts_equals_a_loop_over_experts(getkey):
  expert = PolarityExpert(hidden_dim=7, num_layers=2)
  bank = ExpertBank(expert, 3)
  values = jax.random.normal(getkey(), (4, 5))
  variables = tiny.random_variables(lambda: bank.init(jax.random.key(0), values))
  together = bank.apply(variables, values)
  (stacked,) = variables["params"].values()
  for index in range(3):
    own = jax.tree.map(lambda leaf, index=index: leaf[index], stacked)
    np.testing.assert_allclose(
      together[index], expert.apply({"params": own}, values), atol=1e-5
    )


def test_uniform_temporal_attention_doubles_the_audio_content(getkey):
  expert = AudioExpert(lstm_dim=3)
  values = jax.random.normal(getkey(), (2, 4, 5))
  mask = jnp.arange(4)[None] < jnp.array([4, 2])[:, None]
  variables = tiny.random_variables(
    lambda: expert.init(jax.random.key(0), values, mask)
  )
  params = variables["params"]
  flat = {**params, "attention": jax.tree.map(jnp.zeros_like, params["attention"])}
  steep = {**params, "attention": jax.tree.map(lambda p: 5.0 * p, params["attention"])}
  uniform = np.asarray(expert.apply({"params": flat}, values, mask))
  peaked = np.asarray(expert.apply({"params": steep}, values, mask))
  assert uniform.shape == (2, 4, 6)
  assert np.all(uniform[1, 2:] == 0.0)
  for row, length in ((0, 4), (1, 2)):
    # gain = 1 + length * alpha; uniform alpha gives 2, and the mean gain is always 2.
    gain = 2.0 * peaked[row, :length, 0] / uniform[row, :length, 0]
    np.testing.assert_allclose(gain.mean(), 2.0, atol=1e-4)
    assert gain.max() > 2.0


def test_vision_positions_break_the_symmetry_of_time():
  expert = VisionExpert(6, kernel_size=1, ffn_dim=4, num_heads=1)
  values = jnp.ones((1, 4, 4)) * jnp.arange(4.0)[None, None]
  mask = jnp.ones((1, 4), bool)
  variables = tiny.random_variables(
    lambda: expert.init(jax.random.key(0), values, mask)
  )
  params = variables["params"]
  blind = {**params, "positions": jnp.zeros_like(params["positions"])}
  for given, alike in ((params, False), (blind, True)):
    result = np.asarray(expert.apply({"params": given}, values, mask))[0]
    assert np.allclose(result, result[:1], atol=1e-5) == alike


def rejected(overrides, match, **tasks):
  with pytest.raises(UserError, match=match):
    tiny.model(overrides, **tasks)


@pytest.mark.parametrize("path", ["fusion", "missing_mode", "dispatch", "dtype"])
def test_unknown_choices_are_rejected_with_the_known_ones(path):
  rejected({path: "nonsense"}, f"model.{path}='nonsense' must be one of")


@pytest.mark.parametrize(
  ("overrides", "match"),
  [
    ({"token_dim": 0}, "model.token_dim=0 must be at least 1"),
    ({"text_expert.num_layers": 0}, "text_expert.num_layers=0 must be at least 1"),
    ({"vision_expert.kernel_size": 0}, "vision_expert.kernel_size=0 must be at"),
    ({"audio_expert.lstm_dim": 0}, "audio_expert.lstm_dim=0 must be at least 1"),
    ({"sparse_expert.ffn_dim": 0}, "sparse_expert.ffn_dim=0 must be at least 1"),
    ({"dense_expert.hidden_dim": 0}, "dense_expert.hidden_dim=0 must be at least 1"),
    ({"robust_expert.noise_std": -1.0}, "robust_expert.noise_std=-1.0 must be 0 or"),
    ({"robust_expert.slot_dropout": 1.0}, r"slot_dropout=1.0 must be in \[0, 1\)"),
    ({"polarity_experts.num_experts": 0}, "polarity_experts.num_experts=0 must be"),
    ({"gates.fusion_top_k": 0}, "model.gates.fusion_top_k=0 must be at least 1"),
    ({"gates.hidden_dims": (4, 4, 4)}, "must be four widths"),
    ({"gates.modality_scale": "inputs"}, "must be one of .*'tokens', 'outputs'"),
    ({"sparse_expert.keep_share_of": "half"}, "must be one of .*'valid', 'nominal'"),
    ({"num_heads": 3}, "model.num_heads=3 must divide model.token_dim=8"),
    ({"sparse_expert.keep_fraction": 0.0}, r"keep_fraction=0.0 must be in \(0, 1\]"),
    ({"route_temperature": 0.0}, "route_temperature=0.0 must be above 0"),
    ({"dropout.attention": 1.0}, r"dropout.attention=1.0 must be in \[0, 1\)"),
    ({"max_steps": 3}, "model.max_steps=3: text has 4 steps"),
    ({"task": "emotion"}, "model.task='emotion': the corpus has"),
    ({"disabled_experts": ("robst",)}, "no expert 'robst'"),
    ({"disabled_experts": ("sparse", "dense", "robust")}, "leave at least one"),
  ],
)
def test_values_out_of_range_are_rejected(overrides, match):
  rejected(overrides, match)


def test_an_unknown_preset_is_rejected():
  with pytest.raises(UserError, match="preset 'huge'"):
    hgem.options("huge")


def test_polarity_experts_are_named_after_the_emotions():
  four = {"polarity_experts.num_experts": 4}
  made = tiny.model(four, emotion=tiny.EMOTION)
  assert made.polarities == ("happy", "sad", "angry", "neutral")
  assert tiny.model().polarities == ("negative", "neutral", "positive")
  two = tiny.model({"polarity_experts.num_experts": 2})
  assert two.polarities == ("polarity_0", "polarity_1")


def test_the_presets_are_the_network_s_fields():
  small, paper = hgem.options("small"), hgem.options("paper")
  assert flatten(small).keys() == flatten(paper).keys()
  given = {key: value for key, value in small.items() if key != "name"}
  output = tiny.model().output
  assert hgem.build(given, tiny.spec()) == HGEM(output, modalities=tuple(tiny.WIDTHS))
