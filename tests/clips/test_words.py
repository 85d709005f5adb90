"""Transcripts: words, subtitles, and where words without times are put."""

import numpy as np
import pytest

from msa_jax.clips import words
from msa_jax.clips.words import Word
from msa_jax.errors import UserError

SRT = """1
00:00:01,500 --> 00:00:02,500
<i>ab</i> cdef
gh

2
01:00:00,000 --> 01:00:01,000
later
"""


def test_words_of_a_cue_share_its_time_by_their_letters():
  found = words.subtitles(SRT, "a.srt")
  assert [word.text for word in found] == ["ab", "cdef", "gh", "later"]
  np.testing.assert_allclose(
    [(word.begin, word.end) for word in found],
    [(1.5, 1.75), (1.75, 2.25), (2.25, 2.5), (3600, 3601)],
  )


def test_webvtt_has_points_and_no_hours():
  text = "WEBVTT\n\nNOTE none\n\n00:01.250 --> 00:02.250 align:start\nhello\n"
  assert words.subtitles(text, "a.vtt") == [Word("hello", 1.25, 2.25)]


def test_chinese_characters_are_words_of_their_own():
  made = words.spread("很好 ok", 0.0, 4.0)
  assert [word.text for word in made] == ["很", "好", "ok"]
  assert [word.end for word in made] == [1.0, 2.0, 4.0]


def test_spread_words_leave_no_gap_and_end_together():
  made = words.spread("one three seventeen", 2.0, 5.0)
  assert made[0].begin == 2.0 and made[-1].end == 5.0
  assert [w.end for w in made[:-1]] == [w.begin for w in made[1:]]
  assert words.spread("  ", 0.0, 1.0) == []


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("a.srt", b"no cue here", "no cue"),
    ("a.srt", b"00:00:02,000 --> 00:00:01,000\nx\n", "begins at 2"),
    ("a.txt", "caf\u00e9".encode("latin-1"), "not in UTF-8"),
    ("a.txt", b"x" * (2**22 + 1), "larger than"),
  ],
)
def test_bad_transcripts_are_one_line(tmp_path, name, content, message):
  path = tmp_path / name
  path.write_bytes(content)
  with pytest.raises(UserError, match=message):
    words.read(path)


def test_subtitles_count_before_plain_text(tmp_path):
  clip = tmp_path / "a.wav"
  assert words.beside(clip) is None
  (tmp_path / "a.txt").write_text("\ufeffsome words", encoding="utf-8")
  assert words.read(words.beside(clip)) == [Word("some"), Word("words")]
  (tmp_path / "a.srt").write_text(SRT)
  assert words.beside(clip).suffix == ".srt"
