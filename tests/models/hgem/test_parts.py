"""H-GEM's parts one by one: gates, experts, fusion, options."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import tiny_hgem as tiny

from msa_jax.errors import UserError
from msa_jax.layers.moe import ExpertBank
from msa_jax.layers.routing import route
from msa_jax.models.hgem import system as hgem
from msa_jax.models.hgem.experts import AudioExpert, PolarityExpert, VisionExpert
from msa_jax.models.hgem.fusion import Context, robust_expert
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


@pytest.mark.parametrize("combine", ["logits", "probs"])
def test_a_gate_averages_its_units_over_the_views_there_are(combine, getkey):
  gate = Gate(
    hidden=6, n_units=3, n_out=4, k=4, combine=combine, dropout=0.0, deterministic=True
  )
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
    if combine == "logits":
      expected = softmax(np.mean(scores, axis=0))
    else:
      expected = np.mean(softmax(np.array(scores)), axis=0)
    np.testing.assert_allclose(routing.probs[row], expected, atol=1e-5)
  np.testing.assert_allclose(routing.combine, routing.probs, atol=1e-6)


def test_a_gate_starts_nearly_undecided():
  gate = Gate(16, 3, 3, 2, "logits", 0.0, True)
  view, everything = jnp.ones((4, 8)) * jnp.arange(8.0)[None], jnp.ones((4, 3), bool)
  variables = gate.init(jax.random.key(1), view, None, everything)
  probs = gate.apply(variables, view, None, everything).probs
  np.testing.assert_allclose(probs, 1.0 / 3.0, atol=0.05)


def test_gate_three_corrects_the_prior_by_the_scores():
  prior = route(jnp.log(jnp.array([[0.5, 0.3, 0.2]])), 2)
  scores = jnp.array([[0.0, jnp.log(2.0), 5.0]])
  routing = fuse_polarities(scores, prior, "product", 2)
  # 0.5 * 1 and 0.3 * 2, the third not selected: 5/11, 6/11.
  np.testing.assert_allclose(routing.combine, [[5 / 11, 6 / 11, 0.0]], atol=1e-6)
  routing = fuse_polarities(scores, prior, "independent", 2)
  np.testing.assert_allclose(routing.combine, [[1 / 3, 2 / 3, 0.0]], atol=1e-6)


def test_gate_three_with_one_expert_keeps_a_probability():
  prior = route(jnp.log(jnp.array([[0.5, 0.3, 0.2]])), 1)
  silent = fuse_polarities(jnp.zeros((1, 3)), prior, "product", 1)
  np.testing.assert_allclose(silent.combine, [[0.5, 0.0, 0.0]], atol=1e-6)
  scores = jnp.array([[jnp.log(3.0), 7.0, 7.0]])
  louder = fuse_polarities(scores, prior, "product", 1)
  # 1.5 / (1.5 + 0.3 + 0.2): scores of experts that were not selected do not count.
  np.testing.assert_allclose(louder.combine, [[0.75, 0.0, 0.0]], atol=1e-6)
  alone = fuse_polarities(scores, prior, "independent", 1)
  np.testing.assert_allclose(alone.combine, [[0.5, 0.0, 0.0]], atol=1e-6)


def fusion_case():
  random = np.random.default_rng(0)
  routes = jnp.asarray(random.dirichlet([1.0, 1.0, 1.0], 3), jnp.float32)
  summaries = jnp.asarray(random.normal(size=(3, 2, 4)), jnp.float32)
  available = jnp.array([[True, True], [False, True], [False, False]])
  return routes, summaries, available


def test_sparse_fusion_without_a_kernel_is_the_mean_of_what_there_is():
  routes, summaries, available = fusion_case()
  zeros = {"params": {"kernel": jnp.zeros((4, 8)), "bias": jnp.zeros(8)}}
  result = SparseFusion(False).apply(zeros, routes, summaries, available)
  np.testing.assert_allclose(result[0], np.mean(summaries[0], axis=0), atol=1e-6)
  np.testing.assert_allclose(result[1], summaries[1, 1], atol=1e-6)
  assert np.all(np.asarray(result[2]) == 0.0)


@pytest.mark.parametrize("stop_gradient", [False, True])
def test_sparse_fusion_reads_the_routes_and_their_information(stop_gradient, getkey):
  routes, summaries, available = fusion_case()
  kernel, bias = jax.random.normal(getkey(), (4, 8)), jax.random.normal(getkey(), (8,))
  fusion = SparseFusion(stop_gradient)
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
  assert np.any(np.asarray(gradient) != 0.0) != stop_gradient


class Robust(nn.Module):
  """The robust expert alone."""

  options: ml_collections.ConfigDict
  train: bool

  @nn.compact
  def __call__(self, tokens, mask):
    context = Context(self.options, not self.train, jnp.float32)
    return robust_expert(self, context, tokens, mask)


def robust_case(train, **robust):
  options = tiny.config().model
  options.robust.update(robust)
  options.dropout.expert = 0.0
  random = np.random.default_rng(3)
  mask = jnp.asarray(np.array([[[1, 1], [1, 1]], [[1, 0], [1, 0]]], bool))
  tokens = jnp.asarray(random.normal(size=(2, 2, 2, 3)), jnp.float32)
  tokens = jnp.where(mask[..., None], tokens, 0.0)
  module = Robust(ml_collections.FrozenConfigDict(options), train)
  quiet = Robust(module.options, False)
  variables = tiny.random_variables(lambda: quiet.init(jax.random.key(0), tokens, mask))

  def apply(variables, seed=0):
    return module.apply(variables, tokens, mask, rngs={"noise": jax.random.key(seed)})

  return variables, apply, tokens


def test_the_robust_expert_is_noisy_in_training_only():
  variables, evaluate, _ = robust_case(train=False)
  assert np.array_equal(evaluate(variables, 0).pooled, evaluate(variables, 1).pooled)
  _, train, _ = robust_case(train=True)
  assert not np.allclose(train(variables, 0).pooled, train(variables, 1).pooled)
  _, quiet, _ = robust_case(train=True, sigma=0.0, p_slot=0.0)
  np.testing.assert_allclose(
    quiet(variables).pooled, evaluate(variables).pooled, atol=1e-6
  )


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


def test_confidence_starts_at_the_configured_value():
  _, _, tokens = robust_case(train=False)
  options = ml_collections.FrozenConfigDict(tiny.config().model)
  params = Robust(options, False).init(
    jax.random.key(0), tokens, jnp.ones(tokens.shape[:3], bool)
  )["params"]
  assert np.all(np.asarray(params["L2_C"]) == 2.0)  # sigmoid(2) = 0.88


def test_the_bank_of_polarity_experts_equals_a_loop_over_experts(getkey):
  expert = PolarityExpert(hidden=7, layers=2, dropout=0.0, deterministic=True)
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
  expert = AudioExpert(hidden=3, kernel_size=3, dropout=0.0, deterministic=True)
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


def test_vision_positions_break_the_symmetry_of_time(getkey):
  shared = {
    "n_steps": 6,
    "kernel_size": 1,
    "layers": 1,
    "ffn": 4,
    "n_heads": 1,
    "attention_dropout": 0.0,
    "ffn_dropout": 0.0,
    "deterministic": True,
  }
  values = jnp.ones((1, 4, 4)) * jnp.arange(4.0)[None, None]
  mask = jnp.ones((1, 4), bool)
  for positions in (True, False):
    expert = VisionExpert(positions=positions, **shared)
    variables = tiny.random_variables(
      lambda expert=expert: expert.init(jax.random.key(0), values, mask)
    )
    result = np.asarray(expert.apply(variables, values, mask))[0]
    assert np.allclose(result, result[:1], atol=1e-5) != positions


def rejected(overrides, match, **tasks):
  with pytest.raises(UserError, match=match):
    hgem.build(tiny.config(overrides, **tasks))


@pytest.mark.parametrize("path", sorted(hgem._CHOICES))
def test_unknown_choices_are_rejected_with_the_known_ones(path):
  rejected({path: "nonsense"}, f"model.{path}='nonsense': choose one of")


@pytest.mark.parametrize(
  ("overrides", "match"),
  [
    ({"gate1.k": 0}, "gate1.k=0: must be at least 1"),
    ({"n_heads": 3}, "n_heads=3: must divide model.D=8"),
    ({"gate.hidden": (4, 4, 4)}, "four widths"),
    ({"sparse.r": 0.0}, r"sparse.r=0.0: must be in \(0, 1\]"),
    ({"mi.tau": 0.0}, "mi.tau=0.0: must be above 0"),
    ({"dropout.attn": 1.0}, r"dropout.attn=1.0: must be in \[0, 1\)"),
    ({"T": 3}, "model.T=3: text has 4 steps"),
    ({"task": "emotion"}, "model.task='emotion': the corpus has"),
    ({"route_label": "class"}, "does not fit a task of kind 'regression'"),
    ({"disabled_experts": ("robst",)}, "no expert 'robst'"),
    ({"disabled_experts": ("sparse", "dense", "robust")}, "leave at least one"),
  ],
)
def test_values_out_of_range_are_rejected(overrides, match):
  rejected(overrides, match)


def test_a_polarity_rule_for_classes_is_rejected():
  rejected({}, "choose 'class'", emotion=tiny.EMOTION)


def test_codes_that_are_demanded_must_be_there():
  with pytest.raises(UserError, match="audio has no cluster codes"):
    tiny.shapes_of(tiny.config({"av_input": "ids"}), tiny.batch())


def test_an_unknown_preset_is_rejected():
  with pytest.raises(UserError, match="preset 'huge'"):
    hgem.options("huge")


def test_polarity_experts_are_named_after_the_emotions():
  overrides = {"route_label": "class", "polarity.n": 4}
  made = tiny.config(overrides, emotion=tiny.EMOTION)
  assert hgem.polarity_names(made) == ("happy", "sad", "angry", "neutral")
  assert hgem.polarity_names(tiny.config()) == ("negative", "neutral", "positive")
  two = tiny.config({"polarity.n": 2})
  assert hgem.polarity_names(two) == ("polarity_0", "polarity_1")


def test_the_two_presets_have_the_same_keys():
  def keys(config, prefix=""):
    for key, value in config.items():
      if isinstance(value, ml_collections.ConfigDict):
        yield from keys(value, f"{prefix}{key}.")
      else:
        yield prefix + key

  assert set(keys(hgem.options("paper"))) == set(keys(hgem.options("small")))
