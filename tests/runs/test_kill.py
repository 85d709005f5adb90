"""A training that is killed at random moments ends as one that is not."""

import importlib.util

import pytest
from paths import ROOT

pytestmark = pytest.mark.slow


def test_killed_runs_end_bit_identical(tmp_path):
  spec = importlib.util.spec_from_file_location(
    "kill_loop", ROOT / "tests/kill_loop.py"
  )
  kill_loop = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(kill_loop)
  kills, runs = kill_loop.kill_loop(tmp_path, 2, epochs=8)  # compares their ends
  assert kills == 2 and runs >= 1
