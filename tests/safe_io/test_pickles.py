"""Pickles of arrays load whoever wrote them; everything else is refused by name."""

import codecs
import collections
import os
import pickle
import pickletools
import struct
import subprocess
import sys

import numpy as np
import pytest

from msa_jax.errors import UserError
from msa_jax.safe_io.pickles import load_pickle


class Call:
  """Pickles as a call of any function."""

  def __init__(self, function, *arguments):
    self.function, self.arguments = function, arguments

  def __reduce__(self):
    return self.function, self.arguments


class Named:
  """Pickles as the name of any function, existing or not, called with arguments."""

  def __init__(self, module, name, *arguments):
    self.module, self.name, self.arguments = module, name, arguments

  def stream(self):
    body = pickle.dumps(self.arguments, protocol=2)[2:-1]
    return b"\x80\x02c%b\n%b\n%bR." % (self.module.encode(), self.name.encode(), body)


def load(tmp_path, content):
  path = tmp_path / "file.pkl"
  path.write_bytes(content)
  return load_pickle(path)


def array_stream(shape, code, order, content):
  """Opcodes of one array with a state of our choice."""
  state = pickle.dumps(content, protocol=3)[2:-1]
  return (
    b"\x80\x03cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
    b"C\x01b\x87R(K\x01"
    + pickle.dumps(shape, protocol=3)[2:-1]
    + b"cnumpy\ndtype\nX"
    + struct.pack("<I", len(code))
    + code.encode()
    + b"\x89\x88\x87R(K\x03X\x01\x00\x00\x00"
    + order
    + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
    + state
    + b"tb."
  )


ARRAYS = {
  "float16": np.arange(6, dtype=np.float16).reshape(2, 3),
  "float32": np.float32([1.5, -np.inf, np.nan]),
  "float64": np.linspace(0, 1, 5),
  "big_endian": np.arange(4, dtype=">f4"),
  "integers": np.arange(4, dtype=np.int64),
  "booleans": np.array([True, False]),
  "unicode": np.array(["a", "déjà", "视频"]),
  "byte_strings": np.array([b"ab", b"c"]),
  "objects": np.array(["a", None, 2, b"x", "longer"], dtype=object),
  "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
  "strided": np.arange(10.0)[::3],
  "transposed": np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1),
  "empty": np.zeros((0, 3), np.float32),
}


def numpy1_names(content):
  """The same stream as NumPy 1 would have written it."""
  for name in (b"numpy._core.multiarray", b"numpy._core.numeric"):
    old = name.replace(b"_core", b"core")
    content = content.replace(
      bytes([0x8C, len(name)]) + name, b"\x8c%c" % len(old) + old
    )
    content = content.replace(b"c" + name + b"\n", b"c" + old + b"\n")
  assert b"_core" not in content
  return pickletools.optimize(content)  # Recomputes the lengths of frames.


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("numpy1", [False, True])
def test_arrays_of_every_protocol_and_numpy_come_back_equal(tmp_path, protocol, numpy1):
  data = {
    "arrays": ARRAYS,
    "plain": [1, 2.5, "three", b"four", b"", None, True, (5, [6])],
    "ordered": collections.OrderedDict(a=1),
    "scalars": [np.float32(2.5), np.str_("x"), np.int64(7), np.bool_(True)],
  }
  content = pickle.dumps(data, protocol=protocol)
  found = load(tmp_path, numpy1_names(content) if numpy1 else content)
  # NumPy itself turns big-endian content to native order, in some protocols.
  for name, expected in pickle.loads(content)["arrays"].items():
    np.testing.assert_array_equal(expected, ARRAYS[name])
    assert type(found["arrays"][name]) is np.ndarray
    assert found["arrays"][name].dtype.newbyteorder("=") == expected.dtype.newbyteorder(
      "="
    )
    np.testing.assert_array_equal(found["arrays"][name], expected)
  assert found["plain"] == data["plain"]
  assert found["ordered"] == {"a": 1}
  assert found["scalars"] == data["scalars"]
  assert [type(value) for value in found["scalars"]] == [
    type(value) for value in data["scalars"]
  ]


def test_an_array_that_appears_twice_is_one_array(tmp_path):
  array = np.arange(3.0)
  found = load(tmp_path, pickle.dumps([array, array]))
  assert found[0] is found[1]
  assert not found[0].flags.writeable


def test_object_arrays_may_hold_arrays_of_different_lengths(tmp_path):
  ragged = np.empty(2, object)
  ragged[:] = [np.ones((1, 2)), np.ones((3, 2))]
  found = load(tmp_path, pickle.dumps(ragged))
  assert [type(item) for item in found] == [np.ndarray, np.ndarray]
  assert [item.shape for item in found] == [(1, 2), (3, 2)]


def test_an_object_array_may_hold_itself_without_end(tmp_path):
  array = np.empty(1, object)
  array[0] = array
  with pytest.raises(UserError, match="nested over 32 deep"):
    load(tmp_path, pickle.dumps(array))


def test_python2_arrays_load(tmp_path):
  content = (
    b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b"
    b"\x87R(K\x01K\x02\x85cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R(K\x03U\x01<NNN"
    b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x10"
    + struct.pack("<dd", 1.5, -1e300)
    + b"tb."
  )
  np.testing.assert_array_equal(load(tmp_path, content), [1.5, -1e300])


def test_numpy2_dtype_classes_stand_for_their_dtypes(tmp_path):
  content = (
    b"\x80\x03cnumpy._core.multiarray\nscalar\n"
    b"cnumpy.dtypes\nFloat32DType\n)RC\x04\x00\x00\x80\x3f\x86R."
  )
  assert load(tmp_path, content) == np.float32(1.0)


HOSTILE = {
  f"{os.system.__module__}.system": lambda marker: Call(os.system, f"touch {marker}"),
  "builtins.eval": lambda marker: Call(eval, f"open({str(marker)!r}, 'w')"),
  "builtins.exec": lambda marker: Call(exec, f"open({str(marker)!r}, 'w')"),
  "builtins.getattr": lambda marker: Call(getattr, "text", "upper"),
  "_codecs.decode": lambda marker: Call(codecs.decode, b"x", "latin1"),
  "subprocess.Popen": lambda marker: Call(subprocess.Popen, ["touch", str(marker)]),
  "numpy.load": lambda marker: Call(np.load, str(marker)),
  "io.open": lambda marker: Call(open, str(marker), "w"),
}


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_call_in_the_file_is_refused_by_its_name_and_never_runs(
  tmp_path, name, protocol
):
  marker = tmp_path / "marker"
  call = HOSTILE[name](marker)
  nested = np.empty(2, object)
  nested[:] = ["harmless", call]
  expected = name.replace("numpy.load", r"numpy(\.lib\._npyio_impl)?\.load")
  expected = expected.replace("subprocess", "(subprocess|commands)")
  expected = expected.replace("io.open", "_?io.open")  # `_io` from Python 3.13 on
  if protocol < 3:  # Protocols 0 to 2 use Python 2's names.
    expected = expected.replace("builtins", "__builtin__").replace(
      "_?io.open", r".*open"
    )
  for data in (call, {"train": {"text": nested}}):
    with pytest.raises(UserError, match=f"refused to load {expected}: "):
      load(tmp_path, pickle.dumps(data, protocol=protocol))
  assert not marker.exists()


@pytest.mark.parametrize(
  ("module", "name"),
  [
    ("numpy.testing._private.utils", "runstring"),
    ("numpy.core.multiarray", "fromfile"),
    ("numpy", "memmap"),
    ("importlib", "import_module"),
    ("builtins", "bytearray"),
    ("copyreg", "_reconstructor"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("msa_jax.data.pickles", "load_pickle"),
    ("numpy.core.multiarray._reconstruct", "__globals__"),
  ],
)
def test_names_outside_the_table_are_refused_without_being_imported(
  tmp_path, module, name
):
  before = set(sys.modules)
  with pytest.raises(UserError, match=f"refused to load {module}.{name}: "):
    load(tmp_path, Named(module, name, "x").stream())
  assert set(sys.modules) - before == set()


def test_the_message_is_one_line_whatever_the_name(tmp_path):
  name = b"line\x1b[31m" + b"x" * 500
  with pytest.raises(UserError) as caught:
    load(
      tmp_path,
      b"\x80\x04\x8c\x02os\x8d" + struct.pack("<Q", len(name)) + name + b"\x93.",
    )
  assert str(caught.value).isprintable()
  assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
  ("module", "name", "arguments", "message"),
  [
    ("numpy", "ndarray", ((2,), "f8"), "a direct call of numpy.ndarray"),
    ("numpy", "dtype", ("V8",), "numpy.dtype"),
    ("numpy", "dtype", ("c16",), "numpy.dtype"),
    ("numpy", "dtype", ("M8[ns]",), "numpy.dtype"),
    ("numpy", "dtype", ([("a", "f4")],), "numpy.dtype"),
    ("_codecs", "encode", ("abc", "rot13"), "codecs.encode"),
    ("_codecs", "encode", (b"abc",), "codecs.encode"),
    ("collections", "OrderedDict", ([("a", 1)],), "OrderedDict with arguments"),
    ("builtins", "bytes", (10**12,), "bytes with arguments"),
    ("numpy.core.multiarray", "scalar", ("f8", b"x"), "without a plain numpy.dtype"),
    ("numpy.core.numeric", "_frombuffer", (b"x", "O", (1,), "C"), "without a plain"),
  ],
)
def test_permitted_names_refuse_other_uses(tmp_path, module, name, arguments, message):
  with pytest.raises(UserError, match=f"refused .*{message}"):
    load(tmp_path, Named(module, name, *arguments).stream())


def test_a_crafted_array_state_loads_only_when_it_is_consistent(tmp_path):
  good = array_stream((2,), "f4", b"<", struct.pack("<ff", 1, 2))
  np.testing.assert_array_equal(load(tmp_path, good), [1, 2])
  raw_objects = array_stream((1,), "O8", b"|", b"\x00" * 8)
  with pytest.raises(UserError, match="Python objects made from raw bytes"):
    load(tmp_path, raw_objects)
  with pytest.raises(UserError, match=r"numpy.ndarray of shape \(-1,\)"):
    load(tmp_path, array_stream((-1,), "f4", b"<", b""))
  with pytest.raises(UserError, match="not a readable pickle"):
    load(tmp_path, array_stream((3,), "f4", b"<", b"\x00" * 4))
  with pytest.raises(UserError, match="array content of type list"):
    load(tmp_path, array_stream((1,), "f4", b"<", [1.0]))
  with pytest.raises(UserError, match="characters that do not exist"):
    load(tmp_path, array_stream((1,), "U1", b"<", b"\xff\xff\xff\xff"))
  with pytest.raises(UserError, match="a structured numpy.dtype"):
    load(tmp_path, good.replace(b"NNNJ", b"NK\x01NJ"))


def test_python_objects_cannot_be_made_from_a_buffer(tmp_path):
  content = (
    b"\x80\x03cnumpy._core.multiarray\nscalar\ncnumpy\ndtype\nX\x02\x00\x00\x00O8"
    b"\x85RC\x08\x00\x00\x00\x00\x00\x00\x00\x00\x86R."
  )
  with pytest.raises(UserError, match="Python objects made from raw bytes"):
    load(tmp_path, content)


@pytest.mark.parametrize("first", ["_reconstruct", "_frombuffer"])
def test_an_array_cannot_be_filled_twice(tmp_path, first):
  if first == "_reconstruct":
    once = array_stream((1,), "f4", b"<", b"\x00" * 4)[:-1]
  else:
    once = (
      b"\x80\x03cnumpy._core.numeric\n_frombuffer\n(C\x04\x00\x00\x00\x00cnumpy\ndtype"
      b"\nX\x02\x00\x00\x00f4\x85RK\x01\x85X\x01\x00\x00\x00CtR"
    )
  assert load(tmp_path, once + b".").shape == (1,)
  state = array_stream((1,), "f4", b"<", b"\x00" * 4).split(b"\x87R", 1)[1]
  with pytest.raises(UserError, match="fill a numpy.ndarray twice"):
    load(tmp_path, once + state)


def test_the_file_cannot_change_what_a_name_stands_for(tmp_path):
  for name in (b"c_codecs\nencode\n", b"cnumpy\nndarray\n"):
    with pytest.raises(UserError, match="refused to change a function"):
      load(tmp_path, b"\x80\x02" + name + b"}X\x05\x00\x00\x00_makeK\x01sb.")


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_sets_of_strings_and_numbers_are_read_and_other_sets_refused(
  tmp_path, protocol
):
  members = {"Ses01F_impro01", 3}
  assert load(tmp_path, pickle.dumps(members, protocol=protocol)) == members
  with pytest.raises(UserError, match="refused (a set of|an object of type set)"):
    load(tmp_path, pickle.dumps({(1, 2)}, protocol=protocol))


def test_containers_of_other_kinds_and_bottomless_ones_are_refused(tmp_path):
  with pytest.raises(UserError, match="refused an object of type frozenset"):
    load(tmp_path, pickle.dumps(frozenset({1}), protocol=4))
  with pytest.raises(UserError, match="refused an object of type _Name"):
    load(tmp_path, pickle.dumps(np.ndarray))
  with pytest.raises(UserError, match="refused an object of type dict"):
    load(tmp_path, pickle.dumps({np.ndarray: 1}))
  unfilled = b"\x80\x03cnumpy._core.multiarray\n_reconstruct\n(tR."
  with pytest.raises(UserError, match="refused an object of type _Array"):
    load(tmp_path, unfilled)
  bottomless = []
  bottomless.append(bottomless)
  with pytest.raises(UserError, match="nested over 32 deep"):
    load(tmp_path, pickle.dumps(bottomless))


def test_shared_containers_do_not_multiply(tmp_path):
  doubled = []
  for depth in range(30):  # 2 ** 30 visits if every path were walked.
    doubled = [doubled, doubled]
    if depth == 10:
      assert len(load(tmp_path, pickle.dumps(doubled))) == 2
  # Whoever makes an array of it would walk them all.
  with pytest.raises(UserError, match="refused to make over 64 times the"):
    load(tmp_path, pickle.dumps(doubled))


def test_damaged_files_give_one_line(tmp_path):
  content = pickle.dumps({"a": np.arange(20.0), "b": ["x", np.array(["y"])]})
  for end in range(len(content)):
    with pytest.raises(UserError, match="not a readable pickle, perhaps truncated"):
      load(tmp_path, content[:end])
  for other in (b"id,text\n1,hello\n", b"# a title\n", b"\x89PNG\r\n"):
    with pytest.raises(UserError, match="not a readable pickle"):
      load(tmp_path, other)


def test_an_unreadable_path_gives_the_reason(tmp_path):
  with pytest.raises(UserError, match="is a folder, not a data file"):
    load_pickle(tmp_path)
  with pytest.raises(UserError, match="cannot be read: File name too long"):
    load_pickle(tmp_path / ("x" * 300))
