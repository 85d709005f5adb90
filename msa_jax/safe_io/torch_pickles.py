"""Reading PyTorch's `pytorch_model.bin` without PyTorch and without running it.

Such a file is a zip archive: a pickle that rebuilds tensors, and one member of raw
bytes per storage. The pickle is read by the allow-list reader of `safe_io.pickles` with
stand-ins for the rebuilding functions, which check every size before they look.
"""

import io
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from msa_jax.errors import UserError
from msa_jax.safe_io import archives, files, opcodes
from msa_jax.safe_io.pickles import Budget, _Name, shown

_STORAGES = {
  "FloatStorage": "<f4",
  "HalfStorage": "<f2",
  "BFloat16Storage": "<u2",  # the upper half of a float32
  "DoubleStorage": "<f8",
  "LongStorage": "<i8",
  "IntStorage": "<i4",
  "ShortStorage": "<i2",
  "CharStorage": "i1",
  "ByteStorage": "u1",
  "BoolStorage": "?",
}
_CONTENT = "a file of weights holds tensors by name and nothing else"
_MOST_VIEWS = 8  # shapes of one place, as a matrix and its transpose are
_OLD = "no zip archive, as PyTorch writes since 1.6; save it as model.safetensors"


class _Kind:
  """Stand-in for a class of storages."""

  __slots__ = ("code", "wide")

  def __init__(self, name: str):
    self.code, self.wide = np.dtype(_STORAGES[name]), name == "BFloat16Storage"

  def __setstate__(self, state: Any) -> None:
    raise UserError(f"refused to change a type: {_CONTENT}")


class _Storage:
  """Numbers of a file, and the tensors that were made of them, by place."""

  __slots__ = ("covered", "tensors", "values", "wide")

  def __init__(self, values: np.ndarray, wide: bool):
    self.values, self.wide = values, wide
    self.covered = 0  # numbers of the tensors at different places
    self.tensors: dict[tuple[int, int], dict[Any, np.ndarray]] = {}

  def __setstate__(self, state: Any) -> None:
    raise UserError(f"refused to change a storage: {_CONTENT}")


class _Names(dict):
  """Stand-in for `collections.OrderedDict`, whose attributes are left unread."""

  def __setstate__(self, state: Any) -> None:
    del state


def _whole(values: Any) -> bool:
  return isinstance(values, tuple) and all(type(v) is int and v >= 0 for v in values)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Any:
  del rest  # requires_grad, hooks, metadata
  if not isinstance(storage, _Storage) or not _whole((offset,)):
    raise UserError(f"refused a tensor without a storage: {_CONTENT}")
  if not _whole(shape) or not _whole(strides) or len(shape) != len(strides):
    raise UserError(f"refused a tensor of shape {shown(shape)}: {_CONTENT}")
  total = len(storage.values)
  last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
  # A tensor larger than its storage could only be one number many times.
  if len(shape) > 8 or math.prod(shape) > total or (0 not in shape and last >= total):
    raise UserError(f"refused a tensor of shape {shown(shape)} outside its storage")
  if 0 in shape:
    return np.zeros(shape, np.float32 if storage.wide else storage.values.dtype)
  if _overlaps_itself(shape, strides):
    raise UserError(
      f"refused a tensor of strides {shown(strides)} that overlaps itself"
    )
  # Tied weights are the same place under two names; it is read once.
  if (offset, last) not in storage.tensors:
    storage.covered += math.prod(shape)
  same = storage.tensors.setdefault((offset, last), {})
  if (shape, strides) not in same:
    if storage.covered > total or len(same) == _MOST_VIEWS:
      raise UserError("refused tensors that overlap in a storage")
    same[shape, strides] = _copy(storage, offset, shape, strides)
  return same[shape, strides]


def _overlaps_itself(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
  """Whether two places of a tensor can be one number of its storage."""
  reach = 0  # of the axes with smaller strides
  for stride, size in sorted(zip(strides, shape, strict=True)):
    if size > 1 and stride <= reach:
      return True
    reach += (size - 1) * stride
  return False


def _copy(
  storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> np.ndarray:
  size = storage.values.itemsize
  view = np.lib.stride_tricks.as_strided(
    storage.values[offset:], shape, [s * size for s in strides], writeable=False
  )
  if storage.wide:
    return (view.astype(np.uint32) << 16).view(np.float32)
  return np.array(view)


def _check_apart(storages: dict[str, _Storage]) -> None:
  """Tensors that overlap in part would be more than the file has."""
  for name, storage in storages.items():
    end = -1
    for start, last in sorted(storage.tensors):
      if start <= end:
        raise UserError(f"refused tensors that overlap in storage {name[:20]!r}")
      end = last


def _parameter(tensor: Any, *rest: Any) -> np.ndarray:
  del rest
  if not isinstance(tensor, np.ndarray):
    raise UserError(f"refused a parameter that is no tensor: {_CONTENT}")
  return tensor


def _names(*arguments: Any) -> _Names:
  if arguments:
    raise UserError(f"refused collections.OrderedDict with arguments: {_CONTENT}")
  return _Names()


_FUNCTIONS = {
  ("torch._utils", "_rebuild_tensor_v2"): _tensor,
  ("torch._utils", "_rebuild_parameter"): _parameter,
  ("collections", "OrderedDict"): _names,
}


class _Reader(pickle.Unpickler):
  def __init__(self, stream: io.BytesIO, archive: zipfile.ZipFile, root: str):
    super().__init__(stream)
    self._archive, self._root = archive, root
    self._budget = Budget(stream.getbuffer().nbytes)
    self.storages: dict[str, _Storage] = {}

  def find_class(self, module: str, name: str) -> Any:
    if module == "torch" and name in _STORAGES:
      return _Kind(name)
    if (module, name) not in _FUNCTIONS:
      dotted = f"{module}.{name}".encode("unicode_escape").decode("ascii")[:100]
      raise UserError(f"refused to load {dotted}: {_CONTENT}")
    return _Name(_FUNCTIONS[module, name], self._budget)

  def persistent_load(self, pid: Any) -> _Storage:
    if not isinstance(pid, tuple) or len(pid) != 5 or not isinstance(pid[1], _Kind):
      raise UserError(f"refused a reference that is no storage: {_CONTENT}")
    kind, key, _, count = pid[1:]
    if not isinstance(key, str) or type(count) is not int or count < 0:
      raise UserError(f"refused a storage without name and size: {_CONTENT}")
    if key not in self.storages:
      content = _member(self._archive, f"{self._root}data/{key}")
      if len(content) < count * kind.code.itemsize:
        raise UserError(f"storage {key[:20]!r} is shorter than it says")
      values = np.frombuffer(content, kind.code, count)
      self.storages[key] = _Storage(values, kind.wide)
    found = self.storages[key]
    if (found.values.dtype, found.wide) != (kind.code, kind.wide):
      raise UserError(f"storage {key[:20]!r} has two types")
    return found


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
  try:
    info = archive.getinfo(name)
  except KeyError:
    raise UserError(f"has no member {name[:60]!r}") from None
  if info.compress_type != zipfile.ZIP_STORED:
    raise UserError(f"member {name[:60]!r} is compressed; PyTorch writes none that is")
  return archive.read(info)


def load_torch(path: Path) -> dict[str, np.ndarray]:
  """Reads the tensors of a `pytorch_model.bin`; runs nothing from the file.

  Args:
    path: a file of `torch.save` (PyTorch 1.6 or newer) of a dict of tensors.

  Returns:
    Name -> array; bfloat16 becomes float32.

  Raises:
    UserError: an older or damaged file, one that names anything but tensors and their
      storages, or tensors that reach outside their storage or overlap in part.
  """
  with files.reading(path, "file of weights"):
    with archives.opened(path, "PyTorch file", _OLD) as archive:
      pickles = [n for n in archive.namelist() if n.endswith("data.pkl")]
      if len(pickles) != 1:
        raise UserError("is not a PyTorch file: it must have one data.pkl")
      root = pickles[0].removesuffix("data.pkl")
      content = _member(archive, pickles[0])
      try:
        opcodes.check(content)
      except UserError as error:
        raise UserError(f"not a readable file of weights: {error}") from None
      reader = _Reader(io.BytesIO(content), archive, root)
      value = reader.load()
    _check_apart(reader.storages)
    if not isinstance(value, dict) or not all(
      isinstance(k, str) and isinstance(v, np.ndarray) for k, v in value.items()
    ):
      raise UserError(_CONTENT)
    return dict(value)
