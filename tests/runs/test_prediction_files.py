"""Gates in files: experts by name, or by number where the router has no names."""

import numpy as np

from msa_jax.runs import prediction_files
from msa_jax.training.feed import Predictions
from msa_jax.training.run_directory import RunDirectory
from msa_jax.typing import Routing, Sequences, Split


def per_seed():
  """Two seeds' predictions of two samples, by one gate with names and one without."""
  first = np.asarray([[0.25, 0.75], [1.0, 0.0]], np.float32)
  return [
    Predictions(
      outputs={},
      routing={
        "named": Routing(weights, weights, weights, ("cat", "dog")),
        "plain": Routing(weights, weights, weights),
      },
      content=np.ones(2, bool),
    )
    for weights in (first, np.asarray([[0.75, 0.25], [0.0, 1.0]], np.float32))
  ]


def test_columns_of_a_gate_are_named_after_its_experts():
  columns = prediction_files.rounded(prediction_files.gate_columns(per_seed()))
  assert columns == {
    "named_cat": ["0.5", "0.5"],
    "named_dog": ["0.5", "0.5"],
    "plain_0": ["0.5", "0.5"],
    "plain_1": ["0.5", "0.5"],
  }


def test_names_of_experts_are_in_the_file_of_weights(tmp_path):
  text = Sequences(np.ones((2, 1, 1), np.float32), np.ones(2, np.int32))
  split = Split(np.asarray(["a", "b"]), {"text": text}, {})
  directory = RunDirectory(tmp_path)
  prediction_files.write_routing(directory, "test", split, per_seed(), (3, 5))
  with np.load(tmp_path / "routing" / "test.npz", allow_pickle=False) as arrays:
    assert set(arrays.files) == {
      *("ids", "seeds", "named/experts"),
      *(f"{gate}/{k}" for gate in ("named", "plain") for k in ("probs", "combine")),
      *("named/logits", "plain/logits"),
    }
    assert arrays["named/experts"].tolist() == ["cat", "dog"]
    assert arrays["named/combine"].shape == (2, 2, 2)
    assert arrays["seeds"].tolist() == [3, 5]
  nothing = [each._replace(routing={}) for each in per_seed()]
  prediction_files.write_routing(directory, "valid", split, nothing, (3, 5))
  assert not (tmp_path / "routing" / "valid.npz").exists()
