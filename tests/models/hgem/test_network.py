"""H-GEM as a whole: the properties its specification asks for."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_hgem as tiny

from msa_jax.models.hgem import system as hgem
from msa_jax.models.hgem.fusion import sparse_top_k

SHIFTS = ("['key']['bias']", "['L1_audio']['attention']['bias']")
KEEP_ALL = (("gates.fusion_top_k", 3), ("gates.polarity_top_k", 3))


def same(first, second):
  """Bit-identical predictions, routing and features of two outputs."""
  equal = jax.tree.map(
    lambda a, b: bool(np.array_equal(a, b)),
    (first.predictions, first.routing, first.features),
    (second.predictions, second.routing, second.features),
  )
  return all(jax.tree.leaves(equal))


def prediction(made, variables, batch):
  """Each sample's prediction and what the head sees, [b 1+d]."""
  output = made.predict(variables, batch)
  columns = (output.predictions["sentiment"][:, None], output.features["fused"])
  return np.concatenate(columns, axis=1)


def moved(first, second):
  """Which samples differ by more than rounding."""
  return (np.abs(first - second).max(axis=1) > 1e-5).tolist()


def hgem_options(preset):
  return {key: v for key, v in hgem.options(preset).items() if key != "name"}


def test_parameters_are_the_published_budget():
  widths = {"text": 768, "audio": 74, "vision": 27}
  made = hgem.build(hgem_options("paper"), tiny.spec(widths, steps=50))
  # Shapes of parameters depend on widths only: two rows of four steps suffice.
  params, _ = tiny.shapes_of(made, tiny.batch(widths, rows=2))
  count = collections.Counter()
  for name, tree in params.items():
    count[name] = sum(leaf.size for leaf in jax.tree.leaves(tree))

  def total(*prefixes):
    return sum(n for name, n in count.items() if name.startswith(prefixes))

  assert count["in_t"] == 1_770_240 and count["in_a"] == 171_264
  assert count["in_v"] == 62_976 and total("id_") == 26_112
  assert count["miss_t"] == 768 and total("ln_") == 9_216
  assert count["out_t"] == count["out_v"] == 590_592 and count["out_a"] == 393_984
  plumbing = total("in_", "id_", "miss_", "ln_", "out_")
  assert plumbing == 3_615_744
  assert count["L1_text"] == 7_087_872
  assert count["L1_vis"] == 5_748_736
  assert count["L1_audio"] == 2_886_657
  assert plumbing + total("L1_") == 19_339_009
  assert total("l2ln_") == 4_608 and count["l2_adapter"] == 590_592
  assert total("l2_oln_") == 1_536
  assert total("L2_sparse") == 14_372_608
  assert total("L2_dense") == 5_245_184
  assert total("L2_C") == 2_304 and total("L2_den_") == 4_721_920
  assert total("L2_C", "L2_den_", "L2_rob") == 7_346_944
  assert total("l2", "L2_") == 27_561_472
  assert total("L3") == 4_727_040
  assert count["gate0"] == count["gate1"] == 4_747_785
  assert count["gate2"] == 375_945 and count["gate3"] == 373_059
  assert count["gate3_igsf"] == 3_840
  assert total("gate") == 10_248_414
  assert total("head_") == 16_513
  assert total("L1_", "L2_", "L3") == 47_415_041
  assert sum(count.values()) == 61_892_448


@pytest.mark.parametrize(
  ("fraction", "kept"),
  [(0.25, 38), (0.14, 21), (0.28, 42), (0.07, 11), (1.0, 150)],
)
def test_a_query_may_keep_its_share_of_the_nominal_length(fraction, kept):
  # 150 tokens. In floats 0.14 * 150 = 21.000000000000004, which would make 22.
  assert sparse_top_k(fraction, 50, 3) == kept


def test_masked_content_has_no_influence_at_all():
  made, batch = tiny.system(), tiny.batch()
  clean = made.predict(made.variables, batch)
  dirty = batch
  for column, (name, modality) in enumerate(
    (name, batch.modalities[name]) for name in batch.order
  ):
    real = modality.mask & batch.available[:, column, None]
    real = real & batch.sample_mask[:, None]
    dirty = tiny.edit(
      dirty,
      name,
      features=jnp.where(real[..., None], modality.features, jnp.nan),
    )
  assert same(clean, made.predict(made.variables, dirty))


def test_a_longer_padding_changes_nothing():
  made, batch = tiny.system(), tiny.batch()
  short = batch
  for name, modality in batch.modalities.items():
    mask = modality.mask & (jnp.arange(4) < 2)[None]
    short = tiny.edit(short, name, mask=mask)
  cut = jax.tree.map(lambda a: a, short)
  for name, modality in short.modalities.items():
    fields = {"features": modality.features[:, :2], "mask": modality.mask[:, :2]}
    cut = tiny.edit(cut, name, lost=modality.lost[:, :2], **fields)
  long = prediction(made, made.variables, short)
  np.testing.assert_allclose(prediction(made, made.variables, cut), long, atol=2e-6)


def test_a_missing_modality_gets_no_weight_and_missing_all_stays_finite():
  made, batch = tiny.system(), tiny.batch()
  output = made.predict(made.variables, batch)
  assert output.routing["gate0"].probs[1, 1] == 0.0
  assert np.all(output.features["audio"][1] == 0.0)
  empty = batch.replace(available=jnp.zeros_like(batch.available))
  output = made.predict(made.variables, empty)
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(output))
  assert np.all(np.asarray(output.routing["gate0"].combine) == 0.0)
  assert np.all(np.asarray(output.features["H_fusion"]) == 0.0)


def test_samples_keep_their_predictions_when_the_batch_is_permuted_or_changed():
  made, batch = tiny.system(), tiny.batch()
  plain = prediction(made, made.variables, batch)
  order = np.array([3, 0, 4, 1, 2, 5])
  permuted = jax.tree.map(lambda a: a[order], batch)
  np.testing.assert_allclose(
    prediction(made, made.variables, permuted), plain[order], atol=2e-7
  )
  text = batch.modalities["text"].features.at[0].add(1.0)
  changed = prediction(made, made.variables, tiny.edit(batch, "text", features=text))
  assert np.array_equal(changed[1:], plain[1:])
  assert moved(changed, plain) == [True] + [False] * 5


def test_gate_probabilities_and_selections_are_exact():
  made, batch = tiny.system(), tiny.batch()
  routing = made.predict(made.variables, batch).routing
  real = np.asarray(batch.sample_mask)
  for name in ("gate0", "gate1", "gate2", "gate3"):
    np.testing.assert_allclose(
      np.asarray(routing[name].probs)[real].sum(axis=1), 1.0, atol=1e-6
    )
    np.testing.assert_allclose(
      np.asarray(routing[name].combine)[real].sum(axis=1), 1.0, atol=1e-6
    )
  for name in ("gate1", "gate2", "gate3"):
    assert np.all(np.count_nonzero(routing[name].combine, axis=1) == 2)
  selected = np.asarray(routing["gate2"].combine) > 0
  assert np.array_equal(np.asarray(routing["gate3"].combine) > 0, selected)


def test_a_disabled_expert_is_neither_weighted_nor_computed():
  made = tiny.system((("disabled_experts", ("robust", "neutral")),))
  names = set(made.variables["params"])
  assert not any(n.startswith(("L2_C", "L2_den_", "L2_rob", "l2_oln_2")) for n in names)
  output = made.predict(made.variables, tiny.batch())
  assert np.all(np.asarray(output.routing["gate1"].combine)[:, 2] == 0.0)
  assert np.all(np.asarray(output.routing["gate2"].probs)[:, 1] == 0.0)
  assert np.all(np.asarray(output.routing["gate3"].combine)[:, 1] == 0.0)
  assert output.losses["denoising"] == 0.0


def test_gate_three_without_scores_gives_the_renormalised_prior():
  made, batch = tiny.system(), tiny.batch()
  params = made.variables["params"]
  silent = jax.tree_util.tree_map_with_path(
    lambda path, p: jnp.zeros_like(p) if "scores" in str(path) else p, params["gate3"]
  )
  routing = made.predict({"params": {**params, "gate3": silent}}, batch).routing
  prior = np.asarray(routing["gate2"].probs) * (routing["gate2"].combine > 0)
  expected = prior / prior.sum(axis=1, keepdims=True)
  np.testing.assert_allclose(routing["gate3"].combine, expected, atol=1e-6)


def test_lost_steps_are_embedded_and_their_content_hidden():
  made, batch = tiny.system(), tiny.batch()
  lost = jnp.zeros((6, 4), bool).at[0, 1].set(True)
  plain = prediction(made, made.variables, batch)
  for name, table in (("text", "miss_t"), ("vision", "id_v")):
    gone = tiny.edit(batch, name, lost=lost)
    result = prediction(made, made.variables, gone)
    assert moved(result, plain) == [True] + [False] * 5
    other = tiny.edit(
      gone, name, features=gone.modalities[name].features.at[0, 1].set(jnp.nan)
    )
    assert np.array_equal(prediction(made, made.variables, other), result)
    params = {**made.variables["params"]}
    # A shift by a constant would vanish in the layer norm: flip the embedding.
    params[table] = -params[table]
    flipped = prediction(made, {"params": params}, gone)
    assert moved(flipped, result) == [True] + [False] * 5


def test_an_embedded_missing_modality_takes_part():
  made, batch = tiny.system((("missing_mode", "embed"),)), tiny.batch()
  output = made.predict(made.variables, batch)
  assert output.routing["gate0"].probs[1, 1] > 0.0
  params = {**made.variables["params"]}
  params["id_a"] = params["id_a"].at[:-1].set(7.0)
  assert same(output, made.predict({"params": params}, batch))
  params["id_a"] = -made.variables["params"]["id_a"]
  flipped = prediction(made, {"params": params}, batch)
  plain = prediction(made, made.variables, batch)
  assert moved(flipped, plain) == [False, True, False, False, False, False]


def test_cluster_codes_reach_the_prediction_of_their_sample_alone():
  made, batch = tiny.system(codes=True), tiny.batch(codes=True)
  plain = prediction(made, made.variables, batch)
  codes = batch.modalities["vision"].ids["codes"]
  other = codes.at[0, 0].set((codes[0, 0] + 1) % 3)
  # Beyond the padding codes mean nothing, whatever they are.
  other = jnp.where(batch.modalities["vision"].mask, other, -9)
  changed = prediction(
    made, made.variables, tiny.edit(batch, "vision", ids={"codes": other})
  )
  assert moved(changed, plain) == [True] + [False] * 5


def train_losses(made, params, batch, seed):
  model, key = made.model, jax.random.key(seed)
  rngs = {"dropout": key, "noise": key}
  output = model.apply({"params": params}, tiny.hide(batch), train=True, rngs=rngs)
  auxiliary = hgem.auxiliary(model, output, batch, jnp.zeros(()))
  task = jnp.where(batch.sample_mask, output.predictions["sentiment"] - 0.7, 0.0)
  total = jnp.mean(task**2) + 0.1 * auxiliary["route_discrimination"]
  total = total + 0.05 * auxiliary["route_mi"] + 0.01 * auxiliary["load_balance"]
  return total + 0.1 * auxiliary["denoising"], auxiliary["denoising"]


@pytest.fixture(scope="module")
def gradients():
  """Gradients of the whole loss and of the denoising loss, all modalities there."""
  # All experts selected: an expert that no sample selects rightly learns nothing.
  made, batch = tiny.system(KEEP_ALL), tiny.batch(rows=16)
  batch = batch.replace(available=jnp.ones_like(batch.available))

  def both(params):
    one = jax.grad(lambda p: train_losses(made, p, batch, 0)[0])(params)
    return one, jax.grad(lambda p: train_losses(made, p, batch, 0)[1])(params)

  compiled = jax.jit(both, compiler_options=tiny.FAST_COMPILE)
  return jax.tree.map(np.asarray, compiled(made.variables["params"]))


@pytest.mark.slow
def test_every_parameter_gets_a_gradient_of_the_size_of_its_kind(gradients):
  """One that a LayerNorm's epsilon alone lets through is none."""
  total, _ = gradients
  sizes: dict[str, dict[str, float]] = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(total):
    name = jax.tree_util.keystr(path)
    assert np.all(np.isfinite(leaf)), name
    # Rows of lost content and codes have no gradient where nothing is lost.
    # A constant added to all scores of a softmax changes nothing.
    if not any(part in name for part in ("id_", "miss_", *SHIFTS)):
      kind = name.split("'")[-2]
      sizes.setdefault(kind, {})[name] = np.sqrt(np.mean(leaf**2))
  for found in sizes.values():
    least = 1e-4 * np.median(list(found.values()))
    assert all(size > least for size in found.values()), found


def test_the_denoising_loss_trains_the_denoiser_alone(gradients):
  _, den = gradients
  for name, tree in den.items():
    for leaf in jax.tree.leaves(tree):
      assert np.any(leaf != 0.0) == name.startswith("L2_den_"), name


def test_gates_that_keep_one_expert_still_learn_from_the_task():
  made = tiny.system((("gates.fusion_top_k", 1), ("gates.polarity_top_k", 1)))
  batch, params = tiny.batch(), made.variables["params"]
  gates = {name: params[name] for name in ("gate1", "gate2", "gate3")}

  def loss(gates):
    output = made.model.apply({"params": {**params, **gates}}, tiny.hide(batch))
    # Without the sparse fusion, which would hand Gate 2 a gradient of its own.
    return jnp.sum(output.features["r"] ** 2), output.routing

  compiled = jax.jit(jax.grad(loss, has_aux=True), compiler_options=tiny.FAST_COMPILE)
  gradient, routing = compiled(gates)
  for name in ("gate1", "gate2", "gate3"):
    assert np.all(np.count_nonzero(routing[name].combine, axis=1) == 1)
    leaves = jax.tree.leaves(gradient[name])
    assert all(np.any(np.asarray(leaf) != 0.0) for leaf in leaves), name


def test_capacity_dispatch_equals_dense_while_buffers_suffice():
  dense, batch = tiny.system(), tiny.batch()
  # k = 2 of 3 experts: a factor of 3 / 2 holds every row in every buffer.
  packed = tiny.system((("dispatch", "capacity"), ("capacity_factor", 1.5)))
  first = dense.predict(dense.variables, batch)
  second = packed.predict(dense.variables, batch)
  real = np.asarray(batch.sample_mask)
  for name in ("gate2", "gate3"):
    np.testing.assert_allclose(
      np.asarray(first.routing[name].combine)[real],
      np.asarray(second.routing[name].combine)[real],
      atol=1e-6,
    )
  np.testing.assert_allclose(
    np.asarray(first.predictions["sentiment"])[real],
    np.asarray(second.predictions["sentiment"])[real],
    atol=2e-6,
  )


def test_rows_that_find_full_buffers_keep_the_fused_features():
  # 6 rows * 2 / 3 experts * 0.25 = 1 slot per expert: most rows find none.
  made = tiny.system((("dispatch", "capacity"), ("capacity_factor", 0.25)))
  batch = tiny.batch()
  output = made.predict(made.variables, batch)
  fused, mixed = (
    np.asarray(output.features["z_fused"]),
    np.asarray(output.features["r"]),
  )
  full = np.all(np.abs(mixed - fused) < 1e-6, axis=1)
  # Three experts hold one row each, so at least two of the five real rows get none.
  assert np.sum(full[:5]) >= 2
  assert np.all(mixed[5] == 0.0)


@pytest.mark.parametrize("fusion", ["average", "fixed"])
def test_constant_fusions_weigh_the_available_modalities(fusion):
  made, batch = tiny.system((("fusion", fusion),)), tiny.batch()
  output = made.predict(made.variables, batch)
  weights = {"average": [1.0, 1.0, 1.0], "fixed": [0.5, 0.25, 0.25]}[fusion]
  expected = np.array(weights) * np.asarray(batch.available)
  expected = expected / expected.sum(axis=1, keepdims=True)
  expected[5] = 0.0  # filler row
  np.testing.assert_allclose(output.routing["gate0"].combine, expected, atol=1e-6)
  pooled = np.stack([output.features[name] for name in batch.order], axis=1)
  mean = np.einsum("bm,bmd->bd", expected, pooled)
  dense = made.variables["params"]["fusion_dense"]
  np.testing.assert_allclose(
    output.features["fused"],
    mean @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"]),
    atol=1e-5,
  )


@pytest.mark.slow
def test_all_ablations_return_the_same_structure():
  batch = tiny.batch()
  _, reference = tiny.shapes_of(tiny.model(), batch)
  variants = [{"fusion": name} for name in ("single", "average", "fixed")]
  variants += [
    {"disabled_experts": ("sparse",)},
    {"disabled_experts": ("vision", "robust", "positive")},
    {"info_guided_fusion": False},
    {"missing_mode": "embed"},
    {"dispatch": "capacity"},
    {"dtype": "bfloat16"},
  ]
  for overrides in variants:
    _, output = tiny.shapes_of(tiny.model(overrides), batch)
    assert output == reference, overrides


def test_bfloat16_compute_keeps_float32_parameters_and_results():
  exact = tiny.system()
  rough = tiny.system((("dtype", "bfloat16"),))
  leaves = jax.tree.leaves(rough.variables)
  assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
  batch = tiny.batch()
  output = rough.predict(exact.variables, batch)
  assert output.predictions["sentiment"].dtype == jnp.float32
  expected = exact.predict(exact.variables, batch)
  # bfloat16 has 8 bits: about 1 % of values of some units, through twenty layers.
  for name in ("text", "audio", "vision", "z_fused"):
    np.testing.assert_allclose(
      output.features[name], expected.features[name], atol=0.15
    )


def test_attention_maps_of_the_sparse_expert_are_returned_when_asked_for():
  made, batch = tiny.system(), tiny.batch()

  def maps(variables, batch):
    hidden = tiny.hide(batch)
    _, state = made.model.apply(variables, hidden, mutable=["intermediates"])
    return state["intermediates"]["L2_sparse_0"]["attention"]

  found = jax.jit(maps, compiler_options=tiny.FAST_COMPILE)(made.variables, batch)
  (before,), (after,) = found["weights_all"], found["weights"]
  real = sum(
    np.asarray(batch.modalities[name].mask).sum(axis=1)
    * np.asarray(batch.available)[:, column]
    for column, name in enumerate(batch.order)
  )
  real[5] = 0
  # A quarter of the real tokens.
  kept = np.ceil(0.25 * real)
  assert len(set(kept)) > 2
  assert np.array_equal(
    np.count_nonzero(after, axis=-1),
    np.broadcast_to(kept[:, None, None], (6, 2, 12)),
  )
  assert np.array_equal(
    np.count_nonzero(before, axis=-1), np.broadcast_to(real[:, None, None], (6, 2, 12))
  )
