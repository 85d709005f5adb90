"""Sums of a folder notice every flip in every file, and in the sums themselves."""

import subprocess

import pytest

from msa_jax.safe_io import hashing


def _folder(folder):
  (folder / "d").mkdir()
  (folder / "d" / "data").write_bytes(bytes(range(256)) * 3)
  (folder / "manifest").write_bytes(b"manifest")
  (folder / "empty").write_bytes(b"")
  hashing.write_sums(folder)
  return folder


def test_sums_are_those_of_sha256sum(tmp_path):
  assert hashing.check_sums(_folder(tmp_path))
  command = ["sha256sum", "-c", hashing.SUMS]
  done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
  assert done.returncode == 0 and done.stdout.count(": OK") == 3


def test_a_flip_of_any_byte_of_the_sums_is_noticed(tmp_path):
  sums = _folder(tmp_path) / hashing.SUMS
  whole = sums.read_bytes()
  for place in range(len(whole)):
    flipped = bytearray(whole)
    flipped[place] ^= 1 << place % 8
    sums.write_bytes(flipped)
    with pytest.raises(hashing.Damaged):
      hashing.check_sums(tmp_path)


@pytest.mark.parametrize("name", ["d/data", "manifest"])
@pytest.mark.parametrize("place", [0, 5, -1])
def test_a_flip_in_a_file_names_it(tmp_path, name, place):
  file = _folder(tmp_path) / name
  content = bytearray(file.read_bytes())
  content[place] ^= 1
  file.write_bytes(content)
  with pytest.raises(hashing.Damaged, match=name):
    hashing.check_sums(tmp_path)


def test_files_that_are_cut_longer_or_gone_are_named(tmp_path):
  data = _folder(tmp_path) / "d" / "data"
  whole = data.read_bytes()
  for changed in (whole[:-1], whole + b"\0", b""):
    data.write_bytes(changed)
    with pytest.raises(hashing.Damaged, match="d/data is not what was written"):
      hashing.check_sums(tmp_path)
  data.unlink()
  with pytest.raises(hashing.Damaged, match="d/data is missing"):
    hashing.check_sums(tmp_path)
  (tmp_path / hashing.SUMS).write_bytes(b"")
  with pytest.raises(hashing.Damaged, match="is damaged"):
    hashing.check_sums(tmp_path)
  (tmp_path / hashing.SUMS).unlink()
  assert not hashing.check_sums(tmp_path)
