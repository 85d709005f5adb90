"""The anchor: text alone, plus a correction by the system that begins small."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_encoder
import tiny_fusion
import tiny_momke
import tiny_systems
from changes import change

from msa_jax.errors import UserError
from msa_jax.layers.masking import hide_unavailable
from msa_jax.models import SYSTEMS
from msa_jax.models.outputs import OutputSpec
from msa_jax.models.with_anchor import WithAnchor
from msa_jax.step import compose
from msa_jax.step.recipe import example_batch
from msa_jax.typing import Label, ModelOutput

QUICK = tiny_fusion.quick_jit
SCALE = 0.1
WITHOUT_TEXT = 1  # row of the batch


def anchored(config, **changes):
  return change(config, anchor={"to": "text", **changes})


def without_text(batch, row=WITHOUT_TEXT):
  column = batch.order.index("text")
  return batch.replace(available=batch.available.at[row, ..., column].set(False))


def text_alone(params, batch, first=False):
  """The head in float64, sample by sample (utterance by utterance of dialogues)."""
  kernel = np.asarray(params["kernel"], float)
  bias = np.asarray(params["bias"], float)
  text = batch.modalities["text"]
  features = np.asarray(text.features, float)
  visible = np.asarray(text.mask & ~text.lost)
  there = np.asarray(batch.available[..., batch.order.index("text")])
  rows = []
  for i in range(len(features)):
    steps = [t for t in range(features.shape[1]) if visible[i, t]]
    if batch.available.ndim == 3:
      zero = np.zeros(features.shape[2])
      steps = [t for t in steps if there[i, t]]
      each = [features[i, t] if t in steps else zero for t in range(features.shape[1])]
      rows.append(np.stack(each) @ kernel + bias)
      continue
    steps = steps if there[i] else []
    chosen = steps[:1] if first else steps
    total = sum((features[i, t] for t in chosen), np.zeros(features.shape[2]))
    rows.append(total / max(1, len(chosen)) @ kernel + bias)
  return np.stack(rows)


# One of each kind always; all of them on request.
KINDS = ("derl", "hgem", "lf_dnn", "mmolre", "momke", "mult", "self_mm")


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=[] if name in KINDS else [pytest.mark.slow])
    for name in sorted(SYSTEMS)
  ],
)
def test_every_system_corrects_text_and_predicts_alone_where_there_is_none(name):
  config = anchored(tiny_systems.config(name))
  recipe = compose.build(config)
  network = type(compose.networks(config).inner)
  params, collections = tiny_systems.variables(recipe)
  params = collections.get("average", params)
  batch = without_text(tiny_systems.batch(config))
  correction = []

  def listen(call, arguments, keywords, context):
    output = call(*arguments, **keywords)
    of_network = isinstance(context.module, network)
    if of_network and context.method_name in ("__call__", "tail"):
      correction.append(output.predictions["sentiment"])
    return output

  @QUICK
  def both(params, collections, batch):
    with nn.intercept_methods(listen):
      found = recipe.predict(params, collections, batch).predictions
    own = correction.pop()
    correction.clear()  # `__call__` of some is their `tail`
    return found, own

  found, own = both(params, collections, batch)
  anchor = params["anchor"]
  alone = text_alone(anchor["heads"]["sentiment"], batch)[..., 0]
  expected = alone + float(anchor["scale_sentiment"]) * np.asarray(own, float)
  # Two outputs of one program, which the compiler may round differently.
  np.testing.assert_array_max_ulp(
    found["sentiment"][WITHOUT_TEXT], own[WITHOUT_TEXT], 2
  )
  seen = np.asarray(hide_unavailable(batch).modalities["text"].mask)
  rows = seen if batch.available.ndim == 3 else seen.any(axis=1)
  assert rows.sum() >= 4
  np.testing.assert_allclose(
    np.asarray(found["sentiment"])[rows], expected[rows], rtol=2e-5, atol=2e-5
  )
  np.testing.assert_allclose(
    np.asarray(found["sentiment@anchor"])[rows], alone[rows], rtol=2e-5, atol=2e-5
  )


class Fixed(nn.Module):
  """A network whose predictions are parameters: 1, whatever the batch."""

  shapes: dict[str, tuple[int, ...]]

  @nn.compact
  def __call__(self, batch, *, train=False):
    ones = nn.initializers.ones
    return ModelOutput(
      {n: self.param(f"f_{n}", ones, s) for n, s in self.shapes.items()}
    )


def fixed(spec, outputs, size):
  """A `Fixed` network with an anchor, its batch and its parameters."""
  batch = example_batch(spec, size)
  features = jnp.arange(batch.modalities["text"].features.size, dtype=jnp.float32)
  text = batch.modalities["text"]
  text = text.replace(features=features.reshape(text.features.shape) / features.size)
  batch = batch.replace(modalities={**batch.modalities, "text": text})
  rows = batch.available.shape[:-1]
  units = {"regression": (), "classes": (3,), "binary": (2, 2)}
  shapes = {o.name: (*rows, *units[o.kind]) for o in outputs}
  model = WithAnchor(anchored=Fixed(shapes), outputs=outputs, dropout=0.0)
  batch = hide_unavailable(without_text(batch))
  return model, batch, QUICK(model.init)(jax.random.key(0), batch)["params"]


OUTPUTS = (
  OutputSpec(),
  OutputSpec("emotion", "classes", 3, classes=("a", "b", "c")),
  OutputSpec("mood", "binary", 4, classes=("d", "e")),
)


@pytest.mark.parametrize("utterances", [0, 4])
def test_gradients_go_to_the_system_whole_where_there_is_no_text(utterances):
  spec = tiny_momke.spec(utterances=utterances)
  model, batch, params = fixed(spec, OUTPUTS, 3)
  assert set(params) == {"f_sentiment", "f_emotion", "f_mood", "anchor"}

  def total(params):
    predictions = model.apply({"params": params}, batch, train=True).predictions
    assert set(predictions) == {"sentiment", "emotion", "mood"}
    return sum(jnp.sum(values) for values in predictions.values())

  gradient = QUICK(jax.grad(total))(params)
  for task in ("sentiment", "emotion", "mood"):
    own = np.asarray(gradient[f"f_{task}"])
    np.testing.assert_array_equal(own[WITHOUT_TEXT], 1.0)
    np.testing.assert_allclose(np.delete(own, WITHOUT_TEXT, axis=0), SCALE)
    # The scale and the head learn of the rows with text alone; own predictions are 1.
    rows = np.delete(own, WITHOUT_TEXT, axis=0)
    np.testing.assert_allclose(gradient["anchor"][f"scale_{task}"], rows.size)
    bias = np.asarray(gradient["anchor"]["heads"][task]["bias"])
    np.testing.assert_allclose(bias, rows.size / bias.size)


def test_the_first_step_of_the_text_can_be_read_in_place_of_the_mean():
  spec = tiny_momke.spec(utterances=0)
  model, batch, params = fixed(spec, OUTPUTS[:1], 3)
  first = model.clone(pool="first")
  found = first.apply({"params": params}, batch).predictions["sentiment@anchor"]
  head = params["anchor"]["heads"]["sentiment"]
  expected = text_alone(head, batch, first=True)[:, 0]
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  assert not np.allclose(found, text_alone(head, batch)[:, 0])


def test_momke_tells_which_predictions_have_seen_text():
  """A prediction is corrected if, and only if, the text changes the system's own."""
  random = np.random.default_rng(0)
  batch = tiny_momke.batch(random.random((3, 4, 3)) < 0.8)
  text = batch.modalities["text"]
  other = batch.replace(
    modalities={**batch.modalities, "text": text.replace(features=-text.features)}
  )
  for changes, train in (
    ({"stage2_mask": "mixed"}, True),
    ({"stage2_mask": "mixed"}, False),
    ({"condition": "av"}, False),
  ):
    model = tiny_momke.network(
      num_layers=1, dropout=0.0, router_logit_dropout=0.0, **changes
    )
    variables = QUICK(model.init)(jax.random.key(0), batch)
    run = QUICK(tiny_momke.apply(model, train=train, rngs={"noise": jax.random.key(1)}))
    one, two = run(variables, batch), run(variables, other)
    visible = np.asarray(hide_unavailable(batch).modalities["text"].mask)
    hidden = 0
    for name, values in one.predictions.items():
      differs = np.asarray(values != two.predictions[name])
      seen = visible & np.asarray(one.text_seen.get(name, True))
      # An utterance without text of its own attends to those that have some.
      assert differs[seen].all() and not differs[~seen & ~visible.any(1)[:, None]].any()
      shown = np.broadcast_to(seen.any(axis=1, keepdims=True), seen.shape)
      assert not differs[~shown].any()
      hidden += int((visible & ~seen).sum())
    assert hidden
  unimodal = QUICK(tiny_momke.apply(model, stage=1))(variables, batch)
  assert not any(np.any(seen) for seen in unimodal.text_seen.values())
  assert set(unimodal.text_seen) == set(unimodal.predictions)


def test_momke_trains_its_anchor_in_stage_two_and_not_side_by_side():
  config = anchored(tiny_systems.config("momke"))
  first, second = compose.stages_of(config)
  path = ("anchor", "scale_sentiment")
  assert not first.trainable(path) and second.trainable(path)
  branched = change(config, model={"stage2_mask": "condition", "condition": "all"})
  with pytest.raises(UserError, match="there is one anchor; choose 'none'"):
    compose.build(branched)


def test_b_fusion_balances_what_goes_into_the_correction():
  config = anchored(tiny_fusion.config("awf"), dropout=0.0, scale=0.5)
  plain = tiny_fusion.config("awf")
  batch = hide_unavailable(without_text(tiny_fusion.batch()))
  outer, inner = compose.networks(config).outer, compose.networks(plain).outer
  variables = tiny_fusion.variables_of(outer, batch)
  own = {**variables, "params": {**variables["params"]}}
  anchor = own["params"].pop("anchor")
  omega = {"text": jnp.ones(()) * 2, "audio": jnp.ones(()), "vision": jnp.ones(()) / 2}

  def two_parts(module, variables):
    features = module.apply(variables, batch, train=False, method="encode")
    return module.apply(variables, features, omega, batch, train=False, method="tail")

  found = two_parts(outer, variables).predictions["sentiment"]
  correction = np.asarray(two_parts(inner, own).predictions["sentiment"], float)
  alone = text_alone(anchor["heads"]["sentiment"], batch)[:, 0]
  expected = alone + float(anchor["scale_sentiment"]) * correction
  expected[WITHOUT_TEXT] = correction[WITHOUT_TEXT]
  np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.slow
def test_seeds_train_side_by_side_as_alone_and_balanced():
  recipe = compose.build(anchored(tiny_fusion.config("awf")))
  batch = without_text(tiny_fusion.batch())

  def one_step(seed):
    state, metrics = recipe.step(recipe.init(seed), batch, seed)
    return state.params, metrics["omega"]

  together = QUICK(jax.vmap(one_step))(jnp.arange(2))
  alone = QUICK(one_step)(1)
  pairs = zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True)
  for lanes, one in pairs:
    np.testing.assert_allclose(lanes[1], one, rtol=2e-4, atol=1e-6)
  moved = float(alone[0]["anchor"]["scale_sentiment"]) - SCALE
  assert 1e-4 < abs(moved) < 0.01


def test_an_encoder_inside_learns_from_the_anchor(tmp_path):
  """Also where the correction is scaled to nothing."""
  folder = tiny_encoder.folder(tmp_path, n_layers=1)
  config = anchored(tiny_systems.encoding("lf_dnn", folder))
  recipe = compose.build(config)
  params, collections = tiny_systems.variables(recipe)
  params = {**params, "anchor": {**params["anchor"], "scale_sentiment": jnp.zeros(())}}
  batch = tiny_systems.batch(config)
  text = batch.modalities["text"]
  text = text.replace(ids={"tokens": jnp.full(text.mask.shape, 3, jnp.int32)})
  batch = batch.replace(modalities={**batch.modalities, "text": text})

  @QUICK
  def step(batch):
    return recipe.step(recipe.start(params, collections, jnp.int32(0)), batch, 0)[0]

  after = step(batch).params
  moved = {
    k: jax.tree.map(lambda a, b: np.any(a != b), params[k], after[k]) for k in params
  }
  assert moved["text_encoder"]["embeddings"]["word"] and moved["anchor"]["heads"]
  assert moved["anchor"]["scale_sentiment"]
  assert not any(jax.tree.leaves([moved["encoder_text"], moved["last_audio"]]))


def test_decay_leaves_scale_and_bias_of_the_anchor_alone():
  optim = {"name": "adam", "weight_decay": 0.5, "learning_rate": 0.1}
  config = anchored(
    tiny_fusion.config("lf_dnn", optim=optim, balance={"enabled": False})
  )
  recipe = compose.build(config)
  batch = tiny_fusion.batch()
  unlabelled = {
    "sentiment": Label(batch.labels["sentiment"].value, jnp.zeros((6,), bool))
  }
  state = QUICK(recipe.init)(0)
  after, _ = QUICK(recipe.step)(state, batch.replace(labels=unlabelled), 0)
  before, after = state.params["anchor"], after.params["anchor"]
  assert after["scale_sentiment"] == before["scale_sentiment"]
  head = after["heads"]["sentiment"]
  np.testing.assert_array_equal(head["bias"], before["heads"]["sentiment"]["bias"])
  assert (head["kernel"] != before["heads"]["sentiment"]["kernel"]).all()


def test_a_corpus_without_text_has_no_anchor():
  widths = {"audio": 4, "vision": 3}
  config = anchored(tiny_fusion.config("awf", widths=widths))
  with pytest.raises(UserError, match="'text': the corpus has audio, vision only"):
    compose.networks(config)
