"""MoMKE's sizes, initial values and the options it refuses."""

import json

import jax
import numpy as np
import pytest
import tiny_momke

from msa_jax.config.experiment import from_json
from msa_jax.errors import UserError
from msa_jax.models.momke import MoMKE, StageOptions, system
from msa_jax.models.momke.conditions import conditions, kept_by
from msa_jax.models.options import construct, split
from msa_jax.models.outputs import REGRESSION, OutputSpec


@pytest.mark.parametrize(
  ("classes", "total"), [(1, 5_395_469), (4, 5_400_089), (6, 5_403_169)]
)
def test_the_published_sizes_have_the_published_number_of_parameters(classes, total):
  widths = {"text": 1024, "audio": 512, "vision": 1024}
  batch = tiny_momke.batch(np.ones((1, 2, 3)), widths=widths)
  output = OutputSpec("emotion", "classes", classes) if classes > 1 else REGRESSION
  shapes = jax.eval_shape(MoMKE(output).init, jax.random.key(0), batch)
  params = shapes["params"]["network"]

  def count(*names):
    return sum(leaf.size for n in names for leaf in jax.tree.leaves(params[n]))

  assert count("in_proj_text", "in_proj_audio", "in_proj_vision") == 656_128
  assert count("experts") == 3_947_520
  assert count("routers") == 199_689
  assert count("proj1") == 590_592
  assert count(*params) == total


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"level": "word"}, "level='word' must be one of"),
    ({"mixing": "none"}, "mixing='none' must be one of"),
    ({"stage2_mask": "some"}, "stage2_mask='some' must be one of"),
    (
      {"condition": "x"},
      "condition='x' must be one of a, t, v, at, av, tv, atv, or all",
    ),
    ({"condition": ""}, "condition='' must be one of"),
    ({"num_heads": 3}, "num_heads=3 must divide"),
    ({"dropout": 1.0}, r"dropout=1.0 must be in \[0, 1\)"),
    ({"num_layers": 0}, "num_layers=0 must be at least 1"),
    ({"stage2_init": "first"}, "stage2_init='first' must be one of"),
    ({"depth": 2}, "model.depth: no such option"),
    ({"widths": {"text": 2, "touch": 3}}, "first letters must differ"),
  ],
)
def test_options_out_of_range_are_refused(options, message):
  with pytest.raises(UserError, match=message):
    tiny_momke.network(**options)


@pytest.mark.parametrize(
  ("level", "utterances", "unit"),
  [("frame", 4, "utterance"), ("utterance", 0, "dialogue")],
)
def test_the_level_must_be_that_of_the_samples(level, utterances, unit):
  options = tiny_momke.options(level=level)
  options.pop("name")
  message = f"level='{level}' needs config.data.sample_unit='{unit}'"
  with pytest.raises(UserError, match=message):
    system.build(options, tiny_momke.spec(utterances=utterances))


def test_the_default_options_are_those_of_the_network_and_of_the_stages():
  options = system.options()
  assert options.pop("name") == "momke"
  plan, network = split(StageOptions, options)
  assert plan == StageOptions()
  assert construct(MoMKE, network) == MoMKE()


def test_options_of_old_runs_make_the_same_network():
  old = {"D": 12, "depth": 1, "n_heads": 3, "drop": 0.2, "attn_drop": 0.1}
  old |= {"mlp_ratio": 1, "expert_style": "official", "router": "three_way"}
  old |= {"condition": "all", "stage1_epochs": 7, "stage2_init": "last"}
  made = from_json(json.dumps({"model": {"name": "momke", "task": "auto", **old}}))
  plan, _ = split(StageOptions, made.model)
  assert plan == StageOptions(stage1_epochs=7, stage2_init="last")
  assert system.build(made.model, tiny_momke.spec()) == MoMKE(
    modalities=("text", "audio", "vision"),
    hidden_dim=12,
    num_layers=1,
    num_heads=3,
    dropout=0.2,
    attention_dropout=0.1,
    condition="all",
  )


def test_conditions_ignore_modalities_that_the_corpus_lacks():
  assert kept_by("atv", ("text", "audio")) == (True, True)
  assert list(conditions(("text", "audio"))) == ["a", "t", "at"]


@pytest.mark.parametrize(
  "option", [{"router": "two_way"}, {"expert_style": "preln"}, {"mlp_ratio": 2}]
)
def test_old_runs_of_networks_that_are_gone_are_refused(option):
  with pytest.raises(UserError, match=f"model.{next(iter(option))}="):
    from_json(json.dumps({"model": {"name": "momke", "task": "auto", **option}}))
