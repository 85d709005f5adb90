"""CENet against MMSA's module and trainer, and the official module with codes."""

import dataclasses

import jax
import jax.numpy as jnp
import mmsa_arrays as published
import numpy as np
import pytest
from changes import change
from mmsa_arrays import Arrays, close

from configs import cenet as cenet_config
from msa_jax.config.experiment import experiment
from msa_jax.errors import UserError
from msa_jax.models import cenet
from msa_jax.models.cenet import CENet, Enhancement
from msa_jax.step import compose
from msa_jax.text.bert import EncoderConfig, TextEncoder
from msa_jax.text.finetune import LINGUISTIC
from msa_jax.typing import Spec

NAMES = (("vision", "visual", "hv"), ("audio", "acoustic", "ha"))
ENCODER = dataclasses.replace(published.ENCODER, n_layers=3)
TABLES = {
  "senti_embeddings": "word_polarity",
  "pos_tag_embeddings": "pos",
  "polarity_embeddings": "sentence_polarity",
}


def enhancement(weights, prefix=""):
  """The published block as ours, of frames or of codes."""
  made = {"connect": published.dense(weights, f"{prefix}cat_connect")}
  for name, long, short in NAMES:
    made[f"attend_{name}"] = {
      ours: published.dense(weights, f"{prefix}{short}.{theirs}")
      for ours, theirs in (("query", "Wq"), ("key", "Wk"), ("value", "Wv"))
    }
    if f"{prefix}{long}_embedding.weight" in weights:
      table = jnp.asarray(weights[f"{prefix}{long}_embedding.weight"])
      made[f"codes_{name}"] = {"embedding": table}
      continue
    for number, place in ((1, 0), (2, 2)):
      made[f"embed_{name}_{number}"] = published.dense(
        weights, f"{prefix}{long}_transform.{place}"
      )
  return made


def parameters(weights, prefix="bert.", config=ENCODER):
  """Published weights as ours, and the encoder's."""
  tables = {
    ours: jnp.asarray(weights[f"{prefix}embeddings.{theirs}.weight"])
    for theirs, ours in TABLES.items()
  }
  own = {
    name: value
    for name, value in weights.items()
    if name.startswith(prefix)
    and ".CE." not in name
    and not any(table in name for table in TABLES)
  }
  text = published.encoder(own, prefix, dataclasses.replace(config, extras=()))
  if config.extras:
    text["embeddings"] = {**text["embeddings"], **tables}
  return {
    "text_encoder": text,
    "enhance": enhancement(weights, f"{prefix}encoder.CE."),
    "head": {
      "pooler": published.dense(weights, "classifier.dense"),
      "out": published.dense(weights, "classifier.out_proj"),
    },
  }


@pytest.mark.parametrize("padding", [True, False])
def test_the_block_and_its_gradients_are_published_with_and_without_mask(padding):
  arrays = Arrays("cenet", "module_continuous")
  module = Enhancement(("vision", "audio"), padding=padding)
  params = enhancement(arrays.below("weights"))
  batch = published.batch(
    {
      "text": published.modality(arrays["in_e"], [8] * 5),
      "audio": published.modality(arrays["in_a"], arrays["a_lengths"]),
      "vision": published.modality(arrays["in_v"], arrays["v_lengths"]),
    }
  )

  def run(features):
    seen = published.with_features(batch, features)
    output = module.apply({"params": params}, features["text"], seen)
    return jnp.sum(output**2), output

  differentiate = published.compiled(jax.value_and_grad(run, has_aux=True))
  (_, output), gradients = differentiate(published.features_of(batch))
  start = "" if padding else "masked_"
  close(output, arrays[f"{start}output"])
  for name, m in (("text", "e"), ("audio", "a"), ("vision", "v")):
    close(gradients[name], arrays[f"{start}grad_in_{m}"], 1e-4)


def whole(params, model, config, tokens, batch, extras, features, nudge):
  """Prediction, and the states before and after the enhancement."""
  seen = published.with_features(batch, features)
  hook = model.bind({"params": params}).hooks(seen, False)[1]
  before = []

  def enhance(states, mask):
    before.append(states)
    return hook(states, mask)

  encoder = TextEncoder(config, after={0: lambda s, mask: s + nudge, 1: enhance})
  mask = batch.modalities["text"].mask
  states = encoder.apply({"params": params["text_encoder"]}, tokens, mask, None, extras)
  text = seen.modalities["text"].replace(features=states[-1])
  encoded = seen.replace(modalities={**seen.modalities, "text": text})
  output = model.apply({"params": params}, encoded, hooked=True)
  prediction = output.predictions["sentiment"]
  return jnp.sum(prediction**2), (prediction, states, before[0])


def test_the_whole_model_is_that_of_mmsa():
  arrays = Arrays("cenet", "model_mmsa")
  lengths = arrays["in_text"][:, 1].sum(1)
  batch = published.batch(
    {
      "text": published.modality(np.zeros((5, 8, 16)), lengths),
      "audio": published.modality(arrays["in_a"], [11] * 5),
      "vision": published.modality(arrays["in_v"], [9] * 5),
    }
  )
  params = parameters(arrays.below("weights"))
  tokens = jnp.asarray(arrays["in_text"][:, 0], jnp.int32)

  def run(features, nudge):
    model = CENet(compat="mmsa")
    return whole(params, model, ENCODER, tokens, batch, None, features, nudge)

  differentiate = published.compiled(jax.value_and_grad(run, (0, 1), has_aux=True))
  (_, (prediction, states, _)), (of_features, of_states) = differentiate(
    published.features_of(batch), jnp.zeros((5, 8, 16))
  )
  close(prediction, arrays["output"])
  real = np.asarray(batch.modalities["text"].mask)
  close(np.asarray(states[0])[real], arrays["embedding_output"][real])
  close(np.asarray(states[1])[real], arrays["ce_output"][real])
  close(np.asarray(of_states)[real], arrays["grad_in_embedding"][real], 1e-4)
  close(of_features["audio"], arrays["grad_in_a"], 1e-4)
  close(of_features["vision"], arrays["grad_in_v"], 1e-4)
  errors = np.asarray(prediction) - arrays["labels"][:, 0]
  close(np.abs(errors).mean(), arrays["loss/l1"], 1e-6)
  close((errors**2).mean(), arrays["loss/mse"], 1e-6)


def test_the_official_model_with_codes_and_linguistic_inputs():
  arrays = Arrays("cenet", "model_official")
  config = EncoderConfig("roberta", 64, 32, 2, 16, 3, 2, 32, pad=1, extras=LINGUISTIC)
  mask = arrays["attention_mask"].astype(bool)
  modalities = {"text": published.modality(np.zeros((5, 8, 16)), mask.sum(1))}
  for name, long, _ in NAMES:
    codes = jnp.asarray(arrays[f"{long}_ids"], jnp.int32)
    lengths = (np.asarray(codes) < 16).sum(1)
    modalities[name] = published.modality(
      np.zeros((*codes.shape, 0)), lengths, {"codes": codes}
    )
  batch = published.batch(modalities)
  params = parameters(arrays.below("weights"), "roberta.", config)
  tokens = jnp.where(mask, jnp.asarray(arrays["input_ids"], jnp.int32), 1)
  extras = {
    "pos": arrays["pos_tag_ids"],
    "word_polarity": arrays["senti_word_ids"],
    "sentence_polarity": arrays["polarity_ids"],
  }
  extras = {name: jnp.asarray(ids, jnp.int32) for name, ids in extras.items()}

  def run(nudge, compat):
    model = CENet(embedding="codes", compat=compat)
    features = published.features_of(batch)
    return whole(params, model, config, tokens, batch, extras, features, nudge)

  differentiate = jax.value_and_grad(run, has_aux=True)
  both = published.compiled(
    lambda nudge: (differentiate(nudge, "mmsa"), run(nudge, "none"))
  )
  compat, default = both(jnp.zeros((5, 8, 16)))
  (_, (prediction, states, before)), of_states = compat
  close(prediction, arrays["output"])
  close(np.asarray(states[0])[mask], arrays["embedding_output"][mask])
  close(np.asarray(before)[mask], arrays["ce_input"][mask])
  close(np.asarray(states[1])[mask], arrays["ce_output"][mask])
  close(np.asarray(states[1] - before)[mask], arrays["shift"][mask])
  close(np.asarray(of_states)[mask], arrays["grad_in_embedding"][mask], 1e-4)
  errors = np.asarray(prediction) - arrays["labels"][:, 0]
  close((errors**2).mean(), arrays["loss/mse"], 1e-6)
  close(np.asarray(default[1][1][1])[mask], arrays["masked_ce_output"][mask])


def test_two_epochs_of_training_are_those_of_mmsa():
  arrays = Arrays("cenet_training")
  config = change(
    experiment(cenet_config.get_config("paper")),
    model={"dropout": 0.0},
    text={
      "input": "encoder",
      "encoder": "none",
      "finetune": "all",
      "start": "scratch",
      "learning_rate": 1e-3,
    },
    optim={
      "learning_rate": 1e-3,
      "learning_rates": {"head_bias": 1e-3},
      "weight_decay": 0.01,
      "epsilon": 1e-6,
      "batch_size": 4,
    },
  )
  spec = Spec(
    widths={"text": 16, "audio": 5, "vision": 6},
    lengths={"text": 8, "audio": 11, "vision": 9},
    ids={"text": ("tokens",)},
    tasks={"sentiment": published.TASK},
    train_size=20,
    encoder=ENCODER,
  )
  recipe = compose.build(config.replace(spec=spec))
  state = recipe.start(
    parameters(arrays.below("initial")), {}, jnp.zeros((), jnp.int32)
  )
  step = published.compiled(recipe.step)
  epochs = int(arrays["epochs"])
  for _ in range(epochs):
    for batch in published.batches(arrays):
      state, _ = step(state, batch, 0)
  expected = parameters(arrays.below(f"after_epoch{epochs}"))
  but = ("layers/key/bias", "attend_audio/key/bias", "attend_vision/key/bias")
  published.trees_close(dict(state.params), expected, but=but)


def test_parameters_are_as_many_as_published():
  widths = {"text": 768, "audio": 5, "vision": 20}
  modalities = {
    name: published.modality(np.zeros((1, 2, width)), [2])
    for name, width in widths.items()
  }
  batch = published.batch(modalities)
  shapes = jax.eval_shape(CENet().init, jax.random.key(0), batch)["params"]
  sizes = {
    name: sum(leaf.size for leaf in jax.tree.leaves(part))
    for name, part in shapes.items()
  }
  assert sizes == {"enhance": 5_925_888, "head": 591_361}


def test_codes_are_refused_where_there_are_none_with_the_remedy():
  spec = Spec(
    widths={"text": 4, "audio": 3},
    lengths={"text": 5, "audio": 5},
    ids={"text": (), "audio": ()},
    tasks={"sentiment": published.TASK},
  )
  options = {**cenet.SYSTEM.options, "embedding": "codes"}
  with pytest.raises(UserError, match="set config.data.num_frame_clusters=16"):
    cenet.build(options, spec)
  with pytest.raises(UserError, match="must be text and another one"):
    CENet(modalities=("text",))
