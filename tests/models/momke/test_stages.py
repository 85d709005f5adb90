"""MoMKE's two stages: what each trains, what goes from one to the next, a whole run."""

import csv
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_momke
import toy
from changes import change

from configs import lf_dnn as late_fusion
from configs import momke as configs
from msa_jax.config.options import OptimConfig
from msa_jax.data.readers import npz
from msa_jax.errors import UserError
from msa_jax.models.momke import system
from msa_jax.runs import prepare, run
from msa_jax.runs.summary import parameter_hash
from msa_jax.step import compose
from msa_jax.step import optimizer as optim
from msa_jax.studies import missing

NAMES = ("text", "audio", "vision")


def _stages(total=5, first=2, monitor="auto", **options):
  options = tiny_momke.options(stage1_epochs=first, **options)
  options.pop("name")
  optim = OptimConfig(epochs=total, patience=3)
  return system.stages(options, tiny_momke.spec(), optim, monitor)


def _tree(seed):
  """A network's parameters in small, other numbers for every seed."""
  random = np.random.default_rng(seed)

  def stack(*shape):
    return {"kernel": jnp.asarray(random.normal(size=(3, *shape)), jnp.float32)}

  parts = {f"in_proj_{name}": {"bias": stack(2)["kernel"][0]} for name in NAMES}
  parts |= {"experts": {"fc1": stack(2, 2)}, "heads": stack(4)}
  return parts | {"routers": stack(2), "head": stack(1), "proj1": stack(2)}


def test_official_takes_the_best_f1_as_the_released_code():
  assert configs.get_config("iemocap4,official").train.monitor == "f1_weighted"
  assert configs.get_config("official,mosi").train.monitor == "f1_non0"
  assert configs.get_config("mosi").train.monitor == "auto"


def test_stages_share_the_epochs_and_either_may_be_left_out():
  both = _stages()
  assert [(s.name, s.epochs, s.call) for s in both] == [
    ("unimodal", 2, {"stage": 1}),
    ("mixing", 3, {"stage": 2}),
  ]
  assert dict(both[0].tracks)["audio"] == "sentiment@audio/auto"
  # `config.missing.train` acts on the mixture alone: experts learn from complete data.
  assert [stage.missing for stage in both] == [False, True]
  assert not both[1].carry_opt_state
  assert _stages(carry_opt_state=True)[1].carry_opt_state
  (only,) = _stages(first=0)
  assert (only.name, only.epochs, only.carry_opt_state) == ("mixing", 5, False)
  (only,) = _stages(first=5)
  assert (only.name, only.epochs) == ("unimodal", 5)
  mixed = _stages(stage2_mask="mixed")[1]
  names = ("a", "t", "v", "at", "av", "tv", "atv")
  heads = ",".join(f"sentiment@{name}/auto" for name in names)
  assert dict(mixed.tracks) == {"selected": heads}
  tracks = _stages(monitor="2*sentiment/mae,corr", condition="all")[1].tracks
  assert tracks["av"] == "2*sentiment@av/mae,sentiment@av/corr"


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"first": 6}, r"stage1_epochs=6 must be within 0 .*epochs=5"),
    ({"carry_opt_state": True, "condition": "all"}, "carry_opt_state=True goes with"),
  ],
)
def test_stages_that_cannot_be_are_refused(options, message):
  with pytest.raises(UserError, match=message):
    _stages(**options)


def _trained(stage, top="network"):
  return {part for part in _tree(0) if stage.trainable((top, part, "kernel"))}


def test_each_stage_trains_its_own_parts():
  projections = {f"in_proj_{name}" for name in NAMES}
  first, second = _stages()
  assert _trained(first) == projections | {"experts", "heads"}
  assert _trained(second) == projections | {"experts", "routers", "head", "proj1"}
  frozen = _stages(freeze_experts=True)[1]
  assert _trained(frozen) == {"routers", "head", "proj1"}
  branched = _stages(condition="all")[1]
  assert branched.branched
  assert not _trained(branched)
  assert "heads" not in _trained(branched, "branches")
  assert "experts" in _trained(branched, "branches")


def test_stage_2_starts_from_every_modalitys_own_best_epoch():
  stage = _stages()[0]
  trees = {name: _tree(i) for i, name in enumerate(NAMES)}
  snapshots = {n: stage.keep(n, {"network": tree}) for n, tree in trees.items()}
  final = {"network": _tree(9)}
  network = jax.jit(stage.compose)(snapshots, final)["network"]
  for index, name in enumerate(NAMES):
    best = trees[name]
    part = f"in_proj_{name}"
    assert parameter_hash(network[part]) == parameter_hash(best[part])
    for stack in ("experts", "heads"):
      ours, theirs = (
        parameter_hash(jax.tree.map(lambda leaf, i=index: leaf[i], tree[stack]))
        for tree in (network, best)
      )
      assert ours == theirs
  for part in ("routers", "head", "proj1"):
    assert parameter_hash(network[part]) == parameter_hash(final["network"][part])
  last = _stages(stage2_init="last")[0]
  assert parameter_hash(last.compose(snapshots, final)) == parameter_hash(final)


def test_branches_start_from_the_same_experts_and_end_at_their_own_best_epochs():
  first, second = _stages(condition="all")
  branches = {k: v for k, v in _tree(8).items() if k != "heads"}
  branches = jax.tree.map(
    lambda leaf: jnp.stack([leaf + i for i in range(7)]), branches
  )
  snapshots = {n: first.keep(n, {"network": _tree(i)}) for i, n in enumerate(NAMES)}
  start = first.compose(snapshots, {"network": _tree(9), "branches": branches})
  for index in range(7):
    branch = jax.tree.map(lambda leaf, i=index: leaf[i], start["branches"])
    for part in ("in_proj_text", "experts"):
      assert parameter_hash(branch[part]) == parameter_hash(start["network"][part])
    np.testing.assert_array_equal(
      branch["routers"]["kernel"], branches["routers"]["kernel"][index]
    )
  later = {
    track: second.keep(
      track, {"branches": jax.tree.map(lambda x, i=i: x + i, branches)}
    )
    for i, track in enumerate(second.tracks)
  }
  ends = second.compose(later, start)["branches"]
  for index in range(7):
    np.testing.assert_allclose(
      ends["head"]["kernel"][index], branches["head"]["kernel"][index] + index
    )


def test_branches_are_clipped_each_by_its_own_norm():
  config = OptimConfig(
    "sgd", 0.05, warmup_fraction=0.0, schedule="constant", grad_clip_norm=1.0
  )
  gradients = {"a": jnp.asarray([[3.0, 0.0], [0.1, 0.2]]), "b": jnp.asarray([4.0, 0.2])}
  optimizer = optim.build(config, 10, lambda path: "new", branched=True)
  updates, _ = optimizer.update(gradients, optimizer.init(gradients), gradients)
  # Norms 5 and 0.3: the first branch is scaled by 1/5, the second left alone.
  np.testing.assert_allclose(updates["a"], [[-0.03, 0.0], [-0.005, -0.01]], rtol=1e-6)
  np.testing.assert_allclose(updates["b"], [-0.04, -0.01], rtol=1e-6)


# The move of (kernel 2, bias -4) with gradients of one: by SGD the rate times gradient
# + decay * parameter; Adam's first is the rate times the sign of that.
@pytest.mark.parametrize(("rule", "kernel"), [("sgd", -0.05 * 2.0), ("adam", -0.05)])
def test_weight_decay_is_a_part_of_the_gradient_of_every_parameter(rule, kernel):
  config = OptimConfig(
    rule,
    0.05,
    warmup_fraction=0.0,
    schedule="constant",
    grad_clip_norm=0.0,
    weight_decay=0.5,
  )
  params = {"kernel": jnp.asarray([[2.0]]), "bias": jnp.asarray([-4.0])}
  gradients = {"kernel": jnp.asarray([[1.0]]), "bias": jnp.asarray([1.0])}
  optimizer = optim.build(config, 10, lambda path: "new")
  updates, _ = optimizer.update(gradients, optimizer.init(params), params)
  np.testing.assert_allclose(updates["kernel"], [[kernel]], rtol=1e-5)
  np.testing.assert_allclose(updates["bias"], [0.05], rtol=1e-5)


def _dialogues(path):
  """Writes a small corpus of text and audio whose videos have 3 utterances each."""
  corpus = toy.corpus((18, 6, 9))
  splits = {
    name: dataclasses.replace(
      split, groups=np.array([f"{name}{i // 3}" for i in range(len(split))])
    )
    for name, split in corpus.splits.items()
  }
  npz.save(dataclasses.replace(corpus, splits=splits), path)
  return corpus


def _experiment(path):
  config = configs.get_config("mosi,conditions")
  model = {"hidden_dim": 4, "num_layers": 1, "num_heads": 1, "stage1_epochs": 2}
  optim = {"epochs": 4, "batch_size": 3, "learning_rate": 0.01, "patience": 0}
  sections = {"data": {"path": str(path)}, "train": {"eval_batch_size": 4}}
  return change(config, model=model, optim=optim, **sections)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  folder = tmp_path_factory.mktemp("momke")
  corpus = _dialogues(folder / "toy.npz")
  config = _experiment(folder / "toy.npz")
  return folder, corpus, config, run.train(config, folder / "run")


def test_a_run_trains_experts_then_a_branch_for_every_condition(trained):
  folder, _, _, summary = trained
  lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
  records = [json.loads(line) for line in lines]
  assert [r["stage"] for r in records] == ["unimodal"] * 2 + ["mixing"] * 2
  assert set(records[0]["valid"]) >= {"sentiment", "sentiment@text", "sentiment@audio"}
  heads = {"sentiment@a", "sentiment@t", "sentiment@at"}
  assert set(records[3]["valid"]) == {"sentiment", *heads}
  # The load of the experts, for each condition and modality that it keeps.
  loads = records[3]["routing"]
  assert set(loads) == {"audio@a", "text@t", "text@at", "audio@at"}
  np.testing.assert_allclose(sum(loads["text@at"]["mean_probs"]), 1.0, rtol=1e-5)
  assert set(summary["splits"]["test"]) == {"sentiment", *heads}


def test_predictions_and_routing_are_those_of_utterances(trained):
  folder, corpus, config, summary = trained
  with (folder / "run" / "predictions" / "test.csv").open() as file:
    rows = list(csv.DictReader(file))
  split = corpus.splits["test"]
  assert [row["id"] for row in rows] == split.ids.tolist()
  labels = [float(row["sentiment_label"]) for row in rows]
  np.testing.assert_allclose(labels, split.labels["sentiment"], rtol=1e-5)
  errors = [abs(float(r["sentiment"]) - float(r["sentiment_label"])) for r in rows]
  mae = summary["splits"]["test"]["sentiment"]["mae"]["mean"]
  np.testing.assert_allclose(np.mean(errors), mae, rtol=1e-4)
  # Every modality is there, so the branch of all of them answers.
  assert [row["sentiment"] for row in rows] == [row["sentiment@at"] for row in rows]
  routing = np.load(folder / "run" / "routing" / "test.npz")
  assert routing["text@at/probs"].shape == (1, 9, 2)
  assert routing["ids"].tolist() == split.ids.tolist()
  described = json.loads((folder / "run" / "data.json").read_text())
  assert described["splits"]["train"]["samples"] == 18


def test_a_trained_run_predicts_and_evaluates_files_of_utterances(trained):
  folder, corpus, _, summary = trained
  again = run.evaluate(folder / "run")
  key = ("test", "sentiment@t", "mae", "mean")
  ours, theirs = again, summary["splits"]
  for name in key:
    ours, theirs = ours[name], theirs[name]
  np.testing.assert_allclose(ours, theirs, rtol=1e-6)
  run.predict(folder / "run", str(folder / "toy.npz"), folder / "p.csv")
  with (folder / "p.csv").open() as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == sum(map(len, corpus.splits.values()))


def test_the_grid_of_conditions_asks_the_branch_of_what_is_there(trained):
  folder, _, _, summary = trained
  report = missing.grid(folder / "run", "conditions")
  rows = report["grids"]["conditions"]
  assert [row["pattern"] for row in rows] == ["text", "audio", "text+audio"]
  figures = summary["splits"]["test"]
  for row, name in zip(rows, ("t", "a", "at"), strict=True):
    assert list(row["figures"]) == ["sentiment"]
    found = row["figures"]["sentiment"]["mae"]["mean"]
    expected = figures[f"sentiment@{name}"]["mae"]["mean"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert row["without_content"] == 0


def test_official_selection_is_on_the_test_split_and_says_so(trained, caplog):
  folder, _, config, _ = trained
  official = change(config, train={"selection_split": "official"})
  prepared = prepare.prepare(official)
  assert prepared.corpus.splits["valid"].ids.tolist() == ["test0", "test1", "test2"]
  assert prepared.corpus.notes["selected_on"] == "test"
  assert "selects epochs on the test split" in caplog.text
  message = "train.selection_split='test' must be val, none, or official"
  with pytest.raises(UserError, match=message):
    prepare.prepare(change(config, train={"selection_split": "test"}))


def test_systems_of_single_utterances_refuse_dialogues_and_the_other_way(trained):
  _, _, config, _ = trained
  with pytest.raises(UserError, match="unit='dialogue': lf_dnn reads samples that are"):
    prepare.prepare(config.replace(system="lf_dnn"))
  with pytest.raises(UserError, match="data.sample_unit='clip' must be one of"):
    prepare.prepare(change(config, data={"sample_unit": "clip"}))
  with pytest.raises(UserError, match="data.align='pool' must be 'none'"):
    prepare.prepare(change(config, data={"align": "pool"}))
  message = "level='utterance' needs config.data.sample_unit"
  with pytest.raises(UserError, match=message):
    compose.build(
      prepare.prepare(change(config, data={"sample_unit": "utterance"})).config
    )


def test_systems_of_single_utterances_read_corpora_of_dialogues(tmp_path):
  random = np.random.default_rng(0)
  n = 24
  arrays = {
    "id": np.array([f"u{i}" for i in range(n)]),
    "dialog": np.array([f"d{i // 3}" for i in range(n)]),
    "session": np.arange(n) // 6 + 1,
    "text": random.normal(size=(n, 5)),
    "audio": random.normal(size=(n, 2)),
    "label4": random.integers(-1, 4, n),
  }
  np.savez(tmp_path / "flat.npz", **arrays)
  data = {"path": str(tmp_path / "flat.npz"), "fold": "2"}
  prepared = prepare.prepare(change(late_fusion.get_config("iemocap"), data=data))
  test = prepared.corpus.splits["test"]
  assert test.ids.tolist() == [f"u{i}" for i in range(6, 12)]
  assert test.modalities["text"].features.shape == (6, 1, 5)
  state = jax.eval_shape(compose.build(prepared.config).init, 0)
  assert len(jax.tree.leaves(state.params)) > 0
  # The run reads the same fold again.
  again = prepare.reload(prepared.config, prepared.pipeline, "")
  assert again.splits["test"].ids.tolist() == test.ids.tolist()
