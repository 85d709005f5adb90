"""Runs of version 0.1 are read to the same network."""

import json

import pytest
import tiny_hgem as tiny

from msa_jax.config.experiment import from_json, to_json
from msa_jax.errors import UserError
from msa_jax.models.hgem import system as hgem
from msa_jax.models.hgem.options import (
  AudioExpertConfig,
  DropoutRates,
  GateConfig,
  PolarityExpertConfig,
  RobustExpertConfig,
  SparseExpertConfig,
  VisionExpertConfig,
)


def old_model():
  """Options of version 0.1, no two numbers alike where a mix-up could hide."""
  return {
    "name": "hgem",
    "task": "auto",
    "dtype": "float32",
    "D": 24,
    "d": 12,
    "T": 40,
    "n_heads": 4,
    "L_codes": 5,
    "use_ids": "auto",
    "av_input": "both",
    "text_expert": {"layers": 2, "ffn": 21},
    "vision_expert": {"conv_k": 5, "layers": 3, "ffn": 22, "pos": "learned"},
    "audio_expert": {"lstm": 23, "conv_k": 7},
    "gate": {"hidden": [11, 12, 13, 14], "n_units": 4, "combine": "logits"},
    "gate0": {"k": 3, "apply": "output"},
    "gate1": {"k": 1},
    "gate2": {"k": 3},
    "gate3": {"mode": "product"},
    "sparse": {"layers": 4, "ffn": 25, "r": 0.5, "k_basis": "tokens", "renorm": False},
    "dense": {"hidden": 26, "out_act": "gelu"},
    "robust": {
      "hidden": 27,
      "denoiser": 28,
      "sigma": 0.3,
      "p_slot": 0.4,
      "blend": "noisy",
      "C_init": 2.0,
    },
    "polarity": {"n": 5, "hidden": 29, "layers": 1},
    "igsf": {"enabled": False, "stop_grad": False},
    "head": {"hidden": 30},
    "dropout": {
      "embed": 0.01,
      "attn": 0.02,
      "ffn": 0.03,
      "gate": 0.04,
      "expert": 0.05,
      "head": 0.06,
    },
    "experts_per_family": 1,
    "mi": {
      "tau": 0.2,
      "tau_schedule": "constant",
      "similarity": "onehot",
      "mask_duplicates": False,
    },
    "route_label": "polarity",
    "fusion": "moe",
    "disabled_experts": ["robust"],
    "missing_mode": "embed",
    "dispatch": "capacity",
    "capacity_factor": 2.0,
    "entropy": {"base": "bits", "stage": "dense"},
  }


def read(model, loss=None):
  return from_json(json.dumps({"model": model, "loss": loss or {}}))


def test_an_old_config_gives_the_same_network():
  loss = {"disc": 0.1, "mi": 0.2, "den": 0.3, "bal": 0.4, "aux_warmup": 0.5}
  experiment = read(old_model(), loss)
  model = hgem.build(experiment.model, tiny.spec(steps=40))
  assert (model.token_dim, model.fused_dim, model.max_steps) == (24, 12, 40)
  assert (model.num_heads, model.num_codes, model.head_dim) == (4, 5, 30)
  text, dense = model.text_expert, model.dense_expert
  assert (text.num_layers, text.ffn_dim, dense.hidden_dim) == (2, 21, 26)
  assert model.vision_expert == VisionExpertConfig(5, 3, 22)
  assert model.audio_expert == AudioExpertConfig(23, 7)
  assert model.gates == GateConfig((11, 12, 13, 14), 4, 1, 3, "outputs")
  assert model.sparse_expert == SparseExpertConfig(4, 25, 0.5, "nominal")
  assert not model.info_guided_norm
  assert model.robust_expert == RobustExpertConfig(27, 28, 0.3, 0.4)
  assert model.polarity_experts == PolarityExpertConfig(5, 29, 1)
  assert model.dropout == DropoutRates(0.01, 0.02, 0.03, 0.04, 0.05, 0.06)
  assert not model.info_guided_fusion and model.route_temperature == 0.2
  assert (model.fusion, model.missing_mode) == ("multi", "embed")
  assert (model.disabled_experts, model.dispatch) == (("robust",), "capacity")
  assert model.capacity_factor == 2.0
  assert experiment.loss == {
    "route_discrimination": 0.1,
    "route_mi": 0.2,
    "denoising": 0.3,
    "load_balance": 0.4,
    "aux_warmup_fraction": 0.5,
  }


def test_the_old_name_of_an_ablation_stays_readable():
  fusions = [
    read({**old_model(), "fusion": name}).model["fusion"] for name in ("fixed", "multi")
  ]
  assert fusions == ["fixed", "multi"]


def test_runs_of_the_second_format_keep_their_reading_and_new_ones_theirs():
  options = {"name": "hgem", **tiny.options()}
  for key in ("modality_scale", "keep_share_of"):
    options["gates"].pop(key, None)
    options["sparse_expert"].pop(key, None)
  options.pop("info_guided_norm")
  old = from_json(json.dumps({"format": 2, "model": options, "loss": {}}))
  model = hgem.build(old.model, tiny.spec())
  assert model.gates.modality_scale == "outputs"
  assert model.sparse_expert.keep_share_of == "nominal"
  assert not model.info_guided_norm
  assert from_json(to_json(old)) == old
  new = from_json(json.dumps({"format": 3, "model": options, "loss": {}}))
  assert hgem.build(new.model, tiny.spec()) == tiny.model()


def test_a_reading_that_is_gone_is_refused():
  with pytest.raises(UserError, match="model.experts_per_family=2 must be 1"):
    read({**old_model(), "experts_per_family": 2})
