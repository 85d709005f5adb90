"""MAG-BERT against MMSA's module and trainer."""

import functools

import jax
import jax.numpy as jnp
import mmsa_arrays as published
import numpy as np
import pytest
from changes import change
from mmsa_arrays import Arrays, close

from configs import mag_bert as mag_config
from msa_jax.config.experiment import experiment
from msa_jax.errors import UserError
from msa_jax.models import mag_bert
from msa_jax.models.mag_bert import AdaptationGate, MAGBert
from msa_jax.step import compose
from msa_jax.text.bert import TextEncoder
from msa_jax.typing import Spec

SPEC = Spec(
  widths={"text": 16, "audio": 5, "vision": 6},
  lengths={"text": 8, "audio": 8, "vision": 8},
  ids={"text": ("tokens",)},
  tasks={"sentiment": published.TASK},
  train_size=20,
  encoder=published.ENCODER,
)
BUT = ("key/bias",)


def gate(weights, prefix=""):
  """MMSA's gate as ours."""
  made = {"norm": published.norm(weights, f"{prefix}LayerNorm")}
  for name, m in (("audio", "a"), ("vision", "v")):
    made[f"gate_{name}"] = published.dense(weights, f"{prefix}W_h{m}")
    made[f"shift_{name}"] = published.dense(weights, f"{prefix}W_{m}")
  return made


def parameters(weights, prefix=""):
  """MMSA's weights as ours, and the encoder's."""
  bert = {name: value for name, value in weights.items() if ".MAG." not in name}
  own = {name: value for name, value in bert.items() if "classifier" not in name}
  return {
    "text_encoder": published.encoder(own, f"{prefix}bert."),
    "gate": gate(weights, f"{prefix}bert.MAG."),
    "head": {
      "pooler": published.dense(weights, f"{prefix}bert.pooler.dense"),
      "out": published.dense(weights, f"{prefix}classifier"),
    },
  }


def frames(arrays):
  """Audio and vision, with frames at every step that is not all zero."""
  return {
    name: jnp.asarray(arrays[f"in_{m}"])
    for name, m in (("vision", "v"), ("audio", "a"))
  }


@functools.cache
def gate_run(beta):
  module = AdaptationGate(beta, everywhere=True)

  def run(params, states, seen):
    def apply(states, seen):
      there = jnp.ones(states.shape[:2], bool)
      given = {name: (values, there) for name, values in seen.items()}
      output = module.apply({"params": params}, states, given, train=False)
      return jnp.sum(output**3), output

    return jax.value_and_grad(apply, (0, 1), has_aux=True)(states, seen)

  return published.compiled(run)


@pytest.mark.parametrize("tag", ["gate_beta1", "gate_beta01", "gate_zero_norm"])
def test_the_gate_and_its_gradients_are_those_of_mmsa(tag):
  arrays = Arrays("mag_bert", tag)
  beta = 0.1 if tag == "gate_beta01" else 1.0
  states = jnp.asarray(arrays["in_e"])
  (_, output), (of_states, of_frames) = gate_run(beta)(
    gate(arrays.below("weights")), states, frames(arrays)
  )
  close(output, arrays["output"])
  close(of_states, arrays["grad_in_e"], 1e-4)
  close(of_frames["audio"], arrays["grad_in_a"], 1e-4)
  close(of_frames["vision"], arrays["grad_in_v"], 1e-4)


def test_the_gate_inside_the_encoder_is_that_of_mmsa():
  arrays = Arrays("mag_bert", "model")
  params = parameters(arrays.below("weights"))
  lengths = arrays["in_text"][:, 1].sum(1)
  text = published.modality(np.zeros((5, 8, 16)), lengths)
  modalities = {"text": text}
  for name, values in frames(arrays).items():
    modalities[name] = published.modality(values, lengths)
  batch = published.batch(modalities)
  model = MAGBert(compat="mmsa")
  tokens = jnp.asarray(arrays["in_text"][:, 0], jnp.int32)

  def run(params, nudge, seen):
    batch_of = batch.replace(
      modalities={
        name: each.replace(features=seen.get(name, each.features))
        for name, each in batch.modalities.items()
      }
    )
    bound = model.bind({"params": params})
    shift = bound.hooks(batch_of, False)[0]
    encoder = TextEncoder(
      published.ENCODER, after={0: lambda states, mask: shift(states + nudge, mask)}
    )
    states = encoder.apply({"params": params["text_encoder"]}, tokens, text.mask)
    modalities = dict(batch_of.modalities)
    modalities["text"] = text.replace(features=states[-1])
    encoded = batch_of.replace(modalities=modalities)
    output = model.apply({"params": params}, encoded, hooked=True)
    prediction = output.predictions["sentiment"]
    return jnp.sum(prediction**2), (states, output)

  differentiate = jax.value_and_grad(run, (1, 2), has_aux=True)
  (_, (states, output)), (of_states, of_frames) = published.compiled(differentiate)(
    params, jnp.zeros((5, 8, 16)), frames(arrays)
  )
  close(output.predictions["sentiment"], arrays["output"])
  close(output.features["pooled"], arrays["pooled"])
  real = np.asarray(text.mask)
  close(np.asarray(states[0])[real], arrays["fused"][real])
  close(np.asarray(states[-1])[real], arrays["sequence_output"][real])
  expected = np.where(real[..., None], arrays["grad_in_embedding"], 0.0)
  close(np.where(real[..., None], of_states, 0.0), expected, 1e-4)
  for name, m in (("audio", "a"), ("vision", "v")):
    expected = np.where(real[..., None], arrays[f"grad_in_{m}"], 0.0)
    close(np.where(real[..., None], of_frames[name], 0.0), expected, 1e-4)
  labels = arrays["labels"][:, 0]
  errors = np.asarray(output.predictions["sentiment"]) - labels
  close(np.abs(errors).mean(), arrays["loss/l1"], 1e-6)
  close((errors**2).mean(), arrays["loss/mse"], 1e-6)


def inside(changes=None, anchor="none", **optim):
  """The recipe of a model around the tiny encoder."""
  config = change(
    experiment(mag_config.get_config("paper")),
    model={"dropout": 0.0, "post_dropout": 0.0, **(changes or {})},
    text={
      "input": "encoder",
      "encoder": "none",
      "finetune": "all",
      "start": "scratch",
      "learning_rate": 1e-3,
    },
    optim={"learning_rate": 1e-3, "weight_decay": 0.01, "batch_size": 4, **optim},
    anchor={"to": anchor},
  )
  return compose.build(config.replace(spec=SPEC))


# CENet's trainer is followed always; this one, of the same hooks, on request.
@pytest.mark.slow
def test_training_is_that_of_mmsa():
  arrays = Arrays("mag_bert_training")
  # Half the usual shift: the file does not say so, but no other gives its numbers.
  recipe = inside({"beta": 0.5}, decay_norms=True)
  params = parameters(arrays.below("initial"), "model.")
  state = recipe.start(params, {}, jnp.zeros((), jnp.int32))
  step = published.compiled(recipe.step)
  epochs = int(arrays["epochs"])
  for _ in range(epochs):
    for batch in published.batches(arrays, aligned=True):
      state, _ = step(state, batch, 0)
  expected = parameters(arrays.below(f"after_epoch{epochs}"), "model.")
  published.trees_close(dict(state.params), expected, but=BUT)


def test_a_word_without_a_frame_is_not_shifted_by_default():
  module = AdaptationGate()
  states = jax.random.normal(jax.random.key(0), (1, 3, 4))
  there = jnp.asarray([[True, False, True]])
  given = {"audio": (jnp.ones((1, 3, 2)), there)}
  variables = module.init(jax.random.key(1), states, given, train=False)
  variables = jax.tree.map(lambda leaf: leaf + 0.3, variables)
  output = module.apply(variables, states, given, train=False)
  alone = {"audio": (jnp.ones((1, 3, 2)), jnp.zeros((1, 3), bool))}
  without = module.apply(variables, states, alone, train=False)
  np.testing.assert_array_equal(output[0, 1], without[0, 1])
  assert np.all(np.abs(output[0, ::2] - without[0, ::2]).max(axis=-1) > 1e-3)


def test_parameters_are_as_many_as_published():
  widths = {"text": 768, "audio": 5, "vision": 20}
  modalities = {
    name: published.modality(np.zeros((1, 2, width)), [2])
    for name, width in widths.items()
  }
  batch = published.batch(modalities)
  shapes = jax.eval_shape(MAGBert().init, jax.random.key(0), batch)["params"]
  sizes = {
    name: sum(leaf.size for leaf in jax.tree.leaves(part))
    for name, part in shapes.items()
  }
  assert sizes["gate"] == 1_222_656
  assert sizes["head"] == 769 + 590_592  # with BERT's pooler


def test_sequences_that_are_not_aligned_are_refused_with_the_remedy():
  spec = Spec(
    widths=SPEC.widths,
    lengths={"text": 8, "audio": 11, "vision": 8},
    tasks=SPEC.tasks,
  )
  with pytest.raises(UserError, match=r"set config.data.align='pool'"):
    mag_bert.build(mag_bert.SYSTEM.options, spec)
  with pytest.raises(UserError, match="must be text and another one"):
    MAGBert(modalities=("text",))


def test_an_anchor_stands_beside_a_gate_inside_the_encoder():
  params = jax.eval_shape(inside(anchor="text").init, 0).params
  assert set(params) == {"text_encoder", "gate", "head", "anchor"}
