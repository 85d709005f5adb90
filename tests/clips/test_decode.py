"""Sound and pictures out of files, whatever their rates, and nothing out of others."""

import types

import numpy as np
import pytest
from tiny_clips import RATE, film, gray, tone, wav

from msa_jax.clips import decode
from msa_jax.clips.decode import Clip
from msa_jax.errors import UserError


@pytest.mark.parametrize(("rate", "channels"), [(44100, 2), (8000, 1)])
def test_sound_of_any_rate_keeps_its_tone_and_length(tmp_path, rate, channels):
  audio = tone(220.0, 1.5, rate)
  clip = Clip(wav(tmp_path / "a.wav", audio, rate, channels))
  assert clip.duration == pytest.approx(1.5, abs=0.01)
  power = np.abs(np.fft.rfft(clip.audio))
  assert np.argmax(power) * RATE / len(clip.audio) == pytest.approx(220.0, abs=1.0)
  assert np.abs(clip.audio).max() == pytest.approx(np.abs(audio).max(), rel=0.05)


def test_pictures_come_at_the_rate_that_is_asked_and_at_their_own_times(tmp_path):
  pictures = [gray(8 * i) for i in range(30)]
  clip = Clip(film(tmp_path / "a.mkv", pictures, rate=10))
  assert clip.audio is None and clip.has_pictures
  frames = list(clip.frames(5.0))
  np.testing.assert_allclose([f.time for f in frames], np.arange(15) / 5.0, atol=2e-3)
  shades = [frame.pixels.mean() for frame in frames]
  np.testing.assert_allclose(shades, np.arange(0, 30, 2) * 8, atol=6)
  # No more than there are, however many are asked for.
  assert len(list(clip.frames(50.0))) == 30


def test_large_pictures_are_made_smaller_and_keep_their_shape(tmp_path):
  clip = Clip(film(tmp_path / "a.mkv", [gray(90, (320, 1280))]))
  (frame,) = clip.frames(5.0)
  assert frame.pixels.shape == (160, 640, 3)


# Turned by 90 degrees counterclockwise, the upper left corner is the lower left.
@pytest.mark.parametrize(
  ("degrees", "corner"), [(0, (0, 0)), (90, (2, 0)), (-90, (0, 1))]
)
def test_pictures_of_a_turned_phone_stand_upright(degrees, corner):
  pixels = np.zeros((2, 3, 3), np.uint8)
  pixels[0, 0] = 255
  frame = types.SimpleNamespace(
    width=3, height=2, rotation=degrees, to_ndarray=lambda **_: pixels
  )
  made = decode._pixels(frame)
  shape = (2, 3) if degrees == 0 else (3, 2)
  assert made.shape[:2] == shape
  assert made[corner].tolist() == [255, 255, 255]


def test_a_longer_clip_than_allowed_is_refused(tmp_path):
  path = wav(tmp_path / "a.wav", tone(100.0, 2.0))
  assert Clip(path, max_seconds=2.5).duration == pytest.approx(2.0)
  with pytest.raises(UserError, match="longer than 1.5 s"):
    _ = Clip(path, max_seconds=1.5).audio
  pictures = film(tmp_path / "b.mkv", [gray(9)] * 20)
  with pytest.raises(UserError, match="longer than 1.5 s"):
    list(Clip(pictures, max_seconds=1.5).frames(10.0))


@pytest.mark.parametrize(
  ("name", "content"),
  [
    ("noise.mp4", bytes(range(256)) * 8),
    # Playlists would open other files, or addresses.
    ("list.mp4", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n"),
    ("list.wav", b"ffconcat version 1.0\nfile other.wav\n"),
  ],
)
def test_what_is_no_clip_is_one_line(tmp_path, name, content):
  path = tmp_path / name
  path.write_bytes(content)
  with pytest.raises(UserError, match="not a readable clip") as found:
    _ = Clip(path).audio
  assert "\n" not in str(found.value)


def test_an_empty_file_and_a_folder_are_no_clips(tmp_path):
  (tmp_path / "a.mp4").touch()
  with pytest.raises(UserError, match="empty"):
    _ = Clip(tmp_path / "a.mp4").audio
  with pytest.raises(UserError, match="folder"):
    _ = Clip(tmp_path).audio
