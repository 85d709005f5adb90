"""The data commands: what they print, and how they fail."""

import pickle
import sys

import numpy as np
import pytest

from msa_jax.data import read
from msa_jax.data.__main__ import main
from msa_jax.data.readers import read_lenient
from msa_jax.data.readers.check import check, sign_counts
from msa_jax.data.readers.published import CORPORA, SHA256, Signs, nearest
from msa_jax.safe_io import hashing


def labels(signs, scale=1.0):
  """A label vector with these counts below, at and above zero."""
  return np.repeat([-scale, 0.0, scale], signs)


def write(path, sizes, *, scale=1.2, **change):
  """An MMSA pickle with the sign counts of `sizes`: split -> (neg, zero, pos)."""
  data = {}
  for name, signs in sizes.items():
    n = sum(signs)
    data[name] = {
      "text": np.arange(1.0, n + 1)[:, None],
      "id": [f"{name}{row // 10}$_${row}" for row in range(n)],
      "regression_labels": labels(signs, scale),
      **change.get(name, {}),
    }
  path.write_bytes(pickle.dumps(data))
  return str(path)


SMALL = {"train": (3, 1, 4), "valid": (1, 1, 1), "test": (2, 0, 2)}


def printed(capsys, *arguments):
  """Runs a command that must succeed; returns its lines with single spaces."""
  assert main(arguments) == 0
  out, err = capsys.readouterr()
  assert err == ""
  return [" ".join(line.split()) for line in out.splitlines()]


def refused(capsys, *arguments):
  """Runs a command that must fail; returns its only line."""
  assert main(arguments) == 2
  out, err = capsys.readouterr()
  assert out == ""
  assert err.startswith("error: ")
  assert err.count("\n") == 1
  return err


def test_check_tells_hash_format_counts_and_lengths(tmp_path, capsys):
  path = write(tmp_path / "a.pkl", SMALL)
  lines = printed(capsys, "check", path)
  assert f"sha256 {read(path).notes['file']['sha256']}" in lines
  assert "published not one of the published MMSA files" in lines
  assert "format mmsa" in lines
  # Eight labels -1.2 x 3, 0, 1.2 x 4; official MOSI training split in the next cell.
  assert "counts differ from CMU-MOSI, the nearest published corpus" in lines
  assert "train 8 3 1 4 1 1284: 552/53/679 differs" in lines
  assert "text valid [3 1 1] float32 1 1 1.0 1 0 0 0" in lines
  assert not any(line.startswith("warning") for line in lines)


def test_check_says_so_when_the_file_is_a_published_one(tmp_path, capsys, monkeypatch):
  path = write(tmp_path / "a.pkl", SMALL)
  monkeypatch.setitem(SHA256, read(path).notes["file"]["sha256"], "MMSA of tests")
  assert "published MMSA of tests" in printed(capsys, "check", path)


@pytest.mark.parametrize("corpus", CORPORA, ids=lambda corpus: corpus.name)
def test_check_recognises_the_counts_of_every_published_corpus(
  tmp_path, capsys, corpus
):
  scale = 1.2 if corpus.protocol == "mosi" else 0.6
  path = write(tmp_path / "a.pkl", corpus.splits, scale=scale)
  lines = printed(capsys, "check", path)
  assert f"counts those of {corpus.name}" in lines
  assert sum(line.endswith(" equal") for line in lines) == 3
  sizes = {name: signs.total for name, signs in corpus.splits.items()}
  assert {name: len(split) for name, split in read(path).splits.items()} == sizes


def test_check_knows_other_sizes_in_circulation_and_other_labels(tmp_path, capsys):
  # 1281 / 229 / 685: MOSI without three training clips and one test clip.
  sizes = {"train": (550, 53, 678), "valid": (92, 13, 124), "test": (378, 30, 277)}
  lines = printed(capsys, "check", write(tmp_path / "a.pkl", sizes))
  assert "counts CMU-MOSI by processing in the manner of MISA and MAG" in lines
  sizes = {"train": (553, 52, 679), "valid": (92, 13, 124), "test": (379, 30, 277)}
  lines = printed(capsys, "check", write(tmp_path / "b.pkl", sizes))
  assert "counts sizes of CMU-MOSI, but other labels" in lines


def test_published_sizes_add_up():
  sizes = {
    c.name: [c.splits[s].total for s in ("train", "valid", "test")] for c in CORPORA
  }
  assert sizes == {
    "CMU-MOSI": [1284, 229, 686],
    "CMU-MOSEI": [16326, 1871, 4659],
    "CH-SIMS": [1368, 456, 457],
    "CH-SIMS v2 (supervised)": [2722, 647, 1034],
  }
  assert len(SHA256) == 5
  assert all(len(digest) == 64 and int(digest, 16) for digest in SHA256)


def test_the_nearest_corpus_is_of_the_same_protocol():
  counts = {"train": Signs(742, 207, 419)}
  assert nearest(counts, "sims").name == "CH-SIMS"
  assert nearest(counts, "mosi").name == "CMU-MOSI"
  assert nearest(counts, "emotions") is None
  assert nearest({"predict": Signs(1, 1, 1)}, "mosi") is None


def test_sha256_is_that_of_the_content(tmp_path):
  (tmp_path / "a").write_bytes(b"abc")  # The digest of FIPS 180-2, appendix B.1.
  expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
  assert hashing.sha256(tmp_path / "a") == expected


def test_check_warns_of_leaks_and_repeated_ids(tmp_path, capsys):
  path = write(
    tmp_path / "a.pkl",
    SMALL,
    train={"id": ["v$_$1", "v$_$1", "w$_$1", *[f"x$_${row}" for row in range(5)]]},
    valid={"id": ["y$_$1", "y$_$2", "v$_$1"]},
    test={"id": ["w$_$2", "z$_$1", "z$_$2", "z$_$3"]},
  )
  lines = printed(capsys, "check", path)
  assert [line for line in lines if line.startswith("warning")] == [
    "warning: 1 ids occur twice in train: v$_$1",
    "warning: leak: 1 ids are in more than one split (train, valid): v$_$1",
    "warning: leak: 2 videos are in more than one split (train, valid, test): v, w",
  ]
  assert "id 'v$_$1' occurs twice in train" in refused(capsys, "describe", path)


def test_check_warns_of_everything_cleaning_found(tmp_path, capsys):
  n = 8
  text = np.arange(1.0, 1 + 3 * n * 2).reshape(n, 3, 2)
  text[0, 0, 0] = np.nan
  text[1, 1] = -np.inf
  text[2] = 0
  text[3, 0] = 0
  lengths = [3, 3, 3, 2, 2, 3, 3, 3]  # Row 3: steps 2 and 3; row 4: one too many.
  change = {
    "text": text,
    "text_lengths": lengths,
    "vision": np.zeros((n, 2, 2)),
    "regression_labels": [1.0, np.nan, 0, 0, 0, 0, -2.0, np.nan],
  }
  path = write(tmp_path / "a.pkl", {"train": (3, 1, 4)}, train=change)
  lines = printed(capsys, "check", path)
  assert [line for line in lines if line.startswith("warning")] == [
    "warning: vision is unavailable: no sample has it, or it never changes",
    "warning: text: NaN or infinite cells, read as zero: train 3",
    "warning: text: steps without any finite cell, read as lost: train 1",
    "warning: text: non-zero cells after the stated length, read as zero: train 2",
    "warning: text: left-padded samples, moved to the front: train 1",
    "warning: text is absent in train 1 samples",
    "warning: no split named valid, test; training needs train and valid",
    "warning: 2 samples of train have no label of sentiment",
  ]
  # Seven samples have text: lengths 3 3 2 2 3 3 3, mean 19/7.
  assert "text train [8 3 2] float32 2 3 2.7 3 1 1 3" in lines
  assert "vision train [8 1 2] float32 - - - - 8 0 0" in lines
  assert "padding cut vision 2 to 1 steps" in lines


def test_check_reads_files_without_labels(tmp_path, capsys):
  path = tmp_path / "new.pkl"
  path.write_bytes(pickle.dumps({"text": np.ones((2, 3)), "raw_text": ["a b", "c"]}))
  lines = printed(capsys, "check", str(path))
  assert "predict 2 - 1.5" in lines
  assert "warning: no labels: this file can be predicted on, not trained on" in lines


def test_check_counts_a_split_without_labels(tmp_path, capsys):
  path = write(tmp_path / "a.pkl", SMALL, test={"regression_labels": None})
  lines = printed(capsys, "check", path)
  assert "test 4 - - - 1 686: 379/30/277 differs" in lines
  assert "warning: test has no labels of sentiment" in lines
  assert sign_counts(read(path)).keys() == {"train", "valid"}


def test_check_reads_mult_files_with_more_splits(tmp_path, capsys):
  split = {"text": np.eye(2), "labels": np.float32([[[1.4]], [[0]]]), "id": ["a", "a"]}
  extra = {"text": np.eye(2), "id": ["b", "c"]}
  path = tmp_path / "mult.pkl"
  path.write_bytes(pickle.dumps({"train": split, "more": extra, "extra": split}))
  lines = printed(capsys, "check", str(path))
  assert "extra 2 0 1 1 - -" in lines
  assert "more 2 - - - - -" in lines
  assert "warning: 3 repeated ids were numbered" in lines
  described = printed(capsys, "describe", str(path))
  assert "train 2 0.700 0.700 0.700" in described
  assert "more 2 - -" in described


def test_check_counts_classes(tmp_path, capsys):
  one_hot = np.zeros((3, 4, 2))
  one_hot[:, :, 0] = 1
  one_hot[0, 1] = one_hot[1, 3] = one_hot[2, 3] = (0, 1)  # Happy, angry, angry.
  split = {"text": np.ones((3, 1, 2)), "labels": one_hot}
  path = tmp_path / "iemocap.pkl"
  path.write_bytes(pickle.dumps({"train": split, "test": split}))
  lines = printed(capsys, "check", str(path))
  assert "split labelled neutral happy sad angry" in lines
  assert "train 3 0 1 0 2" in lines
  np.savez(
    tmp_path / "a.npz", **{"train/text": np.eye(3), "train/labels/mood": [0, 2, -1]}
  )
  lines = printed(capsys, "check", str(tmp_path / "a.npz"))
  assert "train 2 1 0 1" in lines
  assert "warning: 1 samples of train have no label of mood" in lines


def test_describe_tells_what_things_mean(tmp_path, capsys):
  sentences = ["a first sentence", *["x"] * 7]
  tokens = np.ones((8, 3, 1))
  change = {"raw_text": sentences, "text_bert": tokens}
  path = write(tmp_path / "a.pkl", {"train": (3, 1, 4)}, train=change)
  lines = printed(capsys, "describe", path)
  assert "name a" in lines
  assert "task sentiment regression in [-3, 3]; metrics of 'mosi'" in lines
  assert "extra text_bert int32 [3, 1] per sample" in lines
  assert "first sentence a first sentence" in lines
  assert "train 8 1 1.2" in lines  # Words: (3 + 7) / 8 = 1.25, printed 1.2.
  # Mean (4 - 3) * 1.2 / 8 = .15; variance 7 * 1.44 / 8 - .0225 = 1.2375, root 1.112.
  assert "train 8 0.150 1.112 0.600" in lines
  path = tmp_path / "b.npz"
  np.savez(path, **{"train/text": np.eye(3), "train/labels/mood": [0, 2, -1]})
  assert "task mood classes: 0, 1, 2; metrics of 'classes'" in printed(
    capsys, "describe", str(path)
  )


def test_describe_leaves_out_statistics_of_nothing(tmp_path, capsys):
  change = {"regression_labels": [np.nan] * 4}
  path = write(tmp_path / "a.pkl", SMALL, test=change)
  assert "test 0" in printed(capsys, "describe", path)


def test_convert_writes_what_later_commands_read_the_same(tmp_path, capsys):
  path = write(tmp_path / "a.pkl", SMALL)
  out = str(tmp_path / "b.npz")
  assert printed(capsys, "convert", path, out)[0].startswith(f"wrote {out} (")
  one, two = read(path), read(out)
  assert one.tasks == two.tasks
  for name, split in one.splits.items():
    other = two.splits[name]
    np.testing.assert_array_equal(split.ids, other.ids)
    np.testing.assert_array_equal(split.labels["sentiment"], other.labels["sentiment"])
    np.testing.assert_array_equal(
      split.modalities["text"].features, other.modalities["text"].features
    )
  assert "converted from a.pkl" in printed(capsys, "check", out)
  assert "exists; --force replaces it" in refused(capsys, "convert", path, out)
  assert main(["convert", path, out, "--force"]) == 0


def test_feature_files_are_given_by_modality(tmp_path, capsys):
  path = write(tmp_path / "a.pkl", SMALL)
  audio = {
    name: {"audio": np.arange(1.0, 1 + 6 * sum(n)).reshape(-1, 2, 3)}
    for name, n in SMALL.items()
  }
  other = tmp_path / "audio.pkl"
  other.write_bytes(pickle.dumps(audio))
  lines = printed(capsys, "check", path, "--feature", f"audio={other}")
  assert "audio test [4 2 3] float32 2 2 2.0 2 0 0 0" in lines
  for wrong in ("audio", f"smell={other}"):
    message = refused(capsys, "check", path, "--feature", wrong)
    assert "is not MODALITY=FILE with one of text, audio, vision" in message


def test_faults_end_with_one_line_and_code_2(tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  path = write(tmp_path / "a.pkl", SMALL)
  (tmp_path / "evil.pkl").write_bytes(b"cos\nsystem\n(S'echo'\ntR.")
  (tmp_path / "empty.pkl").write_bytes(b"")
  assert f"no such file: {tmp_path}/none.pkl" in refused(capsys, "check", "none.pkl")
  assert "refused to load os.system" in refused(capsys, "check", "evil.pkl")
  assert "not a readable pickle" in refused(capsys, "describe", "empty.pkl")
  assert "the formats are" in refused(capsys, "check", path, "--format", "xml")
  assert "ends in .npz" in refused(capsys, "convert", path, "b.pkl")
  assert "no such folder" in refused(capsys, "convert", path, "none/b.npz")
  assert "COMMAND" in refused(capsys)
  assert "invalid choice: 'train'" in refused(capsys, "train", path)
  assert "unrecognized arguments: --fast" in refused(capsys, "check", path, "--fast")


def test_terminals_get_tables(tmp_path, capsys, monkeypatch):
  path = write(tmp_path / "a.pkl", SMALL, test={"regression_labels": None})
  monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
  monkeypatch.setenv("COLUMNS", "200")
  assert main(["check", path]) == 0
  out = capsys.readouterr().out
  assert "sentiment labels" in out
  assert "1284: 552/53/679 differs" in " ".join(out.split())
  assert "warning: test has no labels of sentiment" in out


@pytest.mark.parametrize("terminal", [False, True])
def test_text_of_a_file_cannot_steer_the_terminal(
  tmp_path, capsys, monkeypatch, terminal
):
  monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
  monkeypatch.setenv("COLUMNS", "200")
  odd = "\x1b[31m[red]\ud800" + "a[/red]"
  change = {"raw_text": [odd] * 8, "id": [f"{odd}{row}" for row in range(8)]}
  path = write(tmp_path / "a.pkl", {"train": (3, 1, 4)}, train=change)
  assert main(["describe", path]) == 0
  assert "?[31m[red]?a[/red]" in capsys.readouterr().out


def test_reports_are_data(tmp_path):
  report = check(read_lenient(write(tmp_path / "a.pkl", SMALL)))
  assert dict(report.facts)["format"] == "mmsa"
  assert report.tables[0].rows[2][:5] == ("test", "4", "2", "0", "2")
  assert report.warnings == []
