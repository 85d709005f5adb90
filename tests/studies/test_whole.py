"""Every study from its name to its page, on the synthetic corpus with tiny settings."""

import io
import json
import shutil

import numpy as np
import pytest
from changes import change
from rich.console import Console

from configs import awf, hgem, lf_dnn
from msa_jax import models
from msa_jax.config.experiment import experiment
from msa_jax.errors import UserError
from msa_jax.report import __main__ as terminal
from msa_jax.report import figures, inspection, page, reading, studies
from msa_jax.studies import __main__ as command
from msa_jax.studies import catalogue, runner
from msa_jax.studies.changes import changed

SIZES = {
  "sizes": (16, 8, 12), "videos": (4, 2, 3), "widths": (6, 3, 4), "steps": (8, 12, 14),
}  # fmt: skip
WIDTHS = {
  "hgem": {
    "token_dim": 8, "fused_dim": 4, "max_steps": 4, "num_codes": 3,
    "text_expert.ffn_dim": 8, "vision_expert.ffn_dim": 8, "audio_expert.lstm_dim": 4,
    "gates.hidden_dims": (4, 4, 4, 4), "sparse_expert.ffn_dim": 8,
    "dense_expert.hidden_dim": 8, "robust_expert.hidden_dim": 8,
    "robust_expert.denoiser_dim": 8, "polarity_experts.hidden_dim": 8, "head_dim": 8,
  },
  "awf": {"feature_dim": 4, "post_dim": 4},
  "lf_dnn": {
    "text_dim": 4, "post_dim": 4,
    "hidden_dims.text": 4, "hidden_dims.audio": 3, "hidden_dims.vision": 3,
  },
}  # fmt: skip


def tiny(module, seeds=(0,)):
  """A system's own config, narrow, on a tiny synthetic corpus, for one epoch."""
  config = experiment(module.get_config())
  model = {f"model.{key}": value for key, value in WIDTHS[config.system].items()}
  data = {f"data.synthetic.{key}": value for key, value in SIZES.items()}
  return change(
    changed(config, {**model, **data}),
    data={"modalities": ("text", "audio"), "max_steps": 4, "align": "pool"},
    optim={"epochs": 1, "batch_size": 8},
    train={"eval_batch_size": 12},
    replicas={"seeds": seeds},
  )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """Study -> where it is, and what the command said; fewer rows than the papers."""
  patch = pytest.MonkeyPatch()
  patch.setattr(catalogue, "SHARES", (0.5, 1.0))
  rows = dict(models.SYSTEMS["hgem"].router_variants)
  rows = {name: rows[name] for name in ("average", "single")}
  average = {"average": rows["average"]}
  tables = {"ablations": {"fusion": rows}, "router_variants": average}
  patch.setitem(models.SYSTEMS, "hgem", models.SYSTEMS["hgem"]._replace(**tables))
  h, a, f = (tiny(module) for module in (hgem, awf, lf_dnn))
  asked = {
    "ablation": ([h], {}),
    "missing": ([f], {"grids": "conditions,tokens"}),
    "low_resource": ([f], {}),
    "router_compare": ([h, f], {}),
    "balance": ([a], {}),
    "leaderboard": ([f, a], {}),
    "sweep": ([f], {"sweeps": ["optim.learning_rate=1e-2,1e-3"]}),
  }
  root, made = tmp_path_factory.mktemp("studies"), {}
  for name, (configs, options) in asked.items():
    said = command.execute(name, configs, [], root / name, **options)
    made[name] = (root / name, said)
  yield made
  patch.undo()


TRIALS = {
  "ablation": ["average", "single"],
  "missing": ["lf_dnn_synthetic"],
  "low_resource": ["lf_dnn_synthetic_50", "lf_dnn_synthetic_100"],
  "router_compare": ["hgem_synthetic_average", "lf_dnn_synthetic"],
  "balance": ["with", "without"],
  "leaderboard": ["lf_dnn_synthetic", "awf_synthetic"],
  "sweep": ["optim.learning_rate=0.01", "optim.learning_rate=0.001"],
}
PARTS = {
  "ablation": ["sentiment", "router entropy by gate"],
  "missing": ["sentiment", "sentiment by missing: conditions"]
  + ["sentiment by missing: tokens"],
  "low_resource": ["sentiment by share of the training split"],
  "router_compare": ["sentiment", "router entropy by gate"],
  "balance": ["sentiment", "gradients"]
  + ["one modality by a fresh head on the features of"]
  + ["one modality by the system itself with only"],
  "leaderboard": ["sentiment"],
  "sweep": ["sentiment by optim.learning_rate"],
}


# `tune` leaves files of its own: tests/studies/test_tune.py.
@pytest.mark.parametrize("name", [n for n in command.STUDIES if n != "tune"])
def test_a_study_runs_from_its_name_to_one_csv_and_its_figures(folders, name):
  folder, said = folders[name]
  lines = studies.read(folder)
  assert sorted(studies.trials(lines)) == sorted(TRIALS[name])
  parts = studies.collect(lines)
  assert [part.title for part in parts] == PARTS[name]
  (trial, row), *_ = parts[0].rows.items()
  summary = json.loads((folder / trial / "summary.json").read_text())
  split = "valid" if name == "sweep" else "test"
  assert row["mae"] == summary["splits"][split]["sentiment"]["mae"]["values"]
  assert "study.csv" in said or "mae" in said
  drawn = studies.drawings(lines)
  titles = [p.title for p in parts if p.numeric() or len(p.rows) > 1]
  assert [d.title.partition(": ")[2] for d in drawn] == titles


def test_places_of_a_missing_study_are_conditions_and_rates(folders):
  folder, _ = folders["missing"]
  _, conditions, rates = studies.collect(studies.read(folder))
  assert not conditions.numeric() and rates.numeric()
  assert [x for _, x in conditions.places.values()][:2] == ["text", "audio"]
  assert [float(x) for _, x in rates.places.values()][:2] == [0.0, 0.1]
  grid = json.loads((folder / "lf_dnn_synthetic/missing/conditions.json").read_text())
  own = conditions.rows["lf_dnn_synthetic: audio"]["mae"]
  assert own == grid["rows"][1]["figures"]["sentiment"]["mae"]["values"]


def test_a_missing_study_is_not_evaluated_twice_but_for_other_grids(
  folders, monkeypatch, tmp_path
):
  folder = shutil.copytree(folders["missing"][0], tmp_path / "again")
  asked = []

  def grid(folder, wanted):
    asked.append(wanted)
    return {"grids": {}, "seeds": [0], "split": "test"}

  monkeypatch.setattr("msa_jax.studies.missing.grid", grid)
  text = (folder / "study.csv").read_text()
  configs = [tiny(lf_dnn)]
  command.execute("missing", configs, [], folder, grids="conditions,tokens")
  assert asked == [] and (folder / "study.csv").read_text() == text
  command.execute("missing", configs, [], folder, grids="random")
  assert asked == ["random"]


def test_a_study_page_shows_published_rows_and_says_what_damaged_trials_lack(
  folders, tmp_path
):
  folder = shutil.copytree(folders["ablation"][0], tmp_path / "study")
  (folder / "average" / "metrics.jsonl").unlink()
  shutil.rmtree(folder / "single")
  text = page.write([], tmp_path / "page", [folder]).read_text()
  assert "H-GEM, table 3" in text and "another corpus than this study" in text
  assert "average: metrics.jsonl is absent" in text
  assert f"single: {folder}/single is not a folder" in text
  assert text.count("data:image/png;base64,") == 2


def test_a_balance_study_page_draws_gradients_and_weights_of_its_trials(
  folders, tmp_path
):
  folder, said = folders["balance"]
  assert said.count("probe audio: mae") == 2
  assert "largest over smallest gradient" in said
  report = json.loads((folder / "study.json").read_text())
  for parts in report.values():
    assert set(parts["probes"]["probe"]) == {"text", "audio"}
    assert set(parts["probes"]["zero_others"]) == {"text", "audio"}
    assert 0.0 < parts["probes"]["probe"]["text"]["mae"]["mean"] < 3.0
  gradients = report["with"]["gradients"]
  sizes = [gradients[f"g_{name}"]["mean"] for name in ("text", "audio")]
  np.testing.assert_allclose(gradients["spread"]["mean"], max(sizes) / min(sizes))
  assert report["without"]["gradients"]["omega_text"]["mean"] == 1.0
  assert report["with"]["gradients"]["omega_text"]["mean"] != 1.0
  path = page.write([], tmp_path, [folder])
  names = {file.stem for file in path.parent.glob("figures/*/*.png")}
  assert {"balance", "study_0", "study_3"} <= names
  runs = [reading.read(folder / trial) for trial in TRIALS["balance"]]
  axes = figures.balance(runs).figure.axes
  assert len(axes) == 4 and axes[0].get_ylim() == axes[1].get_ylim()
  shares = [bar.get_height() for bar in axes[2].patches]
  assert len(shares) == 2 and sum(shares) == pytest.approx(1.0)


def test_studies_are_compared_on_the_terminal_with_published_rows_and_gaps(
  folders, tmp_path
):
  folder = shutil.copytree(folders["ablation"][0], tmp_path / "study")
  (folder / "average" / "data.json").unlink()
  console = Console(file=io.StringIO(), width=300)
  terminal.compare_study(str(folder), console)
  terminal.compare_study(str(folders["leaderboard"][0]), console)
  said = console.file.getvalue()
  assert "H-GEM, table 3" in said and "router entropy by gate" in said
  assert "average minus single" in said and "lf_dnn_synthetic minus awf" in said
  assert "not there: average: data.json is absent" in said


def test_the_seeds_of_the_first_system_are_those_of_all(monkeypatch, tmp_path):
  seen = []
  monkeypatch.setattr(
    runner, "run_trials", lambda study, trials, workdir: seen.extend(trials)
  )
  command.execute("leaderboard", [tiny(awf, (3, 4)), tiny(lf_dnn)], [], tmp_path)
  assert [trial.config.replicas.seeds for trial in seen] == [(3, 4), (3, 4)]


@pytest.mark.parametrize(
  ("name", "options", "message"),
  [
    ("moon", {}, "choose a study: ablation"),
    ("balance", {"grids": "random"}, "balance takes no --grids"),
    ("leaderboard", {"table": "modules"}, "leaderboard takes no --table"),
    ("leaderboard", {"rows": ["full"]}, "leaderboard takes no --rows"),
    ("ablation", {"files": ["x.pkl"]}, "ablation takes no --also and no --data"),
    ("sweep", {"files": ["x.pkl"]}, "sweep takes no --also and no --data"),
    ("leaderboard", {"sweeps": ["optim.epochs=1"]}, "leaderboard takes no --sweep"),
  ],
)
def test_options_of_other_studies_are_refused(tmp_path, name, options, message):
  files = options.pop("files", [])
  with pytest.raises(UserError, match=message):
    command.execute(name, [tiny(lf_dnn)], files, tmp_path, **options)


DAMAGES = {
  "no metrics": lambda f: (f / "metrics.jsonl").unlink(),
  "torn line": lambda f: (f / "metrics.jsonl").write_text('{"seed": 0, "epo'),
  "no numbers": lambda f: (f / "metrics.jsonl").write_text(
    '{"seed": 0, "epoch": 1, "train": {"loss": "x"}}\n'
  ),
  "no checkpoint": lambda f: shutil.rmtree(f / "checkpoints"),
  "cut summary": lambda f: (f / "summary.json").write_text('{"model": "hg'),
  "strange summary": lambda f: (f / "summary.json").write_text(
    '{"model": "hgem", "seeds": 3, "splits": {"test": {"sentiment": {"mae": 1}}}}'
  ),
  "strange predictions": lambda f: (f / "predictions/test.csv").write_text(
    "id,sentiment_label,sentiment\na,1.0,x\n"
  ),
  "damaged routing": lambda f: (f / "routing/test.npz").write_bytes(
    b"PK\x03\x04 no zip"
  ),
  "strange config": lambda f: (f / "config.json").write_text('{"spec": 5, "data": []}'),
  "no config": lambda f: (f / "config.json").unlink(),
}
SAID = {
  "no metrics": "metrics.jsonl is absent",
  "torn line": "metrics.jsonl is damaged at line 1",
  "no numbers": "training curves cannot be drawn: ValueError",
  "no checkpoint": "checkpoints/seed_0/best is absent",
  "cut summary": "summary.json is damaged (JSONDecodeError)",
  "strange summary": "summary.json is damaged (figures that are no figures)",
  "strange predictions": "predictions of sentiment cannot be drawn: ValueError",
  "damaged routing": "routing/test.npz is damaged (BadZipFile)",
  "strange config": "figures of its tasks: config.json names none",
  "no config": "config.json is absent",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_runs_give_a_page_of_what_is_there_and_say_what_is_not(
  folders, tmp_path, damage, monkeypatch
):
  whole = folders["ablation"][0] / "single"
  folder = shutil.copytree(whole, tmp_path / "run")
  DAMAGES[damage](folder)
  # Only that one is about the checkpoint; the others need not compile the model.
  if damage != "no checkpoint":
    monkeypatch.setattr(page, "_attention", lambda run, sample: None)
  monkeypatch.setattr(page.style, "save", lambda *_: (whole / "config.json", None))
  text = page.write([reading.read(folder)], tmp_path / "page").read_text()
  assert SAID[damage] in page.html.unescape(text)
  assert text.count("<figure>") >= 1


def test_attention_of_a_sample_is_drawn_from_its_checkpoint(folders):
  run_ = reading.read(folders["ablation"][0] / "single")
  ids = run_.predictions["test"]["id"]
  found = inspection.attention(run_, ids[3])
  assert found.sample == ids[3]
  counts = [found.steps.count(name) for name in ("text", "audio")]
  assert sum(counts) == len(found.steps) == len(found.before) and counts[0] > 0
  assert found.steps == sorted(found.steps, key=("text", "audio").index)
  assert abs(found.before.sum(axis=1) - 1.0).max() < 1e-5
  kept = found.after > 0
  assert (found.after <= found.before + 1e-6).all() and kept.any(axis=1).all()
  drawing = inspection.drawing(run_, found)
  assert ids[3] in drawing.title
  with pytest.raises(UserError, match="--sample=moon: no such id"):
    inspection.attention(run_, "moon")
  averages = reading.read(folders["ablation"][0] / "average")
  assert inspection.selecting_module(run_) == "sparse"
  assert not inspection.selecting_module(averages)
  with pytest.raises(UserError, match="hgem has no top-k attention"):
    inspection.attention(averages)


def test_tokens_are_sorted_by_modality_then_time():
  real = [True, True, False, True, False, True]  # steps 1 and 2 of text, audio, vision
  names, places = inspection.by_modality(np.asarray(real), ("text", "audio", "vision"))
  assert names == ["text", "text", "audio", "vision"]
  assert places.tolist() == [0, 3, 1, 5]
