"""Small files of a run: damaged lines, who may write."""

import logging

import pytest
import toy

from msa_jax import models
from msa_jax.errors import UserError
from msa_jax.runs import run
from msa_jax.training.run_directory import RunDirectory


def _lines(path, *lines):
  (path / "metrics.jsonl").write_bytes(b"".join(lines))
  return RunDirectory(path)


def _line(epoch, seed=0):
  return b'{"seed": %d, "epoch": %d, "train": {"loss": 0.5}}\n' % (seed, epoch)


@pytest.mark.parametrize(
  "damaged",
  [
    b'{"seed": 0, "epo\n',
    b"\xff\xfe\x00 7\n",
    b"\n",
    b"[1, 2]\n",
    b'{"seed": 0}\n',
    b'{"seed": 0, "epoch": "2"}\n',
    b"[" * 100_000 + b"\n",
  ],
)
def test_a_damaged_line_loses_that_line_with_a_warning(tmp_path, caplog, damaged):
  caplog.set_level(logging.WARNING)
  directory = _lines(tmp_path, _line(1), damaged, _line(3), _line(1, seed=4))
  assert [(r["seed"], r["epoch"]) for r in directory.metrics()] == [
    (0, 1), (0, 3), (4, 1)
  ]  # fmt: skip
  (record,) = caplog.records
  assert record.getMessage().startswith("line 2 of ")
  directory.rewind_metrics(0, 2)
  assert [(r["seed"], r["epoch"]) for r in directory.metrics()] == [(0, 1), (4, 1)]
  assert len(caplog.records) == 2  # the line is gone from the file


def test_a_line_that_was_being_written_is_no_damage(tmp_path, caplog):
  caplog.set_level(logging.WARNING)
  directory = _lines(tmp_path, _line(1), _line(2)[:-1])
  assert [r["epoch"] for r in directory.metrics()] == [1, 2]
  directory = _lines(tmp_path, _line(1), _line(2)[:9])
  assert [r["epoch"] for r in directory.metrics()] == [1]
  assert RunDirectory(tmp_path / "none").metrics() == []
  assert not caplog.records


def test_a_second_training_in_the_same_folder_is_refused(tmp_path, monkeypatch):
  monkeypatch.setitem(models.SYSTEMS, "toy", toy.SYSTEM)
  message = "is in use by process .*choose another folder"
  with RunDirectory(tmp_path).locked(), pytest.raises(UserError, match=message):
    run.train(toy.config(epochs=1), tmp_path, toy.corpus())
  assert not (tmp_path / "config.json").exists()
  run.train(toy.config(epochs=1), tmp_path, toy.corpus())
  with RunDirectory(tmp_path).locked():
    run.evaluate(tmp_path, corpus=toy.corpus())  # reads only
