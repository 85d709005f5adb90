"""MoMKE's sizes, initial values and the options it refuses."""

import functools

import jax
import numpy as np
import pytest
import tiny_momke

from msa_jax.errors import UserError
from msa_jax.models.momke.conditions import conditions, kept_by


@pytest.mark.parametrize(
  ("classes", "total"), [(1, 5_395_469), (4, 5_400_089), (6, 5_403_169)]
)
def test_the_published_sizes_have_the_published_number_of_parameters(classes, total):
  widths = {"text": 1024, "audio": 512, "vision": 1024}
  config = tiny_momke.config(widths, "sentiment" if classes == 1 else "emotion")
  config.model.update({"D": 256, "depth": 4})
  if classes > 1:
    config.spec.tasks.emotion.classes = tuple("abcdef"[:classes])
  batch = tiny_momke.batch(np.ones((1, 2, 3)), widths=widths)
  init = functools.partial(tiny_momke.build(config).init, train=False)
  params = jax.eval_shape(init, jax.random.key(0), batch)["params"]["network"]

  def count(*names):
    return sum(leaf.size for n in names for leaf in jax.tree.leaves(params[n]))

  assert count("in_proj_text", "in_proj_audio", "in_proj_vision") == 656_128
  assert count("experts") == 3_947_520
  assert count("routers") == 199_689
  assert count("proj1") == 590_592
  assert count(*params) == total
  config.model.router = "two_way"
  init = functools.partial(tiny_momke.build(config).init, train=False)
  params = jax.eval_shape(init, jax.random.key(0), batch)["params"]["network"]
  assert count("routers") == 199_689 - 3 * 257


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"level": "word"}, "level='word' must be one of"),
    ({"router": "top"}, "router='top' must be one of"),
    ({"mixing": "none"}, "mixing='none' must be one of"),
    ({"expert_style": "post"}, "expert_style='post' must be one of"),
    ({"stage2_mask": "some"}, "stage2_mask='some' must be one of"),
    (
      {"condition": "x"},
      "condition='x' must be one of a, t, v, at, av, tv, atv, or all",
    ),
    ({"condition": ""}, "condition='' must be one of"),
    ({"n_heads": 3}, "n_heads=3 must divide"),
    ({"drop": 1.0}, r"drop=1.0 must be in \[0, 1\)"),
    ({"depth": 0}, "depth=0 must be positive"),
    ({"widths": {"text": 2, "touch": 3}}, "first letters must differ"),
  ],
)
def test_options_out_of_range_are_refused(options, message):
  with pytest.raises(UserError, match=message):
    tiny_momke.build(tiny_momke.config(**options))


def test_the_level_must_be_that_of_the_samples():
  config = tiny_momke.config(level="frame")
  config.spec.utterances = 4
  with pytest.raises(
    UserError, match="'frame' needs config.data.sample_unit='utterance'"
  ):
    tiny_momke.build(config)
  config.model.level, config.spec.utterances = "utterance", 0
  with pytest.raises(
    UserError, match="'utterance' needs config.data.sample_unit='dialogue'"
  ):
    tiny_momke.build(config)


def test_conditions_ignore_modalities_that_the_corpus_lacks():
  assert kept_by("atv", ("text", "audio")) == (True, True)
  assert list(conditions(("text", "audio"))) == ["a", "t", "at"]
