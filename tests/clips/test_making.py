"""A corpus of clips: rates, masks, times, failures told, stopped calls gone on."""

import csv
import json

import numpy as np
import pytest
import tiny_clips
from tiny_clips import TINY, film, gray, registered, tone, wav

from msa_jax.clips import aligned, listing, making, parts, recipe
from msa_jax.clips.recipe import Recipe
from msa_jax.data import __main__ as data
from msa_jax.data import read
from msa_jax.errors import UserError

FLAGS = ["--text=tiny", "--audio=tiny", "--vision=tiny", "--speech=none"]


@pytest.fixture
def loudness(monkeypatch):
  return registered(monkeypatch)


@pytest.fixture
def clips(tmp_path):
  """A clip of each kind, and two that cannot be read."""
  folder = tmp_path / "C"
  dark_and_bright = [gray(0)] * 5 + [gray(100)] * 5 + [gray(200)] * 5
  film(folder / "both.mkv", dark_and_bright, audio=tone(200.0, 1.5, level=0.2))
  film(folder / "dark.mkv", [gray(0)] * 5, audio=tone(200.0, 0.5))
  film(folder / "mute.mkv", [gray(50)] * 5)
  wav(folder / "sound é.wav", tone(200.0, 2.25))
  (folder / "both.txt").write_text("one three")
  (folder / "bad.mp4").write_bytes(bytes(range(256)) * 8)
  (folder / "empty.wav").touch()
  return folder


def failures(path):
  with path.open(newline="") as stream:
    return {row["id"]: row["reason"] for row in csv.DictReader(stream)}


def test_every_stream_keeps_its_rate_length_mask_and_times(
  loudness, clips, tmp_path, capsys
):
  output = tmp_path / "mine.npz"
  assert data.main(["clips", str(clips), f"--output={output}", *FLAGS]) == 3
  said = capsys.readouterr().err
  assert "2 of 6 clips failed" in said
  assert "noted: text: no transcript (dark.mkv, mute.mkv and 1 more)\n" in said
  corpus = read(output)
  split = corpus.splits["predict"]
  assert split.ids.tolist() == ["both.mkv", "dark.mkv", "mute.mkv", "sound é.wav"]
  lengths = {name: each.lengths.tolist() for name, each in split.modalities.items()}
  assert lengths == {
    "text": [2, 0, 0, 0],
    "audio": [3, 1, 0, 5],
    "vision": [15, 0, 5, 0],
  }
  vision = split.modalities["vision"]
  assert vision.lost[0, :5].all() and not vision.lost[0, 5:].any()
  assert not vision.features[0, :5].any()
  np.testing.assert_allclose(vision.features[0, [7, 12], 0], [100, 200], atol=3)
  np.testing.assert_allclose(split.extras["vision_times"][0, 14], [1.4, 1.5], atol=0.01)
  assert (split.extras["vision_times"][2, 5:] == -1).all()
  # Words share the clip's 1.5 s by their letters.
  np.testing.assert_allclose(
    split.extras["text_times"][0], [[0, 0.5625], [0.5625, 1.5]], atol=1e-3
  )
  assert split.raw_text.tolist() == ["one three", "", "", ""]


def test_what_failed_and_what_is_noted_stands_in_files(loudness, clips, tmp_path):
  output = tmp_path / "mine.npz"
  data.main(["clips", str(clips), f"--output={output}", *FLAGS])
  wrong = failures(tmp_path / "mine.failed.csv")
  assert set(wrong) == {"bad.mp4", "empty.wav"}
  assert "not a readable clip" in wrong["bad.mp4"] and "empty" in wrong["empty.wav"]
  notes = read(output).notes["clips"]
  assert notes["failed"] == wrong
  assert "vision: no video track" in notes["noted"]["sound é.wav"]
  assert "audio: no audio track" in notes["noted"]["mute.mkv"]
  assert notes["extractors"]["audio"]["name"] == "loudness"
  assert notes["recipe"]["extractors"] == TINY
  json.dumps(notes)


def test_a_second_call_does_what_is_left(loudness, clips, tmp_path):
  output = tmp_path / "mine.npz"
  call = ["clips", str(clips), f"--output={output}", *FLAGS]
  assert data.main(call) == 3
  assert sorted(loudness.read) == ["both.mkv", "dark.mkv", "mute.mkv", "sound é.wav"]
  first = read(output)
  loudness.read.clear()
  wav(clips / "bad.mp4", tone(99.0, 1.0))  # repaired; a name says little
  (clips / "empty.wav").unlink()
  assert data.main(call) == 0
  assert loudness.read == ["bad.mp4"]
  assert not (tmp_path / "mine.failed.csv").exists()
  assert not (tmp_path / "mine.npz.parts").exists()
  second = read(output).splits["predict"]
  kept = np.isin(second.ids, first.splits["predict"].ids)
  assert second.ids.tolist() == ["bad.mp4", *first.splits["predict"].ids]
  np.testing.assert_array_equal(
    second.modalities["audio"].features[kept],
    first.splits["predict"].modalities["audio"].features,
  )
  # Nothing is left to do, so what is there is not written over.
  assert data.main(call) == 2
  assert data.main([*call, "--force"]) == 0


def test_a_stopped_call_keeps_what_is_done(
  loudness, clips, tmp_path, capsys, monkeypatch
):
  output = tmp_path / "mine.npz"
  call = ["clips", str(clips), f"--output={output}", *FLAGS, "--workers=1"]
  read_first, extract = [], loudness.extract

  def stopped(clip):
    if clip.path.name == "mute.mkv":
      raise KeyboardInterrupt
    read_first.append(clip.path.name)
    return extract(clip)

  monkeypatch.setattr(loudness, "extract", stopped)
  assert data.main(call) == 75
  assert "does what is left" in capsys.readouterr().err and not output.exists()
  assert read_first[:2] == ["both.mkv", "dark.mkv"]
  monkeypatch.setattr(loudness, "extract", extract)
  loudness.read.clear()
  assert data.main(call) == 3
  good = {"both.mkv", "dark.mkv", "mute.mkv", "sound é.wav"}
  assert set(loudness.read) == good - set(read_first)


def test_another_extractor_or_a_damaged_part_is_made_anew(loudness, clips, tmp_path):
  output = tmp_path / "mine.npz"
  found, chosen = listing.of_folder(clips), Recipe(TINY)
  making.make(found, chosen, output)
  count = len(loudness.read)
  making.make(found, chosen, output)
  assert len(loudness.read) == count
  loudness.about = tiny_clips.Loudness(version="2").about
  making.make(found, chosen, output)
  assert len(loudness.read) == 2 * count
  next((tmp_path / "mine.npz.parts").glob("*.npz")).write_bytes(b"PK")
  making.make(found, chosen, output)
  assert len(loudness.read) == 2 * count + 1


def test_order_and_content_do_not_depend_on_how_many_work(loudness, clips, tmp_path):
  for workers in (1, 4):
    call = ["clips", str(clips), f"--output={tmp_path / f'{workers}.npz'}", *FLAGS]
    data.main([*call, f"--workers={workers}"])
  one, four = (read(tmp_path / f"{n}.npz").splits["predict"] for n in (1, 4))
  assert one.ids.tolist() == four.ids.tolist()
  for name, each in one.modalities.items():
    np.testing.assert_array_equal(each.features, four.modalities[name].features)


def test_aligned_steps_are_means_over_the_words(loudness, clips, tmp_path):
  output = tmp_path / "mine.npz"
  data.main(["clips", str(clips), f"--output={output}", *FLAGS, "--align=words"])
  assert read(output).splits["predict"].modalities["vision"].lengths.tolist()[0] == 15
  aligned = read(tmp_path / "mine.words.npz")
  assert aligned.notes["clips"]["align"] == "words"
  split = aligned.splits["predict"]
  assert [each.lengths[0] for each in split.modalities.values()] == [2, 2, 2]
  # "one" ends at .5625 s: pictures before .5 s are lost, one bright one overlaps.
  vision = split.modalities["vision"].features[0, :, 0]
  expected = (100 * (1.0 - 0.5625) + 200 * 0.5) / (1.5 - 0.5625)
  np.testing.assert_allclose(vision, [100, expected], atol=3)
  # Nothing was said in the others.
  assert split.modalities["audio"].lengths.tolist() == [2, 0, 0, 0]


def test_a_word_without_any_duration_has_the_step_that_it_falls_into():
  values = np.array([[1.0], [2.0]], np.float32)
  times = np.array([[0.0, 1.0], [1.0, 2.0]], np.float32)
  found = tiny_clips.words.Word("a", 1.5, 1.5)
  part = parts.Part({"audio": tiny_clips.Features(values, times)}, [found], [], 2.0)
  made = aligned.by_words(part).features["audio"]
  assert made.values.tolist() == [[2.0]] and made.lost is None


def test_words_of_subtitles_keep_their_times(loudness, tmp_path):
  wav(tmp_path / "C" / "a.wav", tone(200.0, 3.0))
  (tmp_path / "C" / "a.srt").write_text("00:00:01,000 --> 00:00:02,000\nab cd\n")
  output = tmp_path / "mine.npz"
  assert data.main(["clips", str(tmp_path / "C"), f"--output={output}", *FLAGS]) == 0
  times = read(output).splits["predict"].extras["text_times"][0]
  np.testing.assert_allclose(times, [[1.0, 1.5], [1.5, 2.0]])


class Hears(recipe.Recogniser):
  about = tiny_clips.About("hears", "1", "none", 0, 0.0)

  def words(self, audio):
    return [tiny_clips.words.Word("heard", 0.25, 0.5)] if len(audio) > 16000 else []


def test_speech_is_recognised_where_there_is_no_transcript(
  loudness, clips, tmp_path, monkeypatch
):
  monkeypatch.setitem(recipe.FACTORIES, "speech", {"hears": lambda _: Hears()})
  found = listing.of_folder(clips)
  made = making.make(found, Recipe(TINY, speech="hears"), tmp_path / "mine.npz")
  split = read(made.files[0]).splits["predict"]
  assert split.raw_text.tolist() == ["one three", "", "", "heard"]
  np.testing.assert_allclose(split.extras["text_times"][3, 0], [0.25, 0.5])
  noted = read(made.files[0]).notes["clips"]["noted"]
  assert "no speech was recognised" in noted["dark.mkv"]


class Wrong:
  about = tiny_clips.About("wrong", "1", "none", 2, 1.0)

  def __init__(self, values, times):
    self.values, self.times = values, times

  def extract(self, clip):
    return tiny_clips.Features(np.array(self.values), np.array(self.times))


@pytest.mark.parametrize(
  ("values", "times", "message"),
  [
    ([[1.0]], [[0.0, 1.0]], r"\[1, 1\], not \[steps, 2\]"),
    ([[1.0, np.nan]], [[0.0, 1.0]], "not finite"),
    ([[1.0, 2.0]], [[0.0, 1.0], [1.0, 2.0]], "times are not"),
  ],
)
def test_an_extractor_is_held_to_its_interface(
  tmp_path, monkeypatch, values, times, message
):
  monkeypatch.setitem(
    recipe.FACTORIES, "audio", {"wrong": lambda _: Wrong(values, times)}
  )
  wav(tmp_path / "C" / "a.wav", tone(200.0, 0.5))
  found = listing.of_folder(tmp_path / "C")
  with pytest.raises(UserError, match=message):
    making.make(found, Recipe({"audio": "wrong"}), tmp_path / "mine.npz")


@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("--audio=nothing", "no such extractor; choose one of sound"),
    ("--audio=sound:x", "takes no argument"),
    ("--speech=whisper:/no/such", "no such folder"),
    ("--align=frames", "must be one of none, words"),
    ("--split=a,b", "shares of train, valid and test"),
    ("--max-seconds=0", "must be positive"),
    ("--workers=-1", "must be positive"),
  ],
)
def test_wrong_flags_are_one_line(loudness, clips, tmp_path, capsys, flag, message):
  (tmp_path / "l.csv").write_text("path,label\nboth.mkv,1\n")
  call = ["clips", str(clips), f"--labels={tmp_path / 'l.csv'}", *FLAGS, flag]
  assert data.main([*call, f"--output={tmp_path / 'mine.npz'}"]) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1
  assert not (tmp_path / "mine.npz").exists()


def test_what_is_not_installed_is_named_with_its_command():
  with pytest.raises(UserError, match="pip install --no-deps some-package"):
    tiny_clips.package_folder("no_such_module_at_all", "it", "--no-deps some-package")


def test_auto_leaves_out_what_is_not_there(monkeypatch):
  def lacking(_):
    raise UserError("it: not installed; pip install it")

  monkeypatch.setitem(recipe.FACTORIES, "vision", {"faces": lacking})
  tools = recipe.build(Recipe({"audio": "auto", "vision": "auto"}))
  assert tools.recipe == Recipe({"audio": "sound"})
  assert tools.left_out == ("vision: it: not installed; pip install it",)


def test_extractors_of_ones_own_need_a_free_name():
  for name in ("sound", "none", "auto", "a:b", ""):
    with pytest.raises(UserError, match="cannot be used"):
      recipe.register("audio", name, lambda _: None)
