"""H-GEM from outside: alone, for other modalities and tasks, as a system."""

import dataclasses

import flax.linen as nn
import jax
import pytest
import tiny_hgem as tiny

from msa_jax.errors import UserError
from msa_jax.layers.dropout import Dropout
from msa_jax.models import SYSTEMS
from msa_jax.models.hgem import HGEM


def test_the_network_alone_takes_the_modalities_of_the_batch():
  batch = tiny.hide(tiny.batch({"text": 5, "audio": 3}))
  model = HGEM()
  params, output = tiny.shapes_of(model, batch)
  assert params["id_a"].shape == (17, 64) and "id_v" not in params
  assert output.predictions["sentiment"].shape == (6,)
  names = {gate: routing.experts for gate, routing in output.routing.items()}
  polarities = ("negative", "neutral", "positive")
  assert names == {
    "gate0": ("text", "audio"),
    "gate1": ("sparse", "dense", "robust"),
    "gate2": polarities,
    "gate3": polarities,
  }


@pytest.mark.parametrize(
  ("fields", "match"),
  [
    ({"modalities": ("text", "vision")}, "the batch has no vision, only"),
    ({"max_steps": 3}, "model.max_steps=3: text has 4 steps"),
    ({"disabled_experts": ("vision",)}, "no expert 'vision'"),
  ],
)
def test_a_batch_that_does_not_fit_is_refused(fields, match):
  batch = tiny.hide(tiny.batch({"text": 5, "audio": 3}))
  with pytest.raises(UserError, match=match):
    jax.eval_shape(lambda: HGEM(**fields).init(jax.random.key(0), batch))


def test_dropout_is_seeded_by_the_numbers_of_its_modules():
  """A run trains alike in every version: modalities, experts, head are numbered."""
  made, batch = tiny.system(), tiny.batch()
  rngs = {"dropout": jax.random.key(0), "noise": jax.random.key(0)}

  def modules(**fields):
    model, found = made.model.clone(**fields), []

    def record(next_method, args, kwargs, context):
      if isinstance(context.module, Dropout):
        found.append(context.module.path)
      return next_method(*args, **kwargs)

    def run():
      with nn.intercept_methods(record):
        model.init({"params": jax.random.key(0), **rngs}, batch, train=True)

    jax.eval_shape(run)
    return [path[0] for path in found if len(path) == 1]

  assert modules() == [f"Dropout_{number}" for number in range(6)]
  assert modules(fusion="average") == [f"Dropout_{number}" for number in range(4)]
  left = modules(disabled_experts=("dense",))
  assert left == [f"Dropout_{number}" for number in range(5)]


@pytest.mark.parametrize("names", [("text",), ("audio", "vision"), ("text", "video")])
def test_fewer_or_other_modalities_mean_fewer_slots(names):
  widths = dict.fromkeys(names, 3)
  params, output = tiny.shapes_of(tiny.model(widths=widths), tiny.batch(widths))
  assert output.routing["gate0"].probs.shape == (6, len(names))
  assert params["L2_dense_1"]["kernel"].shape == (8 * len(names), 8)
  assert set(names) < set(output.features)


def test_heads_follow_the_kind_of_task():
  batch = tiny.batch()
  overrides = {"polarity_experts.num_experts": 4}
  made = tiny.model(overrides, emotion=tiny.EMOTION)
  _, output = tiny.shapes_of(made, batch)
  assert output.predictions["emotion"].shape == (6, 4, 2)
  assert output.features["class_scores"].shape == (6, 4)
  assert output.routing["gate2"].experts == tiny.EMOTION.classes
  classes = dataclasses.replace(tiny.EMOTION, kind="classes")
  overrides["task"] = "emotion"
  made = tiny.model(overrides, emotion=classes, sentiment=tiny.SENTIMENT)
  _, output = tiny.shapes_of(made, batch)
  assert output.predictions["emotion"].shape == (6, 4)


def test_routes_are_projected_where_experts_do_not_stand_for_classes():
  made = tiny.model({"polarity_experts.num_experts": 2})
  params, output = tiny.shapes_of(made, tiny.batch())
  assert params["mi_classes"].shape == (3, 64)
  assert output.features["class_scores"].shape == (6, 3)
  assert output.routing["gate2"].experts == ("polarity_0", "polarity_1")


def test_the_system_is_listed_and_trains_everything_at_one_rate():
  system = SYSTEMS["hgem"]
  assert isinstance(system.build(tiny.options(), tiny.spec()), HGEM)
  assert system.partition(("L3", "kernel")) == "new"
