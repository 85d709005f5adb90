"""TETFN against MMSA's module, read like steps or masked."""

import functools

import jax
import jax.numpy as jnp
import mmsa_arrays as published
import numpy as np
import pytest
from mmsa_arrays import Arrays, close

from msa_jax.errors import UserError
from msa_jax.models import tetfn
from msa_jax.models.self_mm import tables
from msa_jax.models.tetfn import TETFN

NAMES = ("text", "audio", "vision")
LETTERS = dict(zip(NAMES, "lav", strict=True))
SIZES = {
  "hidden_dim": 8,
  "num_heads": 2,
  "lstm_dims": {"audio": 4, "vision": 5},
  "kernel_sizes": {"text": 1, "audio": 3, "vision": 3},
  "head_dims": {"text": 6, "audio": 4, "vision": 5},
  "fusion_dim": 8,
  "dropout": {"relu": 0.0, "residual": 0.0},
  "attention_dropout": dict.fromkeys(NAMES, 0.0),
}
INPUTS = dict(zip(NAMES, ("bert_hidden", "a", "v"), strict=True))


def encoder(weights, at):
  """A published encoder as ours: layers stacked."""
  layers = []
  while f"{at}.layers.{len(layers)}.fc1.weight" in weights:
    layer = f"{at}.layers.{len(layers)}"
    layers.append(
      {
        "attention": published.attention(weights, f"{layer}.self_attn"),
        "ffn_1": published.dense(weights, f"{layer}.fc1"),
        "ffn_2": published.dense(weights, f"{layer}.fc2"),
        "norm_attention": published.norm(weights, f"{layer}.layer_norms.0"),
        "norm_ffn": published.norm(weights, f"{layer}.layer_norms.1"),
      }
    )
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
  return {"layers": stacked, "norm": published.norm(weights, f"{at}.layer_norm")}


def convolution(weights, name):
  return {"kernel": jnp.asarray(weights[f"{name}.weight"].transpose(2, 1, 0))}


def parameters(weights, compat):
  """MMSA's weights as ours."""
  made = {"project_text": convolution(weights, "proj_l")}
  for name, theirs in (("audio", "audio_model"), ("vision", "video_model")):
    made[f"project_{name}"] = convolution(weights, f"{theirs}.conv")
    made[f"encoder_{name}"] = published.recurrent(
      weights, f"{theirs}.rnn", two_biases=compat
    )
  for name, m in LETTERS.items():
    made[f"{name}_memory"] = encoder(weights, f"trans_{m}_mem")
    for other, o in LETTERS.items():
      at = f"trans_{m}_with_{o}"
      if other != name and "text" in (name, other):
        made[f"{name}_with_{other}"] = encoder(weights, at)
      elif other != name:
        made[f"{name}_with_{other}"] = encoder(weights, f"{at}.upper_mha")
        made[f"{name}_asks_{other}"] = encoder(weights, f"{at}.lower_mha")
  theirs = {"fusion": "fusion", "text": "text", "audio": "audio", "vision": "video"}
  for ours, their in theirs.items():
    made[f"post_{ours}"] = {
      f"layer_{i}": published.dense(weights, f"post_{their}_layer_{i}")
      for i in (1, 2, 3)
    }
  return made


@functools.cache
def computed(compat):
  """Losses, outputs and gradients of the published weights, by mode."""
  arrays = Arrays("tetfn", "tetfn")
  index, truth = arrays["loss/index"], arrays["loss/table_fusion"]
  length = arrays["in_text"][:, 1].sum(1)
  batch = published.stub_batch(arrays, length, length, labels=truth[index], index=index)
  model = TETFN(**SIZES, train_size=10, compat=compat)
  params = parameters(arrays.below("weights"), compat == "mmsa")
  widths = {"fusion": 8, **SIZES["head_dims"]}
  held = {
    **tables.empty(10, widths),
    "labels": {name: jnp.asarray(arrays[f"loss/table_{name}"]) for name in widths},
    "seen": {name: jnp.ones(10, bool) for name in widths},
  }

  def run(features):
    output, _ = model.apply(
      {"params": params, tables.COLLECTION: {"tables": {"tables": held}}},
      published.with_features(batch, features),
      train=True,
      mutable=[tables.COLLECTION],
    )
    prediction = output.predictions["sentiment"]
    task = jnp.mean(jnp.abs(prediction - batch.labels["sentiment"].value))
    total = task + sum(output.losses.values())
    return (jnp.sum(prediction**2), total), (task, output)

  def both(features):
    values, pull, rest = jax.vjp(run, features, has_aux=True)
    one = jnp.ones(())
    return values, pull((one, 0 * one))[0], pull((0 * one, one))[0], rest

  return arrays, published.compiled(both)(published.features_of(batch))


# Masks are followed in Self-MM and MulT always, whose parts these are.
MODES = ["mmsa", pytest.param("none", marks=pytest.mark.slow)]


@pytest.mark.parametrize("compat", MODES)
def test_outputs_and_gradients_are_published_whole_and_of_unpadded_samples(compat):
  arrays, (_, of_square, _, (_, output)) = computed(compat)
  start = "" if compat == "mmsa" else "alone_"
  close(output.predictions["sentiment"], arrays[f"{start}output_M"])
  for name, letter in zip(NAMES, "TAV", strict=True):
    close(output.features[f"predicted_{name}"], arrays[f"{start}output_{letter}"])
  for name, their in INPUTS.items():
    close(of_square[name], arrays[f"{start}grad_in_{their}"], 1e-4)


def test_losses_and_their_gradients_are_those_of_mmsa():
  arrays, (values, _, of_loss, (task, output)) = computed("mmsa")
  close(task, arrays["loss/M"], 1e-6)
  for name, letter in zip(NAMES, "TAV", strict=True):
    close(output.losses[f"unimodal_{name}"], arrays[f"loss/{letter}"], 1e-6)
    close(output.features[name], arrays[f"output_Feature_{letter.lower()}"])
  close(output.features["fusion"], arrays["output_Feature_f"])
  close(values[1], arrays["loss/total"], 1e-6)
  for name, their in INPUTS.items():
    close(of_loss[name], arrays[f"grad_loss_in_{their}"], 1e-4)


def test_parameters_are_as_many_as_published_and_parts_have_their_partition():
  widths = {"text": 768, "audio": 5, "vision": 20}
  modalities = {
    name: published.modality(np.zeros((1, 2, width)), [2])
    for name, width in widths.items()
  }
  model = TETFN(compat="mmsa")
  shapes = jax.eval_shape(model.init, jax.random.key(0), published.batch(modalities))
  params = shapes["params"]
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 1_254_224
  found = {path: tetfn.partition((path, "kernel")) for path in params}
  assert found["encoder_audio"] == found["project_audio"] == "audio"
  assert found["project_text"] == found["audio_memory"] == "new"
  assert set(found.values()) == {"audio", "vision", "new"}


def test_heads_and_modalities_that_do_not_fit_are_refused():
  with pytest.raises(UserError, match="num_heads=4 must divide model.hidden_dim=6"):
    TETFN(hidden_dim=6, num_heads=4)
  with pytest.raises(UserError, match="must be text and another one"):
    TETFN(modalities=("audio", "vision"))
