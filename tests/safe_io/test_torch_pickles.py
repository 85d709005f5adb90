"""PyTorch's files of weights give their tensors; hostile ones are refused."""

import pickle
import zipfile

import numpy as np
import pytest
from paths import REFERENCE

from msa_jax.errors import UserError
from msa_jax.safe_io.torch_pickles import load_torch

WEIGHTS = REFERENCE / "text_weights.bin"


def test_tensors_of_a_file_of_pytorch_are_read():
  found = load_torch(WEIGHTS)
  base = np.arange(12, dtype=np.float32)
  np.testing.assert_array_equal(found["whole"], base.reshape(3, 4))
  np.testing.assert_array_equal(found["turned"], base.reshape(3, 4).T)
  np.testing.assert_array_equal(found["part"], base[5:8])
  np.testing.assert_array_equal(found["half"], (base / 3).astype(np.float16))
  np.testing.assert_array_equal(found["brain"], base / 4)
  np.testing.assert_array_equal(found["counts"], np.arange(3))
  np.testing.assert_array_equal(found["trained"], base[:2] * 2)
  assert found["empty"].shape == (0, 2)


STORAGE = (
  b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
  b"X\x03\x00\x00\x00cpuK\x04tQ"
)
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"


def write(path, stream, content=b"\0" * 16, compression=zipfile.ZIP_STORED):
  with zipfile.ZipFile(path, "w", compression) as archive:
    archive.writestr("a/data.pkl", stream)
    archive.writestr("a/data/0", content)
  return path


def tensor(offset, shape, strides):
  rest = b"".join(pickle.dumps(v, 2)[2:-1] for v in (offset, shape, strides))
  return b"\x80\x02}X\x01\x00\x00\x00w" + TENSOR + b"(" + STORAGE + rest + b"\x89NtRs."


def test_a_tensor_written_by_hand_is_read(tmp_path):
  values = np.arange(4, dtype=np.float32)
  path = write(tmp_path / "w.bin", tensor(1, (3,), (1,)), values.tobytes())
  np.testing.assert_array_equal(load_torch(path)["w"], values[1:])


@pytest.mark.parametrize(
  ("stream", "message"),
  [
    (b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.", "refused to load os.system"),
    (b"\x80\x02ctorch\nload\n.", "refused to load torch.load"),
    (tensor(0, (5,), (1,)), "outside its storage"),
    (tensor(2, (3,), (1,)), "outside its storage"),
    (tensor(0, (2**40, 2**40), (0, 0)), "outside its storage"),
    (tensor(0, (2,), (-1,)), "refused a tensor of shape"),
    (tensor(-1, (2,), (1,)), "without a storage"),
    (b"\x80\x02" + TENSOR + b"(K\x00K\x00))tR.", "without a storage"),
    (b"\x80\x02ctorch._utils\n_rebuild_parameter\nK\x01\x85R.", "is no tensor"),
    (b"\x80\x02ccollections\nOrderedDict\n]\x85R.", "OrderedDict with arguments"),
    (b"\x80\x02ctorch\nFloatStorage\n}b.", "refused to change a type"),
    (b"\x80\x02" + STORAGE + b"}b.", "refused to change a storage"),
    (b"\x80\x02K\x01Q.", "reference that is no storage"),
    (b"\x80\x02" + STORAGE.replace(b"K\x04", b"N") + b".", "without name and size"),
    (b"\x80\x02" + STORAGE.replace(b"K\x04", b"K\x09") + b".", "shorter than it says"),
    (b"\x80\x02" + STORAGE.replace(b"\x000X", b"\x001X") + b".", "has no member"),
    (
      b"\x80\x02" + STORAGE + STORAGE.replace(b"FloatS", b"IntS") + b"\x86.",
      "has two types",
    ),
    (b"\x80\x02]K\x01a.", "holds tensors by name"),
    (b"\x80\x02", "not a readable file of weights"),
  ],
)
def test_hostile_files_are_refused(tmp_path, stream, message):
  with pytest.raises(UserError, match=message) as raised:
    load_torch(write(tmp_path / "w.bin", stream))
  assert "\n" not in str(raised.value)


def test_archives_that_pytorch_does_not_write_are_refused(tmp_path):
  bomb = write(
    tmp_path / "b.bin", tensor(0, (4,), (1,)), compression=zipfile.ZIP_DEFLATED
  )
  with pytest.raises(UserError, match="is compressed"):
    load_torch(bomb)
  (tmp_path / "old.bin").write_bytes(pickle.dumps({}))
  with pytest.raises(UserError, match="since 1.6; save it as model.safetensors"):
    load_torch(tmp_path / "old.bin")
  with zipfile.ZipFile(tmp_path / "e.bin", "w"):
    pass
  with pytest.raises(UserError, match="must have one data.pkl"):
    load_torch(tmp_path / "e.bin")


def two(first, second):
  """Two tensors of (offset, shape, strides) in one storage of four numbers."""
  entries = b""
  for name, place in ((b"v", first), (b"w", second)):
    rest = b"".join(pickle.dumps(value, 2)[2:-1] for value in place)
    entries += b"X\x01\x00\x00\x00" + name + TENSOR + b"(" + STORAGE + rest + b"\x89NtR"
  return b"\x80\x02}(" + entries + b"u."


def test_tensors_may_lie_side_by_side_or_be_the_same_but_not_overlap(tmp_path):
  values = np.arange(4, dtype=np.float32)
  apart = two((0, (2,), (1,)), (2, (2,), (1,)))
  found = load_torch(write(tmp_path / "w.bin", apart, values.tobytes()))
  assert (found["v"].tolist(), found["w"].tolist()) == ([0, 1], [2, 3])
  tied = two((0, (4,), (1,)), (0, (4,), (1,)))
  found = load_torch(write(tmp_path / "w.bin", tied, values.tobytes()))
  assert found["v"] is found["w"]
  turned = two((0, (2, 2), (2, 1)), (0, (2, 2), (1, 2)))
  found = load_torch(write(tmp_path / "w.bin", turned, values.tobytes()))
  np.testing.assert_array_equal(found["v"], found["w"].T)
  for second in ((1, (3,), (1,)), (1, (2,), (1,))):
    overlapping = two((0, (2,), (1,)), second)
    with pytest.raises(UserError, match="tensors that overlap in"):
      load_torch(write(tmp_path / "w.bin", overlapping, values.tobytes()))
  for shape, strides in (((2, 2), (0, 1)), ((2, 2), (1, 1)), ((2,), (0,))):
    with pytest.raises(UserError, match="overlaps itself"):
      load_torch(write(tmp_path / "w.bin", tensor(0, shape, strides)))
