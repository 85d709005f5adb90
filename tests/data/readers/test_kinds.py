"""Files of other kinds are named for what they are."""

import pickle

import pytest

from msa_jax.data import readers
from msa_jax.errors import UserError


@pytest.mark.parametrize(
  ("name", "content", "said"),
  [
    ("a.wav", b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(40), "a WAV recording"),
    ("a.mp4", b"\x00\x00\x00\x18ftypisom" + bytes(40), "an MP4 or MOV clip"),
    ("a.mkv", b"\x1a\x45\xdf\xa3" + bytes(40), "a Matroska or WebM clip"),
    ("a.csd", b"\x89HDF\r\n\x1a\n" + bytes(40), "an HDF5 file"),
    ("a.npy", b"\x93NUMPY\x01\x00" + bytes(40), "a single NumPy array"),
    ("README.md", b"# A title\n\nWhat it is, with caf\xc3\xa9.\n", "a text file"),
  ],
)
def test_what_is_no_corpus_is_named(tmp_path, name, content, said):
  path = tmp_path / name
  path.write_bytes(content)
  with pytest.raises(UserError) as raised:
    readers.read(path)
  message = str(raised.value)
  assert said in message and "an MMSA, MulT or GCNet pickle" in message
  assert str(path) in message and "\n" not in message


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickles_of_any_protocol_are_read_as_pickles(tmp_path, protocol):
  path = tmp_path / "a.pkl"
  path.write_bytes(pickle.dumps({"a": 1}, protocol))
  with pytest.raises(UserError) as raised:
    readers.read(path)
  assert "is no corpus" not in str(raised.value)
