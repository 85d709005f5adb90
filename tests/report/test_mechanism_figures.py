"""Figures of what mechanisms do: agreement of tasks, cases, sizes, maps and gates."""

import dataclasses
import types

import jax.numpy as jnp
import numpy as np
import pytest

from msa_jax import models
from msa_jax.corpus import Split
from msa_jax.report import cases, figures, inspection, looks, results, studies
from msa_jax.report.reading import Run
from msa_jax.typing import Modality


def run_of(path, predictions, kind="classes", epochs=()):
  options = {"kind": kind, "classes": ["sad", "glad", "calm"]}
  config = {"model": {"name": "derl"}, "spec": {"tasks": {"mood": options}}}
  columns = {"test": predictions}
  return Run(path, config, {}, {}, epochs, columns, {}, {}, {}, [])


@pytest.fixture
def runs(tmp_path):
  ids = [f"u{i:02d}" for i in range(40)]
  labels = ["0", "1", "2", "1"] * 10
  right = [("sad", "glad", "calm")[int(label)] for label in labels]
  other = list(right)
  for row in (21, 24, 30):  # at most three differ within sixteen samples
    other[row] = "calm" if right[row] != "calm" else "sad"
  other[2] = "sad"
  labels[24] = ""
  first = run_of(tmp_path / "a", {"id": ids, "mood_label": labels, "mood": right})
  turned = {"id": ids[::-1], "mood_label": labels[::-1], "mood": other[::-1]}
  return first, run_of(tmp_path / "b", turned)


def test_decisions_follow_the_order_of_another_run(runs):
  first, second = runs
  found = results.decisions(second, "mood", first)
  assert list(found.ids) == first.predictions["test"]["id"]
  wrong = np.flatnonzero((found.said != found.truth) & (found.truth >= 0))
  assert wrong.tolist() == [2, 21, 30] and found.truth[24] == -1
  assert results.decisions(second, "sentiment", first) is None
  signs = {"id": ["a", "b"], "mood_label": ["-1.5", "0"], "mood": ["2.0", "-0.1"]}
  one = run_of(first.path, signs, "regression")
  found = results.decisions(one, "mood", one)
  assert (found.truth.tolist(), found.said.tolist()) == ([0, -1], [1, 0])


def test_cases_are_the_stretch_in_which_the_runs_differ_most(runs):
  drawn = cases.drawing(runs, "mood")
  (axis,) = drawn.figure.axes
  shown = [label.get_text() for label in axis.get_xticklabels()]
  assert len(shown) == cases.LENGTH and {"u21", "u30"} <= set(shown)
  assert [label.get_text() for label in axis.get_yticklabels()] == ["truth", "a", "b"]
  crossed = [text for text in axis.texts if text.get_text().endswith("×")]
  assert [text.get_position()[1] for text in crossed] == [2, 2]  # only the second run
  assert cases.drawing(runs[:1], "mood") is None
  assert cases.drawing((runs[0], runs[0]), "mood") is None  # they say the same


def test_agreement_draws_batches_and_epochs_of_each_group(tmp_path):
  def record(epoch, batch, mean):
    keys = {"task_cosine/experts/a_b": batch, "task_cosine_epoch/experts/a_b": mean}
    return {"seed": 0, "epoch": epoch, "train": {**keys, "loss": 1.0}}

  epochs = [record(1, 0.1, 0.8), record(2, -0.1, -0.6)]
  drawn = figures.agreement(run_of(tmp_path, {}, epochs=epochs))
  (axis,) = drawn.figure.axes
  lines = {line.get_label(): line.get_ydata() for line in axis.lines}
  np.testing.assert_allclose(lines["mean of an epoch"], [0.8, -0.6])
  np.testing.assert_allclose(lines["of a batch"], [0.1, -0.1])
  assert figures.agreement(run_of(tmp_path, {})) is None


def lines_of(rows):
  about = {"study": "ablation_number", "split": "test", "task": "t", "metric": "mae"}
  return [
    {**about, "trial": f"{g}_{x}", "group": g, "axis": "experts", "x": str(x)}
    | {"parameters": str(size), "value": "0.5"}
    for g, x, size in rows
  ]


def test_studies_along_an_axis_show_the_parameters_where_they_differ():
  rows = [("low", 1, 10), ("low", 4, 40), ("full", 1, 300), ("full", 4, 1200)]
  drawn = studies.drawings(lines_of(rows))[-1]
  assert drawn.name == "study_parameters"
  curves = {line.get_label(): line.get_xydata() for line in drawn.figure.axes[0].lines}
  np.testing.assert_allclose(curves["low"], [[1, 10], [4, 40]])
  np.testing.assert_allclose(curves["full"], [[1, 300], [4, 1200]])
  same = [(group, x, 10) for group, x, _ in rows]
  names = [each.name for each in studies.drawings(lines_of(same))]
  assert names and "study_parameters" not in names


class Inside:
  """What a network of two modalities would sow of two samples of three steps."""

  maps = np.arange(18.0).reshape(2, 3, 3) / 18
  gates = np.concatenate([np.full((2, 3, 4), 0.25), np.full((2, 1, 4), 9.0)], axis=1)

  def __init__(self, run):
    self.split = Split(np.array(["u0", "u1"]), {}, {})
    self.data = None

  def sown(self, rows):
    assert rows == [1, 0]
    mask = jnp.asarray([[1, 1, 0], [1, 0, 0]], bool)
    one = Modality(jnp.zeros((2, 3, 1)), mask, jnp.zeros((2, 3), bool))
    units = {
      "enhance_1": {"text": ({"weights": (self.maps,)},)},
      # Padded by one step: another modality is longer.
      "filter_1": {"text": ({"gate": (self.gates,)},), "audio": ({"other": (1.0,)},)},
    }
    batch = types.SimpleNamespace(modalities={"text": one})
    return batch, units


def test_maps_are_of_one_samples_real_steps_and_histograms_of_all(
  monkeypatch, tmp_path
):
  monkeypatch.setattr(looks, "Inside", Inside)
  monkeypatch.setattr(looks, "row_of", lambda ids, data, sample: 1)
  map_, gates = looks.drawings(run_of(tmp_path, {"id": ["u0", "u1"]}), "u1")
  assert map_.title == "Enhancement map (Eq. 19)" and "u1 of test" in map_.caption
  image = map_.figure.axes[0].images[0].get_array()
  np.testing.assert_allclose(image, Inside.maps[0, :2, :2])
  heights = [bar.get_height() for bar in gates.figure.axes[0].patches]
  assert sum(heights) == 3 * 4  # three real steps, four units; no padding
  assert gates.figure.axes[0].get_xlabel() == "gate, mean 0.25"


def test_only_systems_that_declare_looks_are_looked_into(tmp_path):
  run = run_of(tmp_path, {})
  assert {look.kind for look in looks.looks_of(run)} == {"map", "histogram"}
  other = dataclasses.replace(run, config={"model": {"name": "tfn"}})
  assert not looks.looks_of(other) and not models.SYSTEMS["tfn"].looks
  with pytest.raises(Exception, match="holds no run|config.json"):
    inspection.Inside(run)
