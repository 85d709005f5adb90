"""LMF and the systems with unimodal labels: published numbers, sizes, labels."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
import tiny_fusion
import tiny_systems
import torch_weights
from flax.core import FrozenDict
from paths import REFERENCE

from msa_jax.config.experiment import experiment
from msa_jax.errors import UserError
from msa_jax.models import SYSTEMS
from msa_jax.models.late_fusion import lmf, multitask, tfn
from msa_jax.models.late_fusion.lmf import LMF
from msa_jax.models.late_fusion.multitask import MLFDNN, MLMF, MTFN
from msa_jax.step import compose
from msa_jax.step.objective import objective_terms
from msa_jax.studies.changes import changed
from msa_jax.typing import Spec, Task

ARRAYS = np.load(REFERENCE / "sequence_reference.npz")
THEIRS = {"text": "text", "audio": "audio", "vision": "video"}
LETTER = {"sentiment": "M", "text": "T", "audio": "A", "vision": "V"}
_HIDDEN = FrozenDict(text=8, audio=4, vision=6)
_ALONE = {
  "hidden_dims": _HIDDEN,
  "unimodal_dims": FrozenDict(text=6, audio=4, vision=5),
}
NETWORKS = {
  "lmf": LMF(hidden_dims=_HIDDEN, rank=3),
  "mlf_dnn": MLFDNN(**_ALONE, text_dim=5, post_dim=7),
  "mtfn": MTFN(**_ALONE, text_dim=5, post_dim=7),
  "mlmf": MLMF(**_ALONE, rank=3),
}
LABELS = {"sentiment": "M"} | {f"sentiment_{n}": LETTER[n] for n in THEIRS}


@functools.cache
def variables_of(tag):
  """Our variables from the weights of the published module."""
  w = torch_weights.weights(ARRAYS, f"{tag}/weights/")
  dense, params, statistics = torch_weights.dense, {}, {}
  for ours, theirs in THEIRS.items():
    net = f"{theirs}_subnet"
    if ours == "text":
      params["encoder_text"] = {"lstm": torch_weights.lstm(w, f"{net}.rnn")}
      params["last_text"] = dense(w, f"{net}.linear_1")
    else:
      params[f"encoder_{ours}"] = {
        "norm": torch_weights.norm(w, f"{net}.norm"),
        **{f"linear_{i}": dense(w, f"{net}.linear_{i}") for i in (1, 2)},
      }
      params[f"last_{ours}"] = dense(w, f"{net}.linear_3")
      norm = torch_weights.statistics(w, f"{net}.norm")
      statistics[f"encoder_{ours}"] = {"norm": norm}
    if f"post_{theirs}_layer_1.weight" in w:
      params[f"alone_{ours}"] = _head(w, f"post_{theirs}_layer")
  if "fusion_weights" in w:
    factors = {
      f"factor_{ours}": jnp.asarray(w[f"{theirs}_factor"])
      for ours, theirs in THEIRS.items()
    }
    rest = {"weights": w["fusion_weights"][0], "bias": w["fusion_bias"][0]}
    params["head"] = {**factors, **jax.tree.map(jnp.asarray, rest)}
  else:
    params["head"] = _head(w, "post_fusion_layer")
  return {"params": params, "batch_stats": statistics}


def _head(w, name):
  parts = {"hidden_0": 1, "hidden_1": 2, "out": 3}
  return {p: torch_weights.dense(w, f"{name}_{i}") for p, i in parts.items()}


@functools.cache
def computed(tag, compat):
  features = published.features(ARRAYS, tag)
  model = NETWORKS[tag].copy(compat=compat)
  return published.outputs(model, variables_of(tag), features)


@pytest.mark.parametrize("compat", ["mmsa", "none"])
@pytest.mark.parametrize("tag", NETWORKS)
def test_outputs_are_published_and_without_padding_the_modes_agree(tag, compat):
  output, gradient = computed(tag, compat)
  if tag == "lmf":
    stored = {"sentiment": ARRAYS["lmf/output"]}
    published.check_gradients(gradient, ARRAYS, tag)
  else:
    stored = {n: ARRAYS[f"{tag}/output_{letter}"] for n, letter in LABELS.items()}
  assert set(output.predictions) == set(stored)
  for name, values in stored.items():
    published.close(output.predictions[name], values[:, 0], 1e-5)


def test_low_rank_fusion_is_a_linear_layer_on_the_outer_product():
  random = np.random.default_rng(0)
  widths = (("audio", 2), ("vision", 3), ("text", 4))
  head = lmf.LowRankHead(widths, rank=5, num_outputs=2)
  parts = [random.normal(size=(3, width)).astype("f") for _, width in widths]
  joined = jnp.concatenate(parts, axis=1)
  params = jax.eval_shape(
    functools.partial(head.init, train=False), jax.random.key(0), joined
  )["params"]
  params = {k: random.normal(size=leaf.shape) for k, leaf in params.items()}
  factors = [params[f"factor_{name}"] for name, _ in widths]
  kernel = np.einsum("r,rao,rvo,rto->avto", params["weights"], *factors)
  product = tfn.outer_product([jnp.asarray(part) for part in parts])
  expected = np.asarray(product) @ kernel.reshape(-1, 2) + params["bias"]
  result = head.apply({"params": params}, joined, train=False)
  np.testing.assert_allclose(result, expected, atol=1e-4)


def spec_of(**more):
  regression = Task("regression", -1.0, 1.0)
  return Spec(
    widths={"text": 10, "audio": 5, "vision": 6},
    lengths={"text": 6, "audio": 1, "vision": 1},
    tasks=dict.fromkeys(LABELS, regression),
    train_size=8,
    **more,
  )


def config_of(tag):
  made = experiment(importlib.import_module(f"configs.{tag}").get_config())
  return made.replace(spec=spec_of())


@pytest.mark.parametrize("tag", ["mlf_dnn", "mtfn", "mlmf"])
def test_the_loss_is_published_and_its_gradients(tag):
  weights = {"multimodal": 0.6, "text": 0.4, "audio": 0.8, "vision": 1.0}
  loss = {"task": "default", "aux_warmup_fraction": 0.0}
  loss |= {f"{name}_weight": value for name, value in weights.items()}
  made = config_of(tag).replace(loss=loss)
  network, variables = NETWORKS[tag].copy(compat="mmsa"), variables_of(tag)
  objective = compose.objective_of(made, SYSTEMS[tag], network)
  labels = {n: ARRAYS[f"{tag}/labels_{x}"][:, 0] for n, x in LABELS.items()}
  batch = published.batch(published.features(ARRAYS, tag), labels=labels)

  def total(params):
    output = network.apply({**variables, "params": params}, batch)
    _, metrics = objective_terms(objective, output, batch, jnp.zeros((), int))
    return metrics["loss"], metrics

  gradient, metrics = jax.jit(jax.grad(total, has_aux=True))(variables["params"])
  published.close(metrics["loss"], ARRAYS[f"{tag}/loss/total"], 1e-6)
  for name, letter in LABELS.items():
    published.close(metrics[f"loss/{name}"], ARRAYS[f"{tag}/loss/{letter}"], 1e-6)
  stored = torch_weights.weights(ARRAYS, f"{tag}/grad_loss_weights/")
  for theirs, ours in (("post_text_layer_1", "text"), ("post_audio_layer_2", "audio")):
    part = "hidden_0" if theirs.endswith("1") else "hidden_1"
    kernel = gradient[f"alone_{ours}"][part]["kernel"]
    published.close(kernel, stored[f"{theirs}.weight"].T, 1e-4)
  published.close(
    gradient["encoder_audio"]["linear_1"]["kernel"],
    stored["audio_subnet.linear_1.weight"].T,
    1e-4,
  )


def test_only_compat_mode_leaves_mlmfs_rank_weights_alone():
  features = published.features(ARRAYS, "mlmf")

  def moved(compat):
    model, variables = NETWORKS["mlmf"].copy(compat=compat), variables_of("mlmf")

    def energy(params):
      made = model.apply({**variables, "params": params}, published.batch(features))
      return jnp.sum(made.predictions["sentiment"] ** 2)

    head = jax.grad(energy)(variables["params"])["head"]
    return {name for name, each in head.items() if np.any(each)}

  factors = {f"factor_{name}" for name in THEIRS}
  assert moved("mmsa") == factors
  assert moved("none") == factors | {"weights", "bias"}


SIZES = {
  # Published counts have two biases per gate of the text's LSTM.
  "mlf_dnn": (MLFDNN(), 283_388 - 4 * 64),
  "mtfn": (MTFN(), 140_957_188 - 4 * 256),
  "mlmf": (MLMF(), 1_413_392 - 4 * 256),
}


@pytest.mark.parametrize("tag", SIZES)
def test_sizes_are_published(tag):
  model, size = SIZES[tag]
  assert published.count(model, published.SIMS) == size


@pytest.mark.parametrize("tag", ["mlf_dnn", "mtfn", "mlmf"])
def test_a_corpus_without_unimodal_labels_is_refused_with_what_helps(tag):
  made, spec = config_of(tag), spec_of()
  SYSTEMS[tag].build(made.model, spec)
  lone = Spec(
    widths=spec.widths,
    lengths=spec.lengths,
    tasks={"sentiment": Task("regression", -1.0, 1.0)},
  )
  without = {"mlf_dnn": "lf_dnn", "mtfn": "tfn", "mlmf": "lmf"}[tag]
  message = rf"no label 'sentiment_text'.*--config=configs/{without}.py"
  with pytest.raises(UserError, match=message):
    SYSTEMS[tag].build(made.model, lone)


def test_partitions_are_by_name():
  found = {
    path: multitask.partition(path)
    for path in (
      ("encoder_text", "lstm", "bias"),
      ("last_vision", "kernel"),
      ("alone_audio", "out", "kernel"),
      ("head", "factor_text"),
      ("head", "weights"),
    )
  }
  assert list(found.values()) == ["text", "vision", "new", "factors", "new"]
  assert lmf.factors_apart(("head", "factor_audio")) == "factors"
  assert lmf.factors_apart(("last_audio", "kernel")) == "new"


@pytest.mark.parametrize("name", ["lmf", "mlf_dnn"])
def test_b_fusion_moves_the_weights_of_the_modalities(name):
  sizes = {f"model.{key}": value for key, value in tiny_systems.TINY[name].items()}
  config = changed(
    tiny_systems.config(name),
    {**sizes, "balance.enabled": True, "balance.omega_lr": "1"},
  )
  recipe = compose.build(config)
  params, collections = tiny_systems.variables(recipe)
  batch = tiny_systems.batch(config)
  state = recipe.start(params, collections, jnp.zeros((), jnp.int32))
  moved, metrics = tiny_fusion.quick_jit(recipe.step)(state, batch, 0)
  for leaf in jax.tree.leaves((moved, metrics)):
    assert np.all(np.isfinite(leaf))
  before, after = (s.collections["balance"]["omega"] for s in (state, moved))
  assert np.all(np.asarray(before) != np.asarray(after))
