"""Reading pickles of arrays from strangers: nothing in the file is ever executed.

A pickle is a small program that may name any importable function and call it. Here
every name is looked up in a table of stand-ins of our own, which build arrays,
scalars and dtypes after checking their arguments; no real NumPy or Python callable
is reachable, and a name outside the table is refused before it is imported.
Files written by NumPy 1 (`numpy.core`), NumPy 2 (`numpy._core`) and Python 2 load.
"""

import mmap
import pickle
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from msa_jax import memory
from msa_jax.errors import UserError
from msa_jax.safe_io import files, opcodes

_CONTENT = "a data pickle holds only NumPy arrays, numbers, strings, lists and dicts"
_CODE = re.compile(r"[<>|=]?(\?|b1|[iu][1248]|f[248]|[US]\d{1,8}|O[48]?)")
_MAX_DEPTH = 32
_LEAVES = (str, bytes, bytearray, int, float, np.generic)
_PLAIN = 64  # bytes that are counted for any other object


class Budget:
  """Bytes that a file may still have made of it.

  A file of a few bytes may ask for one large thing again and again.
  """

  def __init__(self, size: int):
    """A budget for a file of `size` bytes."""
    self._size = size
    self._left = memory.FLOOR + memory.FACTOR * size

  def take(self, size: int) -> None:
    """Raises UserError if the file asks for more than its size can hold."""
    self._left -= size
    if self._left < 0:
      raise UserError(
        f"refused to make over {memory.FACTOR} times the"
        f" {memory.amount(self._size)} of the file of it"
      )


def shown(value: Any) -> str:
  """A value of a file for a message; of containers only what they are, because one
  that holds another twice, and so on, is endless in print."""
  if isinstance(value, tuple) and all(type(size) is int for size in value[:9]):
    return f"{len(value)} numbers" if len(value) > 8 else str(value)[:40]
  plain = isinstance(value, str | bytes | float | bool) or type(value) is int
  return (
    repr(value[:40] if isinstance(value, str | bytes) else value)[:42]
    if (plain)
    else type(value).__name__
  )


class _Type:
  """Stand-in for a `numpy.dtype` while its pickle is read."""

  __slots__ = ("code", "order")

  def __init__(self, code: Any, align: Any = False, copy: Any = True):
    del align, copy
    code = code.decode("latin1") if isinstance(code, bytes) else code
    if not isinstance(code, str) or not _CODE.fullmatch(code):
      raise UserError(f"refused numpy.dtype({shown(code)}): {_CONTENT}")
    self.code = code.lstrip("<>|=")
    self.order = code[0] if code[0] in "<>" else "="

  def __setstate__(self, state: Any) -> None:
    order, *structure = state[1:5]
    if any(part is not None for part in structure):
      raise UserError(f"refused a structured numpy.dtype: {_CONTENT}")
    self.order = {"<": "<", ">": ">"}.get(order, "=")

  def real(self) -> np.dtype:
    return np.dtype(self.code if self.code[0] in "?bO" else self.order + self.code)


def _checked_type(value: Any, *, objects: bool) -> np.dtype:
  if not isinstance(value, _Type):
    raise UserError(f"refused an array without a plain numpy.dtype: {_CONTENT}")
  dtype = value.real()
  if dtype.hasobject and not objects:
    raise UserError(f"refused Python objects made from raw bytes: {_CONTENT}")
  return dtype


def _raw_bytes(value: Any) -> bytes | bytearray:
  # Python 2 wrote raw bytes as `str`; the unpickler gives them back as Latin-1.
  value = value.encode("latin1") if isinstance(value, str) else value
  if not isinstance(value, bytes | bytearray):
    raise UserError(f"refused array content of type {type(value).__name__}: {_CONTENT}")
  return value


class _Array:
  """Stand-in for an array; its pickled state is checked here and never reaches
  NumPy's own `__setstate__`. Content is shared with the stream's bytes, not copied."""

  __slots__ = ("budget", "value")

  def __init__(self, value: np.ndarray | None = None):
    self.value = value
    self.budget = Budget(0)  # that of the file is set by `_Name`

  def __setstate__(self, state: Any) -> None:
    if self.value is not None:
      raise UserError(f"refused to fill a numpy.ndarray twice: {_CONTENT}")
    shape, dtype, fortran, content = state[-4:]
    dtype = _checked_type(dtype, objects=True)
    if not isinstance(shape, tuple) or any(
      type(size) is not int or size < 0 for size in shape
    ):
      raise UserError(f"refused a numpy.ndarray of shape {shown(shape)}: {_CONTENT}")
    if isinstance(content, str | list):  # of bytes no copy is made
      self.budget.take(8 * len(content))
    if not dtype.hasobject:
      flat = _flat(_raw_bytes(content), dtype)
    elif isinstance(content, list):
      flat = np.empty(len(content), object)
      for position, item in enumerate(content):
        flat[position] = item
    else:
      raise UserError(f"refused Python objects made from raw bytes: {_CONTENT}")
    self.value = flat.reshape(shape, order="F" if fortran else "C")


def characters_exist(array: np.ndarray) -> bool:
  """Whether every code point of an array of strings is one (NumPy does not look)."""
  if array.dtype.kind != "U" or not array.size or not array.dtype.itemsize:
    return True
  flat = np.ascontiguousarray(array).reshape(-1)
  points = flat.view(np.dtype(np.uint32).newbyteorder(array.dtype.byteorder))
  return bool(points.max() <= sys.maxunicode)


def _flat(content: bytes | bytearray, dtype: np.dtype) -> np.ndarray:
  """[n] array over the content of a buffer (`frombuffer` refuses an empty one)."""
  flat = np.frombuffer(content, dtype) if content else np.empty(0, dtype)
  flat.flags.writeable = False  # One array may stand in several places of the file.
  return flat


class _Name:
  """What a permitted name in the file stands for. It can be called, nothing else:
  the pickle opcode that sets attributes ends in `__setstate__`."""

  __slots__ = ("_budget", "_make")

  def __init__(self, make: Callable[..., Any], budget: Budget):
    self._make, self._budget = make, budget

  def __call__(self, *arguments: Any) -> Any:
    made = self._make(*arguments)
    if isinstance(made, _Array):
      made.budget = self._budget
    self._budget.take(_size(made))
    return made

  def __setstate__(self, state: Any) -> None:
    raise UserError(f"refused to change a function: {_CONTENT}")


def _size(made: Any) -> int:
  """Bytes of what a call has made, about."""
  if isinstance(made, bytes | np.generic):
    return len(made) if isinstance(made, bytes) else made.nbytes
  return _PLAIN * (len(made) if isinstance(made, set) else 1)


def _make_array(*arguments: Any) -> _Array:
  del arguments  # Always (ndarray, (0,), "b"): an empty array that gets state later.
  return _Array()


def _make_scalar(dtype: Any, content: Any = b"") -> np.generic:
  dtype = _checked_type(dtype, objects=False)
  flat = _flat(_raw_bytes(content)[: max(1, dtype.itemsize)], dtype)
  _check_characters(flat)
  return flat[0]


def _check_characters(array: np.ndarray) -> None:
  if not characters_exist(array):
    raise UserError("refused strings with characters that do not exist")


def _from_buffer(
  content: Any, dtype: Any, shape: Any, order: Any = "C", axes: Any = None
) -> _Array:
  flat = _flat(_raw_bytes(content), _checked_type(dtype, objects=False))
  if order == "K" and axes is not None:
    return _Array(flat.reshape(shape, order="C").transpose(axes))
  # NumPy refuses an order that it does not know.
  return _Array(flat.reshape(shape, order=cast(Any, order)))


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
  if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
    raise UserError(f"refused codecs.encode other than Latin-1: {_CONTENT}")
  return text.encode("latin1")


def _empty(make: Callable[[], Any], name: str) -> Callable[..., Any]:
  def build(*arguments: Any) -> Any:
    if arguments:
      raise UserError(f"refused {name} with arguments: {_CONTENT}")
    return make()

  return build


def _make_set(members: Any = ()) -> set:
  if not isinstance(members, list | tuple) or not _leaves(members):
    raise UserError(f"refused a set of other things than strings, numbers: {_CONTENT}")
  return set(members)


def _leaves(members: Any) -> bool:
  return all(isinstance(member, _LEAVES) for member in members)


def _array_class(*arguments: Any) -> Any:
  raise UserError(f"refused a direct call of numpy.ndarray: {_CONTENT}")


def _table() -> dict[tuple[str, str], Callable[..., Any]]:
  table: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _array_class,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): _empty(dict, "collections.OrderedDict"),
  }
  for core in ("numpy.core", "numpy._core"):
    table[f"{core}.multiarray", "_reconstruct"] = _make_array
    table[f"{core}.multiarray", "scalar"] = _make_scalar
    table[f"{core}.numeric", "_frombuffer"] = _from_buffer
    table[f"{core}.multiarray", "_frombuffer"] = _from_buffer
  for builtins in ("builtins", "__builtin__"):
    # Protocols 0 to 2 write b"" as a call of `bytes`.
    table[builtins, "bytes"] = _empty(bytes, "bytes")
    table[builtins, "set"] = _make_set  # Protocols 0 to 3; split sets of GCNet.
  sizes = {"Bool": "b1", "Float16": "f2", "Float32": "f4", "Float64": "f8"}
  for bits in (8, 16, 32, 64):
    sizes |= {f"Int{bits}": f"i{bits // 8}", f"UInt{bits}": f"u{bits // 8}"}
  for name, code in sizes.items():
    make = _empty(lambda code=code: _Type(code), f"numpy.dtypes.{name}DType")
    table["numpy.dtypes", f"{name}DType"] = make
  return table


_PERMITTED = _table()


class _Unpickler(pickle.Unpickler):
  def __init__(self, stream: BinaryIO, budget: Budget):
    # Latin-1 is the encoding under which Python 2 arrays survive unchanged.
    super().__init__(stream, encoding="latin1")
    self._budget = budget

  def find_class(self, module: str, name: str) -> _Name:
    make = _PERMITTED.get((module, name))
    if make is None:
      dotted = f"{module}.{name}".encode("unicode_escape").decode("ascii")[:100]
      raise UserError(f"refused to load {dotted}: {_CONTENT}")
    return _Name(make, self._budget)


def _plain(value: Any, seen: dict[int, Any], depth: int = 0) -> Any:
  """Replaces stand-ins by arrays and refuses anything unforeseen."""
  if value is None or isinstance(value, _LEAVES):
    return value
  if id(value) in seen:
    return seen[id(value)]
  if depth > _MAX_DEPTH:
    raise UserError(f"refused containers nested over {_MAX_DEPTH} deep")
  if isinstance(value, _Array) and value.value is not None:
    result = value.value
    # Only here no opcode can change the bytes any more.
    _check_characters(result)
    for position in np.ndindex(*result.shape) if result.dtype.hasobject else ():
      result[position] = _plain(result[position], seen, depth + 1)
  elif isinstance(value, dict) and all(isinstance(key, _LEAVES) for key in value):
    result = {key: _plain(item, seen, depth + 1) for key, item in value.items()}
  elif type(value) is set and _leaves(value):
    result = value
  elif isinstance(value, list | tuple):
    result = type(value)(_plain(item, seen, depth + 1) for item in value)
  else:
    raise UserError(f"refused an object of type {type(value).__name__}: {_CONTENT}")
  seen[id(value)] = result
  return result


def _expanded(value: Any, seen: dict[int, int]) -> int:
  """Bytes of a value in which nothing stands twice, about: whoever makes one array of
  it makes a copy at every place."""
  if isinstance(value, str | bytes | bytearray):
    return len(value) * (4 if isinstance(value, str) else 1)
  if isinstance(value, np.generic) or not isinstance(value, dict | list | tuple | set):
    if not isinstance(value, np.ndarray):
      return 8
    if not value.dtype.hasobject:
      return value.nbytes
  if id(value) not in seen:
    parts = value.values() if isinstance(value, dict) else value
    parts = parts.flat if isinstance(parts, np.ndarray) else parts
    seen[id(value)] = sum(8 + _expanded(part, seen) for part in parts)
  return seen[id(value)]


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
  """A regular file whose opcodes were checked, and its size."""
  with files.regular(path).open("rb") as stream:
    size = stream.seek(0, 2)
    if not size:
      raise UserError("not a readable pickle, perhaps truncated: it is empty")
    with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
      opcodes.check(content)
    stream.seek(0)
    yield stream, size


def load_pickle(path: Path) -> Any:
  """Reads a pickle of arrays and plain containers; runs nothing from the file.

  Args:
    path: an existing file, any pickle protocol (0 to 5), NumPy 1 or 2 names.

  Returns:
    Dicts, lists, tuples, sets, strings, bytes, numbers, None, and `numpy.ndarray` of
    booleans, integers, floats, strings or (from lists) objects of these kinds.
    Arrays of numbers and strings are read-only: they share the memory of what was
    read, and the file may mention one in several places.

  Raises:
    UserError: the file names anything else (the message has the dotted name), is
      truncated, empty, no pickle or no regular file, or would take far more memory
      than its size (see `opcodes.check`).
  """
  with files.reading(path, "pickle"), opened(path) as (stream, size):
    budget = Budget(size)
    value = _plain(_Unpickler(stream, budget).load(), {})
    Budget(size).take(_expanded(value, {}))
    return value
