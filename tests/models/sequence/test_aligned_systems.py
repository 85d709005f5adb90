"""EF-LSTM, MFN and Graph-MFN: published numbers, masks, sizes, unaligned corpora."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
import tiny_systems
import torch_weights
from flax.core import FrozenDict
from paths import REFERENCE

from msa_jax.errors import UserError
from msa_jax.layers.normalization import StepBatchNorm
from msa_jax.models import SYSTEMS
from msa_jax.models.ef_lstm import EFLSTM
from msa_jax.models.mfn.graph_mfn import GraphMFN
from msa_jax.models.mfn.mfn import MFN
from msa_jax.typing import Spec, Task

ARRAYS = np.load(REFERENCE / "sequence_reference.npz")
SHORT = {"text": "l", "audio": "a", "vision": "v"}
NAMES = {"0": "text", "1": "audio", "2": "vision"}
_HIDDEN = FrozenDict(text=8, audio=4, vision=6)


def _affine(w, name):
  return torch_weights.dense(w, name)


def _mlp(w, name):
  return {"hidden": _affine(w, f"{name}_fc1"), "out": _affine(w, f"{name}_fc2")}


def _memory(w):
  gates = {"retain": "gamma1", "update": "gamma2"}
  return {
    f"{ours}_{part}": _affine(w, f"{theirs}_fc{number}")
    for ours, theirs in gates.items()
    for part, number in (("hidden", 1), ("out", 2))
  }


def ef_lstm(w):
  """Variables of EF-LSTM."""
  lstm = {f"layer_{i}": torch_weights.lstm(w, "lstm", f"_l{i}") for i in range(3)}
  params = {
    "norm": torch_weights.norm(w, "norm"),
    "lstm": lstm,
    "hidden": _affine(w, "linear"),
    "out": _affine(w, "out"),
  }
  return {
    "params": params,
    "batch_stats": {"norm": torch_weights.statistics(w, "norm")},
  }


def _cells(w):
  return {
    f"lstm_{name}": torch_weights.lstm(w, f"lstm_{short}", "")
    for name, short in SHORT.items()
  }


def mfn(w):
  """Variables of MFN."""
  parts = {"attention": "att1", "candidate": "att2", "output": "out"}
  params = {ours: _mlp(w, theirs) for ours, theirs in parts.items()}
  return {"params": {**params, **_cells(w), "memory": _memory(w)}}


def graph_mfn(w):
  """Variables of Graph-MFN."""
  graph, prefix = {}, "graph_mfn."
  nodes = {"01": "networks.01", "02": "networks.02", "12": "networks.12"}
  nodes |= {"012": "networks.012", "top": "t_network", "efficacy": "efficacy_model"}
  for key, theirs in nodes.items():
    ours = "_".join(NAMES[digit] for digit in key) if key[0].isdigit() else key
    graph[f"{ours}_hidden"] = _affine(w, f"{prefix}{theirs}.0")
    graph[f"{ours}_out"] = _affine(w, f"{prefix}{theirs}.1.0")
  graph["efficacy_each"] = _affine(w, f"{prefix}efficacy_model.2")
  views = {f"view_{n}": _affine(w, f"{s}_transform") for n, s in SHORT.items()}
  parts = {"candidate": _mlp(w, "att2"), "output": _mlp(w, "out")}
  shared = {"graph": graph, "memory": _memory(w)}
  return {"params": {**parts, **_cells(w), **views, **shared}}


_DIMS = {"hidden_dims": _HIDDEN, "memory_dim": 9}
NETWORKS = {
  "ef_lstm": (EFLSTM(num_steps=6, hidden_dim=7, num_layers=3), ef_lstm),
  "mfn": (MFN(**_DIMS, mlp_dims=FrozenDict(dict.fromkeys(MFN.mlp_dims, 5))), mfn),
  "graph_mfn": (
    GraphMFN(
      **_DIMS,
      node_dim=7,
      mlp_dims=FrozenDict(candidate=5, retain=5, update=6, output=7),
    ),
    graph_mfn,
  ),
}


@functools.cache
def computed(tag, compat, cut=None):
  """Output and gradients with a published module's weights.

  Args:
    cut: None = the stored lengths; else steps that all samples are cut to.
  """
  model, variables = NETWORKS[tag]
  variables = variables(torch_weights.weights(ARRAYS, f"{tag}/weights/"))
  features, lengths = published.features(ARRAYS, tag), ARRAYS.get(f"{tag}/lengths")
  if cut is not None:
    features = {name: each[:, :cut] for name, each in features.items()}
    lengths = None
  return published.outputs(model.copy(compat=compat), variables, features, lengths)


@pytest.mark.parametrize("tag", NETWORKS)
def test_compat_mode_equals_the_published_module_in_outputs_and_gradients(tag):
  output, gradient = computed(tag, "mmsa")
  prediction = output.predictions["sentiment"]
  published.close(prediction, ARRAYS[f"{tag}/output"][:, 0], 1e-5)
  published.check_gradients(gradient, ARRAYS, tag)
  if f"{tag}/loss/l1" in ARRAYS:
    loss = jnp.mean(jnp.abs(prediction - ARRAYS[f"{tag}/labels"][:, 0]))
    published.close(loss, ARRAYS[f"{tag}/loss/l1"], 1e-6)


def test_ef_lstm_reads_the_last_valid_step():
  output, gradient = computed("ef_lstm", "none")
  expected = ARRAYS["ef_lstm/last_valid_output"][:, 0]
  published.close(output.predictions["sentiment"], expected, 1e-5)
  lengths = ARRAYS["ef_lstm/lengths"]
  for name, short in published.INPUT.items():
    stored = ARRAYS[f"ef_lstm/last_valid_grad_in_{short}"]
    for row, length in enumerate(lengths):
      published.close(gradient[name][row, :length], stored[row, :length], 1e-4)
      assert not np.any(gradient[name][row, length:])


@pytest.mark.parametrize("tag", ["mfn", "graph_mfn"])
def test_the_default_mode_freezes_all_states_on_padding(tag):
  """Each sample as the published module predicts it without its padding."""
  lengths = ARRAYS.get(f"{tag}/lengths", np.array([7, 7, 7, 7]))
  output, _ = computed(tag, "none")
  for length in sorted(set(lengths.tolist())):
    alone, _ = computed(tag, "mmsa", cut=length)
    rows = lengths == length
    ours, theirs = (each.predictions["sentiment"][rows] for each in (output, alone))
    published.close(ours, theirs, 1e-5)


def test_the_graphs_efficacies_and_order_of_nodes_are_published():
  output, _ = computed("graph_mfn", "mmsa")
  stored = ARRAYS["graph_mfn/efficacies"].swapaxes(0, 1)
  published.close(output.features["efficacies"], stored, 1e-5)


def test_only_compat_mode_leaves_the_networks_of_the_nodes_alone():
  model, variables = NETWORKS["graph_mfn"]
  variables = variables(torch_weights.weights(ARRAYS, "graph_mfn/weights/"))
  batch = published.batch(published.features(ARRAYS, "graph_mfn"))

  def gradients(compat):
    def loss(params):
      output = model.copy(compat=compat).apply({"params": params}, batch)
      return jnp.sum(output.predictions["sentiment"] ** 2)

    graph = jax.jit(jax.grad(loss))(variables["params"])["graph"]
    return {name: bool(np.any(each["kernel"])) for name, each in graph.items()}

  assert all(gradients("none").values())
  still = {name for name, moves in gradients("mmsa").items() if not moves}
  nodes = ("text_audio", "text_vision", "audio_vision", "text_audio_vision")
  assert still == {f"{node}_{part}" for node in nodes for part in ("hidden", "out")}


def test_a_norm_of_steps_counts_real_entries_alone_and_serves_any_length():
  random = np.random.default_rng(0)
  values = jnp.asarray(random.normal(size=(3, 5, 4)), jnp.float32)
  mask = jnp.asarray(random.random((3, 5, 4)) < 0.7).at[:, 3].set(False)
  layer = StepBatchNorm(use_running_average=False, n_steps=4)
  start = {"mean": jnp.full(4, 2.0), "var": jnp.full(4, 3.0)}
  params = {"scale": jnp.arange(1.0, 5.0), "bias": jnp.arange(4.0)}
  result, new = layer.apply(
    {"params": params, "batch_stats": start}, values, mask, mutable=["batch_stats"]
  )
  for step in range(5):
    entries = values[:, step][mask[:, step]]
    own = min(step, 3)
    if len(entries):
      expected = (entries - entries.mean()) / np.sqrt(entries.var() + 1e-5)
      expected = expected * params["scale"][own] + params["bias"][own]
      np.testing.assert_allclose(result[:, step][mask[:, step]], expected, atol=1e-4)
    kept = 1.0 if step == 3 else 0.9
    if step < 4:
      moved = kept * 2.0 + (1 - kept) * (entries.mean() if len(entries) else 0.0)
      np.testing.assert_allclose(new["batch_stats"]["mean"][step], moved, rtol=1e-5)
  assert not np.any(np.asarray(result)[~mask])


SIZES = {
  # Published counts have two biases per gate: 4 h more per layer.
  "ef_lstm": (EFLSTM(), 885_605 - 4 * 4 * 128),
  "graph_mfn": (GraphMFN(), 2_110_624 + 208_656 - 4 * (256 + 32 + 256)),
}


@pytest.mark.parametrize("tag", SIZES)
def test_sizes_are_published(tag):
  model, size = SIZES[tag]
  assert published.count(model, published.MOSI) == size


def test_frames_are_averaged_at_the_texts_steps_in_compat_mode():
  model, variables = NETWORKS["mfn"]
  variables = variables(torch_weights.weights(ARRAYS, "mfn/weights/"))
  features = published.features(ARRAYS, "mfn")
  longer = {
    name: each if name == "text" else jnp.repeat(each, 3, axis=1)
    for name, each in features.items()
  }
  model = model.copy(compat="mmsa")
  ours, theirs = (
    model.apply(variables, published.batch(each)).predictions["sentiment"]
    for each in (features, longer)
  )
  published.close(theirs, ours, 1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_corpus_of_other_steps_is_refused_with_the_option_that_helps(name):
  made = tiny_systems.config(name)
  spec = Spec(
    widths=dict(made.spec.widths),
    lengths={"text": 5, "audio": 37, "vision": 50},
    tasks={"sentiment": Task("regression", -3.0, 3.0)},
  )
  with pytest.raises(UserError, match=r"audio 37.*--config.data.align=pool"):
    SYSTEMS[name].build(made.model, spec)
  SYSTEMS[name].build({**made.model, "compat": "mmsa"}, spec)
  only = Spec(
    widths={"audio": 3, "vision": 4},
    lengths={"audio": 37, "vision": 50},
    tasks=spec.tasks,
  )
  with pytest.raises(UserError, match="data.modalities with text"):
    SYSTEMS[name].build(made.model, only)
