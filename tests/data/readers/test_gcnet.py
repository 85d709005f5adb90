"""The flat layout of utterances, and that of GCNet and MoMKE."""

import pickle

import numpy as np
import pytest

from msa_jax.data import read
from msa_jax.data.__main__ import main
from msa_jax.data.readers import npz
from msa_jax.errors import UserError


def _flat(path, **changes):
  n = 8
  random = np.random.default_rng(0)
  arrays = {
    "id": np.array([f"Ses0{1 + i // 4}F_{i}" for i in range(n)]),
    "dialog": np.array([f"d{i // 2}" for i in range(n)]),
    "session": np.array([1 + i // 4 for i in range(n)], np.int8),
    "speaker": np.array(["F", "M"] * 4),
    "text_raw": np.array([f"sentence {i}" for i in range(n)]),
    "text": random.normal(size=(n, 4)).astype(np.float16),
    "audio": random.normal(size=(n, 2)).astype(np.float32),
    "emotion": np.array(["hap", "exc", "sad", "neu", "ang", "ang", "fru", "neu"]),
    "label4": np.array([0, 0, 1, 2, 3, 3, -1, 2], np.int8),
    "label6": np.array([0, 4, 1, 2, 3, 3, 5, 2], np.int8),
    "vad": random.normal(size=(n, 3)),
    **changes,
  }
  np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
  return arrays


def test_the_flat_layout_is_read_with_its_tasks_speakers_and_sessions(tmp_path):
  arrays = _flat(tmp_path / "c.npz")
  corpus = read(tmp_path / "c.npz")
  (split,) = corpus.splits.values()
  assert list(corpus.splits) == ["all"]
  assert corpus.tasks["emotion"].classes == ("exc+hap", "sad", "neu", "ang")
  assert corpus.tasks["emotion6"].classes == ("hap", "sad", "neu", "ang", "exc", "fru")
  np.testing.assert_array_equal(split.labels["emotion"], arrays["label4"])
  np.testing.assert_array_equal(split.modalities["text"].features[:, 0], arrays["text"])
  assert split.modalities["audio"].lengths.tolist() == [1] * 8
  assert split.groups.tolist() == arrays["dialog"].tolist()
  assert split.raw_text[3] == "sentence 3"
  assert split.extras["session"].tolist() == arrays["session"].tolist()
  assert split.extras["vad"].shape == (8, 3)
  assert "label6" not in split.extras


def test_a_converted_file_is_the_same_corpus(tmp_path, capsys):
  _flat(tmp_path / "c.npz")
  corpus = read(tmp_path / "c.npz")
  npz.save(corpus, tmp_path / "d.npz")
  again = read(tmp_path / "d.npz")
  assert again.tasks == corpus.tasks
  first, second = corpus.splits["all"], again.splits["all"]
  np.testing.assert_array_equal(first.extras["session"], second.extras["session"])
  np.testing.assert_array_equal(first.labels["emotion6"], second.labels["emotion6"])
  assert main(["check", str(tmp_path / "c.npz")]) == 0
  printed = capsys.readouterr().out
  assert "conversations" in printed
  assert "no split named" not in printed


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"text": None, "audio": None}, "no features: none of text, audio, vision"),
    ({"label4": np.full(8, 4)}, "label4 holds 4 .id Ses01F_0.; labels are below 4"),
    ({"speaker": np.array(["F"])}, "speaker: 1 entries for 8 samples"),
    ({"session": np.full(8, 1.5)}, "session: length 1.5 in row 0 is not a whole"),
  ],
)
def test_flat_files_that_contradict_themselves_are_refused(tmp_path, changes, message):
  _flat(tmp_path / "c.npz", **changes)
  with pytest.raises(UserError, match=message):
    read(tmp_path / "c.npz")


VIDEOS = {"Ses01F_a": ["a0", "a1"], "Ses01M_b": ["b0"], "Ses02F_c": ["c0", "c1", "c2"]}


def _gcnet(folder, videos=VIDEOS, label=int, sets=None, frames=None):
  """Writes a label file and features of two modalities; returns path and folders."""
  random = np.random.default_rng(0)
  names = [name for each in videos.values() for name in each]
  number = {name: i for i, name in enumerate(names)}
  tables = [
    videos,
    {v: [label(number[name] % 4) for name in each] for v, each in videos.items()},
    {v: ["F"] * len(each) for v, each in videos.items()},
    {v: [f"says {name}" for name in each] for v, each in videos.items()},
  ]
  sets = [set(list(videos)[:2]), set(list(videos)[2:])] if sets is None else sets
  path = folder / "labels.pkl"
  path.write_bytes(pickle.dumps([*tables, *sets], protocol=4))
  folders = {}
  for modality, width in (("text", 3), ("audio", 2)):
    folders[modality] = folder / modality
    folders[modality].mkdir(exist_ok=True)
    for name in names:
      shape = (width,) if frames is None else (frames, width)
      values = random.normal(size=shape).astype(np.float32)
      np.save(folders[modality] / f"{name}.npy", values)
  return path, folders


def test_gcnets_layout_is_read_with_one_vector_per_utterance(tmp_path):
  path, folders = _gcnet(tmp_path)
  split = read(path, features=folders).splits["all"]
  assert split.ids.tolist() == ["a0", "a1", "b0", "c0", "c1", "c2"]
  assert split.groups.tolist() == [v for v, each in VIDEOS.items() for _ in each]
  assert split.extras["session"].tolist() == [1, 1, 1, 2, 2, 2]
  assert split.labels["emotion"].tolist() == [0, 1, 2, 3, 0, 1]
  assert split.raw_text[5] == "says c2"
  for modality, folder in folders.items():
    ours = split.modalities[modality]
    np.testing.assert_array_equal(ours.features[4, 0], np.load(folder / "c1.npy"))
    assert ours.lengths.tolist() == [1] * 6
  classes = read(path, features=folders).tasks["emotion"].classes
  assert classes == ("happy", "sad", "neutral", "angry")


def test_gcnets_sentiment_corpora_have_splits_of_their_own(tmp_path):
  videos = {"v": ["v_1", "v_2"], "w": ["w_1"], "x": ["x_1"]}
  path, folders = _gcnet(tmp_path, videos, float, [{"v"}, {"w"}, {"x"}], frames=2)
  corpus = read(path, format="gcnet", features=folders)
  assert {name: len(split) for name, split in corpus.splits.items()} == {
    "train": 2,
    "valid": 1,
    "test": 1,
  }
  assert corpus.tasks["sentiment"].kind == "regression"
  assert corpus.splits["train"].modalities["text"].features.shape == (2, 2, 3)


def test_six_classes_are_a_task_of_their_own(tmp_path):
  videos = {"v": [f"v_{i}" for i in range(6)], "w": ["w_1"]}
  path, folders = _gcnet(tmp_path, videos, sets=[{"v"}, {"w"}])
  tables = pickle.loads(path.read_bytes())
  tables[1]["v"] = list(range(6))
  path.write_bytes(pickle.dumps(tables))
  corpus = read(path, features=folders)
  assert corpus.tasks["emotion6"].classes[3:] == ("angry", "excited", "frustrated")
  assert corpus.splits["train"].labels["emotion6"].tolist() == list(range(6))
  tables[1]["w"] = [0.5]
  path.write_bytes(pickle.dumps(tables))
  with pytest.raises(UserError, match="some splits have emotions .* others sentiment"):
    read(path, features=folders)


def test_utterances_without_a_face_lack_the_modality(tmp_path):
  path, folders = _gcnet(tmp_path)
  np.save(folders["audio"] / "b0.npy", np.zeros(0, np.float32))
  audio = read(path, features=folders).splits["all"].modalities["audio"]
  assert audio.lengths.tolist() == [1, 1, 0, 1, 1, 1]


def test_gcnet_files_at_fault_are_named(tmp_path):
  path, folders = _gcnet(tmp_path)

  def refused(message, features=folders, path=path):
    with pytest.raises(UserError, match=message):
      read(path, features=features)

  refused("features lie in folders of their own", {})
  refused("no such folder", {"text": tmp_path / "nowhere"})
  target = folders["text"] / "a1.npy"
  np.save(target, np.array([{}], object))
  refused("a1.npy: it holds Python objects")
  np.save(target, np.array(["x"]))
  refused("a1.npy: holds <U1, not numbers")
  np.save(target, np.zeros((2, 2, 3)))
  refused("a1.npy: has shape")
  target.unlink()
  refused("no such file: .*a1.npy")
  np.save(target, np.zeros(5))
  refused("differ in feature width")
  other = tmp_path / "other.pkl"
  for data, message in (
    ([{}, {}], "6 or 7 parts"),
    ([{}, {}, {}, {}, {"a"}, {"b"}], "map every video to its utterances"),
    ([VIDEOS, VIDEOS, {"v": []}, VIDEOS, {"a"}, {"b"}], "differ in number"),
    ([VIDEOS, VIDEOS, VIDEOS, VIDEOS, 1, {"b"}], "are not sets of names"),
  ):
    other.write_bytes(pickle.dumps(data))
    refused(message, path=other)
  outside = {"Ses01F_a": ["../a0"]}
  tables = [outside, {"Ses01F_a": [1]}, outside, outside, {"Ses01F_a"}, set()]
  other.write_bytes(pickle.dumps(tables))
  refused("cannot name a file in", path=other)
