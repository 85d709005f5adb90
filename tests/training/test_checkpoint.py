"""Checkpoints know whether they are whole; a damaged one leaves the one before."""

import logging as python_logging
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import toy
from changes import change
from stops import StopAt

from msa_jax import models
from msa_jax.errors import UserError
from msa_jax.runs import run
from msa_jax.safe_io import hashing
from msa_jax.training import checkpoint, loop
from msa_jax.training.checkpoint import DamagedBest, ResumePoint, load_best, save_best

TREE = {"w": jnp.arange(6.0).reshape(2, 3), "count": jnp.int32(3)}


def _read(position):
  return position["epoch"], TREE


def _saved(folder, *steps):
  saver = ResumePoint(folder)
  for step in steps:
    saver.save(step, {**TREE, "count": jnp.int32(step)}, {"epoch": step})
  saver.close()
  return folder


def _restored(folder, read=_read):
  reader = ResumePoint(folder)
  try:
    return reader.restore(read)
  finally:
    reader.close()


def _files(folder):
  return sorted(path for path in folder.rglob("*") if path.is_file())


def _flip(file, place):
  content = bytearray(file.read_bytes())
  content[place] ^= 0x10
  file.write_bytes(content)


@pytest.fixture
def warnings(caplog):
  """Lines that were logged as warnings."""
  caplog.set_level(python_logging.WARNING)
  return lambda: [r.getMessage() for r in caplog.records]


def test_two_are_kept_and_the_newest_is_read(tmp_path, warnings):
  folder = _saved(tmp_path / "last", 3, 5, 8)
  assert ResumePoint(folder).steps() == [5, 8]
  assert {each.name for each in folder.iterdir()} == {"5", "8"}
  tree, epoch = _restored(folder)
  assert epoch == 8 and int(tree["count"]) == 8
  np.testing.assert_array_equal(tree["w"], TREE["w"])
  assert not warnings()
  assert _restored(tmp_path / "none") is None


def test_a_flip_in_any_file_is_noticed_and_the_one_before_is_taken(tmp_path, warnings):
  made = _saved(tmp_path / "made", 5, 8)
  names = [file.relative_to(made / "8") for file in _files(made / "8")]
  assert hashing.SUMS in map(str, names) and len(names) > 10
  # Heads, middles and ends of files: magic numbers, data, checksums of the formats.
  cases = [(n, p) for n in names for p in (0.0, 0.5, 1.0)]
  sealed = {n: (made / "8" / n).read_bytes() for n in names}
  for name, share in cases:
    if not sealed[name]:
      continue
    file = made / "8" / name
    _flip(file, int(share * (len(sealed[name]) - 1)))
    with pytest.raises(hashing.Damaged):
      hashing.check_sums(made / "8")
    file.write_bytes(sealed[name])
  data = next(file for file in _files(made / "8") if file.parent.name == "d")
  _flip(data, data.stat().st_size // 2)
  tree, epoch = _restored(made)
  assert epoch == 5 and int(tree["count"]) == 5
  (line,) = warnings()
  assert "8 is damaged" in line and "goes on from step 5" in line
  # It is out of the way of the save that comes at the same step again.
  assert {each.name for each in made.iterdir()} == {"5", "damaged_8"}
  assert _restored(_saved(made, 8))[1] == 8
  assert len(warnings()) == 1


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "position", "other shapes"])
def test_where_none_is_left_a_line_says_what_to_delete(tmp_path, damage):
  folder = _saved(tmp_path / "last", 5, 8)
  read = _read
  for step in ("5", "8"):
    file = folder / step / "tree" / "manifest.ocdbt"
    if damage == "flip":
      _flip(file, 3)
    elif damage == "cut":
      file.write_bytes(b"")
    elif damage == "gone":
      shutil.rmtree(folder / step / "tree")
  if damage == "position":

    def read(position):
      raise TypeError("no such field")

  elif damage == "other shapes":

    def read(position):
      return 0, {**TREE, "w": jnp.zeros((4, 4))}

  with pytest.raises(UserError, match=f"delete {folder} to train from the start"):
    _restored(folder, read)
  assert {each.name for each in folder.iterdir()} == {"5", "8"}  # nothing was moved


def test_checkpoints_without_sums_are_read_as_before(tmp_path, warnings):
  folder = _saved(tmp_path / "last", 5)
  (folder / "5" / hashing.SUMS).unlink()
  assert _restored(folder)[1] == 5
  save_best(tmp_path / "best", TREE, {})
  (tmp_path / "best" / hashing.SUMS).unlink()
  params, _ = load_best(tmp_path / "best", TREE, {})
  np.testing.assert_array_equal(params["w"], TREE["w"])
  assert not warnings()


def test_what_a_killed_save_left_is_cleared(tmp_path):
  folder = _saved(tmp_path / "last", 5)
  for name in ("8.partial", "8.partial.orbax-checkpoint-tmp", "8.orbax-checkpoint-tmp"):
    (folder / name).mkdir()
  assert _restored(folder)[1] == 5
  assert {each.name for each in folder.iterdir()} == {"5"}


def test_a_save_that_fails_is_told_by_the_next_call(tmp_path, monkeypatch):
  def full(folder):
    raise OSError("No space left on device")

  monkeypatch.setattr(checkpoint.hashing, "write_sums", full)
  saver = ResumePoint(tmp_path / "last")
  saver.save(1, TREE, {"epoch": 1})
  with pytest.raises(OSError, match="cannot be written: No space left"):
    saver.close()
  with pytest.raises(OSError, match="best cannot be written: No space left"):
    save_best(tmp_path / "best", TREE, {})
  assert not (tmp_path / "best").exists()


def test_the_best_one_is_replaced_whole_and_noticed_when_damaged(tmp_path):
  best = tmp_path / "best"
  save_best(best, {**TREE, "count": jnp.int32(0)}, {})
  save_best(best, TREE, {})
  assert [each.name for each in tmp_path.iterdir()] == ["best"]
  assert int(load_best(best, TREE, {})[0]["count"]) == 3
  for file in _files(best):
    content = file.read_bytes()
    if content:
      _flip(file, len(content) // 2)
      with pytest.raises(DamagedBest, match="damaged or of another model"):
        load_best(best, TREE, {})
      file.write_bytes(content)


@pytest.fixture
def system(monkeypatch):
  monkeypatch.setitem(models.SYSTEMS, "toy", toy.SYSTEM)


def test_a_run_goes_on_from_the_checkpoint_before_to_the_same_end(
  tmp_path, system, monkeypatch, warnings
):
  config = change(
    toy.config(), train={"steps_per_call": 2, "checkpoint_every_seconds": 1e-6}
  )
  straight = run.train(config, tmp_path / "straight", toy.corpus())
  original = loop.fit
  with monkeypatch.context() as patch:
    patch.setattr(loop, "fit", lambda *a: original(*a[:-1], StopAt(8)))
    with pytest.raises(loop.Interrupted):
      run.train(config, tmp_path / "run", toy.corpus())
  last = tmp_path / "run" / "checkpoints" / "seed_0" / "last"
  newest = max(int(each.name) for each in last.iterdir())
  _flip(next(iter((last / str(newest)).rglob("d/*"))), 0)
  resumed = run.train(config, tmp_path / "run", toy.corpus())
  assert resumed["parameter_hash"] == straight["parameter_hash"]
  assert len(warnings()) == 1 and f"{newest} is damaged" in warnings()[0]
  # Damaged parameters of a finished seed: told by who reads, mended by who trains.
  best = tmp_path / "run" / "checkpoints" / "seed_0" / "best"
  _flip(next(iter(best.rglob("d/*"))), 0)
  with pytest.raises(UserError, match="the training command, run again, makes it anew"):
    run.evaluate(tmp_path / "run", corpus=toy.corpus())
  again = run.train(config, tmp_path / "run", toy.corpus())
  assert again["parameter_hash"] == straight["parameter_hash"]
  run.evaluate(tmp_path / "run", corpus=toy.corpus())


def test_a_finished_run_is_not_written_again(tmp_path, system):
  config = change(toy.config(epochs=1), missing={"eval": "random:0.3"})
  first = run.train(config, tmp_path, toy.corpus())
  before = {file: file.stat().st_mtime_ns for file in _files(tmp_path)}
  again = run.train(config, tmp_path, toy.corpus())
  changed = [f for f in _files(tmp_path) if before.get(f) != f.stat().st_mtime_ns]
  assert [file.name for file in changed] == [".lock"]
  assert again["splits"]["test"] == first["splits"]["test"]
  assert again["parameter_hash"] == first["parameter_hash"]
  # What is missing or damaged is made again.
  (tmp_path / "routing" / "test.npz").unlink()
  (tmp_path / "summary.json").write_text("{")
  run.train(config, tmp_path, toy.corpus())
  whole = {file.relative_to(tmp_path) for file in before}
  assert {file.relative_to(tmp_path) for file in _files(tmp_path)} == whole
