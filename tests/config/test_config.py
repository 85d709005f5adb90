"""Configs: locked, checked, and the same after a trip through JSON."""

import dataclasses

import pytest
import toy

from msa_jax import config as config_lib
from msa_jax.config import validate
from msa_jax.errors import UserError


def _changed(**sections):
  config = toy.config().copy_and_resolve_references()
  with config.unlocked():
    for section, values in sections.items():
      config[section].update(values)
  return config


def test_unknown_keys_are_errors():
  with pytest.raises((AttributeError, KeyError), match="bach"):
    toy.config().optim.bach = 3


def test_json_round_trip_gives_an_equal_config():
  config = config_lib.resolve(toy.config(), toy.corpus())
  assert config_lib.from_json(config_lib.to_json(config)) == config


def test_damaged_json_is_one_clear_error():
  with pytest.raises(UserError, match="damaged"):
    config_lib.from_json('{"model": ')


def test_resolve_reads_shapes_and_tasks_off_the_corpus():
  spec = config_lib.resolve(toy.config(), toy.corpus()).spec
  assert spec.widths.to_dict() == {"audio": 3, "text": 4}
  assert spec.lengths.to_dict() == {"audio": 5, "text": 6}
  assert spec.train_size == 37
  assert spec.tasks.sentiment.kind == "regression"
  assert (spec.tasks.sentiment.low, spec.tasks.sentiment.high) == (-3.0, 3.0)


@pytest.mark.parametrize(
  ("sections", "message"),
  [
    ({"model": {"name": "hgme"}}, "config.model.name='hgme' must be one of"),
    ({"optim": {"batch_size": 0}}, "config.optim.batch_size=0 must be positive"),
    (
      {"optim": {"warmup_fraction": 1.5}},
      "config.optim.warmup_fraction=1.5 must be in",
    ),
    ({"optim": {"grad_clip_norm": -1.0}}, "config.optim.grad_clip_norm=-1.0 must be 0"),
    ({"optim": {"ema_decay": 1.0}}, r"config.optim.ema_decay=1.0 must be in \[0, 1\)"),
    ({"text": {"input": "words"}}, "config.text.input='words' must be one of"),
    ({"text": {"encoder": "a/b"}}, "the input is 'features'"),
    ({"text": {"finetune": "top_0"}}, "finetune='top_0' must be none, all or top_<n>"),
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
    validate.validate(_changed(**sections), {"toy": toy.SYSTEM})


def test_a_good_config_is_accepted():
  validate.validate(toy.config(), {"toy": toy.SYSTEM})


def test_a_corpus_without_training_split_or_labels_cannot_be_trained_on():
  corpus = toy.corpus()
  rest = {k: v for k, v in corpus.splits.items() if k != "train"}
  with pytest.raises(UserError, match="no split 'train'"):
    config_lib.check_trainable(dataclasses.replace(corpus, splits=rest))
  with pytest.raises(UserError, match="no labels"):
    config_lib.check_trainable(toy.corpus(labelled=False))


def test_unknown_variants_are_answered_with_the_known_ones():
  with pytest.raises(UserError, match="'mois' must be one of mosei, mosi"):
    config_lib.parse_variants("mois", {"mosi": None, "mosei": None})
  assert config_lib.parse_variants("mosi, mosei", {"mosi": 1, "mosei": 2}) == (
    "mosi",
    "mosei",
  )


def test_differences_are_listed_by_dotted_key():
  lines = config_lib.differences(_changed(optim={"batch_size": 64}), toy.config())
  assert lines == ["optim.batch_size: 64 here, 8 there"]
