"""What a training says while it runs."""

import io
import sys

from msa_jax.training.progress import TrainingProgress


class _Terminal(io.StringIO):
  def isatty(self):
    return True


def test_a_log_file_gets_a_line_at_the_start_and_one_per_epoch(monkeypatch):
  stream = io.StringIO()
  monkeypatch.setattr(sys, "stderr", stream)
  with TrainingProgress("seed 0", 20, 0, 2) as progress:
    progress.update(5, {"loss": 2.0})
    progress.end_epoch(1, {"loss": 1.25, "mae": 0.5}, 3.2)
    progress.end_epoch(2, {"loss": 1.0, "mae": 0.25}, 6.4)
  assert stream.getvalue().splitlines() == [
    "seed 0: step 0 of 20, compiling",
    "seed 0: epoch 1 of 2  loss 1.250  mae 0.500  3 s",
    "seed 0: epoch 2 of 2  loss 1.000  mae 0.250  6 s",
  ]


def test_a_terminal_gets_a_bar_that_ends_full(monkeypatch):
  stream = _Terminal()
  monkeypatch.setattr(sys, "stderr", stream)
  with TrainingProgress("seed 0", 20, 0, 4) as progress:
    progress.update(10, {"loss": 1.0})
    progress.end_epoch(1, {"loss": 1.0}, 3.0)
    task = progress._bar.tasks[0]
    assert (task.completed, task.total) == (10, 20)
  assert task.completed == task.total == 20  # stopped early, and yet there is no more
  assert "epoch 1 of" not in stream.getvalue()


def test_a_training_that_fails_does_not_look_done(monkeypatch):
  stream = _Terminal()
  monkeypatch.setattr(sys, "stderr", stream)
  progress = TrainingProgress("seed 0", 20, 0, 4)
  try:
    with progress:
      progress.update(10, {"loss": 1.0})
      raise KeyError("stop")
  except KeyError:
    pass
  assert progress._bar.tasks[0].completed == 10
