"""ALMT against MMSA's module, read like frames or masked."""

import jax
import jax.numpy as jnp
import mmsa_arrays as published
import numpy as np
import pytest
from mmsa_arrays import Arrays, close

from msa_jax.errors import UserError
from msa_jax.models.almt import ALMT

LETTERS = {"text": "l", "audio": "a", "vision": "v"}
SIZES = {
  "lengths": {"text": 10, "audio": 11, "vision": 9},
  "hidden_dim": 8,
  "num_heads": 2,
  "ffn_dim": 12,
}


def layer(weights, at):
  """A published layer as ours."""
  return {
    **{
      ours: published.dense(weights, f"{at}.0.fn.to_{ours[0]}")
      for ours in ("query", "key", "value")
    },
    **{
      f"norm_{ours}": published.norm(weights, f"{at}.0.norm_{ours[0]}")
      for ours in ("query", "key", "value")
    },
    "out": published.dense(weights, f"{at}.0.fn.to_out.0"),
    "norm_ffn": published.norm(weights, f"{at}.1.norm"),
    "ffn_1": published.dense(weights, f"{at}.1.fn.net.0"),
    "ffn_2": published.dense(weights, f"{at}.1.fn.net.3"),
  }


def parameters(weights):
  """MMSA's weights as ours."""
  fusion = "fusion_layer.CrossTransformerEncoder.layers"
  made = {
    "hyper": weights["h_hyper"][0],
    "text_positions": weights["l_encoder.pos_embedding"][0],
    "fusion_token": weights["fusion_layer.extra_token"][0],
    "source_positions": weights["fusion_layer.pos_embedding_s"][0],
    "target_positions": weights["fusion_layer.pos_embedding_t"][0],
    "out": published.dense(weights, "regression_head"),
    **{f"text_{i}": layer(weights, f"l_encoder.encoder.layers.{i}") for i in (0, 1)},
    **{f"fusion_{i}": layer(weights, f"{fusion}.{i}") for i in (0, 1)},
  }
  for name, m in LETTERS.items():
    at = f"embedding_{m}"
    made[f"embed_{name}"] = {
      "project": published.dense(weights, f"{at}.0"),
      "tokens": weights[f"{at}.1.extra_token"][0],
      "positions": weights[f"{at}.1.pos_embedding"][0],
      "layer_0": layer(weights, f"{at}.1.encoder.layers.0"),
    }
  for i in range(3):
    at = f"h_hyper_layer.layers.{i}.0"
    norms = ("text", "audio", "vision", "hyper")
    made[f"hyper_{i}"] = {
      "query": published.dense(weights, f"{at}.fn.to_q"),
      "out": published.dense(weights, f"{at}.fn.to_out.0"),
      **{
        f"norm_{name}": published.norm(weights, f"{at}.norm{number}")
        for number, name in enumerate(norms, 1)
      },
      **{
        f"{part}_{name}": published.dense(weights, f"{at}.fn.to_{part[0]}_t{m}")
        for part in ("key", "value")
        for name, m in (("audio", "a"), ("vision", "v"))
      },
    }
  return jax.tree.map(jnp.asarray, made)


@pytest.mark.parametrize("compat", ["mmsa", "none"])
def test_outputs_and_gradients_are_published_whole_and_of_unpadded_samples(compat):
  arrays = Arrays("almt", "almt")
  batch = published.stub_batch(arrays, arrays["a_lengths"], arrays["v_lengths"])
  model = ALMT(**SIZES, compat=compat)
  params = parameters(arrays.below("weights"))

  def run(features):
    seen = published.with_features(batch, features)
    output = model.apply({"params": params}, seen)
    return jnp.sum(output.predictions["sentiment"] ** 2), output

  differentiate = published.compiled(jax.value_and_grad(run, has_aux=True))
  (_, output), gradients = differentiate(published.features_of(batch))
  start = "" if compat == "mmsa" else "alone_"
  close(output.predictions["sentiment"], arrays[f"{start}output"])
  for name, m in (("text", "bert_hidden"), ("audio", "a"), ("vision", "v")):
    close(gradients[name], arrays[f"{start}grad_in_{m}"], 1e-4)
  if compat == "mmsa":
    for name, m in LETTERS.items():
      close(output.features[name], arrays[f"inner_embedding_{m}"][:, :8])
    close(output.features["hyper"], arrays["inner_h_hyper_layer"])
    close(output.features["fusion"], arrays["inner_fusion_layer"])
    errors = np.asarray(output.predictions["sentiment"]) - arrays["labels"][:, 0]
    close((errors**2).mean(), arrays["loss/mse"], 1e-6)


def test_parameters_are_as_many_as_published():
  widths = {"text": 768, "audio": 5, "vision": 20}
  modalities = {
    name: published.modality(np.zeros((1, 2, width)), [2])
    for name, width in widths.items()
  }
  batch = published.batch(modalities)
  shapes = jax.eval_shape(ALMT().init, jax.random.key(0), batch)["params"]
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 2_603_649


def test_heads_and_modalities_that_do_not_fit_are_refused():
  with pytest.raises(UserError, match="hidden_dim=6 must be a multiple of"):
    ALMT(hidden_dim=6, num_heads=4)
  with pytest.raises(UserError, match="must be text and another one"):
    ALMT(modalities=("audio", "vision"))
