"""The examples run as they stand, in an empty folder."""

import os
import subprocess
import sys

import pytest
from paths import ROOT

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("examples")


def _run(name, folder):
  done = subprocess.run(
    [sys.executable, str(EXAMPLES / name)],
    cwd=folder,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


@pytest.mark.parametrize(
  ("name", "said"),
  [
    ("model_alone.py", "gates {'gate0': (4, 2)"),
    ("own_loop.py", "step 40: mean absolute error 0."),
    ("own_model.py", "predicted ["),
  ],
)
def test_an_example_runs(name, said, folder):
  assert said in _run(name, folder)


def test_a_run_on_own_data_predicts_from_python(folder):
  assert "'mae'" in _run("own_data.py", folder)
  said = _run("predict.py", folder)
  assert "one sample" in said and "gate0" in said


def test_every_example_is_tried_here():
  names = {path.name for path in EXAMPLES.glob("*.py")}
  ours = {"model_alone.py", "own_data.py", "own_loop.py", "own_model.py", "predict.py"}
  assert names == ours


def test_the_loop_is_short_and_needs_no_config():
  text = (EXAMPLES / "own_loop.py").read_text()
  lines = [line for line in text.splitlines()[1:] if line.strip()]
  assert len(lines) <= 25 and "config" not in "".join(lines)
