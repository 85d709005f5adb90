"""Files are replaced whole, on the disk before they have their name, or not at all."""

import os
import stat

import pytest

from msa_jax.safe_io import durable


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
  path, order = tmp_path / "a" / "file.npz", []
  fsync, rename = os.fsync, type(path).replace

  def synced(opened):
    kind = "folder" if stat.S_ISDIR(os.fstat(opened).st_mode) else "file"
    order.append(f"sync {kind}")
    fsync(opened)

  def renamed(self, target):
    order.append("rename")
    return rename(self, target)

  monkeypatch.setattr(os, "fsync", synced)
  monkeypatch.setattr(type(path), "replace", renamed)
  with durable.replacing(path) as partial:
    assert partial.parent == path.parent and partial.suffix == ".npz"
    partial.write_text("new")
    assert not path.exists()
  assert order == ["sync file", "rename", "sync folder"]
  assert path.read_text() == "new" and list(path.parent.iterdir()) == [path]


def test_the_old_file_stays_where_writing_fails(tmp_path):
  path = tmp_path / "file"
  path.write_text("old")
  with pytest.raises(OSError, match="full"), durable.replacing(path) as partial:
    partial.write_text("ne")
    raise OSError("full")
  assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_the_same_content_is_not_written_again(tmp_path):
  path = tmp_path / "file"
  path.write_text("same")
  before = path.stat()
  with durable.replacing(path) as partial:
    partial.write_text("same")
  after = path.stat()
  assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
  with durable.replacing(path) as partial:
    partial.write_text("diff")
  assert path.read_text() == "diff" and list(tmp_path.iterdir()) == [path]


def test_links_stay_links_and_pipes_are_written_to(tmp_path):
  target, link, pipe = (tmp_path / name for name in ("target", "link", "pipe"))
  target.write_text("old")
  link.symlink_to(target)
  with durable.replacing(link) as partial:
    partial.write_text("new")
  assert link.is_symlink() and target.read_text() == "new"
  os.mkfifo(pipe)
  with durable.replacing(pipe) as partial:
    assert partial == pipe


def test_a_folder_takes_the_place_of_another(tmp_path):
  for name in ("new", "old"):
    (tmp_path / name / "d").mkdir(parents=True)
    (tmp_path / name / "d" / "file").write_text(name)
  durable.sync_tree(tmp_path / "new")
  durable.move_folder(tmp_path / "new", tmp_path / "old")
  assert [each.name for each in tmp_path.iterdir()] == ["old"]
  assert (tmp_path / "old" / "d" / "file").read_text() == "new"
