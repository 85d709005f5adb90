"""Files made to take all memory, all time or the interpreter end in one line each."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SUPPORT = Path(__file__).resolve().parents[1] / "support"
ROOT = SUPPORT.parents[1]

REASONS = {
  "high_memo.pkl": "refused place",
  "deep_key.pkl": "nested over 64 deep",
  "wide_key.pkl": "refused a key of other things than strings and numbers",
  "deep_set.pkl": "nested over 64 deep",
  "long_string.pkl": "longer than the stream",
  "long_frame.pkl": "longer than the stream",
  "bytearray.pkl": "refused to change what is no list",
  "frame.pkl": "longer than the stream or its frame",
  "encode.pkl": "refused to make over 64 times",
  "shared_array.pkl": "refused to make over 64 times",
  "doubled.pkl": "refused to make over 64 times",
  "no_cells.pkl": "features have shape",
  "no_cells_mult.pkl": "features have shape",
  "long_sample.pkl": "row 5000 has 1000000 steps",
  "long_transcript.pkl": "row 5000 has 10000000 characters",
  "long_id.pkl": "row 5000 has 10000000 characters",
  "long_label.pkl": "refused to make over 64 times",
  "tall.csv": "tall.npy: it says it is 4 TB",
  "header.safetensors": "is longer than",
  "nested.safetensors": "not a readable safetensors file",
  "tall.npz": "says it is 40 GB",
  "empty_strings.npz": "says it is 1 TB",
  "bomb.npz": "its members would take 419 MB",
  "nested.npz": "not a readable data file (RecursionError",
  "overlap.npz": "overlaps the one before it",
  "overlap.bin": "tensors that overlap in a storage",
  "expanded.bin": "overlaps itself",
  "overlap.safetensors": "overlaps another",
  "pipe.pkl": "no regular file",
  "endless.pkl": "no regular file",
  "layers": "num_hidden_layers=1000000000 must be 1000 at most",
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
  done = subprocess.run(
    [sys.executable, SUPPORT / "hostile.py", tmp_path_factory.mktemp("hostile")],
    env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return json.loads(done.stdout)


def test_every_form_is_tried(outcomes):
  assert outcomes.keys() == REASONS.keys()


@pytest.mark.parametrize("name", REASONS)
def test_the_file_is_refused_in_one_line_soon_and_in_little_memory(outcomes, name):
  line, seconds = outcomes[name]["line"], outcomes[name]["seconds"]
  assert line.startswith("UserError "), line
  assert REASONS[name] in line
  assert name.partition(".")[0] in line  # the path
  assert "\n" not in line
  assert seconds < 10
