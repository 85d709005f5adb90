"""MMIM against MMSA's module and trainer."""

import functools

import jax
import jax.numpy as jnp
import mmsa_arrays as published
import numpy as np
import pytest
from changes import change
from mmsa_arrays import Arrays, close

from configs import mmim as mmim_config
from msa_jax.config.experiment import experiment
from msa_jax.errors import UserError
from msa_jax.models import mmim
from msa_jax.models.mmim import MMIM, Memory
from msa_jax.models.outputs import OutputSpec
from msa_jax.step import compose
from msa_jax.typing import Spec

LETTERS = {"text": "t", "audio": "a", "vision": "v"}
QUIET = {"dropout": {"audio": 0.0, "vision": 0.0}, "post_dropout": 0.0}
SIZES = {
  "hidden_dims": {"audio": 3, "vision": 4},
  "feature_dims": {"audio": 8, "vision": 8},
  "fusion_dim": 12,
  **QUIET,
}
INPUTS = {"text": "bert_hidden", "audio": "a", "vision": "v"}


def parameters(weights):
  """MMSA's weights as ours."""
  dense = published.dense
  made = {
    "out": dense(weights, "fusion_prj.linear_3"),
    **{f"fusion_{i}": dense(weights, f"fusion_prj.linear_{i}") for i in (1, 2)},
  }
  for name, theirs in (("audio", "acoustic_enc"), ("vision", "visual_enc")):
    made[f"encoder_{name}"] = {
      "lstm": published.recurrent(weights, f"{theirs}.rnn"),
      "linear": dense(weights, f"{theirs}.linear_1"),
    }
  for name, m in LETTERS.items():
    net = f"cpc_z{m}.net"
    names = [net] if f"{net}.weight" in weights else [f"{net}.0", f"{net}.2"]
    made[f"predict_{name}"] = {
      f"layer_{i}": dense(weights, each) for i, each in enumerate(names, 1)
    }
  for pair in (("text", "vision"), ("text", "audio"), ("vision", "audio")):
    at = f"mi_{LETTERS[pair[0]]}{LETTERS[pair[1]]}"
    if f"{at}.entropy_prj.0.weight" in weights:
      made[f"estimate_{pair[0]}_{pair[1]}"] = {
        "project": dense(weights, f"{at}.entropy_prj.0"),
        **{f"mean_{i}": dense(weights, f"{at}.mlp_mu.{2 * i - 2}") for i in (1, 2)},
        **{
          f"log_variance_{i}": dense(weights, f"{at}.mlp_logvar.{2 * i - 2}")
          for i in (1, 2)
        },
      }
  return made


@functools.cache
def evaluation(va):
  """Outputs of a batch and of its memory, and three gradients, compiled."""
  options = {"all_pairs": True, "num_predictor_layers": 2} if va else {}
  model = MMIM(**SIZES, **options, compat="mmsa")

  def evaluate(params, held, batch):
    def apply(params, features):
      output, after = model.apply(
        {"params": params, mmim.COLLECTION: held},
        published.with_features(batch, features),
        train=True,
        rows=12,
        mutable=[mmim.COLLECTION],
      )
      prediction = output.predictions["sentiment"]
      task = jnp.mean(jnp.abs(prediction - batch.labels["sentiment"].value))
      total = task + 0.1 * sum(output.losses.values())
      terms = jnp.sum(prediction**2), total, output.losses["likelihood"]
      return terms, (task, output, after[mmim.COLLECTION])

    features = published.features_of(batch)
    values, pull, rest = jax.vjp(apply, params, features, has_aux=True)
    unit = np.eye(3, dtype=np.float32)
    gradients = [pull(tuple(jnp.asarray(row))) for row in unit]
    return values, gradients, rest

  return published.compiled(evaluate)


def begun(va):
  """Weights, and an empty memory."""
  arrays = Arrays("mmim", "va_two_layer_cpc" if va else "mmsa")
  params = parameters(arrays.below("weights"))
  pairs = [name.removeprefix("estimate_") for name in params if "estimate" in name]
  empty = {"values": jnp.zeros((1, 12, 2)), "signs": jnp.zeros((1, 12), jnp.int32)}
  held = {"pairs": dict.fromkeys(pairs, empty), "count": jnp.zeros((), jnp.int32)}
  return arrays, params, held


@pytest.mark.parametrize("va", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_three_batches_with_memory_are_those_of_mmsa(va):
  arrays, params, held = begun(va)
  for number in range(3):
    at = Arrays("mmim", arrays.tag + f"batch{number}")
    lengths = at["a_lengths"], at["v_lengths"]
    batch = published.stub_batch(at, *lengths, labels=at["labels"])
    values, gradients, (task, output, held) = evaluation(va)(params, held, batch)
    close(output.predictions["sentiment"], at["output"])
    close(output.features["fusion"], at["fusion"])
    for name in ("audio", "vision"):
      close(output.features[name], at[name])
    close(task, at["loss/task"], 1e-6)
    close(-output.losses["likelihood"], at["loss/lld"], 2e-6)
    close(output.losses["coding"], at["loss/nce"], 1e-6)
    if number == 2:  # what is computed in batch 1 is used from batch 2 on
      close(-output.losses["entropy"], at["loss/H"], 1e-5)
    close(values[1], at["loss/total"], 2e-6)
    close(values[2], at["loss/stage0"], 2e-6)
    for kind, found in zip(("in", "loss_in", "stage0_in"), gradients, strict=True):
      for name, their in INPUTS.items():
        close(found[1][name], at[f"grad_{kind}_{their}"], 1e-4)
    for pair, memory in held["pairs"].items():
      first, second = pair.split("_")
      key = f"projected_{LETTERS[first]}{LETTERS[second]}"
      for sign, end in ((1, "pos"), (-1, "neg")):
        rows = np.asarray(memory["signs"][0]) == sign
        close(np.asarray(memory["values"][0])[rows], at[f"{key}_{end}"])


def test_two_epochs_of_training_are_those_of_mmsa():
  arrays = Arrays("mmim_training")
  config = change(
    experiment(mmim_config.get_config("paper")),
    model=SIZES,
    text={
      "input": "encoder",
      "encoder": "none",
      "finetune": "all",
      "start": "scratch",
      "learning_rate": 5e-4,
    },
    optim={
      "learning_rate": 1e-3,
      "learning_rates": {"estimators": 2e-3},
      "weight_decay": 1e-4,
      "weight_decays": {"estimators": 0.01, "text_encoder": 1e-3},
      "batch_size": 10,
    },
  )
  spec = Spec(
    widths={"text": 16, "audio": 5, "vision": 6},
    lengths={"text": 8, "audio": 11, "vision": 9},
    ids={"text": ("tokens",)},
    tasks={"sentiment": published.TASK},
    train_size=40,
    encoder=published.ENCODER,
  )
  recipe = compose.build(config.replace(spec=spec))

  def ours(prefix):
    weights = arrays.below(prefix)
    text = published.encoder(weights, "bertmodel.model.")
    return {"text_encoder": text, **parameters(weights)}

  shapes = jax.eval_shape(recipe.init, 0)
  held = jax.tree.map(
    lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
    {mmim.COLLECTION: shapes.collections[mmim.COLLECTION]},
  )
  state = recipe.start(ours("initial"), held, jnp.zeros((), jnp.int32))
  step = published.compiled(recipe.step)
  first = state.params["estimate_text_audio"]["project"]
  for _ in range(2 * int(arrays["epochs"])):
    for batch in published.batches(arrays):
      state, _ = step(state, batch, 0)
    state = recipe.end_epoch(state)
  expected = ours(f"after_epoch{int(arrays['epochs'])}")
  published.trees_close(dict(state.params), expected, but=("key/bias",))
  # The projections have an optimizer that never sees a gradient of theirs.
  last = state.params["estimate_text_audio"]["project"]
  np.testing.assert_array_equal(last["kernel"], first["kernel"])


def test_few_rows_and_filler_rows_have_no_part_in_an_entropy():
  random = np.random.default_rng(0)
  rows = random.normal(size=(9, 2)).astype("f")
  signs = jnp.asarray([1, 1, 1, 1, -1, -1, -1, 0, 0])
  memory = Memory(jnp.zeros((1, 3, 2)), jnp.zeros((1, 3), jnp.int32))

  def found(rows, signs):
    return mmim.entropy(jnp.asarray(rows), signs, memory)

  def oracle(part):
    covariance = np.cov(part.T.astype(float), bias=True) + 1e-6 * np.eye(2)
    return np.linalg.slogdet(covariance)[1]

  expected = oracle(rows[:4]) + oracle(rows[4:7])
  close(found(rows, signs), expected / 4)
  spoilt = rows.copy()
  spoilt[7:] = 1e6
  close(found(spoilt, signs), found(rows, signs))
  # Two rows of a sign have no covariance of two dimensions.
  few = signs.at[4].set(0)
  only = np.linalg.slogdet(
    np.cov(rows[:4].T.astype(float), bias=True) + 1e-6 * np.eye(2)
  )
  close(found(rows, few), only[1] / 4)
  gradient = jax.grad(lambda rows: found(rows, jnp.zeros(9, int)))(rows)
  np.testing.assert_array_equal(gradient, 0.0)


def test_parameters_are_as_many_as_published():
  widths = {"text": 768, "audio": 5, "vision": 20}
  modalities = {
    name: published.modality(np.zeros((1, 2, width)), [2])
    for name, width in widths.items()
  }
  model = MMIM(compat="mmsa")
  shapes = jax.eval_shape(model.init, jax.random.key(0), published.batch(modalities))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 281_673


def test_each_parameter_has_its_turn_and_classes_are_refused():
  options = dict(mmim.SYSTEM.options)
  optim = experiment(mmim_config.get_config()).optim
  paths = {
    "density": ("estimate_text_audio", "mean_1", "kernel"),
    "projection": ("estimate_text_audio", "project", "kernel"),
    "rest": ("fusion_1", "kernel"),
  }

  def turns(compat):
    spec = Spec(widths={}, lengths={}, tasks={})
    (stage,) = mmim.stages({**options, "compat": compat}, spec, optim, "")
    return [
      {name for name, path in paths.items() if turn.trainable(path)}
      for turn in stage.turns
    ]

  assert turns("none") == [{"density"}, {"projection", "rest"}]
  assert turns("mmsa") == [{"density"}, {"rest"}]
  with pytest.raises(UserError, match="MMIM estimates entropies of positive and of"):
    MMIM(output=OutputSpec("emotion", "classes", 4))
