"""Self-MM against MMSA's module and trainer, and what holds of its tables."""

import jax
import jax.numpy as jnp
import mmsa_arrays as published
import numpy as np
import pytest
from changes import change
from mmsa_arrays import Arrays, close

from configs import self_mm as self_mm_config
from msa_jax.config.experiment import experiment
from msa_jax.config.options import ShardingConfig
from msa_jax.devices import sharding
from msa_jax.errors import UserError
from msa_jax.models.outputs import OutputSpec
from msa_jax.models.self_mm import SelfMM, network, tables
from msa_jax.step import compose
from msa_jax.typing import Spec

NAMES = ("text", "audio", "vision")
THEIRS = {"fusion": "fusion", "text": "text", "audio": "audio", "vision": "video"}
SIZES = {
  "hidden_dims": {"audio": 4, "vision": 5},
  "feature_dims": {"audio": 3, "vision": 4},
  "head_dims": {"text": 6, "audio": 4, "vision": 5},
  "fusion_dim": 8,
}


def parameters(weights):
  """MMSA's weights as ours."""
  made = {
    f"post_{ours}": {
      f"layer_{i}": published.dense(weights, f"post_{theirs}_layer_{i}")
      for i in (1, 2, 3)
    }
    for ours, theirs in THEIRS.items()
  }
  for name, theirs in (("audio", "audio_model"), ("vision", "video_model")):
    made[f"encoder_{name}"] = {
      "lstm": published.recurrent(weights, f"{theirs}.rnn"),
      "linear": published.dense(weights, f"{theirs}.linear_1"),
    }
  return made


@pytest.fixture(scope="module")
def run():
  """Outputs, and gradients of the squared prediction and of the losses, compiled."""
  # Training mode is needed for the losses; there must be no dropout in it.
  quiet = {"dropout": dict.fromkeys(NAMES, 0.0), "post_dropout": 0.0}
  model = SelfMM(**SIZES, **quiet, train_size=12, compat="mmsa")

  def evaluate(params, held, batch):
    def apply(params, features):
      output, _ = model.apply(
        {"params": params, tables.COLLECTION: {"tables": {"tables": held}}},
        published.with_features(batch, features),
        train=True,
        mutable=[tables.COLLECTION],
      )
      truth = batch.labels["sentiment"].value
      losses = {"M": jnp.mean(jnp.abs(output.predictions["sentiment"] - truth))}
      losses |= output.losses
      squared = jnp.sum(output.predictions["sentiment"] ** 2)
      return squared, sum(losses.values()), losses, output

    features = published.features_of(batch)
    values, pull = jax.vjp(lambda *a: apply(*a)[:2], params, features)
    one = jnp.ones(())
    return {
      "output": apply(params, features),
      "of_square": pull((one, 0 * one))[1],
      "of_loss": pull((0 * one, one)),
      "total": values[1],
    }

  return published.compiled(evaluate)


def held_tables(arrays, size=12):
  """Tables with given labels, every sample seen."""
  widths = {"fusion": 8, "text": 6, "audio": 4, "vision": 5}
  made = tables.empty(size, widths)
  labels = {name: jnp.asarray(arrays[f"loss/table_{name}"]) for name in widths}
  seen = {name: jnp.ones(size, bool) for name in widths}
  return {**made, "labels": labels, "seen": seen}


def padded(batch, lengths):
  """Sequences of other lengths, so that one program serves."""

  def pad(each, steps):
    grow = (0, steps - each.mask.shape[1])
    return each.replace(
      features=jnp.pad(each.features, ((0, 0), grow, (0, 0))),
      mask=jnp.pad(each.mask, ((0, 0), grow)),
      lost=jnp.pad(each.lost, ((0, 0), grow)),
    )

  modalities = {n: pad(each, lengths[n]) for n, each in batch.modalities.items()}
  return batch.replace(modalities=modalities)


@pytest.mark.parametrize("tag", ["unaligned", "aligned"])
def test_outputs_losses_and_gradients_are_those_of_mmsa(run, tag):
  arrays, weights = Arrays("self_mm", tag), Arrays("self_mm", "unaligned")
  lengths = [arrays["in_text"][:, 1].sum(1)] * 2
  if tag == "unaligned":
    lengths = [arrays["a_lengths"], arrays["v_lengths"]]
  index, truth = weights["loss/index"], weights["loss/table_fusion"]
  batch = published.stub_batch(arrays, *lengths, labels=truth[index], index=index)
  batch = padded(batch, {"text": 8, "audio": 11, "vision": 9})
  found = run(parameters(weights.below("weights")), held_tables(weights), batch)
  _, _, losses, output = found["output"]
  close(output.predictions["sentiment"], arrays["output_M"])
  for name, letter in zip(NAMES, "TAV", strict=True):
    close(output.features[f"predicted_{name}"], arrays[f"output_{letter}"])
    close(output.features[name], arrays[f"output_Feature_{letter.lower()}"])
  close(output.features["fusion"], arrays["output_Feature_f"])
  theirs = dict(text="bert_hidden", audio="a", vision="v")
  for name, their in theirs.items():
    expected = arrays[f"grad_in_{their}"]
    close(found["of_square"][name][:, : expected.shape[1]], expected, 1e-4)
  if tag == "aligned":
    return
  for name, letter in zip(NAMES, "TAV", strict=True):
    close(losses[f"unimodal_{name}"], arrays[f"loss/{letter}"], 1e-6)
  close(losses["M"], arrays["loss/M"], 1e-6)
  close(found["total"], arrays["loss/total"], 1e-6)
  for name, their in theirs.items():
    close(found["of_loss"][1][name], arrays[f"grad_loss_in_{their}"], 1e-4)
  expected = parameters(arrays.below("grad_loss_weights"))
  published.trees_close(found["of_loss"][0], expected)


@pytest.mark.parametrize("tag", ["labels_H3", "labels_H1_include_zero"])
def test_labels_tables_and_centres_are_those_of_mmsa_over_three_epochs(tag):
  arrays = Arrays("self_mm", tag)
  truth = jnp.asarray(arrays["m_labels"])
  rules = tables.Rules(float(arrays["H"]), bool(arrays["exclude_zero"]), "mmsa")
  names = ("fusion", *NAMES)
  step = published.compiled(tables.updated, static_argnums=2)
  held = tables.empty(12, {n: arrays[f"step0/feature_{n}"].shape[1] for n in names})
  count = sum(1 for name in arrays.file.files if name.startswith(f"{tag}/step"))
  assert count
  number = 0
  while f"step{number}/index" in arrays:
    at = f"step{number}"
    rows = jnp.asarray(arrays[f"{at}/index"])
    size = len(rows)
    # Filler rows, so that all batches are of one size.
    pad = lambda x: jnp.concatenate([x, jnp.zeros((5 - size, *x.shape[1:]), x.dtype)])  # noqa: E731, B023
    seen = tables.Seen(
      index=pad(rows),
      truth=pad(truth[rows]),
      known=jnp.arange(5) < size,
      features={n: pad(jnp.asarray(arrays[f"{at}/feature_{n}"])) for n in names},
      present={n: jnp.ones(5, bool) for n in NAMES},
    )
    held = step(held, seen, rules)
    for name in NAMES:
      ours = jnp.where(held["seen"][name], held["labels"][name], truth)
      close(ours, arrays[f"{at}/labels_{name}"])
    if f"{at}/table_fusion" in arrays:
      for name in names:
        close(held["features"][name], arrays[f"{at}/table_{name}"])
        centres = [arrays[f"{at}/center_{name}_{sign}"] for sign in ("pos", "neg")]
        close(held["centres"][name], np.stack(centres))
    number += 1
  assert number == 9


def trained(changes=None):
  """The recipe of MMSA's trainer, and a state of its weights."""
  arrays = Arrays("self_mm_training")
  config = change(
    experiment(self_mm_config.get_config("paper")),
    model={
      **SIZES,
      "dropout": dict.fromkeys(NAMES, 0.0),
      "post_dropout": 0.0,
      "label_limit": 3.0,
    },
    text={
      "input": "encoder",
      "encoder": "none",
      "finetune": "all",
      "start": "scratch",
      "learning_rate": 5e-4,
    },
    optim={
      "learning_rate": 1e-3,
      "learning_rates": {"audio": 5e-3, "vision": 3e-3},
      "weight_decay": 5e-3,
      "weight_decays": {"audio": 0.01, "vision": 0.0, "text_encoder": 1e-3},
      "accumulate_steps": 2,
      "batch_size": 4,
      **(changes or {}),
    },
  )
  spec = Spec(
    widths={"text": 16, "audio": 5, "vision": 6},
    lengths={"text": 8, "audio": 11, "vision": 9},
    ids={"text": ("tokens",)},
    tasks={"sentiment": published.TASK},
    train_size=20,
    encoder=published.ENCODER,
  )
  recipe = compose.build(config.replace(spec=spec))
  weights = arrays.below("initial")
  params = {
    "text_encoder": published.encoder(weights, "text_model.model."),
    **parameters(weights),
  }
  shapes = jax.eval_shape(recipe.init, 0)
  collections = jax.tree.map(
    lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes.collections
  )
  state = recipe.start(params, collections, jnp.zeros((), jnp.int32))
  return arrays, recipe, state


def test_three_epochs_of_training_are_those_of_mmsa():
  arrays, recipe, state = trained()
  step = published.compiled(recipe.step)
  for _ in range(int(arrays["epochs"])):
    for batch in published.batches(arrays):
      state, _ = step(state, batch, 0)
    state = recipe.end_epoch(state)
  held = state.collections[tables.COLLECTION]["tables"]["tables"]
  for name in ("fusion", *NAMES):
    close(held["labels"][name], arrays[f"final/labels_{name}"], 1e-4)
    close(held["features"][name], arrays[f"final/table_{name}"], 1e-4)
    centres = [arrays[f"final/center_{name}_{sign}"] for sign in ("pos", "neg")]
    close(held["centres"][name], np.stack(centres), 1e-4)
  weights = arrays.below("after_epoch3")
  expected = {
    "text_encoder": published.encoder(weights, "text_model.model."),
    **parameters(weights),
  }
  published.trees_close(dict(state.params), expected, but=("key/bias",))


@pytest.fixture(scope="module")
def update():
  return published.compiled(tables.updated, static_argnums=2)


RULES = tables.Rules(3.0)


def made(seed, size=8, rows=4):
  """Tables after two random batches, and a third."""
  random = np.random.default_rng(seed)
  widths = {"fusion": 3, "text": 2}
  labels = random.uniform(-3, 3, size).astype("f")

  def seen(index):
    index = jnp.asarray(index, jnp.int32)
    return tables.Seen(
      index=index,
      truth=jnp.asarray(labels)[index],
      known=jnp.ones(rows, bool),
      features={
        name: jnp.asarray(random.normal(size=(rows, width)), jnp.float32)
        for name, width in widths.items()
      },
      present={"text": jnp.ones(rows, bool)},
    )

  return tables.empty(size, widths), [seen(range(4)), seen(range(4, 8)), seen(range(4))]


def equal(one, other, exactly=True):
  for ours, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    if exactly:
      np.testing.assert_array_equal(ours, theirs)
    else:
      np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_filler_rows_and_absent_modalities_leave_the_tables_alone(update):
  held, (first, second, third) = made(0)
  held = update(update(held, first, RULES), second, RULES)
  none = third._replace(known=jnp.zeros(4, bool))
  equal(update(held, none, RULES), held)
  # A row without text: its labels, features and the centres of text stay.
  without = third._replace(present={"text": jnp.zeros(4, bool)})
  garbage = {**third.features, "text": jnp.full((4, 2), jnp.nan)}
  after = update(held, without._replace(features=garbage), RULES)
  for part in ("labels", "seen", "features", "centres"):
    np.testing.assert_array_equal(after[part]["text"], held[part]["text"])
  assert np.abs(after["centres"]["fusion"] - held["centres"]["fusion"]).max() > 1e-3
  assert after["visits"].tolist() == [2] * 4 + [1] * 4


def test_tables_of_seeds_are_updated_side_by_side_and_over_devices(update):
  alone = [made(seed) for seed in (1, 2)]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[made(1), made(2)])
  held, together = stacked
  vmapped = jax.jit(jax.vmap(lambda held, seen: tables.updated(held, seen, RULES)))
  expected = [state for state, _ in alone]
  for number, batch in enumerate(together):
    held = vmapped(held, batch)
    expected = [
      update(state, seen[number], RULES)
      for state, (_, seen) in zip(expected, alone, strict=True)
    ]
  for index in range(2):
    equal(jax.tree.map(lambda leaf: leaf[index], held), expected[index], False)  # noqa: B023
  # Batches that are split over devices, tables whole on each.
  mesh = sharding.make_mesh(ShardingConfig(data=2))
  state, batches = made(1)
  state = sharding.replicate(state, mesh)
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  for batch in batches:
    state = update(state, jax.device_put(batch, split), RULES)
  equal(state, expected[0], False)


def test_a_class_without_samples_keeps_its_centre_and_far_ratios_are_bounded(update):
  held, (first, _, third) = made(3)
  positive = first._replace(truth=jnp.abs(first.truth))
  held = update(held, positive, RULES)
  assert not np.asarray(held["centres"]["fusion"][1]).any()
  assert np.isnan(
    update(held, positive, RULES._replace(compat="mmsa"))["centres"]["fusion"][1]
  ).all()
  # The fusion half way between its centres: its place says nothing, and is not
  # divided by.
  centres = {"fusion": jnp.asarray([[1.0, 0, 0], [-1.0, 0, 0]])}
  centres["text"] = jnp.asarray([[1.0, 0], [3.0, 0]])
  halfway = third._replace(
    features={"fusion": jnp.zeros((4, 3)), "text": jnp.zeros((4, 2))},
    truth=jnp.full(4, 0.5),
  )
  held = {**held, "centres": centres, "labels": {n: jnp.full(8, 0.5) for n in centres}}
  # (3 - 1) / 1 = 2 for text, 0 for the fusion: .5 + 2, which weighs 2/3 at the second
  # visit.
  found = update(held, halfway, RULES)["labels"]["text"][:4]
  np.testing.assert_allclose(found, 0.5 / 3 + 2 / 3 * 2.5, atol=1e-5)
  literal = update(held, halfway, RULES._replace(compat="mmsa"))["labels"]["text"][:4]
  np.testing.assert_allclose(literal, 0.5 / 3 + 2 / 3 * 3.0, atol=1e-5)


def test_parameters_are_as_many_as_published_and_parts_have_their_partition():
  widths = {"text": 768, "audio": 5, "vision": 20}
  modalities = {
    name: published.modality(np.zeros((1, 2, width)), [2])
    for name, width in widths.items()
  }
  model = SelfMM(compat="mmsa")
  shapes = jax.eval_shape(model.init, jax.random.key(0), published.batch(modalities))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 159_332
  found = {path: network.partition((path, "kernel")) for path in shapes["params"]}
  assert found["encoder_audio"] == "audio" and found["encoder_vision"] == "vision"
  assert set(found.values()) == {"audio", "vision", "new"}


def test_classes_and_missing_entries_are_refused():
  with pytest.raises(UserError, match="Self-MM makes labels by moving numbers"):
    SelfMM(output=OutputSpec("emotion", "classes", 4))
  with pytest.raises(UserError, match=r"model.head_dims has no entry for .*'vision'"):
    SelfMM(head_dims={"text": 4, "audio": 4})
  with pytest.raises(UserError, match=r"model.label_limit=-1.0 must be 0 or more"):
    SelfMM(label_limit=-1.0)
