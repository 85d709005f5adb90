"""Configs: locked, checked, and the same after a trip through JSON."""

import dataclasses
import json
import math

import pytest
import toy
from changes import change, resolve

import msa_jax
from msa_jax import config as config_lib
from msa_jax import models
from msa_jax.config import validate
from msa_jax.config.experiment import (
  differences,
  experiment,
  flatten,
  from_json,
  from_tree,
  to_json,
  to_tree,
  with_options,
)
from msa_jax.data.transforms.splits import check_trainable
from msa_jax.errors import UserError
from msa_jax.step import compose

FROZEN = {"input": "encoder", "encoder": "e"}


@pytest.fixture(autouse=True)
def toys(monkeypatch):
  monkeypatch.setitem(models.SYSTEMS, "toy", toy.SYSTEM)


def test_unknown_keys_are_errors():
  made = config_lib.finish(config_lib.base({"name": "toy"}))
  with pytest.raises((AttributeError, KeyError), match="bach"):
    made.optim.bach = 3


@pytest.mark.parametrize(
  ("tree", "message"),
  [
    (
      {"optim": {"bach": 3}},
      "config.optim.bach: no such option; .*batch_size",
    ),
    ({"optin": {}}, "config.optin: no such section; choose of .*optim"),
    ({"optim": {"epochs": "ten"}}, "config.optim.epochs='ten' must be of type int"),
    ({"data": {"valence": 1}}, "config.data.valence=1 must be of type bool"),
  ],
)
def test_trees_with_other_keys_or_types_are_refused(tree, message):
  with pytest.raises(UserError, match=message):
    from_tree({"model": {"name": "toy"}, **tree})


def test_names_may_come_as_one_string_with_commas():
  tree = {"model": {"name": "toy"}, "data": {"modalities": ("text, audio",)}}
  assert from_tree(tree).data.modalities == ("text", "audio")
  tree["data"] = {"standardize": "audio,vision"}
  assert from_tree(tree).data.standardize == ("audio", "vision")


@pytest.mark.parametrize(
  ("text", "train", "expected"),
  [
    ({}, "tokens:0.2", "features:0.2:ends"),
    (FROZEN, "frames:0.3", "frames:0.3:ends"),
    ({**FROZEN, "finetune": "all"}, "tokens:0.2", "tokens:0.2"),
    ({}, "random:0.2", "random:0.2"),
  ],
)
def test_what_earlier_runs_lost_has_the_name_it_has_today(text, train, expected):
  """Features of a frozen encoder, or of a file, were lost after encoding."""
  old = {"model": {"name": "toy"}, "text": text, "missing": {"train": train}}
  for written in ({}, {"format": 2}):
    assert from_json(json.dumps({**old, **written})).missing.train == expected
  made = from_json(json.dumps({**old, "format": 3}))
  assert made.missing.train == train
  assert from_json(to_json(made)) == made


def test_a_config_of_an_earlier_version_is_read_with_todays_names():
  old = {
    "model": {"name": "toy", "dropout": 0.2},
    "optim": {"lr_new": 0.5, "batch": 7, "clip": 1.5},
    "data": {"unit": "dialogue", "codes": 3},
    "train": {"select": "corr"},
    "replicas": {"seeds": [1, 2], "sweep": {"optim": {"lr_new": []}}},
  }
  made = from_json(json.dumps(old))
  assert made.optim.rates == {"new": 0.5}
  assert (made.optim.batch_size, made.optim.grad_clip_norm) == (7, 1.5)
  assert (made.data.sample_unit, made.data.num_frame_clusters) == ("dialogue", 3)
  assert (made.train.monitor, made.replicas.seeds) == ("corr", (1, 2))
  assert made.model == {"dropout": 0.2}


def test_json_round_trip_gives_an_equal_config():
  config = resolve(toy.config(), toy.corpus())
  assert from_json(to_json(config)) == config


def test_damaged_json_is_one_clear_error():
  with pytest.raises(UserError, match="damaged"):
    from_json('{"model": ')


def test_resolve_reads_shapes_and_tasks_off_the_corpus():
  spec = resolve(toy.config(), toy.corpus()).spec
  assert spec.widths == {"audio": 3, "text": 4}
  assert spec.lengths == {"audio": 5, "text": 6}
  assert spec.train_size == 37
  assert spec.tasks["sentiment"].kind == "regression"
  assert (spec.tasks["sentiment"].low, spec.tasks["sentiment"].high) == (-3.0, 3.0)


@pytest.mark.parametrize(
  ("sections", "message"),
  [
    ({"optim": {"batch_size": 0}}, "config.optim.batch_size=0 must be positive"),
    (
      {"optim": {"warmup_fraction": 1.5}},
      "config.optim.warmup_fraction=1.5 must be in",
    ),
    ({"optim": {"grad_clip_norm": -1.0}}, "config.optim.grad_clip_norm=-1.0 must be 0"),
    ({"optim": {"ema_decay": 1.0}}, r"config.optim.ema_decay=1.0 must be in \[0, 1\)"),
    ({"text": {"input": "words"}}, "config.text.input='words' must be one of"),
    ({"text": {"encoder": "a/b"}}, "the input is 'features'"),
    (
      {"text": {"finetune": "top_0"}},
      "finetune='top_0' must be none, all, top_<n> or lora",
    ),
    (
      {"text": {"learning_rate": 0.0}},
      "config.text.learning_rate=0.0 must be positive",
    ),
    ({"text": {"max_length": 2}}, "config.text.max_length=2 must be 0"),
    ({"text": {"linguistic": True}}, "config.text.linguistic=True needs"),
    ({"replicas": {"seeds": ()}}, "config.replicas.seeds"),
    ({"replicas": {"seeds": (1, 1)}}, "distinct"),
    ({"replicas": {"seeds": (-1,)}}, "non-negative"),
    ({"replicas": {"seeds": (2**31,)}}, "must be below 2"),
    ({"missing": {"seed": 2**31}}, r"config.missing.seed=2147483648 must be in \[0, 2"),
    ({"optim": {"learning_rate": -1e-3}}, "config.optim.learning_rate=-0.001 must be"),
    ({"optim": {"learning_rate": math.inf}}, "learning_rate=inf must be 0 or more"),
    ({"optim": {"learning_rates": {"old": -1.0}}}, "learning_rates.old=-1.0 must be 0"),
    ({"optim": {"weight_decay": -0.1}}, "config.optim.weight_decay=-0.1 must be 0 or"),
    ({"optim": {"weight_decays": {"old": -1.0}}}, "weight_decays.old=-1.0 must be 0"),
    ({"optim": {"accumulation": "all"}}, "accumulation='all' must be one of"),
    ({"optim": {"accumulate_steps": 0}}, "accumulate_steps=0 must be positive"),
    ({"optim": {"epsilon": 0.0}}, "optim.epsilon=0.0 must be positive"),
    ({"optim": {"momentum": 1.0}}, r"config.optim.momentum=1.0 must be in \[0, 1\)"),
    ({"data": {"train_fraction": 0.0}}, r"train_fraction=0.0 must be in \(0, 1\]"),
    ({"train": {"checkpoint_every_seconds": math.inf}}, "positive and finite"),
    ({"data": {"format": "mmsa"}}, "config.data.format has no effect without config.d"),
    (
      {"data": {"features": {"audio": "a.pkl"}}},
      "config.data.features.audio has no effect without config.data.path",
    ),
  ],
)
def test_bad_values_are_named_with_the_rule(sections, message):
  with pytest.raises(UserError, match=message):
    validate.validate(change(toy.config(), **sections))


@pytest.mark.parametrize(
  ("loss", "message"),
  [
    ({"size": -0.5}, "config.loss.size=-0.5 must be 0 or more"),
    ({"size": math.nan}, "config.loss.size=nan must be"),
    ({"size": (1.0, -1.0)}, "config.loss.size=.* must be 0 or more"),
    ({"size": None}, "config.loss.size=None must be"),
  ],
)
def test_weights_of_losses_are_not_negative(loss, message):
  with pytest.raises(UserError, match=message):
    validate.validate(toy.config().replace(loss={**toy.config().loss, **loss}))


@pytest.mark.parametrize(
  ("key", "value", "expected"),
  [
    ("data.standardize", "audio,vision", ("audio", "vision")),
    ("data.standardize", ("audio,vision",), ("audio", "vision")),
    ("data.standardize", ["audio", "vision"], ("audio", "vision")),
    ("data.standardize", "", ()),
    ("replicas.seeds", 3, (3,)),
    ("replicas.seeds", "0,1", (0, 1)),
    ("data.synthetic.tasks", "sentiment,emotion", ("sentiment", "emotion")),
    ("data.synthetic.frames_per_token", (4, 5), (4.0, 5.0)),
  ],
)
def test_several_values_are_written_alike_everywhere(key, value, expected):
  made = with_options(experiment(msa_jax.get_config("awf")), {key: value})
  assert flatten(to_tree(made))[key] == list(expected)


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("replicas.seeds", ("a",), "config.replicas.seeds='a' must be of type int"),
    ("replicas.seeds", (0.5,), "config.replicas.seeds=0.5 must be of type int"),
    ("balance.omega_clip", (1.0,), "omega_clip=.* must have 2 entries, not 1"),
    ("data.standardize", (("a",),), "config.data.standardize=.* must be of type str"),
    (
      "optim.learning_rate",
      math.nan,
      "optim.learning_rate=nan must be a number",
    ),
    ("optim.epochs", True, "config.optim.epochs=True must be of type int"),
    ("optim.learning_rates", {"old": "x"}, "learning_rates.old='x' must be of type fl"),
    ("data.synthetic.sizes", (3, 4), "config.data.synthetic.sizes=.* must have 3 entr"),
    ("data.synthetic.sizes", (3, 4, -1), "config.data.synthetic: synthetic sizes -1"),
    ("data.synthetic.signal", (0.8, "x"), "data.synthetic.signal='x' must be of type"),
    ("data.synthetic.annotator_noise", 0.0, "synthetic annotator_noise 0.0: must be"),
  ],
)
def test_tuples_have_types_and_lengths_checked_once(key, value, message):
  config = experiment(msa_jax.get_config("awf"))
  with pytest.raises(UserError, match=message):
    with_options(config, {key: value})


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("model.robust_expert.noise_std", -1.0, "noise_std=-1.0 must be 0 or more"),
    ("model.robust_expert.slot_dropout", 1.5, r"slot_dropout=1.5 must be in \[0, 1\)"),
    ("model.capacity_factor", -1.0, "model.capacity_factor=-1.0 must be above 0"),
    ("model.route_temperature", 0.0, "model.route_temperature=0.0 must be above 0"),
    ("model.polarity_experts.num_layers", 0, "num_layers=0 must be at least 1"),
    ("model.text_expert.num_layers", 10**6, "num_layers=1000000 must be 1024 at most"),
    ("model.token_dim", "x", "model.token_dim='x' must be of type int"),
    ("model.dropout.head", "x", "model.dropout.head='x' must be of type float"),
    (
      "model.info_guided_fusion",
      1,
      "info_guided_fusion=1 must be of type bool",
    ),
    ("model.gates", 3, "model.gates=3 must be a mapping of options"),
  ],
)
def test_options_of_models_have_types_and_ranges(key, value, message):
  made = with_options(experiment(msa_jax.get_config("hgem")), {key: value})
  with pytest.raises(UserError, match=message):
    compose.build(resolve(made, toy.corpus()))


def test_an_unknown_system_is_answered_with_the_known_ones():
  with pytest.raises(UserError, match="config.model.name='hgme' must be one of"):
    validate.validate(toy.config().replace(system="hgme"))


def test_a_good_config_is_accepted():
  validate.validate(toy.config())


def test_a_corpus_without_training_split_or_labels_cannot_be_trained_on():
  corpus = toy.corpus()
  rest = {k: v for k, v in corpus.splits.items() if k != "train"}
  with pytest.raises(UserError, match="no split 'train'"):
    check_trainable(dataclasses.replace(corpus, splits=rest))
  with pytest.raises(UserError, match="no labels"):
    check_trainable(toy.corpus(labelled=False))


def test_unknown_variants_are_answered_with_the_known_ones():
  with pytest.raises(UserError, match="'mois' must be one of mosei, mosi"):
    config_lib.parse_variants("mois", {"mosi": None, "mosei": None})
  assert config_lib.parse_variants("mosi, mosei", {"mosi": 1, "mosei": 2}) == (
    "mosi",
    "mosei",
  )


def test_differences_are_listed_by_dotted_key():
  lines = differences(change(toy.config(), optim={"batch_size": 64}), toy.config())
  assert lines == ["optim.batch_size: 64 here, 8 there"]
