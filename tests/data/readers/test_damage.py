"""Valid files with any bytes changed are read, or refused in one line."""

import functools
import pickle
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import REFERENCE

from msa_jax.data.readers import npz, read_lenient
from msa_jax.errors import UserError
from msa_jax.safe_io.archives import read_npy
from msa_jax.safe_io.torch_pickles import load_torch
from msa_jax.text import weights

TEXT = np.arange(2 * 3 * 2, dtype=np.float32).reshape(2, 3, 2)
MMSA = {
  "train": {
    "text": TEXT,
    "audio": [np.ones((2, 1)), np.ones((3, 1))],
    "id": ["a$_$1", "a$_$2"],
    "raw_text": ["good", "bad"],
    "text_bert": np.ones((2, 3, 3)),
    "regression_labels": np.float32([1, -1]),
  }
}
MULT = {"train": {"text": TEXT, "labels": np.ones((2, 1, 1)), "id": [["a", 1, 2]] * 2}}


def _csv(path):
  path.write_text("id,text,label,emotion,mode\n1,well,0.5,joy,train\n2,no,-1,,test\n")


def _npz(path):
  arrays = {"train/text": TEXT, "train/labels/emotion": np.array([0, 1])}
  np.savez(
    path,
    **arrays,
    tasks=np.array('{"emotion": {"kind": "classes", "classes": ["no", "yes"]}}'),
  )


def _saved(path):
  plain = path.with_name("plain.npz")
  np.savez(plain, **{"train/text": TEXT, "train/labels/sentiment": np.ones(2)})
  npz.save(read_lenient(plain), path)


def _safetensors(path):
  from safetensors.numpy import save_file

  save_file({"a": np.ones((2, 3), np.float32), "b": np.zeros(2)}, path)


def _read_safetensors(path):
  return weights._safetensors(path)


def _read_config(path):
  config = path.with_name("config.json")
  config.write_bytes(path.read_bytes())
  return weights.read_config(path.parent)


read_csv = functools.partial(read_lenient, bare_text=True)
FORMATS = {
  "mmsa.pkl": (lambda path: path.write_bytes(pickle.dumps(MMSA)), read_lenient),
  "mmsa2.pkl": (lambda path: path.write_bytes(pickle.dumps(MMSA, 2)), read_lenient),
  "mult.pkl": (lambda path: path.write_bytes(pickle.dumps(MULT, 0)), read_lenient),
  "five.pkl": (lambda path: path.write_bytes(pickle.dumps(MULT, 5)), read_lenient),
  "plain.npz": (_npz, read_lenient),
  "saved.npz": (_saved, read_lenient),
  "array.npy": (lambda path: np.save(path, TEXT), read_npy),
  "lines.csv": (_csv, read_csv),
  "weights.bin": (
    lambda path: path.write_bytes((REFERENCE / "text_weights.bin").read_bytes()),
    load_torch,
  ),
  "weights.safetensors": (_safetensors, _read_safetensors),
  "encoder.json": (
    lambda path: path.write_text(
      '{"model_type": "bert", "vocab_size": 9, "max_position_embeddings": 8,'
      ' "type_vocab_size": 2, "hidden_size": 4, "num_hidden_layers": 1,'
      ' "num_attention_heads": 2, "intermediate_size": 4, "pad_token_id": 0}'
    ),
    _read_config,
  ),
}


@functools.cache
def valid(name):
  """Content of a valid file, and how it is read."""
  write, read = FORMATS[name]
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / name
    write(path)
    read(path)  # It is valid.
    return path.read_bytes(), read


def changed(content, changes):
  """A copy with bytes replaced, put in, or taken out; `place` is a share of it."""
  content = bytearray(content)
  for kind, place, value in changes:
    position = int(place * len(content))
    if kind == "replace":
      content[position : position + len(value)] = value
    elif kind == "insert":
      content[position:position] = value
    elif kind == "delete":
      del content[position : position + len(value)]
    else:
      del content[position:]
  return bytes(content)


CHANGES = st.lists(
  st.tuples(
    st.sampled_from(("replace", "replace", "insert", "delete", "cut")),
    st.floats(0, 1, exclude_max=True),
    st.binary(min_size=1, max_size=8)
    | st.sampled_from((b"\xff" * 4, b"\x7f" * 8, b"-", b"9" * 9, b"[", b"\0" * 4)),
  ),
  min_size=1,
  max_size=4,
)


@pytest.mark.parametrize("name", FORMATS)
def test_any_change_of_bytes_is_read_or_refused_in_one_line(name, tmp_path_factory):
  content, read = valid(name)
  path = tmp_path_factory.mktemp("damaged") / name

  @settings(max_examples=60, deadline=None, derandomize=True, database=None)
  @given(CHANGES)
  def check(changes):
    path.write_bytes(changed(content, changes))
    try:
      read(path)
    except UserError as error:
      message = str(error)
      assert "\n" not in message
      assert str(path.parent) in message

  check()


def test_members_of_archives_are_checked_by_what_they_unpack_to(tmp_path):
  path = tmp_path / "a.npz"
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("text.npy", b"")
    archive.writestr("notes.txt", b"hello")
  with pytest.raises(UserError, match="'notes.txt' is no array|not a readable"):
    read_lenient(path)
