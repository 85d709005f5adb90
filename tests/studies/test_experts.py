"""What experts are worth, measured on a run and drawn."""

import json

import flax.linen as nn
import jax.numpy as jnp
import pytest
import toy
from changes import change

from msa_jax import config as config_lib
from msa_jax.errors import UserError
from msa_jax.layers.masking import masked_mean
from msa_jax.layers.routing import Router
from msa_jax.models import SYSTEMS
from msa_jax.models.system import System
from msa_jax.report import page
from msa_jax.runs import prepare, run
from msa_jax.studies import experts
from msa_jax.typing import ModelOutput


class Experts(nn.Module):
  """A gate over two linear experts, and a third that says nothing."""

  @nn.compact
  def __call__(self, batch, *, train=False):
    text = batch.modalities["text"]
    pooled = masked_mean(text.features, text.mask[..., None], 1)
    gate = Router(3, name="gate", use_bias=True)(pooled)
    gate = gate.replace(experts=("one", "two", "mute"))
    said = nn.Dense(2)(pooled)
    said = jnp.concatenate([said, jnp.zeros_like(said[:, :1])], axis=1)
    prediction = jnp.sum(gate.combine * said, axis=1)
    return ModelOutput({"sentiment": prediction}, {}, {"gate": gate}, {})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """Folder of a run of two seeds."""
  folder = tmp_path_factory.mktemp("experts")
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(SYSTEMS, "experts", System(build=lambda options, spec: Experts()))
    patch.setattr(prepare, "load", lambda config, **_: toy.corpus())
    made = config_lib.base({"name": "experts"})
    optim = {"learning_rate": 0.05, "epochs": 3, "batch_size": 8}
    config = change(made, optim=optim, replicas={"seeds": (0, 1)})
    run.train(change(config, train={"references": False}), folder)
    experts.measure(folder)
  return folder


def test_every_expert_and_the_choice_are_measured_on_the_test_split(trained):
  report = json.loads((trained / experts.FILE).read_text())
  summary = json.loads((trained / "summary.json").read_text())
  assert report["split"] == "test" and report["seeds"] == [0, 1]
  whole, *rows = report["rows"]
  mae = whole["figures"]["sentiment"]["mae"]["values"]
  wanted = summary["splits"]["test"]["sentiment"]["mae"]["values"]
  assert mae == pytest.approx(wanted, rel=1e-6)
  assert whole["changed"]["sentiment"]["mean"] == 0.0
  done = [(row["gate"], row["kind"], row["expert"]) for row in rows]
  assert done == [
    *[("gate", "without", name) for name in ("one", "two", "mute")],
    ("gate", "exchanged", ""),
  ]
  for row in rows:
    figures, worse = row["figures"]["sentiment"], row["worse"]["sentiment"]
    for metric, sign in (("mae", 1.0), ("corr", -1.0)):
      pairs = zip(
        figures[metric]["values"],
        whole["figures"]["sentiment"][metric]["values"],
        strict=True,
      )
      found = [sign * (after - before) for after, before in pairs]
      assert worse[metric]["values"] == pytest.approx(found, abs=1e-9)
    assert row["changed"]["sentiment"]["mean"] > 0.01
  gate = report["gates"]["gate"]
  assert gate["experts"] == ["one", "two", "mute"]
  routing = summary["routing"]["test"]["gate"]
  known = routing["information_dense_nats"]["values"]
  assert gate["information_nats"]["values"] == pytest.approx(known, abs=1e-6)
  assert set(gate["by_kind"]) == {"negative", "positive"}
  for weights in gate["by_kind"].values():
    assert sum(weights) == pytest.approx(1.0, abs=1e-5)
  said = experts.as_text(report)
  assert "gate, without mute: mae worse by" in said
  assert "decisions exchanged: mae worse by" in said


def test_the_report_draws_them(trained):
  from msa_jax.report import reading

  read = reading.read(trained)
  gaps = []
  names = [drawing.name for drawing in page.drawings(read, gaps)]
  assert "experts_sentiment" in names and "experts_by_kind" in names
  assert not [gap for gap in gaps if "experts" in gap]


def test_a_damaged_file_is_a_gap_of_the_report(trained, tmp_path):
  import shutil

  from msa_jax.report import reading

  folder = shutil.copytree(trained, tmp_path / "run")
  (folder / experts.FILE).write_text('{"gates": {}, "rows": 3}')
  gaps = []
  page.drawings(reading.read(folder), gaps)
  assert any("worth of the experts cannot be drawn" in gap for gap in gaps)


def test_a_system_without_such_gates_is_refused(tmp_path, monkeypatch):
  monkeypatch.setitem(SYSTEMS, "toy", toy.SYSTEM)
  monkeypatch.setattr(prepare, "load", lambda config, **_: toy.corpus())
  run.train(change(toy.config(epochs=1), train={"references": False}), tmp_path)
  with pytest.raises(UserError, match="toy has no gates that choose experts"):
    experts.measure(tmp_path)
