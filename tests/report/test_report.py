"""Reports: what is read, drawn and said of run directories made by hand."""

import json
import subprocess
import sys

import numpy as np
import pytest

from msa_jax.errors import UserError
from msa_jax.report import (
  errors,
  figures,
  grids,
  page,
  reading,
  results,
  style,
)

LABELS = [-2.0, -1.0, 0.0, 1.0, 2.0, 3.0]
VALUES = [-1.0, -1.0, 0.5, 1.0, 2.0, 1.0]  # errors 1, 0, .5, 0, 0, 2


def figure(mean):
  return {"mean": mean, "std": 0.1, "values": [mean]}


@pytest.fixture
def run_folder(tmp_path):
  """A run of two seeds: one of three epochs, one of two."""
  folder = tmp_path / "one<two>"
  (folder / "predictions").mkdir(parents=True)
  (folder / "routing").mkdir()
  (folder / "missing").mkdir()
  for seed in (0, 1):
    (folder / "checkpoints" / f"seed_{seed}" / "best").mkdir(parents=True)
  task = {"kind": "regression", "low": -3.0, "high": 3.0, "classes": []}
  emotion = {"kind": "classes", "classes": ["sad", "glad"]}
  spec = {"tasks": {"sentiment": task, "emotion": emotion}}
  spec["widths"] = {"text": 3, "audio": 2, "vision": 2}
  config = {"model": {"name": "hgem"}, "spec": spec, "data": {"path": "x.pkl"}}
  (folder / "config.json").write_text(json.dumps(config))
  counts = {"negative": 2, "zero": 1, "positive": 3}
  test = {"samples": 6, "labels": {"sentiment": counts}}
  data = {"name": "my_mosi", "splits": {"test": test}}
  (folder / "data.json").write_text(json.dumps(data))
  summary = {"model": "hgem", "seeds": [0, 1], "parameters": 10, "bayes": None}
  summary["splits"] = {"test": {"sentiment": {"mae": figure(0.5)}}}
  (folder / "summary.json").write_text(json.dumps(summary))
  lines = []
  for seed, epochs in ((0, 3), (1, 2)):
    for epoch in range(1, epochs + 1):
      train = {"loss": 1.0 / epoch + seed}
      train |= {f"balance/g_{m}": 0.1 * epoch for m in ("text", "audio")}
      train |= {f"balance/omega_{m}": 1.0 for m in ("text", "audio")}
      gate = {"router_entropy_dense_normalised": 0.5, "mean_combine": [0.25, 0.75, 0.0]}
      record = {"seed": seed, "epoch": epoch, "train": train}
      record |= {"valid": {"sentiment": {"mae": 1.0, "corr": 0.0}}}
      record |= {"routing": {"gate1": gate}}
      lines.append(json.dumps(record))
  (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
  rows = ["id,available,steps_text,sentiment_label,sentiment,emotion_label"]
  rows[0] += ",emotion_p_sad,emotion_p_glad"
  for i, (label, value) in enumerate(zip(LABELS, VALUES, strict=True)):
    there = "text" if i < 2 else "text+audio"
    rows.append(f"u{i},{there},{i + 1},{label},{value},{i % 2},0.75,0.25")
  rows.append("u6,text,1,,0.0,,0.5,0.5")  # no label: counts nowhere
  (folder / "predictions" / "test.csv").write_text("\n".join(rows) + "\n")
  combine = np.tile(np.asarray([1.0, 0.0, 0.0]), (2, 7, 1))
  combine[:, :2] = [0.0, 0.0, 1.0]  # the negative ones go to the third expert
  np.savez(
    folder / "routing" / "test.npz",
    **{
      "ids": np.asarray([f"u{i}" for i in range(7)]),
      "gate1/combine": combine,
      "gate1/experts": np.asarray(["sparse", "dense", "robust"]),
    },
  )
  row = {"pattern": "text", "rate": 0.0, "figures": {"sentiment": {"mae": figure(0.7)}}}
  row["bayes"] = {"sentiment": {"mae": 0.6}}
  row["routing"] = {"gate1": {"mean_combine": {"mean": [0.2, 0.8, None]}}}
  grid = {"rows": [row, {**row, "pattern": "audio"}], "samples": 6, "split": "test"}
  (folder / "missing" / "conditions.json").write_text(json.dumps(grid))
  return folder


def test_a_whole_run_has_no_gaps_but_its_absent_validation_predictions(run_folder):
  run = reading.read(run_folder)
  assert run.gaps == ["predictions/valid.csv is absent"]
  assert (run.model, run.split, run.name) == ("hgem", "test", "one<two>")


def test_damage_is_told_part_by_part(run_folder):
  (run_folder / "summary.json").write_text("{")
  (run_folder / "data.json").write_text("[1]")
  with (run_folder / "metrics.jsonl").open("a") as file:
    file.write('{"seed": 1, "epo')
  with (run_folder / "predictions" / "test.csv").open("a") as file:
    file.write("u7,te")
  (run_folder / "routing" / "test.npz").write_bytes(b"not a zip file")
  run = reading.read(run_folder)
  assert set(run.gaps) == {
    "summary.json is damaged (JSONDecodeError)",
    "data.json is damaged (not a mapping)",
    "metrics.jsonl is damaged at line 6",
    "predictions/valid.csv is absent",
    "predictions/test.csv has 1 torn lines",
    "routing/test.npz is damaged (ValueError)",
  }
  assert len(run.epochs) == 5 and run.routing == {}
  names = {drawing.name for drawing in page.drawings(run)}
  assert "training" in names and "routing" not in names


@pytest.mark.parametrize(
  ("make", "message"),
  [(lambda path: None, "is not a folder"), (lambda path: path.mkdir(), "holds no run")],
)
def test_what_is_no_run_is_refused_in_one_line(tmp_path, make, message):
  make(tmp_path / "x")
  with pytest.raises(UserError, match=message):
    reading.read(tmp_path / "x")


def test_bands_take_the_seeds_that_got_so_far(run_folder):
  lines = figures.series(reading.read(run_folder), "train", "loss")
  epochs, mean, low, high = figures.band(lines)
  # Seed 0: 1, 1/2, 1/3; seed 1: 2, 3/2 and no third epoch.
  np.testing.assert_array_equal(epochs, [1, 2, 3])
  np.testing.assert_allclose(mean, [1.5, 1.0, 1 / 3])
  np.testing.assert_allclose(low, [1.0, 0.5, 1 / 3])
  np.testing.assert_allclose(high, [2.0, 1.5, 1 / 3])


def test_unlabelled_samples_count_nowhere(run_folder):
  run = reading.read(run_folder)
  labels, values = errors.regression_pair(run, "sentiment")
  np.testing.assert_array_equal(labels, LABELS)
  np.testing.assert_array_equal(values, VALUES)
  classes, probabilities = errors.class_pair(run, "emotion")
  np.testing.assert_array_equal(classes, [0, 1, 0, 1, 0, 1])
  assert probabilities.shape == (6, 2)


def test_confusion_counts_true_rows_and_predicted_columns():
  table = errors.confusion(np.asarray([0, 0, 1, 2]), np.asarray([0, 1, 1, 0]), 3)
  np.testing.assert_array_equal(table, [[1, 1, 0], [0, 1, 0], [1, 0, 0]])


def test_calibration_bins_hold_equally_many_samples_by_rising_prediction():
  said, true, sizes = errors.bins(np.asarray([3.0, 1.0, 2.0, 4.0]), np.arange(4.0), 2)
  np.testing.assert_array_equal(said, [1.5, 3.5])
  np.testing.assert_array_equal(true, [1.5, 1.5])  # labels 1, 2 and 0, 3
  np.testing.assert_array_equal(sizes, [2, 2])


def test_error_slices_are_means_within_each_group(run_folder):
  drawing = errors.slices(reading.read(run_folder), "sentiment")
  bars = [[bar.get_height() for bar in axis.patches] for axis in drawing.figure.axes]
  # Errors 1, 0, .5, 0, 0, 2: by sign; with text alone (the first two) or more.
  np.testing.assert_allclose(bars[0], [0.5, 0.5, 2 / 3])
  np.testing.assert_allclose(bars[1], [0.5, 2.5 / 4])
  assert len(bars[2]) == 3  # thirds of the lengths


def test_the_heat_map_averages_weights_by_kind_of_sample(run_folder):
  drawing = errors.routing(reading.read(run_folder))
  axis = drawing.figure.axes[0]
  table = np.asarray(axis.images[0].get_array())
  rows = [label.get_text() for label in axis.get_yticklabels()]
  assert rows[:2] == ["all (n=7)", "sentiment < 0 (n=2)"]
  np.testing.assert_allclose(table[0], [5 / 7, 0, 2 / 7])
  np.testing.assert_allclose(table[1], [0, 0, 1])
  columns = [label.get_text() for label in axis.get_xticklabels()]
  assert columns == ["gate1: sparse", "gate1: dense", "gate1: robust"]


def test_experts_without_names_are_numbered(run_folder):
  path = run_folder / "routing" / "test.npz"
  with np.load(path) as arrays:
    kept = {name: arrays[name] for name in ("ids", "gate1/combine")}
  np.savez(path, **kept)  # as earlier versions wrote it
  axis = errors.routing(reading.read(run_folder)).figure.axes[0]
  columns = [label.get_text() for label in axis.get_xticklabels()]
  assert columns == [f"gate1: expert {index}" for index in range(3)]
  np.savez(path, **kept, **{"gate1/experts": np.asarray(["one"])})
  run = reading.read(run_folder)
  assert reading.expert_names(run, "gate1", 3) == [f"expert {i}" for i in range(3)]
  assert reading.expert_names(run, "gate1", 1) == ["one"]


def test_routing_of_other_samples_is_not_drawn(run_folder):
  with np.load(run_folder / "routing" / "test.npz") as arrays:
    changed = {**arrays, "ids": arrays["ids"][::-1]}
  np.savez(run_folder / "routing" / "test.npz", **changed)
  assert errors.routing(reading.read(run_folder)) is None


def test_grids_show_the_experts_weights_under_every_pattern(run_folder):
  drawing, _ = grids.drawings(reading.read(run_folder))
  axis = drawing.figure.axes[0]
  table = np.ma.filled(axis.images[0].get_array(), np.nan)
  np.testing.assert_allclose(table, [[0.2, 0.8, np.nan]] * 2)
  assert [label.get_text() for label in axis.get_yticklabels()] == ["text", "audio"]


def test_grids_show_the_optimum_beside_the_run(run_folder):
  _, drawing = grids.drawings(reading.read(run_folder))
  axis = drawing.figure.axes[0]
  assert [bar.get_height() for bar in axis.patches] == [0.7, 0.7]
  optimal = next(line for line in axis.lines if line.get_label() == "Bayes-optimal")
  np.testing.assert_array_equal(optimal.get_ydata(), [0.6, 0.6])


def test_a_page_needs_no_network_and_escapes_what_files_say(run_folder, tmp_path):
  run = reading.read(run_folder)
  path = page.write([run], tmp_path / "report")
  text = path.read_text()
  assert "http" not in text and "<script" not in text
  assert "one<two>" not in text and "one&lt;two&gt;" in text
  drawn = {drawing.name for drawing in page.drawings(run)}
  expected = {"training", "predictions_sentiment", "predictions_emotion"}
  expected |= {"slices_sentiment", "routing", "entropies", "expert_weights"}
  expected |= {"activation_conditions"}
  assert drawn == expected | {"balance", "missing_conditions_sentiment"}
  assert text.count("data:image/png;base64,") == len(drawn)
  folder = path.parent / "figures" / "0_one<two>"
  assert {file.stem for file in folder.glob("*.svg")} == drawn


def test_names_with_dollars_are_drawn_as_they_are():
  with style.look():
    figure, (axis,) = style.panels(1)
    title = axis.set_title("of a$_$13 and b$_$2")
    assert not title.get_parse_math()


def test_published_rows_of_studies_are_facts_with_a_source(run_folder):
  runs = [reading.read(run_folder)]
  names = ("ablation_fusion", "ablation_encoders", "ablation_modules", "missing")
  names += ("layers", "low_resource", "router_compare", "balance_balance")
  names += ("balance_optimizers", "balance_attention")
  for name in names:
    rows = results.study_rows(name, runs)
    assert rows and all(row.cells and "not stated" in row.remark for row in rows)
  rows = {row.name: row for row in results.study_rows("ablation_fusion", runs)}
  assert rows["multi"].cells["mae"] == "0.524"
  assert "another corpus than this study's: mosei" in rows["multi"].remark
  names = results.columns(results.study_rows("ablation_fusion", runs))
  assert names == ["mae", "corr", "acc2_unstated", "f1_unstated", "acc7"]
  optimizers = results.study_rows("balance_optimizers", runs)
  own = [row for row in optimizers if row.remark.startswith("mosi;")]
  assert own and all("another test split (n=6)" in row.remark for row in own)
  assert results.study_rows("leaderboard", runs) == []


def test_published_rows_are_facts_with_a_source():
  rows = results.published()
  assert len(rows) == 777
  assert all(row.source and row.corpus and row.model for row in rows)
  found = {(r.corpus, r.model, r.metric): r.value for r in rows if "MMSA" in r.source}
  assert found["mosi", "self_mm", "acc2_non0"] == 0.8546
  assert found["sims", "ef_lstm", "mae"] == 0.5907
  shares = [row.value for row in rows if row.metric.startswith(("acc", "f1"))]
  assert min(shares) > 0.1 and max(shares) < 1.0


def test_a_re_run_stands_beside_a_table_and_selection_on_test_bears_a_badge(run_folder):
  run = reading.read(run_folder)
  counts = run.data["splits"]["test"]["labels"]["sentiment"]
  counts.update({"negative": 379, "zero": 30, "positive": 277})
  rows = [r for r in results.published_rows([run], "sentiment") if "self_mm" in r.name]
  ours = {row.name: row for row in rows}
  assert ours["self_mm (unaligned)"].cells["mae"] == "0.708"
  assert results.SELECTED_ON_TEST in ours["self_mm (unaligned)"].remark
  again = ours["self_mm (re-run)"]
  assert again.cells["mae"] == "0.722 ± 0.012" and again.cells["corr"] == "0.793"
  assert "second-hand" in again.remark
  assert results.SELECTED_ON_TEST not in again.remark
  badges = {
    source: results.SELECTED_ON_TEST in results.protocol_of(source)
    for source in ("MMSA results/", "MoMKE, as", "LNLN README@", "DERL, tables", "?")
  }
  assert [*badges.values()] == [True, True, True, False, False]
  found = {(r.corpus, r.model, r.metric): r.value for r in results.published()}
  assert found["sims", "lnln", "f1_sims"] == 0.6918


def test_a_corpus_is_known_by_its_test_labels_or_called_another_split(run_folder):
  run = reading.read(run_folder)
  corpus, remark = results.corpus_of(run)
  assert corpus == "mosi" and "n=6" in remark
  counts = run.data["splits"]["test"]["labels"]["sentiment"]
  counts.update({"negative": 379, "zero": 30, "positive": 277})
  assert results.corpus_of(run) == ("mosi", "")


def test_runs_on_the_same_samples_are_compared_pair_by_pair(run_folder):
  first = reading.read(run_folder)
  name, comparison = results.significance(first, first, "sentiment")
  assert name == "mae" and comparison.difference == (0.0, 0.0, 0.0)
  # The second is right everywhere: the mean error of the first is 3.5 / 6.
  columns = {**first.predictions["test"]}
  columns["sentiment"] = [*map(str, LABELS), "0.0"]
  exact = reading.dataclasses.replace(first, predictions={"test": columns})
  _, comparison = results.significance(first, exact, "sentiment")
  np.testing.assert_allclose(comparison.difference.estimate, 3.5 / 6)
  assert "p = " in results.verdict(first, exact, "sentiment")
  columns["id"] = ["other"] * 7
  assert results.significance(first, exact, "sentiment") is None


def test_runs_that_do_not_see_the_same_are_compared_when_asked_for_alone(run_folder):
  alone = reading.read(run_folder)
  columns = {name: column[::-1] for name, column in alone.predictions["test"].items()}
  columns["sentiment"] = [*map(str, LABELS), "0.0"][::-1]  # in another order
  config = {**alone.config, "data": {"sample_unit": "dialogue"}}
  replace = reading.dataclasses.replace
  seeing = replace(alone, config=config, predictions={"test": columns})
  first, second = results.local_rows([alone, seeing], "sentiment")
  assert "utterance alone" in first.remark
  assert "utterance in its dialogue" in second.remark
  assert results.significance(alone, seeing, "sentiment") is None
  said = results.verdict(alone, seeing, "sentiment")
  assert "do not see the same; --unequal compares them" in said
  said = results.verdict(alone, seeing, "sentiment", unequal=True)
  assert "(utterance alone; utterance in its dialogue), mae" in said
  _, comparison = results.significance(alone, seeing, "sentiment", unequal=True)
  np.testing.assert_allclose(comparison.difference.estimate, 3.5 / 6)


def test_the_command_answers_bad_input_with_one_line_and_prints_tables(run_folder):
  def report(*arguments):
    command = [sys.executable, "-m", "msa_jax.report", *arguments]
    return subprocess.run(command, capture_output=True, text=True)

  wrong = report("compare", "nowhere")
  assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1
  assert wrong.stderr.startswith("error: nowhere is not a folder")
  right = report("compare", str(run_folder), str(run_folder))
  assert right.returncode == 0, right.stderr
  assert "0.500 ± 0.100" in right.stdout and "self_mm" in right.stdout
  assert "another test split" in right.stdout
  assert "not there: one<two>: predictions/valid.csv is absent" in right.stdout
