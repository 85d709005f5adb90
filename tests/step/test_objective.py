"""Several tasks at once: their gradients, and a whole run with two labels."""

import csv
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_mmolre as tiny
import toy
from changes import change, resolve

from configs import mmolre as mmolre_config
from msa_jax import models, train_state
from msa_jax.config.experiment import to_json
from msa_jax.data.batching import batches
from msa_jax.data.transforms.modalities import select_modalities
from msa_jax.errors import UserError
from msa_jax.models.mmolre import system as mmolre
from msa_jax.runs import prepare, pseudo_labels, run
from msa_jax.runs.open import open_run
from msa_jax.step import compose, task_gradients
from msa_jax.step.objective import objective_terms
from msa_jax.step.recipe import Recipe
from msa_jax.typing import Batch, ModelOutput, TrainState


def test_cosines_are_those_of_the_tasks_gradients_on_the_shared_part():
  random = np.random.default_rng(0)
  a, b, c = (random.normal(size=(2, 3)).astype(np.float32) for _ in range(3))
  params = {"deep": {"shared": jnp.ones((2, 3))}, "own": jnp.ones((2, 3))}

  def terms(params, scale):
    shared, own = params["deep"]["shared"], params["own"]
    values = {
      "one": scale * jnp.sum(a * shared) + jnp.sum(c * own),
      "two": jnp.sum(b * shared) - jnp.sum(c * own),
      "auxiliary": jnp.sum(c * shared),
      "none": jnp.sum(own**2),
    }
    return values, "rest"

  by_task = task_gradients.gradient_by_task(
    lambda path: "group" if path == ("deep", "shared") else "", terms, vectors=True
  )
  gradient, rest, found = by_task(params, 2.0)
  vectors = {k: v for k, v in found.items() if k.startswith("task_gradient/")}
  cosines = {k: v for k, v in found.items() if k not in vectors}
  assert rest == "rest"
  np.testing.assert_allclose(gradient["deep"]["shared"], 2 * a + b + c, rtol=1e-6)
  np.testing.assert_allclose(gradient["own"], 2 * np.ones((2, 3)), atol=1e-6)
  flat = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
  expected = flat[0] @ flat[1] / np.prod([np.linalg.norm(x) for x in flat])
  assert set(cosines) == {f"task_cosine/group/{p}" for p in PAIRS}
  assert set(vectors) == {f"task_gradient/group/{t}" for t in ("none", "one", "two")}
  np.testing.assert_allclose(vectors["task_gradient/group/one"], 2 * a.ravel())
  np.testing.assert_allclose(cosines["task_cosine/group/one_two"], expected, rtol=1e-5)
  # A task that leaves the group alone has no direction there.
  assert float(cosines["task_cosine/group/none_one"]) == 0.0


PAIRS = ("none_one", "none_two", "one_two")


def test_cosines_are_logged_on_request():
  names = {}
  for on in (False, True):
    built = compose.build(tiny.config(train={"task_cosine": on}, num_blocks=1))
    state = jax.eval_shape(built.init, 0)
    names[on] = set(jax.eval_shape(built.step, state, tiny.batch(), 0)[1])
  groups = ("experts", "fusion")
  expected = {f"task_cosine/{group}/emotion_sentiment" for group in groups}
  assert names[True] - names[False] == expected


def test_cosines_of_an_epoch_are_those_of_its_mean_gradients():
  """Batches that disagree while the tasks agree on the whole, and the next epoch."""
  a = np.asarray([[1.0, 9.0], [1.0, -9.0], [3.0, 0.0], [2.0, 2.0]], np.float32)
  b = np.asarray([[2.0, -9.0], [2.0, 9.0], [4.0, 0.0], [-1.0, 1.0]], np.float32)

  def step(state, batch, seed):
    metrics = {"loss": jnp.zeros(())}
    one, two = batch.modalities["text"].features[:, 0]  # [2 d]
    metrics |= {"task_gradient/g/one": one, "task_gradient/g/two": two}
    return state.replace(step=state.step + 1), metrics

  nothing = TrainState(jnp.zeros((), jnp.int32), {}, {"kept": jnp.ones(2)}, ())
  plain = Recipe(
    init=lambda seed: nothing,
    step=step,
    predict=lambda params, collections, batch: ModelOutput({}, collections),
    start=lambda params, collections, at: nothing,
  )
  pairs = [
    Batch.from_arrays({"text": np.stack(pair)[:, None]})
    for pair in zip(a, b, strict=True)
  ]
  recipe = task_gradients.with_epoch_cosines(plain, pairs[0], 2)
  state, found = recipe.init(0), []
  for batch in pairs:
    state, metrics = recipe.step(state, batch, 0)
    assert set(metrics) == {"loss", "task_cosine_epoch/g/one_two"}
    found.append(float(metrics["task_cosine_epoch/g/one_two"]))
  # One epoch: (2, 0) and (4, 0) point the same way; the other: (5, 2) and (3, 1).
  other = (5 * 3 + 2 * 1) / np.hypot(5, 2) / np.hypot(3, 1)
  assert (found[0], found[2]) == (0.0, 0.0)
  np.testing.assert_allclose(np.mean(found[:2]), 1.0, rtol=1e-6)
  np.testing.assert_allclose(np.mean(found[2:]), other, rtol=1e-6)
  seen = recipe.predict({}, state.collections, pairs[0])
  assert set(seen.features) == {"kept"}  # the network gets what it had
  assert set(recipe.start({}, state.collections, jnp.array(0)).collections) == {
    "kept",
    task_gradients.SUMS,
  }


def test_cosines_need_a_system_that_shares(monkeypatch):
  monkeypatch.setitem(models.SYSTEMS, "toy", toy.SYSTEM)
  config = resolve(change(toy.config(), train={"task_cosine": True}), toy.corpus())
  with pytest.raises(UserError, match="cosine=True: model 'toy' names no"):
    compose.build(config).init(0)


def test_the_objective_is_the_sum_of_its_terms():
  config = tiny.config(loss={"load_balance": 0.1, "emotion_weight": 0.25}, num_blocks=1)
  params, batch = tiny.variables(config), tiny.batch()
  output = tiny.compiled(functools.partial(tiny.apply, config))(params, batch)
  inner = compose.networks(config).inner
  made = compose.objective_of(config, mmolre.SYSTEM, inner)
  _, metrics = objective_terms(made, output, batch, jnp.zeros((), jnp.int32))
  total = metrics["loss"]
  parts = metrics["loss/sentiment"] + 0.25 * metrics["loss/emotion"]
  np.testing.assert_allclose(
    total, parts + 0.1 * metrics["aux/load_balance"], rtol=1e-6
  )
  assert float(metrics["aux/load_balance"]) > 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A small run on both synthetic labels: its folder and summary."""
  folder = tmp_path_factory.mktemp("tasks") / "run"
  config = mmolre_config.get_config().copy_and_resolve_references()
  with config.unlocked():
    config.model.update({**tiny.TINY, "num_blocks": 1})
    config.data.synthetic = {"preset": "tiny", "tasks": ("sentiment", "emotion")}
    config.optim.update({"epochs": 2, "batch_size": 12})
    config.train.update({"task_cosine": True, "epoch_cosine": True})
  return folder, run.train(config.lock(), folder)


def test_a_run_with_two_labels_reports_and_predicts_both(trained):
  folder, summary = trained
  assert summary["selected_by"] == "valid mean of -sentiment/mae, +emotion/wa"
  figures = summary["splits"]["test"]
  assert {"mae", "corr", "acc7"} <= set(figures["sentiment"])
  assert {"wa", "ua", "f1_weighted", "f1_macro"} <= set(figures["emotion"])
  last = run.RunDirectory(folder).metrics()[-1]
  for kind in ("task_cosine", "task_cosine_epoch"):
    assert -1 <= last["train"][f"{kind}/experts/emotion_sentiment"] <= 1
  assert {"loss/sentiment", "loss/emotion", "weighted/emotion"} <= set(last["train"])
  with (folder / "predictions" / "test.csv").open() as file:
    rows = list(csv.DictReader(file))
  classes = ("angry", "sad", "calm", "happy")
  shares = [sum(float(row[f"emotion_p_{name}"]) for name in classes) for row in rows]
  np.testing.assert_allclose(shares, 1.0, atol=1e-4)
  error = [abs(float(r["sentiment"]) - float(r["sentiment_label"])) for r in rows]
  np.testing.assert_allclose(
    np.mean(error), figures["sentiment"]["mae"]["mean"], rtol=1e-4
  )
  right = [r["emotion"] == classes[int(r["emotion_label"])] for r in rows]
  np.testing.assert_allclose(np.mean(right), figures["emotion"]["wa"]["mean"])


@pytest.mark.slow
def test_a_trained_run_gives_the_labels_that_are_lacking(trained, tmp_path):
  folder, _ = trained
  config, state = train_state.load(str(folder))
  corpus = prepare.load(config)
  split = corpus.splits["train"]
  own = split.labels["emotion"].copy()
  own[5:] = -1
  lacking = {"sentiment": split.labels["sentiment"], "emotion": own}
  train = dataclasses.replace(split, labels=lacking)
  some = dataclasses.replace(corpus, splits={**corpus.splits, "train": train})
  filled = pseudo_labels.fill(some, folder)
  labels = filled.splits["train"].labels
  ready = prepare.reload(config, open_run(folder).pipeline)
  whole = train_state.whole_split(config, ready, "train")
  predict = tiny.compiled(functools.partial(train_state.predict, config))
  output = predict(state, batches.take(whole, np.arange(24)))
  guessed = np.asarray(output.predictions["emotion"]).argmax(axis=-1)
  np.testing.assert_array_equal(labels["emotion"], [*own[:5], *guessed[5:]])
  np.testing.assert_array_equal(labels["sentiment"], split.labels["sentiment"])
  assert filled.notes["pseudo_labels_from"] == "run"
  # A task the corpus does not know at all is added; validation gets no labels.
  alone = dataclasses.replace(
    corpus,
    tasks={"emotion": corpus.tasks["emotion"]},
    splits={
      name: dataclasses.replace(each, labels={"emotion": each.labels["emotion"]})
      for name, each in corpus.splits.items()
    },
  )
  filled = pseudo_labels.fill(alone, folder)
  got = filled.splits["train"].labels["sentiment"]
  np.testing.assert_allclose(got, output.predictions["sentiment"], atol=1e-4)
  assert "sentiment" not in filled.splits["valid"].labels
  assert filled.tasks["sentiment"].protocol == "mosi"
  other = dataclasses.replace(corpus, tasks={"emotion": corpus.tasks["sentiment"]})
  with pytest.raises(UserError, match="means another thing"):
    pseudo_labels.fill(other, folder)
  wider = select_modalities(corpus, ["text"])
  with pytest.raises(UserError, match="reads features of widths"):
    pseudo_labels.fill(wider, folder)
  encoding = change(config, text={"input": "encoder", "finetune": "all"})
  (tmp_path / "config.json").write_text(to_json(encoding))
  with pytest.raises(UserError, match="reads token ids, for an encoder of its own"):
    pseudo_labels.fill(corpus, tmp_path)
