"""DERL as a whole: sizes, kinds of output, precision, options and configs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_derl import (
  NAMES,
  initial,
  make_batch,
  predict,
  resolved,
)

from configs import derl as derl_config
from msa_jax.errors import UserError
from msa_jax.models.derl import system as derl
from msa_jax.models.derl.network import targets_of
from msa_jax.step import recipe
from msa_jax.typing import modality_order


def paper_params(variants, vision):
  config = derl_config.get_config(variants).copy_and_resolve_references()
  with config.unlocked():
    config.spec = resolved(widths={"text": 768, "audio": 74, "vision": vision}).spec
  model = derl.build(config.lock())
  example = recipe.example_batch(config.spec)
  variables = jax.eval_shape(
    lambda key: model.init(key, example, train=False), jax.random.key(0)
  )
  return variables["params"]


def size(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_the_mosi_variant_has_the_parameters_of_the_paper_block_by_block():
  params = paper_params("mosi", 47)
  # 3 modalities each: 2 * 10,200 + 3 * 100 + 20,250; 10,200 + 2 * 100 + 20,250.
  assert size(params["cross_1"]) == size(params["cross_2"]) == 3 * 40_950
  assert size(params["intra_1"]) == size(params["intra_2"]) == 3 * 30_650
  assert size(params["enhance_1"]) == 3 * 5_000
  assert size(params["filter_1"]) == 3 * 5_050
  inputs = {name: size(params[f"conv_{name}"]) for name in NAMES}
  assert inputs == {"text": 115_250, "audio": 11_150, "vision": 7_100}
  assert sum(size(params[f"norm_{name}"]) for name in NAMES) == 300
  head = [size(params[name]) for name in ("head_1", "head_2", "head_out")]
  assert head == [22_650, 22_650, 151]
  assert size(params) == 639_001


def test_the_mosei_variant_has_the_parameters_of_the_paper():
  assert size(paper_params("mosei", 35)) == 1_372_051


def test_gates_exist_between_layers_only_unless_asked_for():
  def gates(n_layers, **options):
    config = resolved(n_layers=n_layers, **options)
    model = derl.build(config)
    params = jax.eval_shape(
      lambda key: model.init(key, recipe.example_batch(config.spec), train=False),
      jax.random.key(0),
    )["params"]
    found = {name: p for name, p in params.items() if "enhance" in name}
    found |= {name: p for name, p in params.items() if "filter" in name}
    return {name: next(iter(jax.tree.leaves(p))).shape[0] for name, p in found.items()}

  assert gates(1) == {}
  assert gates(2) == {"enhance_1": 3, "filter_1": 3}
  assert gates(2, use_fu=False) == {"enhance_1": 3}
  assert gates(2, use_eu=False) == {"filter_1": 3}
  assert gates(1, gate_last=True) == {"enhance_1": 3, "filter_1": 3}
  assert gates(3, share_gates=True) == {"enhance": 1, "filter": 1}


@pytest.mark.parametrize("kind, shape", [("classes", (4, 4)), ("binary", (4, 4, 2))])
def test_emotions_are_predicted_as_logits(kind, shape):
  config = resolved("iemocap", kind=kind)
  model = derl.build(config)
  batch = make_batch()
  output = jax.eval_shape(
    lambda: model.init_with_output(jax.random.key(0), batch, train=False)[0]
  )
  assert output.predictions["emotion"].shape == shape


def test_bfloat16_computes_close_to_float32_and_keeps_float32_outside():
  model, variables = initial(resolved())
  half, own = initial(resolved(dtype="bfloat16"))
  assert {leaf.dtype for leaf in jax.tree.leaves(own)} == {jnp.dtype("float32")}
  expected = predict(model, variables, make_batch())
  found = predict(half, variables, make_batch())
  assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}
  for name in NAMES:
    one, other = found.features[f"M_{name}"], expected.features[f"M_{name}"]
    assert 0 < np.abs(one - other).max() < 0.15


@pytest.mark.parametrize(
  "options, message",
  [
    ({"variant": "ie_x"}, "variant='ie_x'.*ie_t"),
    ({"pool": "max"}, "pool='max'.*mean"),
    ({"dis": "cosine"}, "dis='cosine'.*token_l2"),
    ({"dtype": "float16"}, "dtype='float16'.*bfloat16"),
    ({"n_layers": 0}, "n_layers=0.*at least 1"),
    ({"n_heads": 3}, "n_heads=3.*divide model.d=8"),
    ({"d": 9, "n_heads": 3}, "d=9.*even"),
    ({"dropout": {"attn": 1.0}}, r"dropout.attn=1.0.*\[0, 1\)"),
    ({"kernels": (3, 3)}, r"kernels=\(3, 3\).*each of \('text', 'audio', 'vision'\)"),
    ({"kernels": (3, 3, 0)}, r"kernels=\(3, 3, 0\).*positive"),
    ({"task": "humor"}, "task='humor'.*sentiment"),
    ({"variant": "cie_vta", "names": ("text", "audio")}, "cie_vta.*vision.*has"),
  ],
)
def test_values_out_of_range_are_refused(options, message):
  with pytest.raises(UserError, match=message):
    derl.build(resolved(**options))


def test_every_variant_of_the_config_has_the_papers_settings():
  settings = {}
  for name in derl_config.VARIANTS:
    config = derl_config.get_config(name)
    settings[name] = (
      config.model.n_layers,
      config.loss.dis,
      config.optim.learning_rate,
      config.loss.task,
    )
    assert (config.model.d, config.model.n_heads, config.optim.batch_size) == (
      50,
      10,
      48,
    )
  assert settings["mosi"] == (2, 0.005, 5e-5, "mse")
  assert settings["mosei"] == (5, 0.5, 2e-5, "mse")
  assert settings["sims"] == (2, 0.005, 5e-5, "l1")
  assert settings["iemocap"] == (2, 0.005, 5e-5, "default")
  assert derl_config.get_config("mosei,tuned").optim.learning_rate == 1e-3
  minimal = derl_config.get_config("mosi,paper_min")
  rates = minimal.model.dropout.to_dict()
  assert rates == {"eu": 0.1, "attn": 0.0, "res": 0.0, "ffn": 0.0, "text": 0.0}
  assert minimal.optim.warmup_fraction == minimal.optim.grad_clip_norm == 0.0


def test_an_unknown_variant_of_the_config_is_refused():
  with pytest.raises(UserError, match="'mosu'.*mosei"):
    derl_config.get_config("mosu")


def test_variants_of_table_four_follow_the_corpus():
  assert targets_of("cie_all", ("text", "audio")).cross == ("text", "audio")
  assert targets_of("ie_tav", ("text",)).intra == ("text",)
  assert modality_order(targets_of("full", NAMES).intra) == NAMES
  assert targets_of("nonsense", NAMES) is None
