"""MMSA's pickles, in every variant met in the wild, become the corpus they mean."""

import pickle

import numpy as np
import pytest

from msa_jax.data import read
from msa_jax.data.readers import mmsa
from msa_jax.errors import UserError
from msa_jax.typing import Task

MOSI = Task("regression", low=-3.0, high=3.0, protocol="mosi")
SIMS = Task("regression", low=-1.0, high=1.0, protocol="sims")


def split(n, name, *, aligned=False, seed=0):
  """One split as MMSA writes it: real text steps 2..4 of 6, frames 1..n+."""
  rng = np.random.default_rng(seed)
  text_lengths = rng.integers(2, 5, n)
  steps = (6, 6, 6) if aligned else (6, 9, 8)
  lengths = {"text": text_lengths}
  for modality, t in zip(("audio", "vision"), steps[1:], strict=True):
    lengths[modality] = text_lengths if aligned else rng.integers(1, t + 1, n)
  data = {"id": [f"v{row // 2}{name}$_${row}" for row in range(n)]}
  for (modality, length), t, d in zip(lengths.items(), steps, (4, 3, 2), strict=True):
    real = np.arange(t) < length[:, None]
    data[modality] = (1 + rng.random((n, t, d))) * real[..., None]
  # Encoders write something at padding steps too.
  data["text"][data["text"] == 0] = 0.25
  mask = np.arange(6) < text_lengths[:, None]
  data["text_bert"] = np.stack([mask * 101, mask, mask * 0], 1).astype(np.float32)
  data["raw_text"] = np.array([f"sentence {row} of {name}" for row in range(n)], object)
  data["regression_labels"] = np.linspace(-2.4, 3.0, n)
  data["classification_labels"] = np.zeros(n)
  data["annotations"] = ["Neutral"] * n
  if not aligned:
    data["audio_lengths"] = [int(length) for length in lengths["audio"]]
    data["vision_lengths"] = [int(length) for length in lengths["vision"]]
  return data, lengths


def write(path, data):
  path.write_bytes(pickle.dumps(data))
  return path


def mosi(tmp_path, **options):
  made = {
    name: split(n, name, seed=n, **options)
    for name, n in (("train", 6), ("valid", 3), ("test", 4))
  }
  path = write(tmp_path / "mosi.pkl", {name: one[0] for name, one in made.items()})
  return path, made


@pytest.mark.parametrize("aligned", [False, True])
def test_a_file_becomes_a_corpus(tmp_path, aligned):
  path, made = mosi(tmp_path, aligned=aligned)
  corpus = read(path)
  assert corpus.name == "mosi"
  assert corpus.tasks == {"sentiment": MOSI}
  assert corpus.notes["format"] == "mmsa"
  assert list(corpus.splits) == ["train", "valid", "test"]
  for name, (data, lengths) in made.items():
    found = corpus.splits[name]
    assert list(found.modalities) == ["text", "audio", "vision"]
    for modality, one in found.modalities.items():
      longest = max(pair[1][modality].max() for pair in made.values())
      real = np.arange(longest) < lengths[modality][:, None]
      np.testing.assert_array_equal(one.lengths, lengths[modality])
      np.testing.assert_array_equal(
        one.features,
        np.where(real[..., None], data[modality][:, :longest], 0).astype(np.float32),
      )
      assert one.features.dtype == np.float32
      assert one.lost is None
    np.testing.assert_allclose(found.labels["sentiment"], data["regression_labels"])
    assert found.labels["sentiment"].dtype == np.float32
    assert found.ids.tolist() == data["id"]
    assert found.groups.tolist() == [name.split("$_$")[0] for name in data["id"]]
    assert found.raw_text.tolist() == data["raw_text"].tolist()
    np.testing.assert_array_equal(found.extras["text_bert"], data["text_bert"])
    assert found.extras["text_bert"].dtype == np.int32


def test_without_token_masks_trailing_zeros_decide_text_lengths(tmp_path):
  data, lengths = split(5, "train")
  del data["text_bert"]
  data["text"][data["text"] == 0.25] = 0
  found = read(write(tmp_path / "a.pkl", {"train": data})).splits["train"]
  np.testing.assert_array_equal(found.modalities["text"].lengths, lengths["text"])
  assert found.extras == {}


def test_unaligned_frames_without_lengths_end_at_the_last_nonzero_frame(tmp_path):
  data, lengths = split(5, "train")
  del data["audio_lengths"], data["vision_lengths"]
  found = read(write(tmp_path / "a.pkl", {"train": data})).splits["train"]
  for modality in ("audio", "vision"):
    np.testing.assert_array_equal(found.modalities[modality].lengths, lengths[modality])


def test_a_word_without_sound_at_the_end_of_an_aligned_sentence_is_a_real_step(
  tmp_path,
):
  data, lengths = split(5, "train", aligned=True)
  data["audio"][0, lengths["text"][0] - 1] = 0
  data["vision"][1] = 0
  found = read(write(tmp_path / "a.pkl", {"train": data})).splits["train"].modalities
  np.testing.assert_array_equal(found["audio"].lengths, lengths["text"])
  expected = lengths["text"].copy()
  expected[1] = 0  # All zero: the modality is absent, not silent.
  np.testing.assert_array_equal(found["vision"].lengths, expected)


def test_sims_is_known_by_its_labels_and_brings_labels_per_modality(tmp_path):
  data, _ = split(4, "train")
  data["regression_labels"] = np.array([-1.0, -0.2, 0.6, 1.0])
  for letter, shift in zip("TAV", (0.0, 0.2, 0.4), strict=True):
    data[f"regression_labels_{letter}"] = np.array([-0.8, 0.0, 0.2, 0.4]) + shift
  corpus = read(write(tmp_path / "anything.pkl", {"train": data}))
  names = ["sentiment", "sentiment_audio", "sentiment_text", "sentiment_vision"]
  assert dict(corpus.tasks) == dict.fromkeys(names, SIMS)
  labels = corpus.splits["train"].labels
  np.testing.assert_allclose(
    labels["sentiment_vision"], [-0.4, 0.4, 0.6, 0.8], atol=1e-6
  )
  np.testing.assert_allclose(labels["sentiment_text"], [-0.8, 0, 0.2, 0.4], atol=1e-6)


def test_one_label_beyond_one_means_the_scale_of_mosi(tmp_path):
  data, _ = split(3, "train")
  other, _ = split(3, "test")
  data["regression_labels"] = [0.0, 0.2, -1.0]
  other["regression_labels"] = [0.0, 1.2, np.nan]
  corpus = read(write(tmp_path / "a.pkl", {"train": data, "test": other}))
  assert corpus.tasks == {"sentiment": MOSI}
  assert np.isnan(corpus.splits["test"].labels["sentiment"][2])


def test_a_wider_scale_is_kept(tmp_path):
  data, _ = split(3, "train")
  data["regression_labels"] = [0.0, 10.0, -4.0]
  task = read(write(tmp_path / "a.pkl", {"train": data})).tasks["sentiment"]
  assert (task.low, task.high) == (-4.0, 10.0)


@pytest.mark.parametrize("layout", ["test", "flat"])
def test_files_without_labels_are_read_for_prediction(tmp_path, layout):
  data, _ = split(3, "new")
  for key in ("regression_labels", "classification_labels", "annotations", "id"):
    del data[key]
  corpus = read(write(tmp_path / "a.pkl", {"test": data} if layout == "test" else data))
  name = "test" if layout == "test" else "predict"
  assert list(corpus.splits) == [name]
  assert corpus.tasks == {}
  assert corpus.splits[name].labels == {}
  assert corpus.splits[name].ids.tolist() == [f"{name}-{row}" for row in range(3)]
  assert corpus.splits[name].groups is None


def test_a_single_clip_of_an_extractor_is_one_sample(tmp_path):
  clip = {
    "id": "v$_$1",
    "raw_text": "fine",
    "text": np.ones((3, 4)),
    "audio": np.ones((5, 2)),
    "audio_lengths": 4,
    "vision": None,
    "text_bert": np.ones((3, 3)),
  }
  found = read(write(tmp_path / "clip.pkl", clip)).splits["predict"]
  assert found.ids.tolist() == ["v$_$1"]
  assert found.raw_text.tolist() == ["fine"]
  assert found.modalities["text"].features.shape == (1, 3, 4)
  assert found.modalities["audio"].lengths.tolist() == [4]
  assert list(found.modalities) == ["text", "audio"]


@pytest.mark.parametrize(
  "ids",
  [
    [b"v$_$0", b"v$_$1", b"w$_$0"],
    np.array(["v$_$0", "v$_$1", "w$_$0"], object),
    [["v", "0"], ["v", "1"], ["w", "0"]],
    np.array([[b"v", b"0"], [b"v", b"1"], [b"w", b"0"]]),
  ],
)
def test_ids_of_any_kind_become_strings_and_videos(tmp_path, ids):
  data, _ = split(3, "train")
  found = read(write(tmp_path / "a.pkl", {"train": {**data, "id": ids}})).splits[
    "train"
  ]
  assert found.ids.tolist() == ["v$_$0", "v$_$1", "w$_$0"]
  assert found.groups.tolist() == ["v", "v", "w"]


def test_half_precision_features_stay_half_precision(tmp_path):
  data, _ = split(3, "train")
  data["text"] = data["text"].astype(np.float16)
  found = read(write(tmp_path / "a.pkl", {"train": data})).splits["train"]
  assert found.modalities["text"].features.dtype == np.float16


def test_separate_feature_files_replace_a_modality(tmp_path):
  path, made = mosi(tmp_path)
  audio = {}
  for name, one in made.items():
    n = len(one[0]["id"])
    audio[name] = {"audio": np.full((n, 4, 7), 2.0), "audio_lengths": [3] * n}
    audio[name]["audio"][0, 0, 0] = 1
  text = {
    name: {"text": np.random.default_rng(1).random((len(one[0]["id"]), 5, 8))}
    for name, one in made.items()
  }
  corpus = read(
    path,
    features={
      "audio": write(tmp_path / "audio.pkl", audio),
      "text": write(tmp_path / "text.pkl", text),
    },
  )
  train = corpus.splits["train"]
  assert train.modalities["audio"].features.shape == (6, 3, 7)
  assert train.modalities["audio"].lengths.tolist() == [3] * 6
  # The old tokens say nothing about the new text.
  assert train.modalities["text"].features.shape == (6, 5, 8)
  assert train.modalities["text"].lengths.tolist() == [5] * 6
  assert "text_bert" not in train.extras
  assert train.modalities["vision"].features.shape[2] == 2


def test_separate_feature_files_may_bring_their_own_tokens(tmp_path):
  path, made = mosi(tmp_path)
  text = {}
  for name, one in made.items():
    n = len(one[0]["id"])
    tokens = np.zeros((n, 3, 5))
    tokens[:, :2, :2] = 1
    text[name] = {
      "text": np.random.default_rng(1).random((n, 5, 8)),
      "text_bert": tokens,
    }
  corpus = read(path, features={"text": write(tmp_path / "text.pkl", text)})
  assert corpus.splits["valid"].modalities["text"].lengths.tolist() == [2, 2, 2]
  assert corpus.splits["valid"].extras["text_bert"].shape == (3, 3, 5)


def test_separate_feature_files_must_fit(tmp_path):
  path, made = mosi(tmp_path)
  with pytest.raises(UserError, match=f"no such feature file: {tmp_path}/none.pkl"):
    read(path, features={"audio": tmp_path / "none.pkl"})
  with pytest.raises(UserError, match="the modalities are text, audio, vision"):
    read(path, features={"smell": path})
  only = write(tmp_path / "only.pkl", {"train": {"audio": np.ones((6, 2, 2))}})
  with pytest.raises(UserError, match="has no audio for split valid"):
    read(path, features={"audio": only})
  short = {name: {"audio": np.ones((1, 2, 2))} for name in made}
  with pytest.raises(UserError, match="1 samples of audio in split train, .* 6"):
    read(path, features={"audio": write(tmp_path / "short.pkl", short)})


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"text_bert": np.ones((3, 2, 6))}, r"text_bert has shape \[3, 2, 6\]"),
    ({"audio": np.ones((2, 9, 3))}, "audio: 2 samples, others have 3"),
    ({"audio_lengths": [1, 2]}, "2 lengths for 3 samples"),
    ({"audio_lengths": [1, 2, 99]}, r"length 99 in row 2 \(id v1train\$_\$2\)"),
    ({"regression_labels": [0.0]}, "1 labels for 3 samples"),
    ({"id": ["a"]}, "1 entries for 3 samples"),
    ({"text": 3.0}, "split train: text holds no samples"),
  ],
)
def test_contradictions_give_one_line_with_the_place(tmp_path, change, message):
  data, _ = split(3, "train")
  path = write(tmp_path / "a.pkl", {"train": {**data, **change}})
  with pytest.raises(UserError, match=message) as caught:
    read(path)
  assert str(path) in str(caught.value)
  assert "\n" not in str(caught.value)


def test_a_split_without_modalities_has_no_samples():
  with pytest.raises(UserError, match="split test has no modality"):
    mmsa.samples({"id": [1]}, "test")
