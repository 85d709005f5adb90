"""Configs: locked, checked, and the same after a trip through JSON."""

import dataclasses
import json

import pytest
import toy
from changes import change, resolve

from msa_jax import config as config_lib
from msa_jax import models
from msa_jax.config import validate
from msa_jax.config.experiment import differences, from_json, from_tree, to_json
from msa_jax.data.transforms.splits import check_trainable
from msa_jax.errors import UserError


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
  ],
)
def test_bad_values_are_named_with_the_rule(sections, message):
  with pytest.raises(UserError, match=message):
    validate.validate(change(toy.config(), **sections))


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
