"""MoMKE's properties: zero influence, separate experts, mixing, equivariance."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_momke

from msa_jax.errors import UserError
from msa_jax.layers.subsets import random_subset
from msa_jax.models.momke import MoMKE
from msa_jax.models.momke.conditions import conditions
from msa_jax.models.system import one_loss
from msa_jax.step.objective import task_losses
from msa_jax.typing import Label, ModelOutput

NAMES = ("text", "audio", "vision")
PRESENT = np.array(
  [
    [[1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0]],
    [[1, 0, 0], [1, 1, 1], [1, 1, 1], [1, 1, 1]],
  ],
  bool,
)  # [b t m]
REAL = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], bool)


@functools.cache
def _model(**options):
  model = tiny_momke.network(**options)
  batch = tiny_momke.batch(PRESENT, REAL)
  return model, jax.jit(model.init)(jax.random.key(0), batch)["params"]


@functools.cache
def _apply(stage=2, train=False, **options):
  model, _ = _model(**options)
  return jax.jit(tiny_momke.apply(model, train=train, stage=stage))


def _run(batch, params=None, stage=2, **options):
  params = _model(**options)[1] if params is None else params
  return _apply(stage, **options)({"params": params}, batch)


def _values(output):
  return np.asarray(output.predictions["sentiment"])


def _replace_features(batch, value, missing):
  """Puts `value` where `missing[name]` [b t] is True."""
  return batch.replace(
    modalities={
      name: m.replace(features=jnp.where(missing[name][..., None], value, m.features))
      for name, m in batch.modalities.items()
    }
  )


def _visible(batch):
  return {name: np.asarray(m.mask & ~m.lost) for name, m in batch.modalities.items()}


@pytest.mark.parametrize("stage", [1, 2])
def test_missing_and_padded_utterances_have_no_influence_whatever_they_hold(stage):
  batch = tiny_momke.batch(PRESENT, REAL)
  missing = {name: ~seen for name, seen in _visible(batch).items()}
  base, wild = _run(batch, stage=stage), None
  for value in (1e6, jnp.nan):
    wild = _run(_replace_features(batch, value, missing), stage=stage)
    jax.tree.map(np.testing.assert_array_equal, wild, base)


def test_a_modality_that_is_unavailable_everywhere_has_no_influence():
  batch = tiny_momke.batch(PRESENT, REAL)
  without = batch.replace(available=jnp.asarray([[True, False, True]] * 2))
  lost = tiny_momke.batch(PRESENT & np.array([True, False, True]), REAL)
  other = lost.modalities | {
    "audio": lost.modalities["audio"].replace(features=jnp.full((2, 4, 3), -7.0))
  }
  np.testing.assert_array_equal(
    _values(_run(without)), _values(_run(lost.replace(modalities=other)))
  )


def test_an_utterance_without_any_modality_gets_the_head_of_an_empty_residual():
  batch = tiny_momke.batch(PRESENT, REAL)
  network = _model()[1]["network"]
  hidden = np.maximum(np.asarray(network["proj1"]["bias"]), 0.0)
  head = network["head"]
  expected = hidden @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
  values = _values(_run(batch))
  np.testing.assert_allclose(values[0, 3], expected[0], rtol=1e-6)
  np.testing.assert_allclose(values[1, 2:], expected[[0, 0]], rtol=1e-6)


@pytest.mark.parametrize("stage", [1, 2])
def test_values_and_gradients_are_finite_where_nothing_can_be_attended_to(stage):
  # One real utterance; a modality missing in the whole dialogue; nothing at all.
  present = np.array([[[1, 1, 1]] * 4, [[0, 1, 1]] * 4, [[0, 0, 0]] * 4], bool)
  real = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]], bool)
  batch = tiny_momke.batch(present, real)
  params = _model()[1]

  def loss(params):
    output = _apply(stage)({"params": params}, batch)
    return sum(jnp.sum(value**2) for value in output.predictions.values())

  value, gradients = jax.value_and_grad(loss)(params)
  assert np.isfinite(value)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_with_own_experts_only_stage_2_mixes_what_stage_1_says():
  batch = tiny_momke.batch(PRESENT, REAL)
  params = _model()[1]
  mixed = _run(batch, params, mixing="own").features
  alone = _run(batch, params, stage=1).features
  for name, seen in _visible(batch).items():
    expected = np.where(seen[..., None], alone[f"y_{name}"], 0.0)
    np.testing.assert_allclose(mixed[f"r_{name}"], expected, rtol=1e-5, atol=1e-6)


def test_a_modality_may_be_left_its_own_expert_and_that_of_one_other():
  batch = tiny_momke.batch(np.ones((2, 4, 3), bool))
  whole, some = _run(batch), _run(batch, _model()[1], mixing="own+audio")
  for index, name in enumerate(NAMES):
    found = np.asarray(some.routing[name].combine)
    kept = np.unique([index, NAMES.index("audio")])
    # The router's weights of the two, as if the third were not there.
    expected = np.zeros_like(found)
    expected[..., kept] = np.asarray(whole.routing[name].combine)[..., kept]
    expected /= expected.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.isfinite(some.routing[name].logits).all()
  assert np.abs(_values(whole) - _values(some)).max() > 1e-3
  with pytest.raises(UserError, match=r"model.mixing='own\+vision' must be one of"):
    MoMKE(modalities=("text", "audio"), mixing="own+vision")


def test_with_equal_experts_the_routers_do_not_matter():
  params = _model()[1]
  network = dict(params["network"])
  network["experts"] = jax.tree.map(
    lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), network["experts"]
  )
  other = network | {
    "routers": jax.tree.map(lambda leaf: 3.0 - leaf, network["routers"])
  }
  batch = tiny_momke.batch(PRESENT, REAL)
  first, second = (_run(batch, {"network": n}) for n in (network, other))
  assert np.abs(first.routing["text"].probs - second.routing["text"].probs).max() > 0.01
  np.testing.assert_allclose(_values(first), _values(second), rtol=1e-5, atol=1e-6)


def test_weights_sum_to_one_where_the_modality_is_there_and_are_zero_elsewhere():
  batch = tiny_momke.batch(PRESENT, REAL)
  for options in ({}, {"mixing": "uniform"}, {"mixing": "own"}):
    routing = _run(batch, **options).routing
    for name, seen in _visible(batch).items():
      total = np.sum(routing[name].combine, axis=-1)
      np.testing.assert_allclose(total, seen.astype(float), rtol=1e-6)


_erf = np.vectorize(math.erf)


def _expert(params, expert, values, mask, heads=2):
  """One expert on one sequence [t d], in float64 numpy, head by head."""

  def affine(name, layer, x):
    leaf = params[name]
    kernel = np.asarray(leaf["kernel"], float)[expert, layer]
    return x @ kernel + np.asarray(leaf["bias"], float)[expert, layer]

  def attend(layer, x):
    q, k, v = np.split(affine("qkv", layer, x), 3, axis=-1)
    out, width = np.zeros_like(x), x.shape[-1] // heads
    for head in range(heads):
      part = slice(head * width, (head + 1) * width)
      for row in range(len(x) if mask.any() else 0):
        scores = k[mask][:, part] @ q[row, part] / np.sqrt(width)
        weights = np.exp(scores - scores.max())
        out[row, part] = weights / weights.sum() @ v[mask][:, part]
    return out

  def mlp(layer, x):
    hidden = affine("fc1", layer, x)
    return affine("fc2", layer, 0.5 * hidden * (1 + _erf(hidden / np.sqrt(2))))

  for layer in range(params["qkv"]["kernel"].shape[1]):
    mixed = attend(layer, values)
    values = values + mixed + mlp(layer, mixed)
  return values


def _numpy_projection(network, batch, name):
  leaf = network[f"in_proj_{name}"]
  modality = batch.modalities[name]
  seen = np.asarray(modality.mask & ~modality.lost)[..., None]
  values = np.where(seen, np.asarray(modality.features, float), 0.0)
  return values @ np.asarray(leaf["kernel"], float) + np.asarray(leaf["bias"], float)


def test_all_streams_agree_with_a_loop_over_modalities_and_experts():
  batch = tiny_momke.batch(PRESENT, REAL)
  network = _model()[1]["network"]
  seen = _visible(batch)
  routing = _run(batch).routing
  streams = _run(batch).features
  uniform = _run(batch, mixing="uniform").features
  for name in NAMES:
    projected = _numpy_projection(network, batch, name)
    for row in range(2):
      outputs = np.stack(
        [
          _expert(network["experts"], e, projected[row], seen[name][row])
          for e in range(3)
        ],
        axis=1,
      )  # [t e d]
      weights = np.asarray(routing[name].combine[row])[..., None]
      ours = streams[f"r_{name}"][row]
      np.testing.assert_allclose(ours, (weights * outputs).sum(1), rtol=2e-4, atol=2e-5)
      mean = np.where(seen[name][row][:, None], outputs.mean(1), 0.0)
      np.testing.assert_allclose(uniform[f"r_{name}"][row], mean, rtol=2e-4, atol=2e-5)


def _gradients(batch, stage, heads):
  """Gradients of each head's loss, stacked."""
  params = _model()[1]

  def losses(params):
    output = _apply(stage)({"params": params}, batch)
    return jnp.stack([jnp.mean((output.predictions[h] - 1.0) ** 2) for h in heads])

  return jax.jit(jax.jacrev(losses))(params)["network"]


def _norm(tree):
  return float(sum(np.sum(np.abs(leaf)) for leaf in jax.tree.leaves(tree)))


def test_in_stage_1_every_modality_trains_its_own_path_only():
  batch = tiny_momke.batch(np.ones((2, 4, 3)), REAL)
  parts = _gradients(batch, 1, [f"sentiment@{name}" for name in NAMES])
  # Each loss alone reaches nothing of the others, so the gradient of their sum is made
  # of these three separate ones.
  for column, name in enumerate(NAMES):
    gradient = jax.tree.map(lambda leaf, i=column: leaf[i], parts)
    for other in NAMES:
      assert (_norm(gradient[f"in_proj_{other}"]) > 0) == (other == name)
    for stack in ("experts", "heads"):
      for index in range(3):
        mine = jax.tree.map(lambda leaf, i=index: leaf[i], gradient[stack])
        assert (_norm(mine) > 0) == (index == column)
    assert _norm([gradient[key] for key in ("routers", "proj1", "head")]) == 0.0


def test_in_stage_2_one_modality_trains_every_expert_and_no_other_projection():
  only_audio = np.zeros((2, 4, 3), bool)
  only_audio[..., 1] = True
  gradient = _gradients(tiny_momke.batch(only_audio, REAL), 2, ["sentiment"])
  gradient = jax.tree.map(lambda leaf: leaf[0], gradient)
  for index in range(3):
    assert _norm(jax.tree.map(lambda leaf, i=index: leaf[i], gradient["experts"])) > 0
  assert _norm(gradient["in_proj_audio"]) > 0
  assert _norm([gradient["in_proj_text"], gradient["in_proj_vision"]]) == 0.0
  assert _norm(gradient["heads"]) == 0.0


def test_outputs_move_with_their_utterances_and_dialogues():
  batch = tiny_momke.batch(PRESENT, np.ones((2, 4), bool))
  base = _run(batch)
  order = np.array([2, 0, 3, 1])
  swapped = batch.replace(
    modalities=jax.tree.map(lambda leaf: leaf[:, order], batch.modalities)
  )
  np.testing.assert_allclose(
    _values(_run(swapped)), _values(base)[:, order], rtol=1e-5, atol=1e-6
  )
  swapped = jax.tree.map(lambda leaf: leaf[::-1], batch)
  np.testing.assert_allclose(
    _values(_run(swapped)), _values(base)[::-1], rtol=1e-5, atol=1e-6
  )


@pytest.mark.parametrize("task", ["sentiment", "emotion"])
def test_losses_average_over_real_utterances_as_numpy_does(task):
  random = np.random.default_rng(0)
  spec = tiny_momke.spec(task=task)
  terms = one_loss({"task": "mse" if task == "sentiment" else "default"}, spec)
  batch = tiny_momke.batch(PRESENT, REAL)
  if task == "sentiment":
    labels, values = random.normal(size=(2, 4)), random.normal(size=(2, 4))
    each = (values - labels) ** 2
  else:
    labels, values = random.integers(0, 4, (2, 4)), random.normal(size=(2, 4, 4))
    chosen = np.take_along_axis(values, labels[..., None], -1)[..., 0]
    each = np.log(np.exp(values).sum(-1)) - chosen
  kind = jnp.float32 if task == "sentiment" else jnp.int32
  output = ModelOutput({task: jnp.asarray(values, jnp.float32)})
  for real in (REAL, np.zeros_like(REAL)):
    labelled = batch.replace(
      labels={task: Label(jnp.asarray(labels, kind), jnp.asarray(real))}
    )
    expected = (each * real).sum() / max(real.sum(), 1)
    loss = task_losses(spec.tasks, terms, output, labelled)[task]
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_mixed_masks_are_never_empty_and_uniform_over_what_is_there():
  available = np.ones((7000, 3), bool)
  available[-10:, 1] = False
  available[-5:] = False
  drawn = jax.random.uniform(jax.random.key(1), (7000,))
  kept = np.asarray(random_subset(drawn, jnp.asarray(available)))
  assert not (kept & ~available).any()
  np.testing.assert_array_equal(kept.any(-1), available.any(-1))
  counts = np.bincount(kept[:-10] @ [1, 2, 4], minlength=8)
  expected = 6990 / 7
  assert np.all(np.abs(counts[1:] - expected) < 3 * np.sqrt(expected * 6 / 7))


def test_mixed_training_hides_modalities_and_evaluation_does_not():
  batch = tiny_momke.batch(np.ones((2, 4, 3), bool), REAL)
  params, options = _model()[1], {"dropout": 0.0, "router_logit_dropout": 0.0}
  train = _apply(train=True, stage2_mask="mixed", **options)
  streams = train({"params": params}, batch, rngs={"noise": jax.random.key(3)}).features
  shown = np.stack([np.any(streams[f"r_{name}"] != 0, axis=-1) for name in NAMES], -1)
  assert not shown[REAL].all()
  assert shown[REAL].any(-1).all()
  evaluated = _run(batch, params, stage2_mask="mixed")
  plain = _values(_run(batch, params))
  np.testing.assert_allclose(_values(evaluated), plain, rtol=1e-5, atol=1e-6)
  # Besides, every condition is judged.
  hidden = tiny_momke.batch(np.ones((2, 4, 3)) * [True, False, True], REAL)
  alone = _run(hidden, params)
  ours = evaluated.predictions["sentiment@tv"]
  np.testing.assert_allclose(ours, _values(alone), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(
    evaluated.routing["text@tv"].probs, alone.routing["text"].probs, rtol=1e-5
  )
  assert "audio@tv" not in evaluated.routing


def test_a_condition_hides_the_other_modalities():
  batch = tiny_momke.batch(PRESENT, REAL)
  params = _model()[1]
  hidden = tiny_momke.batch(PRESENT & np.array([True, False, True]), REAL)
  seen = _run(batch, params, condition="vt")
  np.testing.assert_array_equal(_values(seen), _values(_run(hidden, params)))


@pytest.mark.slow
def test_every_branch_is_the_model_of_its_condition():
  batch = tiny_momke.batch(PRESENT, REAL)
  params = _model(condition="all", num_layers=1)[1]
  output = _run(batch, params, condition="all", num_layers=1)
  table = conditions(NAMES)
  assert list(table) == ["a", "t", "v", "at", "av", "tv", "atv"]
  assert params["branches"]["head"]["kernel"].shape == (7, 24, 1)
  values = {name: output.predictions[f"sentiment@{name}"] for name in table}
  for branch, name in enumerate(table):
    network = jax.tree.map(lambda leaf, i=branch: leaf[i], params["branches"])
    kept = np.array(table[name])
    alone = _run(
      tiny_momke.batch(PRESENT & kept, REAL), {"network": network}, num_layers=1
    )
    np.testing.assert_allclose(values[name], _values(alone), rtol=1e-5, atol=1e-6)
  # The model as a whole answers with the branch of what each utterance has.
  chosen = [["atv", "av", "v", "atv"], ["t", "atv"]]
  for row, names in enumerate(chosen):
    for step, name in enumerate(names):
      assert _values(output)[row, step] == values[name][row, step]


def test_without_stage_2_the_available_modalities_outputs_are_averaged():
  batch = tiny_momke.batch(PRESENT, REAL)
  output = _run(batch, stage=1)
  heads = {n: np.asarray(output.predictions[f"sentiment@{n}"]) for n in NAMES}
  values = _values(output)
  np.testing.assert_allclose(
    values[0, 1], (heads["audio"] + heads["vision"])[0, 1] / 2, rtol=1e-5
  )
  np.testing.assert_allclose(values[0, 2], heads["vision"][0, 2], rtol=1e-6)
  assert values[0, 3] == 0.0


def test_frames_are_pooled_before_the_heads_and_may_differ_in_number():
  model = tiny_momke.network(level="frame")
  batch = tiny_momke.batch(PRESENT, REAL)
  audio = batch.modalities["audio"]
  batch = batch.replace(
    modalities=batch.modalities | {"audio": jax.tree.map(lambda x: x[:, :3], audio)}
  )
  params = _model()[1]
  output = jax.jit(tiny_momke.apply(model))({"params": params}, batch)
  steps = _run(batch)
  seen = np.zeros((2, 4, 1), bool)
  for name, visible in _visible(batch).items():
    seen[:, : visible.shape[1], 0] |= visible
    weights = np.asarray(steps.routing[name].combine)
    count = (weights.sum(-1) > 0).sum(1, keepdims=True)
    np.testing.assert_allclose(
      output.routing[name].combine, weights.sum(1) / count, rtol=1e-5
    )
  hidden = np.asarray(steps.features["hidden"])
  pooled = np.where(seen, hidden, 0.0).sum(1) / seen.sum(1)
  head = params["network"]["head"]
  expected = pooled @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
  np.testing.assert_allclose(_values(output), expected[:, 0], rtol=1e-5, atol=1e-6)


def test_parameters_start_uniform_within_one_over_the_root_of_the_fan_in():
  bound = 1 / np.sqrt(8)
  experts = _model()[1]["network"]["experts"]
  kernel = np.asarray(experts["qkv"]["kernel"])
  assert 0.95 * bound < np.abs(kernel).max() <= bound
  np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.05)
  assert 0.6 * bound < np.abs(experts["fc1"]["bias"]).max() <= bound


def test_the_network_is_usable_alone_and_reads_its_modalities_from_the_batch():
  widths = {"text": 2, "audio": 3}
  batch = tiny_momke.batch(np.ones((2, 4, 2)), REAL, widths)
  model = MoMKE(hidden_dim=4, num_layers=1, condition="at")
  variables = jax.jit(model.init)(jax.random.key(0), batch)
  output = model.apply(variables, batch)
  assert output.predictions["sentiment"].shape == (2, 4)
  assert output.routing["audio"].experts == ("text", "audio")
  named = MoMKE(hidden_dim=4, num_layers=1, modalities=("text", "audio"))
  jax.tree.map(np.testing.assert_array_equal, named.apply(variables, batch), output)
  with pytest.raises(UserError, match="the batch has no vision, only text, audio"):
    MoMKE(modalities=NAMES).init(jax.random.key(0), batch)


@pytest.mark.parametrize("changes", [{"stage2_mask": "mixed"}, {"condition": "all"}])
def test_every_gate_names_its_experts(changes):
  routing = _run(tiny_momke.batch(PRESENT, REAL), num_layers=1, **changes).routing
  assert {gate.experts for gate in routing.values()} == {NAMES}
