"""LF-DNN, LF-LSTM and TFN: published numbers, masks, ranges, options."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_fusion
from flax.core import FrozenDict
from paths import REFERENCE

from msa_jax.config.experiment import from_json
from msa_jax.errors import UserError
from msa_jax.layers.masking import hide_unavailable
from msa_jax.models.late_fusion import base, encoders, tfn
from msa_jax.models.late_fusion.awf import AWF
from msa_jax.models.late_fusion.lf_dnn import LFDNN
from msa_jax.models.late_fusion.lf_lstm import LFLSTM
from msa_jax.models.late_fusion.tfn import TFN
from msa_jax.typing import Batch, Label, Modality, Task

ARRAYS = np.load(REFERENCE / "late_fusion_reference.npz")
HOSTS = ("lf_dnn", "lf_lstm", "tfn")


def dense(weights, name):
  return {
    "kernel": jnp.asarray(weights[f"{name}.weight"].T),
    "bias": jnp.asarray(weights[f"{name}.bias"]),
  }


def published_variables(tag):
  """Our variables from the weights of the published PyTorch module."""
  prefix = f"{tag}/weights/"
  w = {k.removeprefix(prefix): ARRAYS[k] for k in ARRAYS if k.startswith(prefix)}
  params, statistics = {}, {}
  for theirs, ours in (("audio", "audio"), ("video", "vision")):
    net = f"{theirs}_subnet"
    params[f"encoder_{ours}"] = {
      "norm": {
        "scale": jnp.asarray(w[f"{net}.norm.weight"]),
        "bias": jnp.asarray(w[f"{net}.norm.bias"]),
      },
      "linear_1": dense(w, f"{net}.linear_1"),
      "linear_2": dense(w, f"{net}.linear_2"),
    }
    params[f"last_{ours}"] = dense(w, f"{net}.linear_3")
    statistics[f"encoder_{ours}"] = {
      "norm": {
        "mean": jnp.asarray(w[f"{net}.norm.running_mean"]),
        "var": jnp.asarray(w[f"{net}.norm.running_var"]),
      }
    }
  rnn = "text_subnet.rnn."
  params["encoder_text"] = {
    "lstm": {
      "input_kernel": jnp.asarray(w[f"{rnn}weight_ih_l0"].T[None]),
      "recurrent_kernel": jnp.asarray(w[f"{rnn}weight_hh_l0"].T[None]),
      "bias": jnp.asarray((w[f"{rnn}bias_ih_l0"] + w[f"{rnn}bias_hh_l0"])[None]),
    }
  }
  params["last_text"] = dense(w, "text_subnet.linear_1")
  params["head"] = {
    "hidden_0": dense(w, "post_fusion_layer_1"),
    "hidden_1": dense(w, "post_fusion_layer_2"),
    "out": dense(w, "post_fusion_layer_3"),
  }
  return {"params": params, "batch_stats": statistics}


def published_config(tag, **model):
  widths = {"text": 10, "audio": 5, "vision": 6}
  sizes = {"hidden_dims": {"text": 8, "audio": 4, "vision": 6}}
  sizes |= {"text_dim": 5, "post_dim": 7}
  return tiny_fusion.config(tag, widths=widths, model={**sizes, **model})


def published_batch(tag, mask=None):
  modalities = {}
  for short, name in (("t", "text"), ("a", "audio"), ("v", "vision")):
    features = jnp.asarray(ARRAYS[f"{tag}/in_{short}"])
    real = jnp.ones(features.shape[:2], bool) if mask is None else mask[name]
    modalities[name] = Modality(features, real, jnp.zeros_like(real))
  size = len(features)
  return Batch(
    modalities=modalities,
    available=jnp.ones((size, 3), bool),
    labels={"sentiment": Label(jnp.zeros((size,)), jnp.ones((size,), bool))},
    index=jnp.arange(size, dtype=jnp.int32),
    sample_mask=jnp.ones((size,), bool),
  )


@pytest.mark.parametrize("tag", ["lf_dnn", "tfn"])
def test_compat_mode_equals_the_published_module_in_outputs_and_gradients(tag):
  module = tiny_fusion.network(published_config(tag, compat="mmsa"))
  variables, batch = published_variables(tag), published_batch(tag)

  def energy(features):
    modalities = {
      name: each.replace(features=features[name])
      for name, each in batch.modalities.items()
    }
    output = module.apply(variables, batch.replace(modalities=modalities), train=False)
    prediction = output.predictions["sentiment"]
    return jnp.sum(prediction**2), prediction

  features = {name: each.features for name, each in batch.modalities.items()}
  gradients, prediction = tiny_fusion.quick_jit(jax.grad(energy, has_aux=True))(
    features
  )
  np.testing.assert_allclose(prediction, ARRAYS[f"{tag}/output"][:, 0], atol=1e-5)
  for short, name in (("t", "text"), ("a", "audio"), ("v", "vision")):
    np.testing.assert_allclose(
      gradients[name], ARRAYS[f"{tag}/grad_in_{short}"], atol=1e-5
    )


@pytest.mark.parametrize("tag", ["lf_dnn", "tfn"])
def test_without_padding_the_default_mode_gives_the_published_numbers(tag):
  # MOSI's range is that of the published squash, so TFN agrees as well.
  module = tiny_fusion.network(published_config(tag))
  prediction = tiny_fusion.predict(
    module, published_variables(tag), published_batch(tag)
  )
  np.testing.assert_allclose(prediction, ARRAYS[f"{tag}/output"][:, 0], atol=1e-5)


@pytest.mark.parametrize("tag", ["lf_dnn", "tfn"])
def test_padding_matters_in_compat_mode_only(tag):
  batch = published_batch(tag)
  variables = published_variables(tag)

  def padded(name, each):
    features = jnp.pad(each.features, ((0, 0), (0, 3), (0, 0)))
    return Modality(
      features,
      jnp.pad(each.mask, ((0, 0), (0, 3))),
      jnp.zeros(features.shape[:2], bool),
    )

  longer = batch.replace(
    modalities={n: padded(n, each) for n, each in batch.modalities.items()}
  )
  predictions = {}
  for compat in ("none", "mmsa"):
    module = tiny_fusion.network(published_config(tag, compat=compat))
    predictions[compat] = [
      tiny_fusion.predict(module, variables, b) for b in (batch, longer)
    ]
  np.testing.assert_allclose(*predictions["none"], atol=1e-6)
  assert np.abs(np.subtract(*predictions["mmsa"])).max() > 1e-3


def test_tfn_squashes_into_the_range_of_the_task_and_into_mosis_in_compat_mode():
  sims = {"sentiment": Task("regression", -1.0, 1.0)}
  batch = tiny_fusion.batch()
  for compat, limit in (("none", 1.0), ("mmsa", 3.0)):
    made = tiny_fusion.config("tfn", tasks=sims, model={"compat": compat})
    module = tiny_fusion.network(made)
    shapes = jax.eval_shape(
      lambda key, module=module: module.init(key, batch, train=False),
      jax.random.key(0),
    )
    huge = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 9.0), shapes)
    prediction = tiny_fusion.predict(module, huge, batch)
    np.testing.assert_allclose(prediction, np.full(6, limit), rtol=1e-6)


def test_outer_product_orders_entries_as_nested_loops_do():
  parts = [np.array([[2.0, 3.0]]), np.array([[5.0]]), np.array([[7.0, 11.0]])]
  expected = [
    a * b * c
    for a in (1.0, *parts[0][0])
    for b in (1.0, *parts[1][0])
    for c in (1.0, *parts[2][0])
  ]
  result = tfn.outer_product([jnp.asarray(part) for part in parts])
  np.testing.assert_allclose(result[0], expected)


def sigmoid(x):
  return 1.0 / (1.0 + np.exp(-x))


def test_lf_lstm_equals_a_numpy_network():
  made = tiny_fusion.config("lf_lstm")
  module = tiny_fusion.network(made)
  batch = tiny_fusion.batch()
  shapes = jax.eval_shape(
    lambda key: module.init(key, batch, train=False), jax.random.key(0)
  )
  random = np.random.default_rng(3)
  variables = jax.tree.map(lambda leaf: random.normal(size=leaf.shape) * 0.5, shapes)
  prediction = tiny_fusion.predict(module, jax.tree.map(jnp.float32, variables), batch)
  p = variables["params"]
  parts = []
  for name in ("audio", "vision", "text"):
    modality = batch.modalities[name]
    lstm = p[f"encoder_{name}"]["lstm"]
    states = []
    for row in range(6):
      cell = hidden = np.zeros(lstm["recurrent_kernel"].shape[1])
      for step in np.float64(modality.features[row, : int(modality.mask[row].sum())]):
        gates = step @ lstm["input_kernel"][0] + hidden @ lstm["recurrent_kernel"][0]
        i, f, g, o = np.split(gates + lstm["bias"][0], 4)
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
        hidden = sigmoid(o) * np.tanh(cell)
      states.append(hidden)
    last = p[f"last_{name}"]
    parts.append(np.stack(states) @ last["kernel"] + last["bias"])
  values = np.concatenate(parts, axis=1)
  for index in (0, 1):
    layer = p["head"][f"hidden_{index}"]
    values = np.maximum(values @ layer["kernel"] + layer["bias"], 0.0)
  values = values @ p["head"]["out"]["kernel"] + p["head"]["out"]["bias"]
  np.testing.assert_allclose(prediction, values[:, 0], atol=2e-5)


@pytest.mark.parametrize("name", HOSTS)
def test_absent_filler_and_lost_content_has_exactly_no_influence(name):
  module = tiny_fusion.network(tiny_fusion.config(name))
  batch = tiny_fusion.batch()
  batch = batch.replace(
    available=batch.available.at[0, 1].set(False).at[1].set(False),
    sample_mask=batch.sample_mask.at[5].set(False),
  )

  def spoil(column, each):
    keep = each.mask & batch.available[:, column, None] & batch.sample_mask[:, None]
    features = jnp.where(keep[..., None], each.features, jnp.nan)
    lost = each.lost.at[2, 0].set(True)
    return each.replace(features=features.at[2, 0].set(jnp.nan), lost=lost)

  def clean(each):
    return each.replace(lost=each.lost.at[2, 0].set(True))

  polluted = batch.replace(
    modalities={n: spoil(c, batch.modalities[n]) for c, n in enumerate(batch.order)}
  )
  batch = batch.replace(
    modalities={n: clean(each) for n, each in batch.modalities.items()}
  )
  variables = tiny_fusion.variables_of(module, batch)

  @tiny_fusion.quick_jit
  def loss_gradient(batch):
    batch = hide_unavailable(batch)

    def loss(params):
      output, _ = module.apply(
        {**variables, "params": params},
        batch,
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": jax.random.key(0)},
      )
      return jnp.sum(output.predictions["sentiment"][:5] ** 2), output.predictions

    return jax.grad(loss, has_aux=True)(variables["params"])

  ours, theirs = loss_gradient(batch), loss_gradient(polluted)
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)
  for leaf in jax.tree.leaves(ours):
    assert np.all(np.isfinite(leaf))


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize(
  ("task", "shape"),
  [
    (tiny_fusion.SENTIMENT, (2,)),
    (tiny_fusion.EMOTIONS, (2, 4, 2)),
    (dataclasses.replace(tiny_fusion.EMOTIONS, kind="classes"), (2, 4)),
  ],
)
def test_predictions_have_the_tasks_shape(name, task, shape):
  made = tiny_fusion.config(name, tasks={"emotion": task})
  module = tiny_fusion.network(made)
  batch = tiny_fusion.batch(size=2)
  output, _ = jax.eval_shape(
    lambda key: module.init_with_output(key, batch, train=False), jax.random.key(0)
  )
  assert output.predictions["emotion"].shape == shape


@pytest.mark.parametrize("name", HOSTS)
def test_one_modality_and_one_sample_are_enough(name):
  widths = {"audio": 4}
  module = tiny_fusion.network(tiny_fusion.config(name, widths=widths))
  batch = tiny_fusion.batch(size=1, widths=widths)
  prediction = tiny_fusion.predict(
    module, tiny_fusion.variables_of(module, batch), batch
  )
  assert prediction.shape == (1,)
  assert np.isfinite(prediction[0])


def test_fusion_order_is_mmsas():
  order = base.fusion_order(("text", "audio", "vision"))
  assert order == ("audio", "vision", "text")
  assert base.fusion_order(("audio", "vision")) == ("audio", "vision")


def test_first_step_pooling_reads_the_first_visible_step():
  values = jnp.arange(12.0).reshape(2, 3, 2)
  mask = jnp.array([[False, True, True], [False, False, False]])
  pooled = encoders.StepEncoder("first", 0.0).apply({}, values, mask, train=False)
  np.testing.assert_array_equal(pooled, [[2.0, 3.0], [0.0, 0.0]])


@pytest.mark.parametrize(
  ("name", "path", "value", "message"),
  [
    ("lf_dnn", "compat", "torch", "model.compat='torch'"),
    ("tfn", "post_dim", 0, "model.post_dim=0"),
    ("lf_lstm", "hidden_dims", {"audio": 0}, "model.hidden_dims.audio=0"),
    ("lf_dnn", "dropout", {"text": 1.0}, "model.dropout.text=1.0"),
    ("tfn", "post_dropout", 1.0, "model.post_dropout=1.0"),
    ("lf_lstm", "task", "mood", "model.task='mood'"),
    ("awf", "dropout", -0.1, "model.dropout=-0.1"),
    ("awf", "text_encoder", "cnn", "model.text_encoder='cnn'"),
  ],
)
def test_bad_options_are_refused_by_name(name, path, value, message):
  with pytest.raises(UserError, match=message.replace(".", r"\.")):
    tiny_fusion.network(tiny_fusion.config(name, model={path: value}))


@pytest.mark.parametrize("name", HOSTS)
def test_a_modality_without_a_width_is_refused(name):
  with pytest.raises(UserError, match="hidden_dims has no entry for modality 'gaze'"):
    tiny_fusion.network(tiny_fusion.config(name, widths={"text": 3, "gaze": 2}))


NETWORKS = {"awf": AWF, "lf_dnn": LFDNN, "lf_lstm": LFLSTM, "tfn": TFN}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_usable_alone_and_its_fields_are_the_systems_options(name):
  batch = tiny_fusion.batch()
  model = NETWORKS[name](post_dim=5)
  shapes = jax.eval_shape(model.init, jax.random.key(0), batch)
  output = jax.eval_shape(model.apply, shapes, batch)
  assert output.predictions["sentiment"].shape == (6,)
  options = tiny_fusion.MODULES[name].options()
  assert options.pop("name") == name
  spec = tiny_fusion.config(name).spec
  default = tiny_fusion.MODULES[name].SYSTEM.build(options, spec)
  assert default == NETWORKS[name]()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_batch_without_one_of_the_networks_modalities_is_refused(name):
  model = tiny_fusion.network(tiny_fusion.config(name))
  with pytest.raises(UserError, match="the batch has no vision, only text, audio"):
    model.init(jax.random.key(0), tiny_fusion.batch(widths={"text": 5, "audio": 4}))


# Options of version 0.1 that are not at their defaults, and what they are now.
OLD = {
  "awf": (
    {"d": 7, "post": 5, "post_layers": 2, "afusion": False, "last_bias": False},
    AWF(feature_dim=7, post_dim=5, num_post_layers=2, attention_fusion=False),
  ),
  "lf_dnn": (
    {"hidden": {"text": 3, "audio": 2, "vision": 4}, "text_out": 6, "post": 5}
    | {"dropout": {"text": 0.1, "audio": 0.2, "vision": 0.3, "post": 0.4}},
    LFDNN(
      hidden_dims=FrozenDict(text=3, audio=2, vision=4),
      text_dim=6,
      post_dim=5,
      dropout=FrozenDict(text=0.1, audio=0.2, vision=0.3),
      post_dropout=0.4,
    ),
  ),
  "lf_lstm": (
    {"hidden": {"text": 3, "audio": 2, "vision": 4}, "d": 6, "compat": "mmsa"},
    LFLSTM(
      hidden_dims=FrozenDict(text=3, audio=2, vision=4), feature_dim=6, compat="mmsa"
    ),
  ),
  "tfn": ({"text_out": 6, "post": 5}, TFN(text_dim=6, post_dim=5)),
}


@pytest.mark.parametrize("name", OLD)
def test_options_of_old_runs_make_the_same_network(name):
  options, expected = OLD[name]
  tree = {"model": {"name": name, "task": "auto", **options}}
  made = from_json(json.dumps(tree)).replace(spec=tiny_fusion.config(name).spec)
  assert tiny_fusion.network(made) == expected
