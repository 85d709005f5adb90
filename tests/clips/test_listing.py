"""Which clips there are: stable names, whole videos in one split, nothing outside."""

import pathlib

import pytest

from msa_jax.clips import listing
from msa_jax.errors import UserError


def touch(folder: pathlib.Path, *names: str) -> None:
  for name in names:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")


def listed(tmp_path, text: str, split=None):
  path = tmp_path / "labels.csv"
  path.write_text(text, encoding="utf-8")
  return listing.of_list(tmp_path / "C", path, split)


def test_a_folder_is_read_in_the_order_of_names_with_its_folders_as_videos(tmp_path):
  touch(tmp_path, "b.WAV", "v/2.mp4", "v/10.mp4", "a.txt", ".hidden.wav", "Łódź é.mkv")
  found = listing.of_folder(tmp_path)
  names = ["b.WAV", "v$_$10.mp4", "v$_$2.mp4", "Łódź é.mkv"]
  assert [item.id for item in found.items] == names
  split = found.corpus.splits["predict"]
  assert split.ids.tolist() == names
  assert split.groups.tolist() == ["b.WAV", "v", "v", "Łódź é.mkv"]


def test_one_letter_in_two_spellings_is_one_name(tmp_path):
  touch(tmp_path, "cafe\u0301.wav")  # as macOS writes it
  assert listing.of_folder(tmp_path).items[0].id == "caf\u00e9.wav"


def test_two_files_of_one_name_are_refused(tmp_path):
  touch(tmp_path, "cafe\u0301.wav", "caf\u00e9.wav")
  with pytest.raises(UserError, match="occurs twice"):
    listing.of_folder(tmp_path)


def test_an_empty_folder_and_no_folder_are_one_line(tmp_path):
  with pytest.raises(UserError, match="has no clips"):
    listing.of_folder(tmp_path)
  with pytest.raises(UserError, match="no such folder"):
    listing.of_folder(tmp_path / "none")


def test_a_list_keeps_its_order_labels_and_transcripts(tmp_path):
  touch(tmp_path / "C", "a.wav", "v/b.mp4")
  text = "path,text,sentiment,mode\nv/b.mp4,so good,2,train\na.wav,,-1,test\n"
  found = listed(tmp_path, text)
  assert [item.id for item in found.items] == ["v/b.mp4", "a.wav"]
  assert [word.text for word in found.items[0].words()] == ["so", "good"]
  assert found.items[1].words() is None
  assert found.corpus.splits["train"].labels["sentiment"].tolist() == [2]
  assert found.corpus.splits["test"].labels["sentiment"].tolist() == [-1]


def test_mosis_layout_needs_no_paths(tmp_path):
  touch(tmp_path / "C", "vid/1.mp4", "vid/2.MP4")
  text = "video_id,clip_id,text,label,mode\n" + "".join(
    f"vid,{n},words,1,train\n" for n in (1, 2, 3)
  )
  items = listed(tmp_path, text).items
  assert [item.id for item in items] == ["vid$_$1", "vid$_$2", "vid$_$3"]
  assert [item.path.name for item in items[:2]] == ["1.mp4", "2.MP4"]
  assert "no such file" in items[2].reason and not items[1].reason


@pytest.mark.parametrize(
  "path", ["../out.wav", "/etc/hostname", "link.wav", "sub/../.."]
)
def test_a_path_that_leaves_the_folder_is_that_rows_fault_alone(tmp_path, path):
  touch(tmp_path / "C", "a.wav")
  touch(tmp_path, "out.wav")
  (tmp_path / "C" / "link.wav").symlink_to(tmp_path / "out.wav")
  found = listed(tmp_path, f"path,label\n{path},1\na.wav,2\n")
  assert "leaves the folder" in found.items[0].reason
  assert not found.items[1].reason


def test_a_name_twice_and_a_list_without_names_are_refused(tmp_path):
  touch(tmp_path / "C", "a.wav")
  with pytest.raises(UserError, match="twice"):
    listed(tmp_path, "path,label\na.wav,1\na.wav,2\n")
  with pytest.raises(UserError, match="needs a column of file names"):
    listed(tmp_path, "text,label\nhello,1\n")


def test_splits_are_drawn_by_video_whatever_the_order(tmp_path):
  rows = [f"v{i // 3}/{i}.wav,v{i // 3},{i},1\n" for i in range(60)]
  touch(tmp_path / "C", *(row.split(",")[0] for row in rows))
  header = "path,video_id,clip_id,label\n"
  one = listed(tmp_path, header + "".join(rows)).corpus
  other = listed(tmp_path, header + "".join(reversed(rows))).corpus
  for name, count in (("train", 42), ("valid", 9), ("test", 9)):
    assert set(one.splits[name].ids) == set(other.splits[name].ids)
    assert len(one.splits[name]) == count
  videos = [set(split.groups) for split in one.splits.values()]
  assert sum(map(len, videos)) == len(set.union(*videos)) == 20
  half = listed(
    tmp_path, header + "".join(rows), {"train": 1.0, "valid": 1.0, "test": 0.0}
  )
  assert {n: len(s) for n, s in half.corpus.splits.items()} == {
    "train": 30,
    "valid": 30,
  }


@pytest.mark.parametrize(
  ("name", "content", "expected"),
  [
    ("a.MP4", "x", True),
    ("a.csv", "path,label\n", True),
    ("a.csv", "text,label\n", False),
    ("a.npz", "x", False),
    ("a.pkl", "x", False),
  ],
)
def test_what_predict_takes_for_clips(tmp_path, name, content, expected):
  (tmp_path / name).write_text(content)
  assert listing.is_clips(tmp_path / name) is expected
  assert listing.is_clips(tmp_path)


def test_a_changed_clip_or_transcript_has_another_mark(tmp_path):
  touch(tmp_path, "a.wav")
  (item,) = listing.of_folder(tmp_path).items
  first = item.mark()
  assert item.mark() == first
  (tmp_path / "a.txt").write_text("hello")
  second = item.mark()
  (tmp_path / "a.wav").write_bytes(b"longer")
  assert len({first, second, item.mark()}) == 3
