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
  spec_of,
)

from configs import derl as derl_config
from msa_jax.config.experiment import experiment, from_json
from msa_jax.errors import UserError
from msa_jax.models.derl import DERL, DropoutRates
from msa_jax.models.derl import system as derl
from msa_jax.models.derl.network import encoded_streams
from msa_jax.step.recipe import example_batch


def params_of(config):
  model = derl.build(config.model, config.corpus_spec)
  example = example_batch(config.corpus_spec)
  return jax.eval_shape(model.init, jax.random.key(0), example)["params"]


def paper_params(variants, vision):
  spec = spec_of(widths={"text": 768, "audio": 74, "vision": vision})
  return params_of(experiment(derl_config.get_config(variants)).replace(spec=spec))


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


def test_units_exist_between_layers_only():
  def units(num_layers, **options):
    params = params_of(resolved(model={"num_layers": num_layers, **options}))
    return {
      name: jax.tree.leaves(each)[0].shape[0]
      for name, each in params.items()
      if name.startswith(("enhance", "filter"))
    }

  assert units(1) == {}
  assert units(2) == {"enhance_1": 3, "filter_1": 3}
  assert units(2, use_filter=False) == {"enhance_1": 3}
  assert units(2, use_enhancement=False) == {"filter_1": 3}
  assert set(units(3)) == {"enhance_1", "enhance_2", "filter_1", "filter_2"}


def test_the_network_can_be_used_alone():
  model = DERL(hidden_dim=8, num_heads=2, num_layers=1)
  batch = make_batch()
  output = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), batch)[0])
  assert output.predictions["sentiment"].shape == (4,)
  assert output.features["F_vision"].shape == (4, 8)
  few = model.clone(modalities=("vision", "text"))
  output = jax.eval_shape(lambda: few.init_with_output(jax.random.key(0), batch)[0])
  assert {key for key in output.features if key[0] == "F"} == {"F_text", "F_vision"}


def test_a_batch_without_a_modality_is_refused():
  model = DERL(modalities=NAMES)
  batch = make_batch(names=("text", "vision"))
  with pytest.raises(UserError, match=r"modalities=.*: audio is not in \('text', 'vis"):
    jax.eval_shape(model.init, jax.random.key(0), batch)


@pytest.mark.parametrize("kind, shape", [("classes", (4, 4)), ("binary", (4, 4, 2))])
def test_emotions_are_predicted_as_logits(kind, shape):
  config = resolved("iemocap", kind=kind)
  model = derl.build(config.model, config.corpus_spec)
  output = jax.eval_shape(
    lambda: model.init_with_output(jax.random.key(0), make_batch())[0]
  )
  assert output.predictions["emotion"].shape == shape


def test_bfloat16_computes_close_to_float32_and_keeps_float32_outside():
  model, variables = initial(resolved())
  half, own = initial(resolved(model={"dtype": "bfloat16"}))
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
    ({"variant": "ie_x"}, "model.variant='ie_x' must be one of.*ie_t"),
    ({"pooling": "max"}, "model.pooling='max'.*mean"),
    ({"attention_scale": "x"}, "model.attention_scale='x'.*head"),
    ({"dtype": "float16"}, "model.dtype='float16'.*bfloat16"),
    ({"num_layers": 0}, "model.num_layers=0 must be at least 1"),
    ({"num_heads": 3}, "model.num_heads=3 must divide model.hidden_dim=8"),
    ({"hidden_dim": 9, "num_heads": 3}, "model.hidden_dim=9 must be even"),
    ({"dropout": {"attention": 1.0}}, r"model.dropout.attention=1.0.*\[0, 1\)"),
    ({"dropout": {"attn": 0.5}}, "model.dropout.attn: no such option.*residual"),
    ({"kernel_sizes": (3, 3)}, r"kernel_sizes=\(3, 3\).*each of \('text', 'audio',"),
    ({"kernel_sizes": (3, 3, 0)}, r"kernel_sizes=\(3, 3, 0\).*positive"),
    ({"task": "humor"}, "task='humor'.*sentiment"),
  ],
)
def test_values_out_of_range_are_refused(options, message):
  config = resolved(model=options)
  with pytest.raises(UserError, match=message):
    derl.build(config.model, config.corpus_spec)


def test_a_variant_that_the_corpus_does_not_allow_is_refused():
  config = resolved(model={"variant": "cie_vta"}, names=("text", "audio"))
  with pytest.raises(UserError, match="cie_vta.*vision.*has"):
    derl.build(config.model, config.corpus_spec)


def test_every_variant_of_the_config_has_the_papers_settings():
  settings = {}
  for name in derl_config.VARIANTS:
    config = experiment(derl_config.get_config(name))
    model = derl.build(
      config.model, spec_of(kind="classes" if name == "iemocap" else "regression")
    )
    settings[name] = (
      model.num_layers,
      config.loss["dissimilarity"],
      config.optim.learning_rate,
      config.loss["task"],
    )
    sizes = (model.hidden_dim, model.num_heads, config.optim.batch_size)
    assert sizes == (50, 10, 48)
  assert settings["mosi"] == (2, 0.005, 5e-5, "mse")
  assert settings["mosei"] == (5, 0.5, 2e-5, "mse")
  assert settings["sims"] == (2, 0.005, 5e-5, "l1")
  assert settings["iemocap"] == (2, 0.005, 5e-5, "default")
  assert derl_config.get_config("mosei,tuned").optim.learning_rate == 1e-3
  minimal = experiment(derl_config.get_config("mosi,paper_min"))
  rates = derl.build(minimal.model, spec_of()).dropout
  assert rates == DropoutRates(0.0, 0.0, 0.0, 0.0, enhancement=0.1)
  assert minimal.optim.warmup_fraction == minimal.optim.grad_clip_norm == 0.0


OLD = """{"model": {"name": "derl", "task": "auto", "dtype": "float32", "d": 12,
  "n_heads": 3, "n_layers": 4, "ffn_mult": 2, "kernels": [3, 1, 5],
  "input_norm": "batch", "pe": "sin", "attn_scale": "model", "norm_style": "post",
  "eu_norm": "row", "gate_last": false, "cie_source": "enhanced",
  "share_gates": false, "use_eu": true, "use_fu": false, "variant": "full",
  "pool": "after_mlp", "dis": "l2",
  "dropout": {"eu": 0.5, "attn": 0.1, "res": 0.2, "ffn": 0.3, "text": 0.4}},
  "loss": {"task": "mse", "dis": 0.5, "aux_warmup": 0.0}}"""


def test_a_config_of_the_first_version_gives_the_same_network():
  config = from_json(OLD)
  assert derl.build(config.model, spec_of()) == DERL(
    modalities=NAMES,
    hidden_dim=12,
    num_heads=3,
    num_layers=4,
    ffn_multiplier=2,
    kernel_sizes=(3, 1, 5),
    attention_scale="model",
    use_filter=False,
    pooling="after_mlp",
    dropout=DropoutRates(0.4, 0.1, 0.2, 0.3, 0.5),
  )
  assert config.loss == {
    "task": "mse",
    "dissimilarity": 0.5,
    "aux_warmup_fraction": 0.0,
  }


def test_a_config_with_a_value_that_is_gone_is_refused():
  with pytest.raises(UserError, match="model.norm_style='pre' must be 'post'"):
    from_json(OLD.replace('"post"', '"pre"'))


def test_an_unknown_variant_of_the_config_is_refused():
  with pytest.raises(UserError, match="'mosu'.*mosei"):
    derl_config.get_config("mosu")


def test_variants_of_table_four_follow_the_corpus():
  assert encoded_streams("cie_all", ("text", "audio")).cross == ("text", "audio")
  assert encoded_streams("ie_tav", ("text",)).intra == ("text",)
  assert encoded_streams("full", NAMES) == (NAMES, NAMES)
