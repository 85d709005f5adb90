"""Every dropout site of every system: which units vanish where it drops everything."""

import functools
import importlib

import dropout_sites
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_systems
from dropout_sites import Site
from paths import ROOT

from msa_jax.config.experiment import experiment
from msa_jax.layers.masking import hide_unavailable
from msa_jax.models import SYSTEMS
from msa_jax.step import compose
from msa_jax.studies.changes import changed


def _values(leaf):
  """Of MoMKE's stacked queries, keys and values: the values alone."""
  return leaf.at[..., 2 * tiny_systems.TINY["momke"]["hidden_dim"] :].set(0.0)


def _by_modality(option, reader, where="encoder_{}/"):
  return [
    Site(f"{option}.{name}", reader.format(name), where.format(name))
    for name in ("text", "audio", "vision")
  ]


SITES = {
  "hgem": [
    Site("dropout.embed", "^ln_in_"),
    Site("dropout.attention", "attention/out/kernel"),
    Site("dropout.ffn", "ffn_2/kernel"),
    *(
      Site("dropout.gate", f"^gate{i}/.*scores/kernel", f"^gate{i}/") for i in range(4)
    ),
    Site("dropout.expert", "^L1_audio/convolution/kernel", "^L1_audio/"),
    Site("dropout.expert", "^L2_dense_2/kernel", "^Dropout_3$"),
    Site("dropout.expert", "^L2_rob_2/kernel", "^Dropout_4$"),
    Site("dropout.expert", "^L3/.*hidden_1/kernel", "^L3/.*Dropout_0$"),
    Site("dropout.expert", "^L3/.*out/kernel", "^L3/.*Dropout_1$"),
    Site("dropout.head", "^head_2/kernel"),
  ],
  "derl": [
    Site("dropout.text", "^conv_text/kernel"),
    Site("dropout.attention", "attention_./out/kernel"),
    Site("dropout.residual", "attention_./out/", "Dropout_[01]$"),
    Site("dropout.residual", "ffn_2/", "Dropout_[23]$"),
    Site("dropout.ffn", "ffn_2/kernel"),
    Site("dropout.enhancement", "^enhance_1/.*private/kernel"),
  ],
  "momke": [
    Site("dropout", "in_proj_", "input_drop"),
    Site("attention_dropout", (("experts/qkv", _values),)),
    Site("dropout", "experts/fc2/kernel", "experts/drop_._1$"),
    Site("dropout", "experts/fc2/", "experts/drop_._2$"),
    Site("dropout", "routers/fc2/kernel", "routers/drop$"),
    Site("router_logit_dropout", "routers/fc2/"),
    Site("dropout", "proj1/", "fusion_drop"),
  ],
  "mmolre": [
    Site("dropout", "(shared_.|expert_[a-z]+)/[wb]2", "^unitse_"),
    Site("attention_dropout", "cross_.*attention/out/kernel"),
    Site("dropout", "cross_.*attention/out/", "^fusion/.*Dropout_0$"),
    Site("dropout", "cross_.*ffn_2/kernel", "^fusion/.*Dropout_1$"),
    Site("dropout", "^head_.*out/kernel", "^head_"),
  ],
  "awf": [
    *(
      Site("dropout", f"^last_{name}/kernel", f"encoder_{name}/")
      for name in ("text", "audio", "vision")
    ),
    Site("dropout", "^head/hidden_0/kernel", "^head/"),
  ],
  "lf_lstm": [
    *_by_modality("dropout", "^last_{}/kernel"),
    Site("post_dropout", "^head/hidden_0/kernel"),
  ],
}
SITES["self_mm"] = [
  *(
    Site(f"dropout.{name}", f"^post_{name}/layer_1/kernel", f"^post_{name}/")
    for name in ("text", "audio", "vision")
  ),
  Site("post_dropout", "^post_fusion/layer_1/kernel", "^post_fusion/"),
]
SITES["misa"] = [
  Site("fusion_dropout", "^fusion/attention/out/kernel", "^fusion/attention/"),
  Site("fusion_dropout", "^fusion/attention/out/", "^fusion/drop_1$"),
  Site("fusion_dropout", "^fusion/ffn_2/kernel", "^fusion/drop_ffn$"),
  Site("fusion_dropout", "^fusion/ffn_2/", "^fusion/drop_2$"),
  Site("dropout", "^hidden/", "^Dropout_0$"),
]
SITES["tetfn"] = [
  Site("dropout.relu", "/ffn_2/kernel"),
  Site("dropout.residual", "/attention/out/", "drop_attention"),
  Site("dropout.residual", "/ffn_2/", "drop_ffn"),
  Site(
    "attention_dropout.text",
    "^((audio|vision)_|text_memory).*/attention/out/kernel",
  ),
  Site("attention_dropout.audio", "^text_with_audio/.*attention/out/kernel"),
  Site("attention_dropout.vision", "^text_with_vision/.*attention/out/kernel"),
  *(
    Site(f"head_dropout.{name}", f"^post_{name}/layer_1/kernel", f"^post_{name}/")
    for name in ("text", "audio", "vision")
  ),
  Site("post_dropout", "^post_fusion/layer_1/kernel", "^post_fusion/"),
]
SITES["almt"] = []  # nothing is dropped
SITES["mmim"] = [
  *(
    Site(f"dropout.{name}", f"^encoder_{name}/linear/kernel", f"^encoder_{name}/")
    for name in ("audio", "vision")
  ),
  Site("post_dropout", "^fusion_1/kernel", "^Dropout_0$"),
]
SITES["mag_bert"] = [
  Site("dropout", "^gate/norm/", "^gate/"),
  Site("post_dropout", "^head/out/kernel", "^head/drop$"),
]
SITES["cenet"] = [
  Site("dropout", "^head/pooler/kernel", "^head/drop_input$"),
  Site("dropout", "^head/out/kernel", "^head/drop$"),
]
_MMSA = [
  Site("dropout.text", "^last_text/kernel"),
  Site("dropout.audio", "^encoder_audio/linear_1/kernel"),
  Site("dropout.vision", "^encoder_vision/linear_1/kernel"),
]
_UNIMODAL = _by_modality("unimodal_dropout", "^alone_{}/hidden_0/kernel", "alone_{}/")
_FUSED = Site("post_dropout", "^head/hidden_0/kernel", "^head/")
SITES["lmf"] = _MMSA
SITES["mlmf"] = [*_MMSA, *_UNIMODAL]
SITES["mlf_dnn"] = SITES["mtfn"] = [*_MMSA, *_UNIMODAL, _FUSED]
SITES["ef_lstm"] = [
  Site("dropout", "^lstm/layer_1/input_kernel", "^lstm/"),
  Site("dropout", "^hidden/kernel", "drop_last"),
  Site("dropout", "^out/kernel", "drop_hidden"),
]
SITES["graph_mfn"] = [
  Site("dropout.candidate", "^candidate/out/kernel"),
  Site("dropout.retain", "^memory/retain_out/kernel"),
  Site("dropout.update", "^memory/update_out/kernel"),
  Site("dropout.output", "^output/out/kernel"),
]
SITES["mfn"] = [
  Site("dropout.attention", "^attention/out/kernel"),
  *SITES["graph_mfn"],
]
SITES["mult"] = [
  Site("dropout.text", "^project_text/kernel"),
  Site("dropout.embed", "^project_", "_with_"),
  Site("dropout.embed", "_with_[a-z]+/norm/", "_memory/"),
  Site("dropout.relu", "/ffn_2/kernel"),
  Site("dropout.residual", "/attention/out/", "drop_attention"),
  Site("dropout.residual", "/ffn_2/", "drop_ffn"),
  Site("dropout.output", "^residual/kernel"),
  Site("attention_dropout.text", "_(with_text|memory)/.*attention/out/kernel"),
  Site("attention_dropout.audio", "_with_audio/.*attention/out/kernel"),
  Site("attention_dropout.vision", "_with_vision/.*attention/out/kernel"),
]
SITES["text_only"] = [Site("dropout", "^heads/sentiment/kernel")]
SITES["lf_dnn"] = SITES["tfn"] = [
  Site("dropout.text", "^last_text/kernel"),
  Site("dropout.audio", "^encoder_audio/linear_1/kernel"),
  Site("dropout.vision", "^encoder_vision/linear_1/kernel"),
  Site("post_dropout", "^head/hidden_0/kernel"),
]


@functools.cache
def prepared(name):
  """The network in training as a function of its sites' factors, and what it reads."""
  sites = SITES[name]
  options = {
    **tiny_systems.TINY[name],
    **dropout_sites.rates({site.option for site in sites}),
  }
  config = changed(
    tiny_systems.config(name), {f"model.{key}": v for key, v in options.items()}
  )
  model = compose.networks(config).inner
  batch = tiny_systems.batch(config)
  batch = hide_unavailable(batch, keep_lost=SYSTEMS[name].sees_dropped)
  shapes = jax.eval_shape(model.init, jax.random.key(0), batch)
  random = np.random.default_rng(0)
  variables = {
    "params": jax.tree.map(
      lambda leaf: jnp.asarray(0.5 * random.normal(size=leaf.shape), leaf.dtype),
      shapes["params"],
    )
  }
  if "batch_stats" in shapes:
    variables["batch_stats"] = jax.tree.map(
      lambda leaf: jnp.ones(leaf.shape), shapes["batch_stats"]
    )
  run = dropout_sites.switched(model, sites)
  return functools.partial(run, batch=batch), variables


def numbers(output):
  """Everything that a network returns, by name."""
  logits = {name: (r.logits, r.probs) for name, r in output.routing.items()}
  return {
    "prediction": dict(output.predictions),
    "features": dict(output.features),
    "routing": logits,
  }


CASES = [
  pytest.param(name, index, id=f"{name}-{site.option}-{index}")
  for name, sites in SITES.items()
  for index, site in enumerate(sites)
]


@pytest.mark.parametrize(("name", "index"), CASES)
def test_what_a_site_drops_is_what_its_readers_would_not_read(name, index):
  run, variables = prepared(name)
  nothing = jnp.ones(len(SITES[name]))
  dropped = numbers(run(variables, factors=nothing.at[index].set(0.0)))
  without = dropout_sites.silenced(variables, SITES[name][index])
  expected = numbers(run(without, factors=nothing))
  plain = numbers(run(variables, factors=nothing))
  changed = False
  for ours, theirs, before in zip(
    *map(jax.tree.leaves, (dropped, expected, plain)), strict=True
  ):
    np.testing.assert_allclose(ours, theirs, atol=2e-5)
    changed |= bool(np.abs(np.asarray(ours) - np.asarray(before)).max() > 1e-3)
  assert changed


def test_every_system_has_its_sites_here():
  assert set(SITES) == {path.stem for path in (ROOT / "configs").glob("[a-z]*.py")}
  for name, sites in SITES.items():
    config = experiment(importlib.import_module(f"configs.{name}").get_config())
    given = {
      f"{key}.{part}" if isinstance(value, dict) else key
      for key, value in config.model.items()
      if "dropout" in key
      for part in (value if isinstance(value, dict) else [""])
    }
    assert {site.option for site in sites} == given
