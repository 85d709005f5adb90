"""MISA against MMSA's module and trainer."""

import jax
import jax.numpy as jnp
import mmsa_arrays as published
import numpy as np
import pytest
from changes import change
from mmsa_arrays import Arrays, close

from configs import misa as misa_config
from msa_jax.config.experiment import experiment
from msa_jax.models.misa import MISA, Discriminator
from msa_jax.step import compose
from msa_jax.typing import Spec

LETTERS = {"text": "t", "audio": "a", "vision": "v"}
QUIET = {"dropout": 0.0, "fusion_dropout": 0.0}
SIZES = {"hidden_dim": 8, "ffn_dim": 24, **QUIET}
WEIGHTS = {"difference": 0.1, "similarity": 0.3, "reconstruction": 1.0}


def parameters(weights, gru=False, compat=True):
  """MMSA's weights as ours."""
  dense, norm = published.dense, published.norm
  made = {
    "shared": dense(weights, "shared.shared_1"),
    "hidden": dense(weights, "fusion.fusion_layer_1"),
    "out": dense(weights, "fusion.fusion_layer_3"),
  }
  layer = "transformer_encoder.layers.0"
  made["fusion"] = {
    "attention": published.attention(weights, f"{layer}.self_attn"),
    **{f"ffn_{i}": dense(weights, f"{layer}.linear{i}") for i in (1, 2)},
    **{f"norm_{i}": norm(weights, f"{layer}.norm{i}") for i in (1, 2)},
  }
  for name, m in LETTERS.items():
    made[f"project_{name}"] = dense(weights, f"project_{m}.project_{m}")
    made[f"norm_{name}"] = norm(weights, f"project_{m}.project_{m}_layer_norm")
    number = 3 if m == "a" else 1
    made[f"private_{name}"] = dense(weights, f"private_{m}.private_{m}_{number}")
    made[f"rebuild_{name}"] = dense(weights, f"recon_{m}.recon_{m}_1")
    if name != "text":
      made[f"encoder_{name}"] = {
        "norm": norm(weights, f"{m}layer_norm"),
        **{
          f"rnn_{i}": published.recurrent(
            weights, f"{m}rnn{i}", gru=gru, two_biases=compat
          )
          for i in (1, 2)
        },
      }
  if compat:
    discriminator = "sp_discriminator.sp_discriminator_layer_1"
    made["unused_discriminator"] = dense(weights, discriminator)
    # As wide as text of another width; it plays no part.
    made["unused_norm"] = {"scale": jnp.zeros(32), "bias": jnp.zeros(32)}
  return made


def evaluation(model):
  """Outputs, and gradients of the squared prediction and of the loss, compiled."""

  def evaluate(params, batch):
    def apply(params, features):
      seen = published.with_features(batch, features)
      output = model.apply({"params": params}, seen)
      prediction = output.predictions["sentiment"]
      task = jnp.mean((prediction - batch.labels["sentiment"].value) ** 2)
      total = task + sum(WEIGHTS[name] * value for name, value in output.losses.items())
      return (jnp.sum(prediction**2), total), (task, output)

    features = published.features_of(batch)
    values, pull, rest = jax.vjp(apply, params, features, has_aux=True)
    one = jnp.ones(())
    of_square = pull((one, 0 * one))[1]
    return values, of_square, pull((0 * one, one)), rest

  return published.compiled(evaluate)


def test_outputs_losses_and_gradients_are_those_of_mmsa():
  arrays = Arrays("misa", "lstm")
  lengths = arrays["own_lengths/a_lengths"], arrays["own_lengths/v_lengths"]
  batch = published.stub_batch(arrays, *lengths, labels=arrays["labels"])
  params = parameters(arrays.below("weights"))
  model = MISA(**SIZES, compat="mmsa")
  values, of_square, of_loss, (task, output) = evaluation(model)(params, batch)
  close(output.predictions["sentiment"], arrays["output"])
  theirs = {"original": "orig", "rebuilt": "recon"}
  for name, m in LETTERS.items():
    for ours, end in theirs.items():
      close(output.features[f"{ours}_{name}"], arrays[f"codes/utt_{m}_{end}"])
    for kind in ("private", "shared"):
      close(output.features[f"{kind}_{name}"], arrays[f"codes/utt_{kind}_{m}"])
  close(task, arrays["loss/task"], 1e-6)
  close(output.losses["difference"], arrays["loss/diff"], 1e-6)
  close(output.losses["similarity"], arrays["loss/cmd"], 1e-6)
  close(output.losses["reconstruction"], arrays["loss/recon"], 1e-6)
  close(values[1], arrays["loss/total"], 1e-6)
  inputs = {"text": "bert_hidden", "audio": "a", "vision": "v"}
  for name, their in inputs.items():
    close(of_square[name], arrays[f"grad_in_{their}"], 1e-4)
    close(of_loss[1][name], arrays[f"grad_loss_in_{their}"], 1e-4)
  expected = parameters(arrays.below("grad_loss_weights"))
  published.trees_close(of_loss[0], expected)


def squares(model):
  """Output and gradients of its square by the inputs, compiled."""

  def run(params, batch):
    def apply(features):
      output = model.apply({"params": params}, published.with_features(batch, features))
      return jnp.sum(output.predictions["sentiment"] ** 2), output

    return jax.value_and_grad(apply, has_aux=True)(published.features_of(batch))

  return published.compiled(run)


CASES = [
  pytest.param("gru", "mmsa", "", marks=pytest.mark.slow),
  ("lstm", "none", "own_lengths/"),
]


@pytest.mark.parametrize(("cell", "compat", "start"), CASES)
def test_gated_units_are_those_of_mmsa_and_lengths_are_own_by_default(
  cell, compat, start
):
  arrays = Arrays("misa", cell)
  lengths = arrays["own_lengths/a_lengths"], arrays["own_lengths/v_lengths"]
  batch = published.stub_batch(arrays, *lengths)
  model = MISA(**SIZES, cell=cell, compat=compat)
  params = parameters(arrays.below("weights"), cell == "gru", compat == "mmsa")
  (_, output), gradients = squares(model)(params, batch)
  close(output.predictions["sentiment"], arrays[f"{start}output"])
  inputs = {"text": "bert_hidden", "audio": "a", "vision": "v"}
  for name, their in inputs.items():
    close(gradients[name], arrays[f"{start}grad_in_{their}"], 1e-4)
  if cell == "gru":
    theirs = {"difference": "diff", "similarity": "cmd", "reconstruction": "recon"}
    for ours, their in theirs.items():
      close(output.losses[ours], arrays[f"loss/{their}"], 1e-6)


def test_parameters_are_as_many_as_published():
  def count(widths, **options):
    modalities = {
      name: published.modality(np.zeros((1, 2, width)), [2])
      for name, width in zip(LETTERS, widths, strict=True)
    }
    model = MISA(**options)
    shapes = jax.eval_shape(model.init, jax.random.key(0), published.batch(modalities))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))

  mosi, sims = (768, 5, 20), (768, 33, 709)
  assert count(mosi, compat="mmsa") == 1_138_033
  assert count(sims, compat="mmsa") == 21_664_749
  # Without what nothing depends on, and with one bias per gate.
  biases = 4 * 2 * 2 * (5 + 20)
  assert count(mosi) == 1_138_033 - 3_072 - 516 - biases


def test_the_discriminator_is_that_of_mmsa():
  arrays = Arrays("misa", "adversarial")
  weights = arrays.below("weights")
  params = {
    "hidden": published.dense(weights, "discriminator_layer_1"),
    "out": published.dense(weights, "discriminator_layer_2"),
  }
  shared = {name: jnp.asarray(arrays[f"shared_{m}"]) for name, m in LETTERS.items()}
  module = Discriminator(8, float(arrays["reverse_grad_weight"]))
  # The order of MMSA's domains.
  order = ("text", "vision", "audio")
  rows = [jnp.ones(5, bool)] * 3

  def loss(shared):
    codes = [shared[name] for name in order]
    return module.apply({"params": params}, codes, rows)

  value, gradient = jax.value_and_grad(loss)(shared)
  close(value, arrays["domain_loss"], 1e-6)
  for name, m in LETTERS.items():
    close(gradient[name], arrays[f"grad_shared_{m}"], 1e-4)


def test_two_epochs_of_training_are_those_of_mmsa():
  arrays = Arrays("misa_training")
  config = change(
    experiment(misa_config.get_config("paper")),
    model=SIZES,
    text={
      "input": "encoder",
      "encoder": "none",
      "finetune": "all",
      "start": "scratch",
      "learning_rate": 1e-3,
    },
    optim={"learning_rate": 1e-3, "grad_clip_value": 0.1, "batch_size": 4},
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

  def ours(prefix):
    weights = arrays.below(prefix)
    text = published.encoder(weights, "bertmodel.model.")
    return {"text_encoder": text, **parameters(weights)}

  state = recipe.start(ours("initial"), {}, jnp.zeros((), jnp.int32))
  step = published.compiled(recipe.step)
  for _ in range(int(arrays["epochs"])):
    for batch in published.batches(arrays):
      state, _ = step(state, batch, 0)
    state = recipe.end_epoch(state)
  but = ("key/bias",)
  published.trees_close(dict(state.params), ours("after_epoch2"), but=but)
