"""Pitch, spectrum and statistics against sounds whose values are known."""

import numpy as np
import pytest
from tiny_clips import RATE, tone, wav

from msa_jax.clips import mel, pitch
from msa_jax.clips.decode import Clip
from msa_jax.clips.sound import COLUMNS, Sound


def column(values, name):
  return values[:, COLUMNS.index(name)]


def extract(audio, tmp_path):
  return Sound().extract(Clip(wav(tmp_path / "a.wav", audio)))


@pytest.mark.parametrize("hertz", [85.0, 130.0, 260.0, 440.0])
def test_pitch_of_a_voice_like_tone_is_its_frequency(hertz):
  found, voiced = pitch.track(tone(hertz, 0.5))
  inner = found[5:-5]
  np.testing.assert_allclose(inner, hertz, rtol=0.005)
  assert voiced[5:-5].all()


def test_noise_and_silence_have_no_pitch():
  noise = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
  assert pitch.track(noise)[1].mean() < 0.05
  assert not pitch.track(np.zeros(RATE, np.float32))[1].any()


def test_pitch_does_not_depend_on_the_level():
  sound = tone(150.0, 0.4)
  np.testing.assert_allclose(
    pitch.track(sound)[0], pitch.track(sound * 0.01)[0], rtol=1e-3
  )


def test_filters_peak_at_their_centres_and_have_slaneys_areas():
  bank = mel.filters(40, 4096, 0.0, 8000.0)
  spacing = RATE / 4096
  np.testing.assert_allclose(bank.sum(axis=1) * spacing, 1.0, atol=0.03)
  peaks = bank.argmax(axis=1) * spacing
  assert (np.diff(peaks) > 0).all()
  # Below 1 kHz the scale is linear.
  low = peaks[peaks < 900]
  np.testing.assert_allclose(np.diff(low), np.diff(low).mean(), atol=1.5 * spacing)


def test_a_pure_tone_is_in_its_band_and_louder_by_six_decibels_when_doubled():
  time = np.arange(RATE) / RATE
  soft = (0.2 * np.sin(2 * np.pi * 1000.0 * time)).astype(np.float32)
  bands, measures = mel.spectra(soft, 40)
  bank = mel.filters(40, 512, 20.0, 7600.0)
  expected = bank[:, round(1000.0 * 512 / RATE)].argmax()
  assert (bands[5:-5].argmax(axis=1) == expected).all()
  # A sine of amplitude a has the power a^2 / 2, and crosses zero twice a period.
  np.testing.assert_allclose(measures[5:-5, 0], 10 * np.log10(0.2**2 / 2), atol=0.1)
  np.testing.assert_allclose(measures[5:-5, 1], 1.0, atol=0.02)
  np.testing.assert_allclose(measures[5:-5, 2], 2.0, atol=0.1)
  louder = mel.spectra(2 * soft, 40)[1]
  np.testing.assert_allclose(louder[:, 0] - measures[:, 0], 6.02, atol=0.01)


def test_steps_are_means_over_a_tenth_of_a_second(tmp_path):
  audio = np.concatenate([tone(110.0, 1.0), 0 * tone(1.0, 1.0), tone(220.0, 1.05)])
  found = extract(audio, tmp_path)
  assert found.values.shape == (31, len(COLUMNS)) and found.lost is None
  np.testing.assert_allclose(found.times[:, 0], np.arange(31) / 10, atol=1e-6)
  assert found.times[-1, 1] == pytest.approx(3.05, abs=1e-3)
  octaves, share = (column(found.values, n) for n in ("pitch_octaves", "voiced_share"))
  np.testing.assert_allclose(octaves[1:9], 1.0, atol=0.01)
  np.testing.assert_allclose(octaves[21:29], 2.0, atol=0.01)
  np.testing.assert_allclose(share[[3, 14, 25]], [1, 0, 1])
  assert octaves[14] == 0
  level = column(found.values, "level_db")
  assert level[14] == pytest.approx(-100.0, abs=1e-3) and level[3] > -20.0


@pytest.mark.parametrize("seconds", [0.0005, 0.03, 0.2])
def test_the_shortest_clips_have_a_step(tmp_path, seconds):
  found = extract(tone(200.0, seconds), tmp_path)
  assert len(found.values) == max(1, round(seconds * 10))
  assert np.isfinite(found.values).all()


def test_a_silent_track_has_no_step_and_says_so(tmp_path):
  found = extract(np.zeros(RATE, np.float32), tmp_path)
  assert len(found.values) == 0 and "silent" in found.note
